"""Compare the user's batch size with the samples and micro-batches of the first training step."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from largebatch.core.errors import LargeBatchError
from largebatch.measure.backwards import Group

ROWS, ROWS_SQUARED, SEEN = "rows", "rows of a part squared", "ranks with rows"
ONCE, PASSES, BLOCKS = "rows counted once", "linked passes", "ranks with blocks"
PARTS_SQUARED = "parts of a rank squared"
PASSED, HIDDEN = "ranks with passed samples", "ranks with hidden passes"

REMEDY = (
    "If the first dimension of the model's input is not the samples, pass a function that counts "
    "the samples: lb.attach(..., samples=lambda args, kwargs: args[0].shape[1])."
)
BLOCK = "with control.part(samples=len(x)): loss_fn(model(x), y).backward()"
WEIGHTS = (
    "so all micro-batches get the same share of the loss. If each share is proportional to the "
    "number of samples, as in loss * len(x) / batch_size, pass control.micro_batch(len(x), "
    "weight=len(x)). If the shares are equal, pass control.micro_batch(len(x), weight=1)."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class FirstSizes:
    """Record the numbers of samples and micro-batches of the first training step on this rank.

    The rows of a forward pass are the size of its first dimension.

    Args:
        of_parts: Number of rows in all forward passes of each micro-batch; empty if the micro-batch
            of a forward pass is unknown. rows: Number of rows in all forward passes of all
            micro-batches; 0 if unknown. once: Number of rows in the largest forward pass of each
            micro-batch, summed over the micro-batches; 0 if unknown.
        passes: Number of forward passes that backward calls started from.
        parts: Number of micro-batches on this rank. blocks: Whether the user put the micro-batches
            into `control.part()` blocks.
        passed: Whether the user passed the samples of the micro-batches.
        hidden: Whether each micro-batch seems to have one forward pass, but the model is compiled
            in place, so that the forward pass of each backward call is unknown.
    """

    of_parts: Sequence[float] = ()
    rows: float = 0.0
    once: float = 0.0
    passes: int = 0
    parts: int = 1
    blocks: bool = False
    passed: bool = False
    hidden: bool = False

    def numbers(self) -> dict[str, float]:
        """Return the numbers that must be summed over the ranks for `check_sizes`."""
        return {
            ROWS: self.rows,
            ROWS_SQUARED: sum(rows**2 for rows in self.of_parts),
            SEEN: float(self.rows > 0),
            ONCE: self.once,
            PASSES: self.passes,
            BLOCKS: float(self.blocks),
            PARTS_SQUARED: self.parts**2,
            PASSED: float(self.passed),
            HIDDEN: float(self.hidden),
        }


def first_sizes(
    groups: Sequence[Group],
    samples: Mapping[int, float],
    *,
    rows: float,
    parts: int,
    passed: bool,
    hidden: bool,
) -> FirstSizes:
    """Return the numbers of samples and micro-batches of the first training step on this rank.

    Args:
        groups: The backward calls of each micro-batch.
        samples: Number of rows of each forward pass, by number of the forward pass.
        rows: Number of rows in all forward passes of the step, used if it is unknown which forward
            pass each backward call started from.
        parts: Number of micro-batches on this rank. passed, hidden: Values of the fields `passed`
            and `hidden` of `FirstSizes`.
    """
    numbers = [{n for one in group for n in one.forwards} for group in groups]
    of_parts = [[samples.get(number, 0.0) for number in some] for some in numbers]
    linked = any(numbers)
    return FirstSizes(
        of_parts=[sum(some) for some in of_parts] if linked else (),
        rows=sum(map(sum, of_parts)) if linked else rows,
        once=sum(max(some, default=0.0) for some in of_parts),
        passes=sum(map(len, numbers)),
        parts=parts,
        blocks=any(one.block is not None for group in groups for one in group),
        passed=passed,
        hidden=hidden,
    )


def check_sizes(
    sums: Mapping[str, float], *, batch_size: int, ranks: int, of_parts: Sequence[float]
) -> None:
    """Compare the samples of the first step with the batch size; warn or raise if they differ.

    Whether an error is raised depends only on the sums, so either all ranks raise the error or no
    rank raises it.

    Args:
        sums: Sums of `FirstSizes.numbers` and `Shares.numbers` over all ranks.
        batch_size: User-supplied number of samples per step over all ranks.
        ranks: Number of processes that share the batch.
        of_parts: Number of rows of each micro-batch on this rank, for the text of a warning.

    Raises:
        LargeBatchError: The batch size is wrong by a factor that is the number of ranks, the number
            of micro-batches or the product of both.
    """
    parts, rows = round(sums["parts"]), round(sums[ROWS])
    if ranks * sums[PARTS_SQUARED] != parts**2 and not sums["weighted"]:
        _warn(
            f"The ranks have different numbers of micro-batches in the first step ({parts} on "
            "all ranks together), and no weight was passed, so all micro-batches get the same "
            "share of the loss. If the loss of each rank is the mean of its own micro-batches, "
            "pass control.micro_batch(len(x), weight=1 / micro_batches_of_this_rank). If all "
            "shares are equal, pass control.micro_batch(len(x), weight=1)."
        )
    if sums[PASSED]:
        _check_passed(round(sums["samples"]), batch_size)
        return
    if sums[SEEN] < ranks:
        return
    if _fits(sums, batch_size, ranks=ranks):
        if sums[ROWS_SQUARED] and parts * sums[ROWS_SQUARED] != rows**2:
            _warn_of_unequal(of_parts)
        return
    micro_batches = round(parts / ranks)
    _check_factors(rows, batch_size, micro_batches=micro_batches, ranks=ranks)
    times, rest = divmod(rows, batch_size)
    if sums[HIDDEN] and not rest and times > 1 and micro_batches % times == 0:
        raise LargeBatchError(
            f"batch_size={batch_size} was given, but the model received {rows} rows in "
            f"{micro_batches} forward passes with one backward call each. Perhaps {times} backward "
            "calls belong to one micro-batch, but a model that is compiled in place does not show "
            "which calls belong together. Put the forward and backward calls of each micro-batch "
            f"into one block, {BLOCK}, or compile the model by model = torch.compile(model). If "
            "the first dimension is not the samples, pass their number: "
            "control.micro_batch(samples)."
        )
    _warn(
        f"batch_size={batch_size} was given, but the model received {rows} rows in the first step. "
        f"The measurements are wrong unless the step has {batch_size} samples. If several forward "
        f"and backward calls belong to one micro-batch, put the calls into one block: {BLOCK}. "
        f"{REMEDY}"
    )


def _fits(sums: Mapping[str, float], batch_size: int, *, ranks: int) -> bool:
    if sums[ROWS] == batch_size:
        return True
    if sums[BLOCKS] == ranks and sums[ONCE] == batch_size:
        return True
    views = sums[PASSES] / sums["parts"]  # several views of each sample, as in a contrastive loss
    return views > 1 and sums[ROWS] == views * batch_size


def _check_passed(samples: int, batch_size: int) -> None:
    if samples > batch_size:  # fewer samples are valid: a micro-batch may have no loss
        _warn(
            f"batch_size={batch_size} was given, but {samples} samples were passed for the "
            "micro-batches of the first step over all ranks. batch_size and samples= must both "
            "count the samples of the loss, not the rows of a forward pass. Pass "
            f"batch_size={samples}, or pass the samples of each micro-batch: "
            "control.part(samples=len(x))."
        )


def _warn_of_unequal(of_parts: Sequence[float]) -> None:
    sizes = ", ".join(f"{size:g}" for size in of_parts[:8])
    if len(set(of_parts)) > 1:
        _warn(
            f"The micro-batches of the first step have {sizes} samples, and no weight was passed, "
            f"{WEIGHTS}"
        )
        return
    _warn(
        "The micro-batches of the first step have different numbers of samples on the ranks "
        f"({sizes} on this rank), and no weight was passed, {WEIGHTS}"
    )


def _check_factors(rows: int, batch_size: int, *, micro_batches: int, ranks: int) -> None:
    both = ranks * micro_batches if ranks > 1 and micro_batches > 1 else 1
    causes = {
        "of ranks": ranks,
        "of micro-batches": micro_batches,
        "of micro-batches on all ranks": both,
    }
    fitting = [
        cause for cause, factor in causes.items() if factor > 1 and rows == factor * batch_size
    ]
    if not fitting:
        return
    remedy = f"Pass batch_size={rows}."
    if fitting != ["of ranks"]:
        remedy = (
            "If several forward and backward calls belong to one micro-batch, put the calls into "
            f"one block, and pass the samples of the micro-batch once: {BLOCK}. "
            f"Otherwise pass batch_size={rows}."
        )
    times = rows // batch_size
    raise LargeBatchError(
        f"batch_size={batch_size} was given, but the model received {rows} samples in the first "
        "step. batch_size is the number of samples in one optimizer step over all ranks and "
        f"micro-batches. The model received {times} times batch_size samples, and {times} is the "
        f"number {' or '.join(fitting)}. {remedy} {REMEDY}"
    )


def _warn(text: str) -> None:
    warnings.warn(text, RuntimeWarning, stacklevel=2)
