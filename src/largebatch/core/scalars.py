"""A step's numbers by name, for loggers and for whoever watches a run."""

from __future__ import annotations

import math

from largebatch.core.decision import Decision
from largebatch.core.measurement import Measurement, noise_scale
from largebatch.core.moving_moments import MovingMoments

SCALARS = (
    "loss",
    "lr",
    "lr_multiplier",
    "batch_size",
    "base_steps",
    "gain",
    "noise_scale",
    "skipped",
)
"""Every name that `scalars_of` may give."""


def averaged(past: MovingMoments, seen: Measurement) -> MovingMoments:
    """The averages of (variance, sqnorm) with this step's moments in them, if it has any; begun
    anew if the step is not later than the last one in them, as in another run."""
    if not seen.finite or seen.moments is None:
        return past
    if past.known and seen.samples < past.measured_at:
        past = MovingMoments()
    return past.add(seen.moments, seen)


def noise_scale_of(moments: MovingMoments) -> float | None:
    """Mean variance / mean sqnorm in samples; None where there is none, or it has no bound."""
    if not moments.known:
        return None
    variance, sqnorm = moments.average.values
    value = noise_scale(variance=variance, sqnorm=sqnorm)
    return value if math.isfinite(value) else None


def scalars_of(
    seen: Measurement, decision: Decision, *, moments: MovingMoments
) -> dict[str, float]:
    """What a step has of `SCALARS`; what it lacks, or what is not finite, is left out.

    A step lost to non-finite values has its batch and the clocks alone.

    >>> seen = Measurement(step=0, samples=0, base_steps=0, batch_size=128, base_batch_size=64,
    ...     base_lr=0.1)
    >>> decision = Decision(next_batch_size=128, base_steps=1.5, lr_multiplier=2.0)
    >>> scalars_of(seen, decision, moments=MovingMoments())["lr"]
    0.2

    Args:
        seen, decision: of the step.
        moments: the running averages, this step's moments among them.

    Returns:
        loss: mean over the step's samples.
        lr: of the first parameter group in this step; base rate x lr_multiplier.
        batch_size: in samples.
        base_steps: the clock after the step.
        gain: base steps of this step.
        noise_scale: in samples, of the averages, in steps that measured.
        skipped: steps lost to non-finite values so far, this one included.
    """
    values: dict[str, float | None] = {
        "batch_size": seen.batch_size,
        "base_steps": seen.base_steps + decision.base_steps,
        "skipped": seen.skipped + (not seen.finite),
    }
    if seen.finite:
        values |= {
            "loss": seen.loss,
            "lr": seen.base_lr * decision.lr_multiplier,
            "lr_multiplier": decision.lr_multiplier,
            "gain": decision.base_steps,
            "noise_scale": None if seen.moments is None else noise_scale_of(moments),
        }
    known = {name: values.get(name) for name in SCALARS}
    return {name: v for name, v in known.items() if v is not None and math.isfinite(v)}
