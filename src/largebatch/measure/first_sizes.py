"""What the first step of a run shows of its sizes: samples, micro-batches and their shares."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from largebatch.core.errors import LargeBatchError
from largebatch.measure.backwards import Group

ROWS, ROWS_SQUARED, SEEN = "rows", "rows of a part squared", "ranks with rows"
ONCE, PASSES, BLOCKS = "rows counted once", "linked passes", "ranks with blocks"
PARTS_SQUARED = "parts of a rank squared"
TOLD, HIDDEN = "ranks with told samples", "ranks with hidden passes"

REMEDY = (
    "If the first dimension of the model's input is not the samples, say how to count them: "
    "lb.attach(..., samples=lambda args, kwargs: args[0].shape[1])."
)
BLOCK = "with control.part(samples=len(x)): loss_fn(model(x), y).backward()"
WEIGHTS = (
    "so they are taken to enter the loss with equal shares. If each enters with its samples, as in "
    "loss * len(x) / batch_size, pass control.micro_batch(len(x), weight=len(x)); for equal shares "
    "pass control.micro_batch(len(x), weight=1)."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class FirstSizes:
    """What the first step shows on this rank.

    Args:
        of_parts: rows of each part, the model's first dimension over all its forward passes; empty
            if it is not known which part each forward pass belongs to.
        rows: of all forward passes of the parts; 0 if unknown.
        once: rows of the largest forward pass of each part, summed; 0 if unknown.
        passes: forward passes that backward calls came from.
        parts: of this rank.
        blocks: whether the user put the parts into blocks.
        told: whether the user told the samples.
        hidden: whether each micro-batch seems to have one forward pass, but the model is compiled
            in place, so that nothing shows which one a backward came from.
    """

    of_parts: Sequence[float] = ()
    rows: float = 0.0
    once: float = 0.0
    passes: int = 0
    parts: int = 1
    blocks: bool = False
    told: bool = False
    hidden: bool = False

    def numbers(self) -> dict[str, float]:
        """Return what `check_sizes` needs, to be summed over the ranks."""
        return {
            ROWS: self.rows,
            ROWS_SQUARED: sum(rows**2 for rows in self.of_parts),
            SEEN: float(self.rows > 0),
            ONCE: self.once,
            PASSES: self.passes,
            BLOCKS: float(self.blocks),
            PARTS_SQUARED: self.parts**2,
            TOLD: float(self.told),
            HIDDEN: float(self.hidden),
        }


def first_sizes(
    groups: Sequence[Group],
    samples: Mapping[int, float],
    *,
    rows: float,
    parts: int,
    told: bool,
    hidden: bool,
) -> FirstSizes:
    """Return what the parts of this rank show.

    Args:
        groups: the backward calls of each part.
        samples: number of a forward pass -> its rows.
        rows: of all forward passes of the step, for backward calls without links.
        parts: of this rank.
        told, hidden: as in `FirstSizes`.
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
        told=told,
        hidden=hidden,
    )


def check_sizes(
    sums: Mapping[str, float], *, batch_size: int, ranks: int, of_parts: Sequence[float]
) -> None:
    """Compare the first step's sizes with the batch size; warn of what may be right.

    Whether it raises depends on the sums alone, so that all ranks raise or none.

    Args:
        sums: of `FirstSizes.numbers` and `Shares.numbers` over all ranks.
        batch_size: samples of a step over all ranks, as given.
        ranks: processes that share the batch.
        of_parts: rows of this rank's parts, for the text of a warning.

    Raises:
        LargeBatchError: a batch size that is wrong by the ranks, the micro-batches or both.
    """
    parts, rows = round(sums["parts"]), round(sums[ROWS])
    if ranks * sums[PARTS_SQUARED] != parts**2 and not sums["weighted"]:
        _warn(
            f"The ranks have different numbers of micro-batches in the first step, {parts} in all, "
            "and no weight was passed, so all are taken to enter the loss with equal shares. If "
            "the loss of each rank is the mean of its own micro-batches, pass their shares, "
            "control.micro_batch(len(x), weight=1 / micro_batches_of_this_rank); for equal shares "
            "pass control.micro_batch(len(x), weight=1)."
        )
    if sums[TOLD]:
        _check_told(round(sums["samples"]), batch_size)
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
            f"{micro_batches} forward passes, each with a backward call: as if {times} of them "
            "belonged to one micro-batch. A model that is compiled in place does not show it. Put "
            f"the forward and backward calls of each micro-batch into a block, {BLOCK}, or compile "
            "by model = torch.compile(model). If the first dimension is not the samples: "
            "control.micro_batch(samples)."
        )
    _warn(
        f"batch_size={batch_size} was given, but the model received {rows} rows in the first step. "
        f"The results are wrong unless the step has {batch_size} samples. If several forward and "
        f"backward calls belong to one micro-batch, put them into one block: {BLOCK}. {REMEDY}"
    )


def _fits(sums: Mapping[str, float], batch_size: int, *, ranks: int) -> bool:
    if sums[ROWS] == batch_size:
        return True
    if sums[BLOCKS] == ranks and sums[ONCE] == batch_size:
        return True
    views = sums[PASSES] / sums["parts"]  # as of each sample in a contrastive loss
    return views > 1 and sums[ROWS] == views * batch_size


def _check_told(samples: int, batch_size: int) -> None:
    if samples > batch_size:  # fewer are a short step, as where a micro-batch had no loss
        _warn(
            f"batch_size={batch_size} was given, but the samples passed for the micro-batches of "
            f"the first step are {samples} over all ranks. batch_size and samples= count the same: "
            "the samples of the loss, not the rows of a forward pass. Pass "
            f"batch_size={samples}, or the samples of each micro-batch: "
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
        "The micro-batches of the first step have different numbers of samples on the ranks, "
        f"{sizes} on this one, and no weight was passed, {WEIGHTS}"
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
            "If several forward and backward calls belong to one micro-batch, put them into one "
            f"block, where samples= counts the micro-batch once: {BLOCK}. "
            f"Otherwise pass batch_size={rows}."
        )
    raise LargeBatchError(
        f"batch_size={batch_size} was given, but the model received {rows} samples in the first "
        "step. batch_size counts the samples of one optimizer step over all ranks and "
        f"micro-batches; {rows} is {rows // batch_size} times as many, which is the number "
        f"{' or '.join(fitting)}. {remedy} {REMEDY}"
    )


def _warn(text: str) -> None:
    warnings.warn(text, RuntimeWarning, stacklevel=2)
