"""All checks of a run, in one call that changes nothing of it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from largebatch.checks.data import compare_ranks, facts_of_data
from largebatch.checks.finding import CheckUp, Finding, merged
from largebatch.checks.gradients import check_gradients
from largebatch.checks.loaders import check_loader
from largebatch.checks.losses import COARSE, FINE, check_mean, check_scaled
from largebatch.checks.models import check_modes, check_norms, check_parameters
from largebatch.checks.optimizers import check_closure, check_rule
from largebatch.checks.overhead import PARTS, Timed, check_overhead
from largebatch.checks.precision import check_precision, precisions_of
from largebatch.checks.samples import samples_in
from largebatch.checks.subject import Loss, Subject
from largebatch.checks.untouched import copied, untouched
from largebatch.core.measurement import OF_THE_STEP
from largebatch.measure.parameters import bare


def check_up(subject: Subject, *, seconds: float) -> CheckUp:
    """Everything that is checked of a run; called on every rank, and the same on each.

    Weights, buffers, gradients, optimizer, generators, loader and clocks keep their bits. What the
    user's loss raises is a finding.

    Args:
        subject: the run.
        seconds: for timing, about; 0 leaves it out.
    """
    ranks = subject.meter.ranks
    with untouched(subject.model, subject.optimizer, scaler=subject.scaler, seed=0):
        facts = facts_of_data(subject.batches, subject.micro_batches)
        found = compare_ranks(ranks.gather(facts))
        own = _without_loss(subject)
        if subject.loss is not None and subject.micro_batches:
            own += _with_loss(subject, subject.loss, subject.micro_batches[0])
        found += merged(ranks.gather(own))
        usable = all(finding.level != "error" for finding in found)
        if subject.loss is not None and subject.micro_batches and usable:
            found += merged(ranks.gather(_with_copy(subject, subject.loss, seconds=seconds)))
        elif subject.loss is None or not subject.micro_batches:
            found.append(_not_computed(subject))
    return CheckUp(findings=tuple(found))


def _without_loss(subject: Subject) -> list[Finding]:
    found = check_parameters(subject) + check_modes(subject)
    found += check_rule(subject.optimizer, subject.decider)
    found += check_norms(
        bare(subject.model),
        micro_batch=_size(subject.micro_batches),
        base=subject.decider.base_batch_size,
        ranks=subject.ranks,
    )
    if subject.batches is not None:
        found += check_loader(
            subject.batches, accumulation=subject.accumulation, ranks=subject.ranks
        )
    return found


def _with_loss(subject: Subject, loss: Loss, micro_batch: Any) -> list[Finding]:
    model = bare(subject.model)
    scaler = subject.scaler if subject.batches is not None else None  # else the user's loop scales
    precisions: set[torch.dtype] = set()

    def gradients() -> list[Finding]:
        with precisions_of(model) as seen:
            try:
                return check_gradients(subject, loss, micro_batch)
            finally:
                precisions.update(seen)

    found, raised = _guarded(gradients)
    if raised or any(finding.name == "loss" for finding in found):
        return found
    found += check_precision(precisions, subject.scaler)
    checks = [partial(check_scaled, model, loss, micro_batch, scaler)]
    if _size(subject.micro_batches) is not None:
        close = COARSE if precisions else FINE
        checks.append(partial(check_mean, model, loss, micro_batch, close=close))
    for check in checks:
        more, raised = _guarded(check)
        found += more
        if raised:
            break
    return found


def _with_copy(subject: Subject, loss: Loss, *, seconds: float) -> list[Finding]:
    """What needs steps: a copy takes them."""
    parts = max(min(subject.accumulation, PARTS), 1 if subject.ranks > 1 else 2)
    given = subject.micro_batches
    try:
        model, optimizer = copied(subject.model, subject.optimizer)
        timed = Timed(
            model,
            optimizer,
            loss,
            [given[at % len(given)] for at in range(parts)],
            statistics=tuple(
                sorted(subject.decider.rule.needs & subject.meter.provides & OF_THE_STEP)
            ),
        )
        loss(bare(model), given[0]).backward()
        found = check_closure(optimizer)
        optimizer.zero_grad()
        if found or not timed.statistics or not seconds > 0.0:
            return found
        gather = subject.meter.ranks.gather
        return check_overhead(timed, seconds=seconds, agree=lambda number: max(gather(number)))
    except Exception as error:
        seen = f"Measuring could not be timed on a copy of the model: {error}"
        return [Finding(name="cost of measuring", level="note", seen=seen)]


def _guarded(check: Callable[[], list[Finding]]) -> tuple[list[Finding], bool]:
    """What a check found, and whether the user's loss raised in it, which is a finding, too."""
    try:
        return check(), False
    except Exception as error:
        cause = f"{type(error).__name__}: {error}".rstrip(": ")
    return [
        Finding(
            name="loss",
            level="error",
            seen=f"loss(model, micro_batch) raised {cause}",
            why="What follows from the loss was not looked at.",
            remedy="It is called with the bare model and a micro-batch as the loop gets it: "
            "control.check(lambda model, batch: loss_fn(model(batch[0]), batch[1]))",
        )
    ], True


def _size(micro_batches: tuple[Any, ...]) -> int | None:
    try:
        return samples_in(micro_batches[0]) if micro_batches else None
    except ValueError:
        return None


def _not_computed(subject: Subject) -> Finding:
    missing = "a loss" if subject.loss is None else "a micro-batch"
    call = "control.check(loss, batch)" if subject.batches is None else "control.check(loss)"
    return Finding(
        name="loss",
        level="note",
        seen=f"Loss, gradients and the cost of measuring were not looked at without {missing}.",
        remedy=f"{call}, with loss(model, micro_batch) -> mean loss",
    )
