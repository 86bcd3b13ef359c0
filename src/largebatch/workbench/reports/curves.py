"""Compute the curves of a report, with few enough points for a page."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from largebatch.analysis.noise import NoiseEstimate, along
from largebatch.record import Step
from largebatch.workbench.reports.facts import measures_gain, moments_of, places_of, series_of

AXES = ("steps", "samples", "base steps")
"""Horizontal axes that a curve can be drawn over, each a count up to and including the step."""

UNMEASURED = "the run did not measure the noise scale"
NO_GAIN = "the method measures no gain"


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportCurve:
    """Hold one curve of a report.

    Args:
        name: Name of the quantity.
        x: Horizontal positions by the name of the axis, one position per value.
        y: Values of the curve; None is a gap.
        low, high: Lower and upper edge of the band around the curve; empty if the curve has no
            band. The band is a confidence interval, or the range of several steps that one point
            stands for.
    """

    name: str
    x: Mapping[str, tuple[float, ...]]
    y: tuple[float | None, ...]
    low: tuple[float | None, ...] = ()
    high: tuple[float | None, ...] = ()


def run_curves(steps: Sequence[Step], *, points: int) -> list[ReportCurve]:
    """Return the training loss, learning rate, batch size and gain over a run.

    A curve is empty if the record does not contain its values. The curve of the gain is empty if
    the method does not measure a gain.

    Args:
        steps: Steps of the run, all with finite values.
        points: Largest number of points of a curve. In a longer run, each point is the mean of
            several steps, and the band is their range.
    """
    gained = measures_gain(steps)
    values: dict[str, list[float | None]] = {
        "training loss": [step.seen.loss for step in steps],
        "learning rate": [lr_of(step) for step in steps],
        "batch size": [float(step.seen.batch_size) for step in steps],
        "gain": [step.decision.base_steps if gained else None for step in steps],
    }
    return [_thinned(title, steps, ys, points=points) for title, ys in values.items()]


def noise_curve(steps: Sequence[Step], name: str) -> tuple[ReportCurve | None, bool, str]:
    """Return the curve of a noise scale, whether its band is cut off, and why a curve is missing.

    The curve has a gap where the noise scale cannot be estimated. The band is cut off where the
    confidence interval has no upper bound.

    Args:
        steps: Steps of the run, all with finite values.
        name: Name of the noise scale, `NOISE` (raw gradient) or `ADAM_NOISE` (gradient divided as
            Adam divides it).
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
    """Return the learning rate of a step, or None if the record does not contain it."""
    base = step.seen.base_lr
    return None if base is None else base * step.decision.lr_multiplier


def short(value: float) -> float:
    """Return a number rounded to six significant digits."""
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
