"""Finished runs of a comparison in a directory, so that an interrupted one goes on.

settings.json        what all runs share; another setting is another comparison
runs.jsonl           one run a line, each written at once, so that a crash cuts at most the last
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
    """What all runs of a comparison share. Methods, scales and seeds are not among it: more of
    them may be added to a comparison that is there."""

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
        """Ten characters that differ if any field differs."""
        text = json.dumps(encode(self), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:10]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunKey:
    """One run of a comparison, by what tells it from the others."""

    method: str
    scale: int
    seed: int
    budget: Budget

    @classmethod
    def of(cls, result: RunResult) -> RunKey:
        """The cell that a run fills."""
        return cls(method=result.method, scale=result.scale, seed=result.seed, budget=result.budget)


class RunStore:
    """The runs in a directory; `add` changes it.

    Args:
        directory: made if it is not there.
        shared: what its runs share.

    Raises:
        ValueError: the directory holds runs with other settings.
        RecordError: a line that is not as written.
    """

    def __init__(self, directory: Path, shared: ComparisonSettings) -> None:
        self.directory = directory
        self._path = directory / "runs.jsonl"
        directory.mkdir(parents=True, exist_ok=True)
        self._claim(directory / "settings.json", shared)
        self._runs = self._read()

    def get(self, cell: RunKey) -> RunResult | None:
        """The finished run of a cell, if there is one."""
        return self._runs.get(cell)

    def add(self, result: RunResult) -> None:
        """Keeps a finished run."""
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
            f"{field.name} {getattr(there, field.name)} there, {getattr(shared, field.name)} here"
            for field in fields(ComparisonSettings)
            if getattr(there, field.name) != getattr(shared, field.name)
        ]
        if differing:
            raise ValueError(
                f"{self.directory} holds runs with other settings ({'; '.join(differing)}). "
                f"Name another directory: --out runs/compare-{shared.digest}"
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
                raise RecordError(f"{where} is not JSON ({error}): remove the line.") from None
            runs[RunKey.of(result)] = result
        return runs
