"""Find the largest micro-batch that fits into memory, by trying larger and larger sizes.

    sizes 2, 4, 8, ... up to the largest size that a run can need
    a size is tried with a micro-batch of 1.25 times as many samples

The first try that fails ends the search, and the previous size is the result. Because each try has
25 % more samples than the size itself, small differences in free memory give the same result. On an
accelerator, a try fails with an out-of-memory error. On the CPU, running out of memory could kill
the process, so a size is tried only if the memory use of the smaller sizes predicts that it fits.
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
"""Largest size that is tried by default. A micro-batch above this size is hardly faster per sample,
and all tries together cost about two and a half times the work of one micro-batch of this size.
"""

SHARE = 0.5
"""Fraction of the available memory that the tries may use by default."""


def fit_micro_batch(
    control: Controller, loss: Loss, *, most: int = MOST, memory_limit: int | None = None
) -> MicroBatchFit:
    """Find the largest micro-batch that fits into memory, for a loader with
    max_micro_batch_size="auto".

        batches = lb.BatchLoader(dataset, batch_size=64, max_micro_batch_size="auto")
        control = lb.Controller(model, optimizer, rule, batches, base_batch_size=64)
        print(lb.fit_micro_batch(control, lambda model, batch: loss_fn(model(batch[0]), batch[1])))

    Call `fit_micro_batch` before the first step, on every rank. All ranks get the same size: the
    smallest size that any rank found. Forward and backward passes run on larger and larger
    micro-batches of the next samples, up to the largest micro-batch that the run can need. The
    passes change nothing in the run, as in `check`. A size that was found before, or that is in a
    loaded state, is kept.

    >>> import torch, largebatch as lb
    >>> model, data = torch.nn.Linear(3, 1), torch.randn(64, 3)
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> batches = lb.BatchLoader(data, batch_size=16, max_micro_batch_size="auto")
    >>> control = lb.Controller(model, optimizer, lb.chain(), batches, base_batch_size=16)
    >>> lb.fit_micro_batch(control, lambda model, x: model(x).square().mean()).size
    16

    Args:
        control: Object that `lb.Controller` returned.
        loss: Function (model, micro-batch) -> mean loss, as in the training loop.
        most: Largest micro-batch size to try, in samples. All tries together cost about two and a
            half times the work of the largest size.
        memory_limit: Number of bytes that this process may hold; only for the CPU. None allows the
            bytes that the process already holds plus its share of half of the available memory,
            which is divided among the ranks on this machine.

    Raises:
        ValueError: `control` is not an `lb.Controller`, its loader has no
            max_micro_batch_size="auto", or a limit is invalid or cannot be determined.
        LargeBatchError: A step is in progress, not even one sample fits on some rank, or the loss
            function raised an exception on another rank.
    """
    if not isinstance(control, Controller):
        raise ValueError(
            f"lb.fit_micro_batch was given a {type(control).__name__}, but it needs an "
            "lb.Controller, whose loader cuts the micro-batches. Build one: "
            "lb.Controller(model, optimizer, rule, "
            'lb.BatchLoader(dataset, batch_size=64, max_micro_batch_size="auto"), '
            "base_batch_size=64)."
        )
    check_between_steps(control, call="lb.fit_micro_batch(control, loss)")
    if not control.batches.wants_fit:
        raise ValueError(
            'The BatchLoader was not built with max_micro_batch_size="auto", so there is no size '
            "to find. Build it with "
            'lb.BatchLoader(dataset, batch_size=64, max_micro_batch_size="auto").'
        )
    if most < 1:
        raise ValueError(
            f"most={most} was given, but it must be at least 1 sample. For example: most=512."
        )
    there = control.batches.max_micro_batch_size
    if isinstance(there, int):
        return MicroBatchFit(size=there, reason="this size was found before")
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
    """Try micro-batches of the next samples, and leave the run unchanged."""
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
    """Run forward and backward passes of the next samples, and measure single examples if the run
    does.

    This class is mutable: its own meter has hooks on the model until `close` is called.
    """

    def __init__(self, subject: CheckedRun, loss: Loss) -> None:
        assert subject.batches is not None, "only lb.Controller has a BatchLoader"
        self._batches, self._loss = subject.batches, loss
        self._model = bare(subject.model)
        for module in self._model.modules():
            if isinstance(module, nn.SyncBatchNorm):
                module.training = False  # in training mode, it would wait for the other ranks
        self._wanted = subject.decider.rule.needs & OF_THE_STEP & subject.meter.provides
        self._meter: Meter | None = None
        examples = subject.meter.examples
        subject.meter.open(frozenset())  # removes the hooks; the next step opens the meter again
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
        """Remove the hooks."""
        if self._meter is not None:
            self._meter.open(frozenset())

    def _checked(self, micro_batch: Any) -> Tensor:
        with torch.enable_grad():
            loss = self._loss(self._model, micro_batch)
        if isinstance(loss, Tensor) and loss.dim() == 0 and loss.requires_grad:
            return loss
        raise ValueError(
            "loss(model, micro_batch) did not return a scalar tensor with an autograd graph. "
            "Return the mean loss as in your loop: "
            "lb.fit_micro_batch(control, lambda model, batch: loss_fn(model(batch[0]), batch[1]))."
        )


def _limit(given: int | None, *, device: torch.device, processes: int) -> int | None:
    if given is not None and not given > 0:
        raise ValueError(
            f"memory_limit={given} was given, but it must be a number of bytes above 0. For "
            "example: memory_limit=8 * 10**9."
        )
    if device.type != "cpu":
        if given is not None:
            raise ValueError(
                f"memory_limit was given, but the model is on {device.type}, where the memory of "
                "the device is the limit. Remove memory_limit: lb.fit_micro_batch(control, loss)."
            )
        return None
    left = available() if given is None else 0
    if left is None:
        raise ValueError(
            "This system does not report how much memory is available. Pass the number of bytes "
            "that this process may hold: "
            "lb.fit_micro_batch(control, loss, memory_limit=8 * 10**9)."
        )
    return given or resident() + int(SHARE * left / processes)


def _reserve(subject: CheckedRun) -> list[Tensor]:
    """Return a copy of the weights if the optimizer has no state yet, as a reserve of memory.

    The returned copy and the copy that `keep_run_state` holds together take as much memory as
    Adam's state will take.
    """
    if subject.optimizer.state:
        return []
    return [parameter.detach().clone() for parameter in subject.meter.parameters.tensors]


def _least(everyone: list[MicroBatchFit | str]) -> MicroBatchFit:
    for rank, theirs in enumerate(everyone):
        if isinstance(theirs, str):
            raise LargeBatchError(
                f"No micro-batch size that fits was found on rank {rank}: {theirs}"
            )
    return min((fit for fit in everyone if isinstance(fit, MicroBatchFit)), key=lambda f: f.size)
