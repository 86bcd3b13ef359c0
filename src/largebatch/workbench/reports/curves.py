"""The curves of a report, thinned to what a page can show."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from largebatch.analysis.noise import NoiseEstimate, along
from largebatch.record import Step
from largebatch.workbench.reports.facts import moments_of, places_of, series_of

AXES = ("steps", "samples", "base steps")
"""What a curve may be drawn over: the clocks after each step."""

UNMEASURED = "the run did not measure it"


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportCurve:
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


def run_curves(steps: Sequence[Step], *, points: int) -> list[ReportCurve]:
    """Return loss, rate, batch size and gain over a run; those that it lacks have no values.

    Args:
        steps: of the run, each finite.
        points: most points of a curve; beyond, each is the mean of several, with their range.
    """
    values: dict[str, list[float | None]] = {
        "training loss": [step.seen.loss for step in steps],
        "learning rate": [lr_of(step) for step in steps],
        "batch size": [float(step.seen.batch_size) for step in steps],
        "gain": [step.decision.base_steps for step in steps],
    }
    return [_thinned(title, steps, ys, points=points) for title, ys in values.items()]


def noise_curve(steps: Sequence[Step], name: str) -> tuple[ReportCurve | None, bool, str]:
    """Return the noise scale's curve, whether its band is cut, and why there is no curve.

    The curve has a gap where nothing is known.
    """
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
    curve = ReportCurve(
        name=name,
        x={axis: tuple(map(short, column)) for axis, column in _columns(places)},
        y=tuple(_positive(noise.noise_scale) if noise else None for noise in known),
        low=tuple(
            short(max(noise.low, min(noise.noise_scale, 1.0))) if noise else None for noise in known
        ),
        high=tuple(short(min(noise.high, top)) if noise else None for noise in known),
    )
    return curve, not all(map(math.isfinite, (n.high for n in known if n))), ""


def lr_of(step: Step) -> float | None:
    """Return the learning rate of a step, or None if the record does not hold it."""
    base = step.seen.base_lr
    return None if base is None else base * step.decision.lr_multiplier


def short(value: float) -> float:
    """Return a number with six digits."""
    return float(f"{value:.6g}")


def _thinned(
    name: str, steps: Sequence[Step], values: Sequence[float | None], *, points: int
) -> ReportCurve:
    pairs = [(s, y) for s, y in zip(steps, values, strict=True) if y is not None]
    size = max(1, math.ceil(len(pairs) / points))
    groups = [pairs[at : at + size] for at in range(0, len(pairs), size)]
    places = [places_of(group[-1][0]) for group in groups]
    ys = [[y for _, y in group] for group in groups]
    return ReportCurve(
        name=name,
        x={axis: tuple(map(short, column)) for axis, column in _columns(places)},
        y=tuple(short(math.fsum(y) / len(y)) for y in ys),
        low=tuple(short(min(y)) for y in ys) if size > 1 else (),
        high=tuple(short(max(y)) for y in ys) if size > 1 else (),
    )


def _ends(noise: NoiseEstimate) -> tuple[float, float]:
    return noise.low, noise.high


def _columns(places: Sequence[tuple[float, ...]]) -> list[tuple[str, tuple[float, ...]]]:
    columns = list(zip(*places, strict=True)) or [() for _ in AXES]
    return list(zip(AXES, columns, strict=True))


def _positive(value: float) -> float | None:
    return short(value) if math.isfinite(value) and value > 0.0 else None
