"""What a recorded run says of its noise scale, at first and at last, for a plan."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass

from largebatch.analysis.noise import MIN_STEPS, NotEnough, along
from largebatch.core.errors import RecordError
from largebatch.record import read_record

PIECES = 8
"""Parts of the run, of which the first and the last count."""


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
    pieces = along(series, PIECES)
    found = []
    for name, piece in (("first", pieces[0]), ("last", pieces[-1])):
        noise = piece.noise
        if isinstance(noise, NotEnough) or math.isinf(noise.high):
            why = noise if isinstance(noise, NotEnough) else "its interval has no upper end"
            raise NotEnoughSignal(
                f"{path}: not enough signal in the {name} {piece.stop - piece.start} measured "
                f"steps: {why}. Record a longer run, or one with more samples a step."
            )
        found.append(noise.noise_scale)
    last = steps[-1].seen
    return Recorded(
        noise_scales=(found[0], found[1]),
        base_batch_size=last.base_batch_size,
        samples=last.samples + last.batch_size,
    )
