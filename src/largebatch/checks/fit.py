"""`fit_micro_batch`: the largest micro-batch that fits into memory, by trying ever larger ones.

    sizes 2, 4, 8, ... up to the largest that a run can need, each tried with a quarter more

The first try that fails ends the search, and the size before it is the result, so that small
differences in free memory give the same one. On an accelerator a try fails by its out-of-memory
error. On the CPU that error would be the end of the process: there a size is tried only when what
the smaller ones took says that it fits.
"""

from __future__ import annotations

import socket
from typing import Any

import torch
from torch import Tensor, nn

from largebatch.act.controller import Controller
from largebatch.checks.checked_run import CheckedRun, Loss, check_between_steps, checked_run_of
from largebatch.checks.size_search import MicroBatchFit, SizeTrials, largest, release
from largebatch.checks.snapshot import keep_run_state
from largebatch.core.errors import LargeBatchError
from largebatch.core.measurement import OF_THE_STEP
from largebatch.core.plan import BatchPlan
from largebatch.core.rule import within
from largebatch.measure.examples.per_example import PerExample
from largebatch.measure.memory import available, resident
from largebatch.measure.meter import Meter
from largebatch.measure.parameters import bare
from largebatch.rules import ClampBatch

MOST = 4096
"""Largest size that is tried by default: a larger micro-batch is hardly faster, and the tries take
two and a half times its work."""

SHARE = 0.5
"""Of the memory that is available, what the tries may take by default."""


def fit_micro_batch(
    control: Controller, loss: Loss, *, most: int = MOST, memory_limit: int | None = None
) -> MicroBatchFit:
    """Finds the largest micro-batch that fits into memory, for a loader that asks for it.

        batches = lb.BatchLoader(dataset, batch_size=64, max_micro_batch_size="auto")
        control = lb.Controller(model, optimizer, rule, batches, base_batch_size=64)
        print(lb.fit_micro_batch(control, lambda model, batch: loss_fn(model(batch[0]), batch[1])))

    Call it before the first step, on every rank; all get the same size, the smallest that any rank
    found. Ever larger micro-batches of the coming samples go forward and backward, up to the
    largest that the run can need. They change nothing of the run, as in `check`. A size that was
    found before, or is in a loaded state, is kept.

    Args:
        control: what `lb.Controller` returned.
        loss: (model, micro-batch) -> mean loss, as in the loop.
        most: largest size to try; the tries take two and a half times its work.
        memory_limit: on the CPU, bytes that this process may hold. None is what it holds and half
            of what is available, shared by the ranks on this machine.

    Raises:
        ValueError: a run that loads by itself or a loader that does not ask for it, or a limit that
            is none or cannot be known.
        LargeBatchError: in the middle of a step, not one sample fits on some rank, or the loss
            raised on another one.
    """
    if not isinstance(control, Controller):
        raise ValueError(
            "lb.fit_micro_batch takes a run whose loader cuts the micro-batches; got "
            f"{type(control).__name__}. Build one: lb.Controller(model, optimizer, rule, "
            'lb.BatchLoader(dataset, batch_size=64, max_micro_batch_size="auto"), '
            "base_batch_size=64)."
        )
    check_between_steps(control, call="lb.fit_micro_batch(control, loss)")
    if not control.batches.wants_fit:
        raise ValueError(
            "The loader has its largest micro-batch already. To have it found: "
            'lb.BatchLoader(dataset, batch_size=64, max_micro_batch_size="auto").'
        )
    if most < 1:
        raise ValueError(f"most is at least 1 sample, as in most=512; got {most}.")
    there = control.batches.max_micro_batch_size
    if isinstance(there, int):
        return MicroBatchFit(size=there, reason="as found before")
    subject = checked_run_of(control, loss=loss, micro_batches=(), accumulation=1)
    found = _fit(subject, loss, most=min(most, _most_needed(subject)), memory_limit=memory_limit)
    control.batches.fit(found.size)
    return found


def _most_needed(subject: CheckedRun) -> int:
    """Return the samples of the largest micro-batch that a step of the run can have on one rank."""
    decider = subject.decider
    largest = decider.batch_size
    if "batch" in decider.rule.changes:
        caps = [one.max for one in within(decider.rule) if isinstance(one, ClampBatch)]
        known = [cap for cap in (*caps, decider.dataset_size) if cap is not None]
        largest = max(largest, min(known)) if known else largest
    plan = BatchPlan(
        batch_size=largest,
        ranks=decider.ranks,
        max_micro_batch_size=largest,
        least_parts=subject.meter.least_parts if decider.rule.needs & OF_THE_STEP else 1,
    )
    return plan.sizes[0]


def _fit(subject: CheckedRun, loss: Loss, *, most: int, memory_limit: int | None) -> MicroBatchFit:
    """Tries micro-batches of the coming samples, leaving the run as it is."""
    device = subject.meter.parameters.tensors[0].device
    names = subject.meter.ranks.gather(socket.gethostname())
    limit = _limit(memory_limit, device=device, processes=names.count(socket.gethostname()))
    found: MicroBatchFit | None = None
    error: Exception | None = None
    try:
        with keep_run_state(subject.model, subject.optimizer, scaler=subject.scaler, seed=0):
            reserve = _reserve(subject)
            run = _TrialPasses(subject, loss)
            try:
                found = largest(SizeTrials(run, limit=limit, device=device), most=most)
            finally:
                run.close()
                del reserve
    except Exception as raised:
        error = raised
    release(device)
    everyone = subject.meter.ranks.gather(str(error) if found is None else found)
    if error is not None:
        raise error
    return _least(everyone)


class _TrialPasses:
    """Forward and backward of the coming samples, measured as the run measures single examples.

    Mutable: hooks of a meter of its own, until it is closed.
    """

    def __init__(self, subject: CheckedRun, loss: Loss) -> None:
        assert subject.batches is not None, "only a Controller has a loader"
        self._batches, self._loss = subject.batches, loss
        self._model = bare(subject.model)
        for module in self._model.modules():
            if isinstance(module, nn.SyncBatchNorm):
                module.training = False  # its statistics would need the other ranks
        self._wanted = subject.decider.rule.needs & OF_THE_STEP & subject.meter.provides
        self._meter: Meter | None = None
        examples = subject.meter.examples
        subject.meter.open(frozenset())  # takes the hooks off; the next step opens it anew
        if examples is not None and self._wanted:
            self._meter = Meter(subject.model, examples=PerExample(groups=examples.groups))
            self._meter.bind(subject.optimizer)

    def __call__(self, samples: int) -> None:
        meter, micro_batch = self._meter, self._batches.coming(samples)
        if meter is None:
            self._checked(micro_batch).backward()
            return
        meter.open(self._wanted)
        loss = self._checked(micro_batch)
        meter.backward(loss, share=1.0, weight=samples, samples=samples, last=False)

    def close(self) -> None:
        """Takes the hooks off."""
        if self._meter is not None:
            self._meter.open(frozenset())

    def _checked(self, micro_batch: Any) -> Tensor:
        with torch.enable_grad():
            loss = self._loss(self._model, micro_batch)
        if isinstance(loss, Tensor) and loss.dim() == 0 and loss.requires_grad:
            return loss
        raise ValueError(
            "loss(model, micro_batch) gives no scalar with the graph that made it. As in the loop: "
            "lb.fit_micro_batch(control, lambda model, batch: loss_fn(model(batch[0]), batch[1]))."
        )


def _limit(given: int | None, *, device: torch.device, processes: int) -> int | None:
    if given is not None and not given > 0:
        raise ValueError(
            f"memory_limit is a number of bytes above 0, as in memory_limit=8 * 10**9; got {given}."
        )
    if device.type != "cpu":
        if given is not None:
            raise ValueError(
                f"memory_limit is for the CPU; on {device.type} the device's own memory is the "
                "limit. Leave it out: lb.fit_micro_batch(control, loss)."
            )
        return None
    left = available() if given is None else 0
    if left is None:
        raise ValueError(
            "This system does not tell how much memory is available. Say what this process may "
            "hold, in bytes: lb.fit_micro_batch(control, loss, memory_limit=8 * 10**9)."
        )
    return given or resident() + int(SHARE * left / processes)


def _reserve(subject: CheckedRun) -> list[Tensor]:
    """Return a copy of the weights if the optimizer has no state yet. With the copy that
    `keep_run_state` holds it stands for what Adam will keep."""
    if subject.optimizer.state:
        return []
    return [parameter.detach().clone() for parameter in subject.meter.parameters.tensors]


def _least(everyone: list[MicroBatchFit | str]) -> MicroBatchFit:
    for rank, theirs in enumerate(everyone):
        if isinstance(theirs, str):
            raise LargeBatchError(f"On rank {rank} no micro-batch was found to fit: {theirs}")
    return min((fit for fit in everyone if isinstance(fit, MicroBatchFit)), key=lambda f: f.size)
