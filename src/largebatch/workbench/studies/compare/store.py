"""Store the finished runs of a comparison in a directory, so that the comparison can be resumed.

settings.json        the settings that all runs share; different settings need another directory
runs.jsonl           one finished run per line; a crash can truncate only the last line
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path

from largebatch.core.codec import decode, encode
from largebatch.core.errors import RecordError
from largebatch.core.measurement import Budget
from largebatch.workbench.runs.results import RunResult


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparisonSettings:
    """Hold the settings that all runs of a comparison share.

    Methods, scales and seeds are not included, because they can be added to an existing comparison.
    """

    workload: str
    summary: str
    base_batch_size: int
    micro_batch_size: int
    lr: float
    base_steps: int
    dataset_size: int
    data: Mapping[str, str]
    largebatch: str
    torch: str
    python: str

    @property
    def digest(self) -> str:
        """Return ten characters that identify the values of all fields."""
        text = json.dumps(encode(self), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:10]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunKey:
    """Identify one run of a comparison by its method, scale, seed and budget."""

    method: str
    scale: int
    seed: int
    budget: Budget

    @classmethod
    def of(cls, result: RunResult) -> RunKey:
        """Return the key of a finished run."""
        return cls(method=result.method, scale=result.scale, seed=result.seed, budget=result.budget)


class RunStore:
    """Store finished runs in a directory. Mutable: `add` appends a run.

    Args:
        directory: Directory of the runs. The directory is created if it does not exist.
        shared: Settings that all runs in the directory share.

    Raises:
        ValueError: The directory holds runs with other settings.
        RecordError: A line of runs.jsonl is corrupted.
    """

    def __init__(self, directory: Path, shared: ComparisonSettings) -> None:
        self.directory = directory
        self._path = directory / "runs.jsonl"
        directory.mkdir(parents=True, exist_ok=True)
        self._claim(directory / "settings.json", shared)
        self._runs = self._read()

    def get(self, cell: RunKey) -> RunResult | None:
        """Return the finished run with the given key, or None if no finished run has the key."""
        return self._runs.get(cell)

    def add(self, result: RunResult) -> None:
        """Append a finished run to runs.jsonl."""
        line = json.dumps(encode(result), separators=(",", ":"), allow_nan=False) + "\n"
        with open(self._path, "ab", buffering=0) as file:
            file.write(line.encode())
        self._runs[RunKey.of(result)] = result

    def _claim(self, path: Path, shared: ComparisonSettings) -> None:
        if not path.exists():
            partial = path.with_suffix(".partial")
            partial.write_text(json.dumps(encode(shared), indent=1) + "\n")
            os.replace(partial, path)
            return
        there = decode(ComparisonSettings, json.loads(path.read_text()), where=str(path))
        differing = [
            f"{field.name} is {getattr(there, field.name)} in the directory and "
            f"{getattr(shared, field.name)} in this call"
            for field in fields(ComparisonSettings)
            if getattr(there, field.name) != getattr(shared, field.name)
        ]
        if differing:
            raise ValueError(
                f"The directory {self.directory} holds runs with other settings: "
                f"{'; '.join(differing)}. Pass another directory: "
                f"out='runs/compare-{shared.digest}'."
            )

    def _read(self) -> dict[RunKey, RunResult]:
        if not self._path.exists():
            return {}
        content = self._path.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            os.truncate(self._path, whole)
        runs = {}
        for number, line in enumerate(content[:whole].splitlines(), start=1):
            where = f"{self._path}, line {number}"
            try:
                result = decode(RunResult, json.loads(line), where=where)
            except ValueError as error:
                raise RecordError(
                    f"{where}: the line is not valid JSON ({error}). Remove the line; compare then "
                    "repeats its run."
                ) from None
            runs[RunKey.of(result)] = result
        return runs
