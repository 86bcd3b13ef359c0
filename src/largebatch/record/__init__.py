"""Where a run's steps go: a file of JSON lines, or memory; and how they come back."""

from largebatch.record.checkpoints import Checkpoint, Checkpoints
from largebatch.record.jsonl import JsonlRecord
from largebatch.record.memory import MemoryRecord
from largebatch.record.read import Record, Step, read_record

__all__ = [
    "Checkpoint",
    "Checkpoints",
    "JsonlRecord",
    "MemoryRecord",
    "Record",
    "Step",
    "read_record",
]
