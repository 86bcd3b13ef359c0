"""What a report draws of a record: curves thinned to what a page can show, and what changed why."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from largebatch.analysis.noise import NoiseEstimate, along
from largebatch.record import Record, Step
from largebatch.workbench.reports.facts import (
    ADAM_NOISE,
    NOISE,
    facts_of,
    moments_of,
    notes_of,
    places_of,
    series_of,
)

AXES = ("steps", "samples", "base steps")
"""What a curve may be drawn over: the clocks after each step."""

CHANGES = 200
"""Most rows of one list in a report."""

UNMEASURED = "the run did not measure it"


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """A line over each axis, with a band where one point stands for several or has an interval.

    Args:
        name: of what is drawn.
        x: axis -> places, as many as values.
        y, low, high: the values and the band; low and high are empty without one.
    """

    name: str
    x: Mapping[str, tuple[float, ...]]
    y: tuple[float | None, ...]
    low: tuple[float | None, ...] = ()
    high: tuple[float | None, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """A step after which the batch was another, that was skipped, or whose reason was given in no
    other step, as where a warm-up ends."""

    step: int
    samples: int
    what: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """Reasons that differ in their numbers alone."""

    example: str
    count: int
    first: int
    last: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawn:
    """One run as a report shows it.

    Args:
        name: of its file.
        facts: label -> text, for the table.
        curves: what is drawn; one without values says in `missing` why.
        open_ended: whether an interval of the noise scale has no upper end; its band is cut.
        missing: name of a curve -> why there is none.
        changes: of the batch, steps skipped, reasons given once; the first and last of many.
        left_out: changes beyond them.
        kinds: the reasons of all steps, grouped.
        notes: what to know about the file.
    """

    name: str
    facts: Mapping[str, str]
    curves: tuple[Curve, ...]
    open_ended: bool
    missing: Mapping[str, str]
    changes: tuple[Change, ...]
    left_out: int
    kinds: tuple[Kind, ...]
    notes: tuple[str, ...]


def drawn(record: Record, *, name: str, points: int = 400) -> Drawn:
    """What to show of a record.

    Args:
        record: of a run, whole or up to its damage.
        name: how the run is called.
        points: most points of a curve; beyond, each is the mean of several, with their range.
    """
    sound = [step for step in record.steps if step.seen.finite]
    values: dict[str, list[float | None]] = {
        "training loss": [step.seen.loss for step in sound],
        "learning rate": [_rate(step) for step in sound],
        "batch size": [float(step.seen.batch_size) for step in sound],
        "gain": [step.decision.base_steps for step in sound],
    }
    curves = [_thinned(title, sound, ys, points=points) for title, ys in values.items()]
    missing = {curve.name: "the record has no such number" for curve in curves if not curve.y}
    noises = {name: _noise(sound, name) for name in (NOISE, ADAM_NOISE)}
    curves += [noise for noise, _, _ in noises.values() if noise is not None]
    missing |= {name: why for name, (_, _, why) in noises.items() if why}
    changes = _changes(record)
    shown = (
        changes if len(changes) <= CHANGES else changes[: CHANGES // 2] + changes[-CHANGES // 2 :]
    )
    return Drawn(
        name=name,
        facts=facts_of(record),
        curves=tuple(curve for curve in curves if curve.y),
        open_ended=any(open_ended for _, open_ended, _ in noises.values()),
        missing=missing,
        changes=tuple(shown),
        left_out=len(changes) - len(shown),
        kinds=_kinds(record.steps),
        notes=notes_of(record),
    )


def _rate(step: Step) -> float | None:
    base = step.seen.base_lr
    return None if base is None else base * step.decision.lr_multiplier


def _thinned(
    name: str, steps: Sequence[Step], values: Sequence[float | None], *, points: int
) -> Curve:
    pairs = [(s, y) for s, y in zip(steps, values, strict=True) if y is not None]
    size = max(1, math.ceil(len(pairs) / points))
    groups = [pairs[at : at + size] for at in range(0, len(pairs), size)]
    places = [places_of(group[-1][0]) for group in groups]
    ys = [[y for _, y in group] for group in groups]
    return Curve(
        name=name,
        x={axis: tuple(map(_short, column)) for axis, column in _columns(places)},
        y=tuple(_short(math.fsum(y) / len(y)) for y in ys),
        low=tuple(_short(min(y)) for y in ys) if size > 1 else (),
        high=tuple(_short(max(y)) for y in ys) if size > 1 else (),
    )


def _noise(steps: Sequence[Step], name: str) -> tuple[Curve | None, bool, str]:
    """The curve, with a gap where nothing is known; whether a band is cut; why there is none."""
    measured = [step for step in steps if moments_of(step, name) is not None]
    if not measured:
        return None, False, UNMEASURED
    pieces = along(series_of(measured, name), pieces=24)
    known = [p.noise if isinstance(p.noise, NoiseEstimate) else None for p in pieces]
    values = [value for noise in known if noise for value in (noise.noise_scale, *_ends(noise))]
    if not values:
        return None, False, str(pieces[0].noise)
    top = 2.0 * max(filter(math.isfinite, values))
    places = [places_of(measured[(p.start + p.stop - 1) // 2]) for p in pieces]
    curve = Curve(
        name=name,
        x={axis: tuple(map(_short, column)) for axis, column in _columns(places)},
        y=tuple(_positive(noise.noise_scale) if noise else None for noise in known),
        low=tuple(
            _short(max(noise.low, min(noise.noise_scale, 1.0))) if noise else None
            for noise in known
        ),
        high=tuple(_short(min(noise.high, top)) if noise else None for noise in known),
    )
    return curve, not all(map(math.isfinite, (n.high for n in known if n))), ""


def _ends(noise: NoiseEstimate) -> tuple[float, float]:
    return noise.low, noise.high


def _columns(places: Sequence[tuple[float, ...]]) -> list[tuple[str, tuple[float, ...]]]:
    columns = list(zip(*places, strict=True)) or [() for _ in AXES]
    return list(zip(AXES, columns, strict=True))


def _positive(value: float) -> float | None:
    return _short(value) if math.isfinite(value) and value > 0.0 else None


def _short(value: float) -> float:
    return float(f"{value:.6g}")


def _changes(record: Record) -> list[Change]:
    if not record.steps:
        return []
    found, before = [], record.header.get("batch_size", record.steps[0].seen.batch_size)
    words = Counter(_wording(step.decision.reason) for step in record.steps)
    last = len(record.steps) - 1
    for at, step in enumerate(record.steps):
        seen, decision = step
        after = seen.samples + seen.batch_size
        if not seen.finite:
            what = f"skipped, loss {seen.loss}"
        elif decision.next_batch_size != before:
            what = f"batch {before} to {decision.next_batch_size}"
        elif 0 < at < last and words[_wording(decision.reason)] == 1:
            what = f"rate {_short(_rate(step) or 0.0):.4g}"
        else:
            before = decision.next_batch_size
            continue
        before = decision.next_batch_size
        found.append(Change(step=seen.step + 1, samples=after, what=what, reason=decision.reason))
    return found


def _kinds(steps: Sequence[Step]) -> tuple[Kind, ...]:
    groups: dict[str, list[tuple[int, str]]] = {}
    for seen, decision in steps:
        groups.setdefault(_wording(decision.reason), []).append((seen.step + 1, decision.reason))
    kinds = [
        Kind(
            example=group[-1][1] or "(none)", count=len(group), first=group[0][0], last=group[-1][0]
        )
        for group in groups.values()
    ]
    return tuple(sorted(kinds, key=lambda kind: -kind.count)[:50])


def _wording(reason: str) -> str:
    """A reason without its numbers."""
    return re.sub(r"[0-9.]+(e[-+]?[0-9]+)?", "#", reason)


def names_of(paths: Sequence[Path]) -> list[str]:
    """Short names that tell the files apart."""
    stems = [path.stem for path in paths]
    return stems if len(set(stems)) == len(stems) else [str(path) for path in paths]
