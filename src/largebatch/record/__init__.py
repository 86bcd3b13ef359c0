"""Write a run's training steps to JSON lines, memory or loggers, and read the steps back."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from largebatch.core.lazy import lazy_names

if TYPE_CHECKING:
    from largebatch.record.checkpoints import Checkpoint as Checkpoint
    from largebatch.record.checkpoints import Checkpoints as Checkpoints
    from largebatch.record.csv_log import CsvLogger as CsvLogger
    from largebatch.record.jsonl import JsonlRecord as JsonlRecord
    from largebatch.record.logged import Logged as Logged
    from largebatch.record.memory import MemoryRecord as MemoryRecord
    from largebatch.record.read import Record as Record
    from largebatch.record.read import Step as Step
    from largebatch.record.read import read_record as read_record
    from largebatch.record.replay_rule import replay as replay
    from largebatch.record.tee import Tee as Tee

NAMES: Mapping[str, str] = {
    "Checkpoint": "largebatch.record.checkpoints",
    "Checkpoints": "largebatch.record.checkpoints",
    "CsvLogger": "largebatch.record.csv_log",
    "JsonlRecord": "largebatch.record.jsonl",
    "Logged": "largebatch.record.logged",
    "MemoryRecord": "largebatch.record.memory",
    "Record": "largebatch.record.read",
    "Step": "largebatch.record.read",
    "Tee": "largebatch.record.tee",
    "read_record": "largebatch.record.read",
    "replay": "largebatch.record.replay_rule",
}

__all__ = [*NAMES]

if not TYPE_CHECKING:  # type checkers read the imports above
    __getattr__ = lazy_names(__name__, NAMES)


def __dir__() -> list[str]:
    """Return all public names, including the names that are not imported yet."""
    return sorted(__all__)
