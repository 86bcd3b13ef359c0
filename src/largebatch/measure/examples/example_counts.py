"""Count the examples, or groups of examples, in each backward call of a step."""

from __future__ import annotations

from collections.abc import Sequence

from largebatch.core.measurement import Source
from largebatch.measure.estimate import source_of
from largebatch.measure.examples.refused import ExamplesRefused
from largebatch.measure.statistics import Statistic


class ExampleCounts:
    """Count the examples, or groups of examples, that are measured separately in a training step.

    Mutable: grows with each measured backward call of the step.

    Attributes:
        rows: Number of examples in each measured backward call; empty in a training step without
            statistics.
    """

    def __init__(self) -> None:
        self.open()

    def open(self) -> None:
        """Clear the counts at the beginning of a training step."""
        self.rows: list[int] = []
        self._parts: list[int] = []

    def add(self, rows: int, parts: int) -> None:
        """Add a backward call with `rows` examples in `parts` separately measured groups."""
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
            "examples. Pass all examples to the model, as the first dimension of its first "
            "argument, or measure micro-batches instead: meter=lb.Meter(model)."
        )

    def check_backwards(self, count: int, *, sizes: Sequence[float]) -> None:
        rows = self.rows
        if rows and len(rows) != count:
            raise ExamplesRefused(
                f"{count} backward calls were expected in this step, but {len(rows)} were "
                "observed. Probably some backward calls were nested in others, as in reentrant "
                "checkpointing, so single examples cannot be measured. Use "
                "checkpoint(use_reentrant=False)."
            )
        if rows and sizes and rows != sizes:
            passed = ", ".join(f"{size:g}" for size in sizes)
            raise ExamplesRefused(
                f"control.micro_batch was called with [{passed}] samples, but the model received "
                f"{rows} examples. Pass all examples of a micro-batch to the model at once, as the "
                "first dimension of its first argument: model(x); control.micro_batch(len(x))."
            )

    def check_batch(self, samples: float, *, batch_size: int) -> None:
        if self.rows and samples != batch_size:
            raise ExamplesRefused(
                f"batch_size={batch_size} was given, but the model received {samples:.0f} examples "
                "in this step, counted by the first dimension of the model's first argument. Pass "
                f"lb.attach(..., batch_size={samples:.0f})."
            )

    def missing_variance(self, chosen: Sequence[Statistic]) -> str | None:
        if not self.rows:
            return None
        return (
            "The step has only one example, and a single gradient has no variance. Use more "
            "examples per step: DataLoader(dataset, batch_size=64)."
        )
