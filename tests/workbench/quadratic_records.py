"""Make records of runs on noisy quadratics."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

import largebatch as lb
from largebatch.workbench.quadratic import Phase, Spectrum, forecast

BATCH = 16
LR = 0.3
STEPS = 800

LAW = Spectrum.power_law(
    2000,
    curvature_exponent=1.3,
    start_exponent=0.3,
    curvature=2.0,
    start=1.0,
    noise=2.0,
    floor=0.3,
    bins=300,
)


def cosine(step: int, *, steps: int = STEPS) -> float:
    return 0.5 * (1.0 + math.cos(math.pi * step / steps))


def quadratic_record(
    path: Path,
    *,
    steps: int = STEPS,
    momentum: float = 0.0,
    optimizer: str | None = "SGD",
    scatter: float = 0.02,
    losses: bool = True,
    moments: bool = True,
    falls: bool = True,
    lower: float = 0.0,
    lost: int = 0,
) -> Path:
    """A run of `LAW` with a cosine, whose losses scatter.

    With momentum the base rate is as much lower, so that the run is the same. The losses are
    lowered by a number; before each of so many steps stands one that was not finite.
    """
    rates = [cosine(step, steps=steps) for step in range(steps)]
    run = forecast(LAW, [Phase(batch_size=BATCH, lr=LR * f, steps=1) for f in rates])
    noise = 1.0 + scatter * np.random.default_rng(0).standard_normal(steps)
    facts: dict[str, Any] = {"base_batch_size": BATCH}
    if optimizer is not None:
        facts["optimizer"] = {"name": optimizer, "momentum": momentum, "dampening": 0.0}
    record = lb.JsonlRecord(path)
    record.start(facts)
    skipped = 0
    for step in range(steps):
        if lost and step % lost == lost - 1:
            spoiled = lb.Measurement(
                step=step, samples=BATCH * (step + skipped), base_steps=step, batch_size=BATCH,
                base_batch_size=BATCH, base_lr=LR * (1.0 - momentum), finite=False,
            )  # fmt: skip
            record.write(spoiled, lb.Decision(next_batch_size=BATCH, base_steps=1.0))
            skipped += 1
        sqnorm = LAW.variance / run.noise_scale[step]
        seen = lb.Measurement(
            step=step,
            samples=BATCH * (step + skipped),
            base_steps=step,
            batch_size=BATCH,
            base_batch_size=BATCH,
            base_lr=LR * (1.0 - momentum),
            loss=(run.loss[step] if falls else 1.0) * float(noise[step]) - lower
            if losses
            else None,
            moments=lb.GradientMoments(
                batch_size=BATCH,
                parts=2,
                batch_sqnorm=sqnorm + LAW.variance / BATCH,
                variance=LAW.variance,
            )
            if moments
            else None,
        )
        record.write(
            seen, lb.Decision(next_batch_size=BATCH, base_steps=1.0, lr_multiplier=rates[step])
        )
    record.close()
    return path
