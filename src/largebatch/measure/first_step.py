"""What the first step of a run shows: whether sizes, inputs and weights are what they should be."""

from __future__ import annotations

import warnings
import zlib
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from largebatch.core.errors import LargeBatchError, RanksDisagree
from largebatch.measure.first_sizes import SEEN, FirstSizes, check_sizes

INPUT, WEIGHTS = "input", "weights"
BITS = 0xFFFFF
"""Of a checksum that travels as a float64: its square is exact, also summed over many ranks."""


def facts(
    sizes: FirstSizes, *, first: Tensor | None, weights: Iterable[Tensor] | None
) -> dict[str, float]:
    """Return this rank's numbers of the first step, to be summed over the ranks.

    Args:
        sizes: what the parts show.
        first: a few elements of the first input; None if there are none.
        weights: the parameters, if they must be the same on all ranks.
    """
    sums = [] if weights is None else [_sums(weight) for weight in weights]
    return {
        **sizes.numbers(),
        **_marked(INPUT, first),
        **_marked(WEIGHTS, torch.stack(sums) if sums else None),
    }


def check_first_step(
    sums: Mapping[str, float],
    *,
    batch_size: int,
    ranks: int,
    replicated: bool,
    alike: bool = False,
    of_parts: Sequence[float] = (),
) -> None:
    """Compare the first step with what the user said; warn of what may be right.

    It depends on the sums alone, so that all ranks raise or none.

    Args:
        sums: of `facts` over all ranks.
        batch_size: samples of a step over all ranks, as given.
        ranks: processes that share the batch.
        replicated: whether nobody but the user keeps the weights equal.
        alike: whether the backward gave the same gradients on all ranks.
        of_parts: rows of this rank's parts.

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
    same_input = sums[INPUT] > 0 and _alike(sums, INPUT, ranks=ranks)
    if alike and sums[SEEN] == ranks and sums[INPUT] and not same_input:
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
    check_sizes(sums, batch_size=batch_size, ranks=ranks, of_parts=of_parts)


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
