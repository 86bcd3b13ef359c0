"""What a step costs: its latency, and its samples over all workers.

seconds of a step = latency + batch / (throughput x workers)
"""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Price:
    """The price of a step.

    >>> Price(latency=0.1, throughput=1000.0, workers=2).seconds(4000)
    2.1

    Args:
        latency: seconds of a step whatever its batch, above 0.
        throughput: samples a second of one worker, above 0.
        workers: that share a batch, at least 1.

    Raises:
        ValueError: a number outside its range.
    """

    latency: float
    throughput: float
    workers: int = 1

    def __post_init__(self) -> None:
        if not (0.0 < self.latency < math.inf and 0.0 < self.throughput < math.inf):
            raise ValueError(
                "A step's latency in seconds and a worker's samples a second are above 0, as in "
                f"--latency 0.05 --throughput 2000; got {self.latency!r} and {self.throughput!r}."
            )
        if self.workers < 1:
            raise ValueError(f"--workers is at least 1; got {self.workers!r}.")

    def seconds(self, batch_size: float) -> float:
        """Of one step."""
        return self.latency + batch_size / (self.throughput * self.workers)

    def total(self, *, steps: float, samples: float) -> float:
        """Seconds of a run; the batches enter by their sum alone."""
        return self.latency * steps + samples / (self.throughput * self.workers)
