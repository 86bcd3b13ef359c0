"""What a run tells while it lasts, and what it came to: plain values that go to JSON and back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from largebatch.core.codec import LATER
from largebatch.core.measurement import Budget

Metrics = Mapping[str, float]
"""Name -> mean over a split."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """A run after one of its steps.

    Args:
        label: which run.
        step, samples: the clocks after the step.
        batch_size: samples of the step, over all ranks.
        lr_multiplier: factor on the base rate in the step.
        loss: mean training loss of the step.
        fraction: of the budget used, in [0, 1].
        lr: rate of the first parameter group in the step; None of a lost one.
        gain: base steps that the step was worth; None of a lost one.
        noise_scale: in samples, averaged over the steps so far; None where it is not known.
        adam_noise_scale: the same of the gradient as Adam scales it.
        skipped: steps lost to non-finite values so far.
        cut: whether this is the last step of a budget in samples, smaller than its batch.
    """

    label: str
    step: int
    samples: int
    batch_size: int
    lr_multiplier: float
    loss: float | None
    fraction: float
    lr: float | None = None
    gain: float | None = None
    noise_scale: float | None = None
    adam_noise_scale: float | None = None
    skipped: int = 0
    cut: bool = False


Report = Callable[[Progress | str], None]
"""Called after each step, and with a line of text where something is worth saying."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """A point of the validation curve; `train_loss` is the mean over the steps since the last."""

    step: int
    samples: int
    base_steps: float
    train_loss: float
    validation: Metrics


@dataclass(frozen=True, slots=True, kw_only=True)
class Environment:
    """The versions and the machine of a run, which its result may depend on."""

    largebatch: str
    torch: str
    python: str
    threads: int
    device: str
    ranks: int
    data: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunResult:
    """The result of a run.

    Args:
        workload, method: by name.
        scale, seed, lr, clip_norm, budget: as asked for; `lr` is the base rate.
        base_batch_size, batch_size: B0 and B = S B0, in samples.
        steps, samples, base_steps: the clocks at the end.
        mean_gain: base_steps / steps, what a step was worth on the method's own clock; S for a
            method that counts samples.
        mean_lr_multiplier: mean factor on the base rate, a schedule's included.
        skipped: steps lost to non-finite values.
        diverged: whether the run was given up, or a validation metric at its end is not finite.
        validation, test: metrics at the end; none after a run that was given up.
        curve: validation at even parts of the budget.
        seconds: wall time of training and evaluation; of a resumed run, of all its parts up to
            what was saved, without the time between them.
        settings: versions and machine.
        extra_samples: spent on measuring besides the training samples.
    """

    workload: str
    method: str
    scale: int
    seed: int
    lr: float
    clip_norm: float | None
    budget: Budget
    base_batch_size: int
    batch_size: int
    steps: int
    samples: int
    base_steps: float
    mean_gain: float
    mean_lr_multiplier: float
    skipped: int
    diverged: bool
    validation: Metrics
    test: Metrics
    curve: tuple[Point, ...]
    seconds: float
    settings: Environment
    extra_samples: int = field(default=0, metadata=LATER)
