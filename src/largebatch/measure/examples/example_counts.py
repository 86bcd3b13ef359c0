"""How many examples the model got in each backward of a step, and in how many groups."""

from __future__ import annotations

from collections.abc import Sequence

from largebatch.core.measurement import Source
from largebatch.measure.estimate import source_of
from largebatch.measure.examples.refused import ExamplesRefused
from largebatch.measure.statistics import Statistic


class ExampleCounts:
    """Examples, or groups of them, as the parts of a step.

    Mutable: grows with each measured backward of the step.

    Attributes:
        rows: examples in each measured backward; empty in a step without statistics.
    """

    def __init__(self) -> None:
        self.open()

    def open(self) -> None:
        """Begin a step."""
        self.rows: list[int] = []
        self._parts: list[int] = []

    def add(self, rows: int, parts: int) -> None:
        """Add a backward of so many examples in so many parts: the examples, or their groups."""
        self.rows.append(rows)
        self._parts.append(parts)

    def least_samples(self, least_parts: int) -> int:
        return 2

    def count(self, backwards: int) -> int:
        return sum(self._parts) or backwards

    def label(self, *, ranks: int, parts: int) -> Source:
        return "examples" if self.rows else source_of(ranks=ranks, parts=parts)

    def groups(self, backwards: int) -> Sequence[int]:
        return self._parts or [1] * backwards

    def check_micro_batch(self, samples: int) -> None:
        if not self.rows or self.rows[-1] == samples:
            return
        if not self.rows[-1]:
            raise ExamplesRefused(
                "No parameter of the optimizer got a gradient from this loss. Compute the loss "
                "from the model's output: control.backward(loss_fn(model(x), y))."
            )
        raise ExamplesRefused(
            f"The micro-batch has {samples} samples, but the model received {self.rows[-1]} "
            "examples. Pass it all of them, as the first dimension of its first argument, or "
            "measure micro-batches instead: meter=lb.Meter(model)."
        )

    def check_backwards(self, count: int, *, sizes: Sequence[float]) -> None:
        rows = self.rows
        if rows and len(rows) != count:
            raise ExamplesRefused(
                f"A step of {count} backward calls had {len(rows)} nested in each other (reentrant "
                "checkpointing does that), so its examples cannot be told apart. Use "
                "checkpoint(use_reentrant=False)."
            )
        if rows and sizes and rows != sizes:
            told = ", ".join(f"{size:g}" for size in sizes)
            raise ExamplesRefused(
                f"control.micro_batch was called with [{told}] samples, but the model received "
                f"{rows} examples. Pass the model all of a micro-batch's examples at once, as the "
                "first dimension of its first argument."
            )

    def check_batch(self, samples: float, *, batch_size: int) -> None:
        if self.rows and samples != batch_size:
            raise ExamplesRefused(
                f"batch_size={batch_size} was given, but the model received {samples:.0f} examples "
                f"in this step. Pass lb.attach(..., batch_size={samples:.0f}). The examples are "
                "the first dimension of the model's first argument."
            )

    def missing_variance(self, chosen: Sequence[Statistic]) -> str | None:
        if not self.rows:
            return None
        return (
            "A step of one example gives one gradient, of which no variance can be known. Take "
            "more examples into a step: DataLoader(dataset, batch_size=64)."
        )
