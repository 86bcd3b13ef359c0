"""Train and measure steps: record the gradient noise of each step, and check the first step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from largebatch.act.controller import Controller
from largebatch.act.fetch import MapStyle
from largebatch.act.loader import BatchLoader
from largebatch.act.micro_batches import MicroBatches
from largebatch.act.passes import samples_of_pass
from largebatch.checks.checked_run import Loss
from largebatch.checks.finding import Finding
from largebatch.checks.samples import CutBatches
from largebatch.core.measurement import Budget, GradientMoments
from largebatch.core.rule import Rule, chain
from largebatch.measure.blocks import BlockNorms
from largebatch.measure.meter import Meter
from largebatch.measure.preconditioned import PreconditionedNorms
from largebatch.measure.taps import Detached
from largebatch.rules import Observe, Schedule
from largebatch.rules.factors import Factor
from largebatch.studies.first_step import FirstStepChecks
from largebatch.studies.noise_of_run import overscaled
from largebatch.studies.training_loop import train_until
from largebatch.studies.useful_signal import effective_lr

PARTS = 4
"""Number of micro-batches per step; `largebatch.studies.probe` gives the reason."""

StepCounter = Callable[[int, int], None]
"""Function that is called with (steps done, total steps) after each step."""

Pair = tuple[float, float]
"""Pair (variance, sqnorm) of one step."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeTarget:
    """Describe a model to probe; probing trains this model.

    Args:
        name: Name of the workload, or of the model's class.
        model, optimizer, loss, batches, base_batch_size: These arguments have the same meaning as
            in `probe`.
        micro_batch_size: Largest number of samples in one backward call; None sets no limit.
        run_steps: Number of steps of the whole run at the base batch size.
        schedule: Function from the fraction of the run that is done to a factor of the learning
            rate.
        command_name: Name of the workload for `largebatch train`; None if it has no such name.
    """

    name: str
    model: nn.Module
    optimizer: Optimizer
    loss: Loss
    batches: Any
    base_batch_size: int
    micro_batch_size: int | None = None
    run_steps: int
    schedule: Factor | None = None
    command_name: str | None = None


@dataclass(slots=True, kw_only=True)
class Trace:
    """Hold the numbers of the measured steps.

    This class is mutable: it is filled while the steps are taken.

    Args:
        batch_size: Number of samples in one step.
        adam: Whether the optimizer belongs to the Adam family.
        ranks: Number of processes that share the batch.
        dataset_size: Number of samples in one epoch; None if unknown.
        known_samples: Value of `dataset_size`, or the number of samples over all ranks that a
            DataLoader's samplers show.
        sizes: Number of parameters of each block (module) of the model.
        losses, moments: Loss and moments of each step.
        preconditioned: Moments of the preconditioned gradient (divided as Adam divides it), after
            Adam's first steps.
        blocks: Moments of each block (module) of the model.
        findings: Findings of the checks.
        parts: Number of micro-batches per step, over all ranks.
        lrs: Effective learning rate of each step with SGD; empty with other optimizers.
    """

    batch_size: int
    adam: bool
    ranks: int
    dataset_size: int | None
    known_samples: int | None = None
    sizes: dict[str, int]
    losses: list[float] = field(default_factory=list)
    moments: list[Pair] = field(default_factory=list)
    preconditioned: list[Pair] = field(default_factory=list)
    blocks: dict[str, list[Pair]] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)
    parts: int = 0
    lrs: list[float] = field(default_factory=list)

    @property
    def scaled(self) -> bool:
        """Whether the noise scale is computed from the preconditioned gradient (divided as Adam
        divides it).
        """
        return self.adam and not overscaled(
            self.preconditioned, batch_size=self.batch_size, parameters=sum(self.sizes.values())
        )

    @property
    def series(self) -> list[Pair]:
        """Moments of each step, from which the noise scale is computed."""
        return self.preconditioned if self.scaled else self.moments

    @property
    def series_losses(self) -> list[float]:
        """Training losses of the steps in `series`."""
        return self.losses[len(self.losses) - len(self.series) :]


def measure_steps(
    target: ProbeTarget,
    *,
    steps: int,
    batch_size: int,
    seed: int = 0,
    progress: StepCounter | None = None,
) -> Trace:
    """Train for a number of steps and measure each of them.

    Args:
        target: Model to train, with its optimizer, loss and data.
        steps: Number of steps to take.
        batch_size: Number of samples in one step, over all ranks.
        seed: Seed of the sample order.
        progress: Function that is called with (steps done, total steps) after each step.

    Raises:
        ValueError: A step needs more samples than the data has, or the loss is a sum.
        NotFinite: Training diverges.
    """
    observer = _Observer(target, batch_size=batch_size, seed=seed)
    control, trace = observer.control, observer.trace

    def count() -> None:
        observer.after_step()
        if progress is not None:
            progress(control.optimizer_steps, steps)

    diverged = train_until(
        control,
        observer.loss,
        Budget(steps=max(target.run_steps, steps)),
        after_backward=observer.after_backward,
        after_step=count,
        until=lambda: control.optimizer_steps >= steps,
    )
    if diverged is not None:
        raise diverged
    trace.findings += observer.checks.check_model()
    return trace


class _Observer:
    """Record what the steps of a controller show.

    This class is mutable: it holds the controller and the trace.
    """

    def __init__(self, target: ProbeTarget, *, batch_size: int, seed: int) -> None:
        self.target, self.blocks = target, BlockNorms()
        self.lr = effective_lr(target.optimizer)
        adam = PreconditionedNorms()
        meter = Meter(target.model, statistics=[self.blocks, adam], tap=Detached())
        batches = _batches_of(target, batch_size=batch_size, ranks=meter.rank_count, seed=seed)
        known = _known_samples(target.batches, batches, ranks=meter.rank_count)
        _check_fits(known, base_batch_size=target.base_batch_size, batch_size=batch_size)
        adam_like = adam.divides(target.optimizer)
        self.control = Controller(
            target.model,
            target.optimizer,
            _rule_of(target, adam=adam_like),
            batches,
            base_batch_size=target.base_batch_size,
            meter=meter,
        )
        self.checks = FirstStepChecks(self.control, meter, target.loss)
        self.trace = Trace(
            batch_size=batch_size,
            adam=adam_like,
            ranks=meter.rank_count,
            dataset_size=batches.dataset_size,
            known_samples=known,
            sizes=dict(self.blocks.sizes),
            blocks={name: [] for name in self.blocks.names},
        )

    def loss(self, model: nn.Module, micro_batch: Any) -> Tensor:
        """Return the target's loss; in the first step, check the micro-batch before computing the
        loss.
        """
        if not self.trace.parts:
            self.trace.findings += self.checks.check_micro_batch(micro_batch)
        return self.target.loss(model, micro_batch)

    def after_backward(self, batch: MicroBatches) -> None:
        """Read the meter after the last backward call of a step."""
        reading = self.control.measure()
        trace = self.trace
        if not trace.parts:
            trace.findings += self.checks.check_gradients()
            trace.parts = batch.accumulation * trace.ranks
        if reading.finite and reading.moments is not None:
            trace.losses.append(reading.loss or 0.0)
            trace.moments.append(_pair(reading.moments))
            for name, of_block in self.blocks.last.items():
                trace.blocks[name].append(_pair(of_block))
            warm = len(trace.losses) > PreconditionedNorms.WARM
            if warm and reading.preconditioned_moments is not None:
                trace.preconditioned.append(_pair(reading.preconditioned_moments))

    def after_step(self) -> None:
        """Record the learning rate of a measured step."""
        if self.lr is not None and len(self.trace.lrs) < len(self.trace.moments):
            self.trace.lrs.append(self.lr * self.control.lr_multiplier)


def _rule_of(target: ProbeTarget, *, adam: bool) -> Rule:
    wanted = ("moments", "preconditioned_moments") if adam else ("moments",)
    rule: Rule = Observe(statistics=wanted)
    if target.schedule is None:
        return rule
    return chain(rule, Schedule(factor=target.schedule))


def _batches_of(target: ProbeTarget, *, batch_size: int, ranks: int, seed: int) -> BatchLoader:
    """Return batches that are cut into PARTS micro-batches, or into more micro-batches if PARTS
    micro-batches would exceed the largest allowed size.
    """
    piece = max(batch_size // (PARTS if ranks == 1 else ranks * max(PARTS // ranks, 1)), 1)
    piece = min(piece, target.micro_batch_size or piece)
    if isinstance(target.batches, MapStyle):
        source: Any = target.batches
        return BatchLoader(source, batch_size=batch_size, max_micro_batch_size=piece, seed=seed)
    return BatchLoader(CutBatches(target.batches, size=piece), batch_size=batch_size)


def _known_samples(given: Any, batches: BatchLoader, *, ranks: int) -> int | None:
    if batches.dataset_size is None and isinstance(given, DataLoader):
        of_this_rank = samples_of_pass(given)
        return None if of_this_rank is None else of_this_rank * ranks
    return batches.dataset_size


def _check_fits(known: int | None, *, base_batch_size: int, batch_size: int) -> None:
    """Raise an error if a step would read samples twice."""
    sizes = (("base_batch_size", base_batch_size), ("batch_size", batch_size))
    for name, size in sizes:
        if known is not None and size > known:
            raise ValueError(
                f"{name}={size} was given, but the data has only {known} samples, so one step "
                "would read samples twice. Pass fewer samples: "
                f"lb.probe(..., {name}={min(known, 64)})."
            )


def _pair(moments: GradientMoments) -> Pair:
    return moments.variance, moments.sqnorm
