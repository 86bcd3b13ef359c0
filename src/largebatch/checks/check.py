"""Define `lb.check`, which runs all checks of a run in one call and changes nothing in the run."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from largebatch.act.attached import Attached
from largebatch.act.controller import Controller
from largebatch.act.joint_optimizers import members_of, optimizer_names
from largebatch.checks.checked_run import CheckedRun, Loss, check_between_steps, checked_run_of
from largebatch.checks.data import compare_ranks, facts_of_data
from largebatch.checks.dimensions import check_sample_dimension
from largebatch.checks.finding import CheckUp, Finding, merged
from largebatch.checks.gradients import check_gradients
from largebatch.checks.loaders import check_loader
from largebatch.checks.losses import COARSE, FINE, check_scaled
from largebatch.checks.models import check_modes, check_norms, check_parameters
from largebatch.checks.optimizers import check_closure, check_rule
from largebatch.checks.overhead import PARTS, Timed, check_overhead
from largebatch.checks.precision import check_precision, precisions_of
from largebatch.checks.samples import samples_in
from largebatch.checks.snapshot import copy_run, keep_run_state
from largebatch.core.measurement import OF_THE_STEP
from largebatch.measure.parameters import bare


def check(
    control: Controller | Attached,
    loss: Loss | None = None,
    batch: Any = None,
    *,
    seconds: float = 3.0,
) -> CheckUp:
    """Look for silent mistakes in a run, before a long training.

        print(lb.check(control, lambda model, batch: loss_fn(model(batch[0]), batch[1])))

    Call `check` on every rank; all ranks get the same findings. Under `lb.Controller`, call `check`
    between two steps; under `lb.attach`, call `check` at any point of the loop. `check` changes
    nothing: weights, buffers, gradients, optimizer, random generators, position in the data and all
    counters keep every bit. If your loss function raises an exception, `check` reports the
    exception as a finding. While `check` runs, it holds a copy of model and optimizer in memory.

    >>> import torch, largebatch as lb
    >>> model = torch.nn.Linear(3, 1)
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> control = lb.attach(model, optimizer, lb.AdaScale(), batch_size=8, base_batch_size=4)
    >>> found = lb.check(control, lambda model, x: model(x).sum(), torch.randn(4, 3), seconds=0)
    >>> found.sound, found.worst_first[0].name
    (False, 'mean loss')

    Args:
        control: Object that `lb.Controller` or `lb.attach` returned.
        loss: Function (model, micro-batch) -> mean loss, as in the training loop, but neither
            scaled nor divided by the number of micro-batches. If `loss` is omitted, the checks that
            need a loss are left out.
        batch: One micro-batch of this rank. Pass a micro-batch only under `lb.attach`, because
            `lb.Controller` reads its own micro-batches.
        seconds: Approximate time in seconds for timing the overhead of measuring; 0 skips the
            timing.

    Raises:
        ValueError: `control` has the wrong type, or a batch was given for an `lb.Controller`.
        LargeBatchError: A step of the `lb.Controller` is in progress.
    """
    if isinstance(control, Controller):
        subject = _subject_of_controller(control, loss, batch)
    elif isinstance(control, Attached):
        subject = checked_run_of(
            control,
            loss=loss,
            micro_batches=() if batch is None else (batch,),
            accumulation=control.observer.micro_batches or 1,
        )
    else:
        raise ValueError(
            f"lb.check was given a {type(control).__name__}, but it needs the object that "
            "lb.Controller(...) or lb.attach(...) returned. Call lb.check(control, loss)."
        )
    return _check_up(subject, seconds=seconds)


def _subject_of_controller(control: Controller, loss: Loss | None, batch: Any) -> CheckedRun:
    check_between_steps(control, call="lb.check(control, loss)")
    if batch is not None:
        raise ValueError(
            "A batch was given, but lb.Controller reads the micro-batches from its own loader. "
            "Remove the batch: lb.check(control, loss)."
        )
    coming, accumulation = control.batches.peek(PARTS)
    micro_batches = tuple(micro_batch for micro_batch, _ in coming)
    return checked_run_of(
        control,
        loss=loss,
        micro_batches=micro_batches,
        accumulation=accumulation,
        samples=coming[0][1] if coming else None,
    )


def _check_up(subject: CheckedRun, *, seconds: float) -> CheckUp:
    ranks = subject.meter.ranks
    with keep_run_state(subject.model, subject.optimizer, scaler=subject.scaler, seed=0):
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


def _without_loss(subject: CheckedRun) -> list[Finding]:
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


def _with_loss(subject: CheckedRun, loss: Loss, micro_batch: Any) -> list[Finding]:
    model = bare(subject.model)
    # Under lb.attach, the user's own loop scales the loss.
    scaler = subject.scaler if subject.batches is not None else None
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
        checks.append(partial(check_sample_dimension, subject, loss, micro_batch, close=close))
    for check in checks:
        more, raised = _guarded(check)
        found += more
        if raised:
            break
    return found


def _with_copy(subject: CheckedRun, loss: Loss, *, seconds: float) -> list[Finding]:
    """Run the checks that need optimizer steps; a copy of the run takes the steps."""
    parts = max(min(subject.accumulation, PARTS), 1 if subject.ranks > 1 else 2)
    given = subject.micro_batches
    names = optimizer_names(subject.optimizer)
    if len(members_of(subject.optimizer)) > 1:
        seen = (
            "The overhead of measuring was not timed, because the run has several optimizers "
            f"({names})."
        )
        return [Finding(name="cost of measuring", level="note", seen=seen)]
    try:
        model, optimizer = copy_run(subject.model, subject.optimizer)
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
        seen = f"The overhead of measuring could not be timed on a copy of the model: {error}"
        return [Finding(name="cost of measuring", level="note", seen=seen)]


def _guarded(check: Callable[[], list[Finding]]) -> tuple[list[Finding], bool]:
    """Return the findings of a check, and whether the user's loss function raised an exception in
    it.

    An exception that the loss function raises becomes a finding, too.
    """
    try:
        return check(), False
    except Exception as error:
        cause = f"{type(error).__name__}: {error}".rstrip(": ")
    return [
        Finding(
            name="loss",
            level="error",
            seen=f"loss(model, micro_batch) raised {cause}",
            why="The checks that need the loss were skipped.",
            remedy="The loss function gets the model without wrappers, and a micro-batch as in "
            "your loop: "
            "lb.check(control, lambda model, batch: loss_fn(model(batch[0]), batch[1]))",
        )
    ], True


def _size(micro_batches: tuple[Any, ...]) -> int | None:
    try:
        return samples_in(micro_batches[0]) if micro_batches else None
    except ValueError:
        return None


def _not_computed(subject: CheckedRun) -> Finding:
    missing = "a loss" if subject.loss is None else "a micro-batch"
    inputs = "control, loss, batch" if subject.batches is None else "control, loss"
    return Finding(
        name="loss",
        level="note",
        seen="The loss, the gradients and the overhead of measuring were not checked, because "
        f"{missing} was not given.",
        remedy=f"Call lb.check({inputs}), where loss(model, micro_batch) returns the mean loss.",
    )
