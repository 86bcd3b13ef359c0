"""Searches the largest size of a micro-batch that fits, by trying ever larger ones."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch

from largebatch.core.errors import LargeBatchError
from largebatch.measure.memory import bytes_text, peak_of, resident

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
            "lb.fit_micro_batch(control, loss, memory_limit=8 * 10**9)."
        )
    reason = why or "no batch of this run has larger ones"
    return MicroBatchFit(size=tried[-1], reason=reason, tried=tuple(tried))


class SizeTrials:
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
            allowed = f"of the {bytes_text(self._limit)} that this process may hold"
            return f"{samples} samples would need about {bytes_text(needed)} {allowed}"
        if not self._ran(samples):
            return f"{samples} samples ran out of memory"
        if self._limit is not None and self._took[-1][1] + self._rest > self._limit:
            return f"{samples} samples took more than the {bytes_text(self._limit)} allowed"
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


def release(device: torch.device) -> None:
    """Gives back what nothing holds any more."""
    gc.collect()
    if device.type != "cpu":
        torch.get_device_module(device).empty_cache()


def _growing(most: int) -> Iterator[int]:
    size = 2
    while size < most:
        yield size
        size *= 2
    yield most
