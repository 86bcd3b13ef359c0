"""A record read back, every line checked."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from largebatch.core.codec import decode
from largebatch.core.decision import Decision
from largebatch.core.errors import RecordError
from largebatch.core.measurement import Measurement


class Step(NamedTuple):
    """What was seen and what was decided in one optimizer step."""

    seen: Measurement
    decision: Decision


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """A run as it was written: the trajectory that led to the last weights.

    Args:
        header: what describes the run, as given to `start`, and the writing version; of a resumed
            run, the first header.
        steps: in order of time.
        redone: steps left out since a resumed run took them again.
        truncated: whether the last line was cut by a crash, and left out.
        damage: where and how the file is damaged, if it was read up to there.
    """

    header: Mapping[str, Any]
    steps: tuple[Step, ...]
    redone: int = 0
    truncated: bool = False
    damage: str = ""


def read_record(path: str | os.PathLike[str], *, up_to_damage: bool = False) -> Record:
    """The record in a file that `JsonlRecord` wrote.

    A last line without its newline was cut by a crash: it is left out and reported as `truncated`.

    Args:
        path: the file.
        up_to_damage: whether to give the steps before the first line that is not as written, and
            say in `damage` which one it is.

    Raises:
        RecordError: no header, or any other line that is not as written; with its number. Or a file
            that cannot be read.
    """
    lines = _Lines()
    damage = ""
    try:
        for where, line in _numbered_lines(Path(path)):
            lines.add(line, where=where)
    except RecordError as error:
        if not (up_to_damage and lines.headers):
            raise
        damage = str(error)
    except OSError as error:
        raise RecordError(f"{path} cannot be read ({error.strerror}).") from error
    if not lines.headers:
        raise RecordError(f"{path} has no header: nothing was recorded, or it is not a record.")
    return Record(
        header=lines.headers[0],
        steps=tuple(lines.steps),
        redone=lines.redone,
        truncated=lines.truncated,
        damage=damage,
    )


class _Lines:
    """A record as far as it was read; `add` takes the next line."""

    def __init__(self) -> None:
        self.headers: list[Mapping[str, Any]] = []
        self.steps: list[Step] = []
        self.redone, self.truncated, self._resumed = 0, False, False

    def add(self, line: bytes, *, where: str) -> None:
        if not line.endswith(b"\n"):
            self.truncated = True
            return
        plain = _parse(line, where=where)
        if not self.headers or plain.keys() == {"header"}:
            self.headers.append(_header(plain, where=where))
            self._resumed = True
            return
        step = _step(plain, where=where)
        while self._resumed and self.steps and self._goes_back(step):
            self.steps.pop()
            self.redone += 1
        if self.steps and self._goes_back(step):
            raise RecordError(f"{where}: the samples go back without a resumed run's header.")
        self.steps.append(step)
        self._resumed = False

    def _goes_back(self, step: Step) -> bool:
        return self.steps[-1].seen.samples >= step.seen.samples


def _numbered_lines(path: Path) -> Iterator[tuple[str, bytes]]:
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            yield f"{path}, line {number}", line


def _parse(line: bytes, *, where: str) -> dict[str, Any]:
    try:
        plain = json.loads(line, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise RecordError(f"{where} is not JSON: {error}. The file was damaged.") from None
    if not isinstance(plain, dict):
        raise RecordError(f"{where} is neither a header nor a step: {plain!r:.80}")
    return plain


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not legal JSON")


def _header(plain: dict[str, Any], *, where: str) -> Mapping[str, Any]:
    header = plain.get("header")
    if plain.keys() != {"header"} or not isinstance(header, dict):
        raise RecordError(f"{where} should be a record's header.")
    return header


def _step(plain: dict[str, Any], *, where: str) -> Step:
    if plain.keys() != {"seen", "decision"}:
        raise RecordError(f"{where} should have 'seen' and 'decision', found {sorted(plain)}.")
    return Step(
        seen=decode(Measurement, plain["seen"], where=f"{where}: seen"),
        decision=decode(Decision, plain["decision"], where=f"{where}: decision"),
    )
