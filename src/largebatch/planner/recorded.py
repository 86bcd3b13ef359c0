"""What a recorded run says of its noise scale, at first and at last, for a plan."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass

from largebatch.analysis.noise import MIN_STEPS, NotEnough, Piece, along
from largebatch.core.errors import RecordError
from largebatch.record import read_record

PIECES = (8, 4, 2)
"""Parts of the run, of which the first and the last count: the shortest that have enough signal."""


class NotEnoughSignal(RecordError):
    """A record is too short or too noisy to plan from."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """The noise scales of a run.

    Args:
        noise_scales: of its first and its last part, in samples.
        base_batch_size: B0, in samples.
        samples: at the end of the run.
    """

    noise_scales: tuple[float, float]
    base_batch_size: int
    samples: int


def noise_of(path: str | os.PathLike[str]) -> Recorded:
    """The noise scales of the first and the last part of a recorded run.

    Raises:
        RecordError: a damaged file.
        NotEnoughSignal: fewer measured steps than two parts need, or a part of which the interval
            has no upper end; what is missing is said.
    """
    steps = read_record(path).steps
    measured = [step.seen.moments for step in steps if step.seen.moments is not None]
    series = [(m.variance, m.sqnorm) for m in measured if math.isfinite(m.variance + m.sqnorm)]
    if len(series) < 2 * MIN_STEPS:
        raise NotEnoughSignal(
            f"{path}: not enough signal: {len(series)} of {len(steps)} steps measured their noise; "
            f"needed: at least {2 * MIN_STEPS}. Record a longer run, of a method that measures: "
            "largebatch train WORKLOAD --method adascale --record FILE"
        )
    last = steps[-1].seen
    missing = ""
    for pieces in PIECES:
        found = along(series, pieces)
        missing = _missing(found[0]) or _missing(found[-1])
        ends = [piece.noise for piece in (found[0], found[-1])]
        known = [noise.noise_scale for noise in ends if not isinstance(noise, NotEnough)]
        if not missing:
            return Recorded(
                noise_scales=(known[0], known[1]),
                base_batch_size=last.base_batch_size,
                samples=last.samples + last.batch_size,
            )
    raise NotEnoughSignal(
        f"{path}: not enough signal in measured steps {missing}. Record a longer run, or one with "
        "more samples a step."
    )


def _missing(piece: Piece) -> str:
    """Of a part without a bounded noise scale: which steps, and why; "" where it has one."""
    noise = piece.noise
    if not isinstance(noise, NotEnough) and not math.isinf(noise.high):
        return ""
    why = noise if isinstance(noise, NotEnough) else "its interval has no upper end"
    return f"{piece.start + 1} to {piece.stop}: {why}"
