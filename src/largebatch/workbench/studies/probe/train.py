"""The training behind a probe: measured steps of a model that may be trained."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import nn
from torch.optim import Optimizer

from largebatch.act.controller import Controller
from largebatch.act.fetch import MapStyle
from largebatch.act.loader import BatchLoader
from largebatch.checks.samples import Pieces, fingerprint
from largebatch.checks.subject import Loss
from largebatch.core.measurement import GradientMoments
from largebatch.core.rule import Rule, chain
from largebatch.measure.blocks import BlockNorms
from largebatch.measure.meter import Meter
from largebatch.measure.preconditioned import PreconditionedNorms
from largebatch.rules import Observe, Schedule
from largebatch.rules.factors import Factor
from largebatch.workbench.studies.probe.checks import (
    Check,
    check_data,
    check_loss,
    check_model,
    check_unused,
)

PARTS = 4
"""Micro-batches of a step; `largebatch.workbench.studies.probe.probe` says why."""

Progress = Callable[[int, int], None]
"""Called with (steps done, steps in all) after each step."""

Pair = tuple[float, float]
"""(variance, sqnorm) of one step."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """What is probed, and may be trained.

    Args:
        name: how it is called.
        model, optimizer, loss, batches, base_batch_size: as in `probe_run`.
        micro_batch_size: most samples in one backward call, where that is bounded.
        run_steps: steps of the whole run at the base batch.
        schedule: factor of the learning rate at a fraction of the run.
        command_name: by which `largebatch train` knows it.
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


@dataclass(slots=True)
class Trace:
    """What the steps showed; filled while they are taken."""

    losses: list[float] = field(default_factory=list)
    moments: list[Pair] = field(default_factory=list)
    preconditioned: list[Pair] = field(default_factory=list)
    blocks: dict[str, list[Pair]] = field(default_factory=dict)
    checks: list[Check] = field(default_factory=list)
    parts: int = 0


def batches_of(subject: Subject, *, batch_size: int, ranks: int, seed: int) -> BatchLoader:
    """The batches of the probe, cut into PARTS micro-batches or more where those were too large."""
    piece = max(batch_size // (PARTS if ranks == 1 else ranks * max(PARTS // ranks, 1)), 1)
    piece = min(piece, subject.micro_batch_size or piece)
    if isinstance(subject.batches, MapStyle):
        source: Any = subject.batches
        return BatchLoader(source, batch_size=batch_size, max_micro_batch_size=piece, seed=seed)
    return BatchLoader(Pieces(subject.batches, size=piece), batch_size=batch_size)


def train(
    subject: Subject,
    *,
    meter: Meter,
    blocks: BlockNorms,
    adam: bool,
    steps: int,
    batches: BatchLoader,
    progress: Progress | None,
) -> Trace:
    """Trains for so many steps and notes what they show.

    Args:
        subject: what is trained.
        meter: with `blocks` among its statistics.
        blocks: the statistic that keeps the moments of each block.
        adam: whether to measure the gradient as Adam scales it, too.
        steps: how many.
        batches: the samples.
        progress: called after each step.
    """
    wanted = ("moments", "preconditioned_moments") if adam else ("moments",)
    rule: Rule = Observe(statistics=wanted)
    if subject.schedule is not None:
        rule = chain(rule, Schedule(factor=subject.schedule))
    trace = Trace()
    control = Controller(
        subject.model,
        subject.optimizer,
        rule,
        batches,
        base_batch_size=subject.base_batch_size,
        meter=meter,
    )
    trace.blocks = {name: [] for name in blocks.names}
    fingerprints: list[int] = []
    for batch in control.steps(steps=max(subject.run_steps, steps)):
        for micro_batch in batch:
            if not trace.parts:
                if not fingerprints:
                    trace.checks.append(check_loss(subject.model, subject.loss, micro_batch))
                fingerprints.append(fingerprint(micro_batch))
            control.backward(subject.loss(subject.model, micro_batch))
        reading = control.measure()
        if not trace.parts:
            trace.checks.append(check_data(fingerprints, ranks=meter.rank_count))
            trace.checks.append(check_unused(subject.model))
        trace.parts = trace.parts or batch.accumulation * meter.rank_count
        if reading.finite and reading.moments is not None:
            _note(trace, reading.moments, blocks, loss=reading.loss or 0.0)
            warm = len(trace.losses) > PreconditionedNorms.WARM
            if warm and reading.preconditioned_moments is not None:
                trace.preconditioned.append(_pair(reading.preconditioned_moments))
        control.step()
        if progress is not None:
            progress(control.optimizer_steps, steps)
        if control.optimizer_steps >= steps:
            break
    trace.checks += check_model(subject.model)
    return trace


def _note(trace: Trace, moments: GradientMoments, blocks: BlockNorms, *, loss: float) -> None:
    trace.losses.append(loss)
    trace.moments.append(_pair(moments))
    for name, of_block in blocks.last.items():
        trace.blocks[name].append(_pair(of_block))


def _pair(moments: GradientMoments) -> Pair:
    return moments.variance, moments.sqnorm
