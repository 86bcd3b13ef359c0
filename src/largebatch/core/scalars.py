"""Collect the numbers of one training step by name, for loggers and progress displays."""

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
"""Names of all numbers that `scalars_of` may return."""


def averaged(past: MovingMoments, seen: Measurement) -> MovingMoments:
    """Return the running averages of (variance, sqnorm) after adding a training step's moments.

    The averages start again if this training step is earlier than the last averaged training step,
    because it then belongs to another run.

    Args:
        past: Averages before this training step.
        seen: Measurement of this training step. If the training step has no moments, the result is
            `past`.
    """
    if not seen.finite or seen.moments is None:
        return past
    if past.known and seen.samples < past.measured_at:
        past = MovingMoments()
    return past.add(seen.moments, seen)


def noise_scale_of(moments: MovingMoments) -> float | None:
    """Return mean variance / mean sqnorm in samples, or None if it is unknown or infinite.

    Args:
        moments: Running averages of the gradient's moments.
    """
    if not moments.known:
        return None
    variance, sqnorm = moments.average.values
    value = noise_scale(variance=variance, sqnorm=sqnorm)
    return value if math.isfinite(value) else None


def scalars_of(
    seen: Measurement, decision: Decision, *, moments: MovingMoments
) -> dict[str, float]:
    """Return the numbers in `SCALARS` that one training step has and that are finite.

    A training step that was skipped because loss or gradient was not finite has only `batch_size`,
    `base_steps` and `skipped`.

    >>> seen = Measurement(step=0, samples=0, base_steps=0, batch_size=128, base_batch_size=64,
    ...     base_lr=0.1)
    >>> decision = Decision(next_batch_size=128, base_steps=1.5, lr_multiplier=2.0)
    >>> scalars_of(seen, decision, moments=MovingMoments())["lr"]
    0.2

    Args:
        seen: Measurement of the training step.
        decision: Decision for the training step.
        moments: Running averages, which include this training step's moments.

    Returns:
        loss: Mean loss over the step's samples.
        lr: Learning rate of the first parameter group: base learning rate x lr_multiplier.
        lr_multiplier: Factor for the learning rate of every parameter group.
        batch_size: Number of samples in this training step, over all ranks.
        base_steps: Number of base steps that the run counts as, this training step included.
        gain: Number of base steps that this training step counts as.
        noise_scale: Gradient noise scale in samples, computed from the averages. Only training
            steps that measured moments have this number.
        skipped: Number of training steps skipped so far because loss or gradient was not finite.
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
