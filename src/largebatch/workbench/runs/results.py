"""Define the progress and the result of a run as values that can be stored as JSON."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from largebatch.core.codec import LATER
from largebatch.core.measurement import Budget

Metrics = Mapping[str, float]
"""Mean of each metric over a data split, by the metric's name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """Describe a run after one of its training steps.

    Args:
        label: Name of the run.
        step: Number of optimizer steps so far.
        samples: Number of training samples so far.
        batch_size: Number of samples of the step, over all ranks.
        lr_multiplier: Factor on the base learning rate in the step.
        loss: Mean training loss of the step.
        fraction: Used fraction of the budget, in [0, 1].
        lr: Learning rate of the first parameter group in the step; None if the step was skipped.
        gain: Number of base steps that the step counts as; None if the step was skipped.
        noise_scale: Noise scale in samples, averaged over the steps so far; None if unknown.
        adam_noise_scale: Noise scale of the preconditioned gradient in samples, averaged over the
            steps so far; None if unknown.
        skipped: Number of steps so far that were skipped because of non-finite values.
        cut: Whether the step is the last one and smaller than the batch size, because the budget
            of samples ended.
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
"""Function that receives the progress after each training step, and messages as text."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """Hold one point of the validation curve.

    Args:
        step: Number of optimizer steps so far.
        samples: Number of training samples so far.
        base_steps: Base steps so far.
        train_loss: Mean training loss over the steps since the previous point.
        validation: Validation metrics at the point.
    """

    step: int
    samples: int
    base_steps: float
    train_loss: float
    validation: Metrics


@dataclass(frozen=True, slots=True, kw_only=True)
class Environment:
    """Hold the software versions and the machine of a run.

    The result of a run can depend on the software versions and on the machine.
    """

    largebatch: str
    torch: str
    python: str
    threads: int
    device: str
    ranks: int
    data: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunResult:
    """Hold the result of a run.

    Args:
        workload: Name of the workload.
        method: Name of the method.
        scale: Batch size as a multiple S of the base batch size.
        seed: Seed of the model and of the sample order.
        lr: Base learning rate.
        clip_norm: Largest norm of the gradient; None if gradients were not clipped.
        budget: Requested length of the run.
        base_batch_size: Base batch size B0, in samples.
        batch_size: Batch size B = S * B0 of the first step, in samples over all ranks.
        steps: Number of optimizer steps.
        samples: Number of training samples.
        base_steps: Number of base steps that the method counted for the run.
        mean_gain: Mean number of base steps that one step counted as: base_steps / steps. For a
            method that counts samples, the mean gain is S.
        mean_lr_multiplier: Mean factor on the base learning rate, the schedule included.
        skipped: Number of steps that were skipped because of non-finite values.
        diverged: Whether training stopped because of non-finite values, or a final validation
            metric is not finite.
        validation: Validation metrics at the end; empty if training stopped early.
        test: Test metrics at the end; empty if training stopped early.
        curve: Validation metrics at even distances along the budget.
        seconds: Wall time of training and evaluation. The wall time of a resumed run excludes
            training after the last checkpoint before an interruption, and the pause until the run
            was resumed.
        settings: Software versions and machine.
        extra_samples: Number of samples that were used only for measuring.
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
