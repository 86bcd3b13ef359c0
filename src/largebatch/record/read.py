"""Read a record back from its file, and check every line."""

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
    """Hold the measurement and the decision of one training step.

    >>> seen = Measurement(step=0, samples=0, base_steps=0, batch_size=64, base_batch_size=64)
    >>> Step(seen, Decision(next_batch_size=128, base_steps=1.0)).decision.next_batch_size
    128

    Args:
        seen: Measurement of the training step.
        decision: Decision that the rule made from the measurement.
    """

    seen: Measurement
    decision: Decision


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """Hold a run that was read from its record: the training steps that led to the last weights.

    >>> Record(header={"rule": "AdaScale"}, steps=()).truncated
    False

    Args:
        header: Facts that were passed to `start`, and the version that wrote the record. The record
            of a resumed run has several headers, and `header` is the first header.
        steps: Training steps, oldest first.
        redone: Number of training steps left out because a resumed run repeated them.
        truncated: Whether a crash truncated the last line, which is then left out.
        damage: Error message about the first corrupted line, or "" if no line is corrupted.
    """

    header: Mapping[str, Any]
    steps: tuple[Step, ...]
    redone: int = 0
    truncated: bool = False
    damage: str = ""


def read_record(path: str | os.PathLike[str], *, up_to_damage: bool = False) -> Record:
    """Read the record in a file that `JsonlRecord` wrote.

    A last line without a newline was truncated by a crash. A truncated line is left out, and
    `truncated` is then True.

    >>> import largebatch as lb
    >>> record = lb.JsonlRecord(getfixture("tmp_path") / "run.jsonl")
    >>> record.start({"base_batch_size": 64})
    >>> record.close()
    >>> lb.read_record(record.path).header["base_batch_size"]
    64

    Args:
        path: Path of the file.
        up_to_damage: Whether to accept a corrupted line. If True, the result has the training steps
            before the first corrupted line, and `damage` names the line.

    Raises:
        RecordError: The file cannot be read, it has no header, or a line is corrupted. The message
            names the number of the line.
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
        raise RecordError(
            f"{path} cannot be read ({error.strerror}). Pass the path of an existing record: "
            "lb.read_record('run.jsonl')."
        ) from error
    if not lines.headers:
        raise RecordError(
            f"{path} has no header: nothing was recorded, or the file is not a record. Pass a file "
            "that lb.JsonlRecord wrote."
        )
    return Record(
        header=lines.headers[0],
        steps=tuple(lines.steps),
        redone=lines.redone,
        truncated=lines.truncated,
        damage=damage,
    )


class _Lines:
    """Collect the lines of a record that were read so far. `add` takes the next line."""

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
            raise RecordError(
                f"{where}: the number of samples decreases, but no header of a resumed run comes "
                "before this line. The file is corrupted. Read the training steps before this "
                "line: lb.read_record(path, up_to_damage=True)."
            )
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
        raise RecordError(
            f"{where} is not JSON: {error}. The file is corrupted. Read the training steps before "
            "this line: lb.read_record(path, up_to_damage=True)."
        ) from None
    if not isinstance(plain, dict):
        raise RecordError(
            f"{where} should be a header or a training step, but it is {plain!r:.80}. The file is "
            "corrupted, or it is not a record."
        )
    return plain


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not allowed in JSON")


def _header(plain: dict[str, Any], *, where: str) -> Mapping[str, Any]:
    header = plain.get("header")
    if plain.keys() != {"header"} or not isinstance(header, dict):
        raise RecordError(
            f"{where} should be the header of a record, but it has the keys "
            f"{sorted(plain)!s:.200}. Pass a file that lb.JsonlRecord wrote."
        )
    return header


def _step(plain: dict[str, Any], *, where: str) -> Step:
    if plain.keys() != {"seen", "decision"}:
        raise RecordError(
            f"{where} should have the keys 'decision' and 'seen', but it has the keys "
            f"{sorted(plain)!s:.200}. The file is corrupted, or it is not a record."
        )
    return Step(
        seen=decode(Measurement, plain["seen"], where=f"{where}: seen"),
        decision=decode(Decision, plain["decision"], where=f"{where}: decision"),
    )
