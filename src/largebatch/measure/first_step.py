"""What the first step of a run shows: whether sizes, inputs and weights are what they should be."""

from __future__ import annotations

import warnings
import zlib
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from largebatch.core.errors import LargeBatchError, RanksDisagree

ROWS, SEEN, INPUT, WEIGHTS = "rows", "ranks with rows", "input", "weights"
TOLD, HIDDEN = "ranks with told samples", "ranks with hidden passes"
BITS = 0xFFFFF
"""Of a checksum that travels as a float64: its square is exact, also summed over many ranks."""


REMEDY = (
    "If its first dimension is not the samples, say how to count them: "
    "lb.attach(..., samples=lambda args, kwargs: args[0].shape[1])."
)


def facts(
    *,
    rows: float,
    first: Tensor | None,
    weights: Iterable[Tensor] | None,
    told: bool,
    hidden: bool,
) -> dict[str, float]:
    """Return this rank's numbers of the first step, to be summed over the ranks.

    Args:
        rows: the model's first dimension over the micro-batches of the step; 0 if unknown.
        first: a few elements of the first input.
        weights: the parameters, if they must be the same on all ranks.
        told: whether the samples were told, so that rows are no matter.
        hidden: whether each micro-batch seems to have one forward pass, but the model is compiled
            in place, so that nothing shows which one a backward came from.
    """
    sums = [] if weights is None else [_sums(weight) for weight in weights]
    return {
        ROWS: rows,
        SEEN: float(rows > 0),
        TOLD: float(told),
        HIDDEN: float(hidden),
        **_marked(INPUT, None if first is None else first),
        **_marked(WEIGHTS, torch.stack(sums) if sums else None),
    }


def check_first_step(
    sums: Mapping[str, float],
    *,
    batch_size: int,
    micro_batches: int,
    ranks: int,
    replicated: bool,
    alike: bool = False,
) -> None:
    """Compare the first step with what the user said; warn of what may be right.

    It depends on the sums alone, so that all ranks raise or none.

    Args:
        sums: of `facts` over all ranks.
        batch_size: samples of a step over all ranks, as given.
        micro_batches: of this step on each rank, on average.
        ranks: processes that share the batch.
        replicated: whether nobody but the user keeps the weights equal.
        alike: whether the backward gave the same gradients on all ranks.

    Raises:
        LargeBatchError: a batch size that is wrong by the ranks, the micro-batches or both.
            Or gradients that hooks reduced before they could be measured.
        RanksDisagree: weights that differ between the ranks.
    """
    if replicated and not _alike(sums, WEIGHTS, ranks=ranks):
        raise RanksDisagree(
            f"lb.Meter(model, replicated=True) was given, but the weights of the {ranks} ranks "
            "differ in the first step. Start all ranks from the same weights: "
            "torch.distributed.broadcast(parameter.data, src=0) for each parameter."
        )
    same_input = _alike(sums, INPUT, ranks=ranks)
    if alike and sums[SEEN] == ranks and not same_input:
        raise LargeBatchError(
            f"The backward gave the same gradients on all {ranks} ranks, although their inputs "
            "differ: a hook of yours averages each gradient before it can be measured. Average "
            "after the last backward call, or in parameter.register_post_accumulate_grad_hook, or "
            "wrap the model: torch.nn.parallel.DistributedDataParallel(model)."
        )
    if ranks > 1 and sums[SEEN] == ranks and same_input:
        warnings.warn(
            f"All {ranks} ranks got the same input in the first step, so the batch has no more "
            "samples than on one rank and the variance between ranks is wrong. Give every rank its "
            "own data: DataLoader(dataset, sampler=DistributedSampler(dataset)).",
            RuntimeWarning,
            stacklevel=2,
        )
    if sums[TOLD] or sums[SEEN] < ranks or sums[ROWS] == batch_size:
        return
    rows = round(sums[ROWS])
    _check_sizes(rows, batch_size, micro_batches=micro_batches, ranks=ranks)
    times, rest = divmod(rows, batch_size)
    if sums[HIDDEN] and not rest and times > 1 and micro_batches % times == 0:
        raise LargeBatchError(
            f"batch_size={batch_size} was given, but the model received {rows} rows in "
            f"{micro_batches} forward passes, each with a backward call: as if {times} of them "
            "belonged to one micro-batch. A model that is compiled in place does not show it. Put "
            "the forward and backward calls of each micro-batch into a block, with "
            "control.part(): ..., or compile by model = torch.compile(model). "
            "If the first dimension is not the samples: control.micro_batch(samples)."
        )
    warnings.warn(
        f"batch_size={batch_size} was given, but the model received {rows} rows in the first step. "
        "The batch size is taken as given. If several forward and backward calls belong to one "
        f"micro-batch, put them into one block, with control.part(): ... {REMEDY}",
        RuntimeWarning,
        stacklevel=2,
    )


def _check_sizes(rows: int, batch_size: int, *, micro_batches: int, ranks: int) -> None:
    both = ranks * micro_batches if ranks > 1 and micro_batches > 1 else 1
    causes = {
        f"the {ranks} ranks": ranks,
        f"the {micro_batches} micro-batches": micro_batches,
        f"the {micro_batches} micro-batches of each of {ranks} ranks": both,
    }
    fitting = [
        cause for cause, factor in causes.items() if factor > 1 and rows == factor * batch_size
    ]
    if fitting:
        raise LargeBatchError(
            f"batch_size={batch_size} was given, but the model received {rows} samples in the "
            f"first step: {rows // batch_size} times as many, as if {' or '.join(fitting)} had "
            "been left out. batch_size counts the samples of one optimizer step over all ranks and "
            f"micro-batches: batch_size={rows}. If several backward calls belong to one "
            f"micro-batch, put them into one block, with control.part(samples={batch_size}): ... "
            f"{REMEDY}"
        )


def _marked(name: str, values: Tensor | None) -> dict[str, float]:
    mark = 0
    if values is not None:
        wide = values.detach().to("cpu")
        wide = torch.view_as_real(wide) if wide.is_complex() else wide
        mark = zlib.crc32(repr(wide.tolist()).encode()) & BITS
    return {name: float(mark), f"{name} squared": float(mark) ** 2}


def _alike(sums: Mapping[str, float], name: str, *, ranks: int) -> bool:
    return ranks * sums[f"{name} squared"] == sums[name] ** 2


def _sums(weight: Tensor) -> Tensor:
    real = torch.view_as_real(weight) if weight.is_complex() else weight
    flat = real.detach().to(torch.float32).flatten()
    return torch.stack([flat.sum(), flat.square().sum()])
