"""Where a run's steps go: a file of JSON lines, memory, loggers; and how they come back."""

from largebatch.record.checkpoints import Checkpoint, Checkpoints
from largebatch.record.csv_log import CsvLogger
from largebatch.record.jsonl import JsonlRecord
from largebatch.record.logged import Logged
from largebatch.record.memory import MemoryRecord
from largebatch.record.read import Record, Step, read_record
from largebatch.record.tee import Tee

__all__ = [
    "Checkpoint",
    "Checkpoints",
    "CsvLogger",
    "JsonlRecord",
    "Logged",
    "MemoryRecord",
    "Record",
    "Step",
    "Tee",
    "read_record",
]
