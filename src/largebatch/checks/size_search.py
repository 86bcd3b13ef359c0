"""Search for the largest micro-batch size that fits into memory, by trying larger and larger
sizes.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch

from largebatch.core.errors import LargeBatchError
from largebatch.measure.memory import bytes_text, peak_of, resident

NOT_ALLOCATED = "can't allocate memory"
"""Text in the error of torch's CPU allocator, which has no error class of its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MicroBatchFit:
    """Hold the largest micro-batch size that fits, the same on every rank; `print` shows it.

    Args:
        size: Number of samples on one rank.
        reason: Reason why the search found no larger size.
        tried: Sizes that fitted on this rank, in the order in which they were tried.
    """

    size: int
    reason: str
    tried: tuple[int, ...] = ()

    def __str__(self) -> str:
        return f"The largest micro-batch that fits has {self.size} samples: {self.reason}."


Attempt = Callable[[int], str | None]
"""Function that tries a micro-batch of the given number of samples. The function returns the reason
why the micro-batch does not fit, or None if it fits.
"""


def largest(attempt: Attempt, *, most: int) -> MicroBatchFit:
    """Return the largest size that fits, at most `most`.

    >>> largest(lambda n: None if n <= 100 else "too large", most=512).size
    64

    Raises:
        LargeBatchError: Not even one sample fits.
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
            f"Not even one sample fits into memory: {why}. Use a smaller model, shorter samples or "
            "activation checkpointing. On the CPU, you can also raise the limit in bytes: "
            "lb.fit_micro_batch(control, loss, memory_limit=8 * 10**9)."
        )
    reason = why or "no step of this run needs a larger micro-batch"
    return MicroBatchFit(size=tried[-1], reason=reason, tried=tuple(tried))


class SizeTrials:
    """Run forward and backward passes of a micro-batch of any size, and report whether it fits.

    This class is mutable: it remembers the memory use of the previous sizes.

    Args:
        run: Function that runs forward and backward on the given number of samples. The memory that
            `run` still holds when it returns stays allocated until the next call.
        limit: Number of bytes that this process may hold, on the CPU. None detects the limit by the
            out-of-memory error instead.
        device: Device that holds the model.
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
            allowed = f"but this process may hold only {bytes_text(self._limit)}"
            return f"{samples} samples would need about {bytes_text(needed)}, {allowed}"
        if not self._ran(samples):
            return f"{samples} samples ran out of memory"
        if self._limit is not None and self._took[-1][1] + self._rest > self._limit:
            return f"{samples} samples needed more than the allowed {bytes_text(self._limit)}"
        return None

    def predicted(self, samples: int) -> int:
        """Return the predicted memory of the process in bytes for a micro-batch, from the previous
        tries.

        The prediction continues the line through the last two tries. If memory use grows faster and
        faster with the number of samples, as with a loss that compares each sample with every other
        sample, the line is made steeper.
        """
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
        release(self._device)  # outside the except block: the error keeps its frames' tensors alive
        return False

    def _measure(self, samples: int) -> None:
        if self._limit is None:
            self._run(samples)
            return
        if not self._took:
            self._run(samples)  # allocates the gradients and the buffers that libraries keep
            self._rest = resident()
        peak = peak_of(lambda: self._run(samples))
        self._took.append((samples, max(peak - self._rest, 0)))


def release(device: torch.device) -> None:
    """Free the memory of unused objects, also in the accelerator's cache."""
    gc.collect()
    if device.type != "cpu":
        torch.get_device_module(device).empty_cache()


def _growing(most: int) -> Iterator[int]:
    size = 2
    while size < most:
        yield size
        size *= 2
    yield most
