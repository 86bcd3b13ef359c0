"""The largest micro-batch that fits into memory, by trying ever larger ones.

    sizes 2, 4, 8, ... up to the largest that a run can need, each tried with a quarter more

The first try that fails ends the search, and the size before it is the result, so that small
differences in free memory give the same one. On an accelerator a try fails by its out-of-memory
error. On the CPU that error would be the end of the process: there a size is tried only when what
the smaller ones took says that it fits.
"""

from __future__ import annotations

import gc
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from largebatch.checks.memory import available, peak_of, resident, shown
from largebatch.checks.subject import Loss, Subject
from largebatch.checks.untouched import untouched
from largebatch.core.errors import LargeBatchError
from largebatch.core.measurement import OF_THE_STEP
from largebatch.measure.examples.per_example import PerExample
from largebatch.measure.meter import Meter
from largebatch.measure.parameters import bare

MOST = 4096
"""Largest size that is tried by default: a larger micro-batch is hardly faster, and the tries take
two and a half times its work."""

SHARE = 0.5
"""Of the memory that is available, what the tries may take by default."""

NOT_ALLOCATED = "can't allocate memory"
"""In the message of torch's allocator on the CPU, which has no error of its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MicroBatchFit:
    """The largest micro-batch that fits, the same on every rank; `print` shows it.

    Args:
        size: samples on one rank.
        reason: why it is no larger.
        tried: sizes that fitted on this rank, in the order of the tries.
    """

    size: int
    reason: str
    tried: tuple[int, ...] = ()

    def __str__(self) -> str:
        return f"Micro-batches of at most {self.size} samples: {self.reason}."


Attempt = Callable[[int], str | None]
"""Tries a micro-batch of so many samples; why it does not fit, None where it does."""


def largest(attempt: Attempt, *, most: int) -> MicroBatchFit:
    """The largest size that fits, up to `most`.

    >>> largest(lambda n: None if n <= 100 else "too large", most=512).size
    64

    Raises:
        LargeBatchError: not one sample fits.
    """
    tried: list[int] = []
    why: str | None = None
    for size in _growing(most):
        why = attempt(size + size // 4)
        if why is not None:
            break
        tried.append(size)
    one = None if tried else attempt(1)
    if one is not None:
        why = one
    elif not tried:
        tried.append(1)
    if not tried:
        raise LargeBatchError(
            f"Not even one sample fits: {why}. Use a smaller model, shorter samples or "
            "checkpointed activations; on the CPU a limit may be given in bytes: "
            "control.fit_micro_batch(loss, memory_limit=8 * 10**9)."
        )
    reason = why or "no batch of this run has larger ones"
    return MicroBatchFit(size=tried[-1], reason=reason, tried=tuple(tried))


class Tries:
    """Forward and backward of a micro-batch of any size, and whether it fits.

    Mutable: remembers what the last sizes took.

    Args:
        run: forward and backward of so many samples; what it leaves stays until the next one.
        limit: bytes that this process may hold, where that can be seen (on the CPU); None lets the
            error tell.
        device: where the memory is.
    """

    def __init__(
        self, run: Callable[[int], None], *, limit: int | None, device: torch.device
    ) -> None:
        self._run, self._limit, self._device = run, limit, device
        self._rest = 0
        self._took: list[tuple[int, int]] = []

    def __call__(self, samples: int) -> str | None:
        needed = self.predicted(samples)
        larger = not self._took or samples > self._took[-1][0]
        if self._limit is not None and larger and needed > self._limit:
            allowed = f"of the {shown(self._limit)} that this process may hold"
            return f"{samples} samples would need about {shown(needed)} {allowed}"
        if not self._ran(samples):
            return f"{samples} samples ran out of memory"
        if self._limit is not None and self._took[-1][1] + self._rest > self._limit:
            return f"{samples} samples took more than the {shown(self._limit)} allowed"
        return None

    def predicted(self, samples: int) -> int:
        """Bytes that a try would come to, from what those before it took: along the line through
        the last two, or steeper where it became steeper, as with a loss that compares each sample
        with each other one."""
        if not self._took:
            return resident() if self._limit is not None else 0
        last, there = self._took[-1]
        points = [(0, 0), *self._took] if len(self._took) < 2 else self._took
        slopes = [max(b - a, 0) / (n - m) for (m, a), (n, b) in pairwise(points)][-2:]
        steeper = min(max(slopes[-1] / slopes[0], 1.0), 4.0) if slopes[0] else 1.0
        return self._rest + there + round(slopes[-1] * steeper * (samples - last))

    def _ran(self, samples: int) -> bool:
        try:
            self._measure(samples)
            return True
        except (torch.OutOfMemoryError, MemoryError):
            pass
        except RuntimeError as error:
            if NOT_ALLOCATED not in str(error):
                raise
        release(self._device)  # after the error, which holds the tensors of its frames
        return False

    def _measure(self, samples: int) -> None:
        if self._limit is None:
            self._run(samples)
            return
        if not self._took:
            self._run(samples)  # gradients and what libraries keep are there from now on
            self._rest = resident()
        peak = peak_of(lambda: self._run(samples))
        self._took.append((samples, max(peak - self._rest, 0)))


def fit(
    subject: Subject, loss: Loss, *, most: int, memory_limit: int | None = None
) -> MicroBatchFit:
    """Tries micro-batches of the coming samples, leaving the run as it is; called on every rank,
    and the same on each: the least of what fits on any.

    Args:
        subject: the run.
        loss: (model, micro-batch) -> mean loss.
        most: samples of the largest micro-batch that the run can need.
        memory_limit: bytes that this process may hold, on the CPU; None for half of what is
            available, shared by the ranks on this machine.

    Raises:
        ValueError: a limit that is none, or that cannot be known.
        LargeBatchError: not one sample fits on some rank, or the loss raised on another one.
    """
    device = subject.meter.parameters.tensors[0].device
    names = subject.meter.ranks.gather(socket.gethostname())
    limit = _limit(memory_limit, device=device, processes=names.count(socket.gethostname()))
    found: MicroBatchFit | None = None
    error: Exception | None = None
    try:
        with untouched(subject.model, subject.optimizer, scaler=subject.scaler, seed=0):
            reserve = _reserve(subject)
            run = _Passes(subject, loss)
            try:
                found = largest(Tries(run, limit=limit, device=device), most=most)
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


def release(device: torch.device) -> None:
    """Gives back what nothing holds any more."""
    gc.collect()
    if device.type != "cpu":
        torch.get_device_module(device).empty_cache()


class _Passes:
    """Forward and backward of the coming samples, measured as the run measures single examples.

    Mutable: hooks of a meter of its own, until it is closed.
    """

    def __init__(self, subject: Subject, loss: Loss) -> None:
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
            "control.fit_micro_batch(lambda model, batch: loss_fn(model(batch[0]), batch[1]))."
        )


def _growing(most: int) -> Iterator[int]:
    size = 2
    while size < most:
        yield size
        size *= 2
    yield most


def _limit(given: int | None, *, device: torch.device, processes: int) -> int | None:
    if given is not None and not given > 0:
        raise ValueError(
            f"memory_limit is a number of bytes above 0, as in memory_limit=8 * 10**9; got {given}."
        )
    if device.type != "cpu":
        if given is not None:
            raise ValueError(
                f"memory_limit is for the CPU; on {device.type} the device's own memory is the "
                "limit. Leave it out: control.fit_micro_batch(loss)."
            )
        return None
    left = available() if given is None else 0
    if left is None:
        raise ValueError(
            "This system does not tell how much memory is available. Say what this process may "
            "hold, in bytes: control.fit_micro_batch(loss, memory_limit=8 * 10**9)."
        )
    return given or resident() + int(SHARE * left / processes)


def _reserve(subject: Subject) -> list[Tensor]:
    """A copy of the weights where the optimizer has no state yet. With the one that `untouched`
    holds it stands for what Adam will keep."""
    if subject.optimizer.state:
        return []
    return [parameter.detach().clone() for parameter in subject.meter.parameters.tensors]


def _least(everyone: list[MicroBatchFit | str]) -> MicroBatchFit:
    for rank, theirs in enumerate(everyone):
        if isinstance(theirs, str):
            raise LargeBatchError(f"On rank {rank} no micro-batch was found to fit: {theirs}")
    return min((fit for fit in everyone if isinstance(fit, MicroBatchFit)), key=lambda f: f.size)
