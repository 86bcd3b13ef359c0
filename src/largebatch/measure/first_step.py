"""Check sample counts, inputs and weights of all ranks in the first training step of a run."""

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
"""Bits of a checksum, so few that float64 sums the squared checksums of all ranks exactly.
"""


def facts(
    sizes: FirstSizes, *, first: Tensor | None, weights: Iterable[Tensor] | None
) -> dict[str, float]:
    """Return this rank's numbers of the first step, which must be summed over the ranks.

    Args:
        sizes: Numbers of samples and micro-batches of the first step on this rank.
        first: A few elements of the first input; None if the input is unknown. weights: The
            parameters, if the parameters must be the same on all ranks; otherwise None.
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
    """Compare the first step with the user's arguments; warn or raise if the two do not match.

    Whether an error is raised depends only on the sums, so either all ranks raise the error or no
    rank raises it.

    Args:
        sums: Sums of `facts` over all ranks.
        batch_size: User-supplied number of samples per step over all ranks.
        ranks: Number of processes that share the batch.
        replicated: Whether the user's own code, and not DistributedDataParallel, keeps the weights
            of all ranks equal.
        alike: Whether the backward call gave the same gradients on all ranks.
        of_parts: Number of rows of each micro-batch on this rank.

    Raises:
        LargeBatchError: The batch size is wrong by a factor that is the number of ranks, the number
            of micro-batches or the product of both, or hooks reduced the gradients over the ranks
            before the gradients could be measured.
        RanksDisagree: The weights differ between the ranks.
    """
    if replicated and not _alike(sums, WEIGHTS, ranks=ranks):
        raise RanksDisagree(
            f"lb.Meter(model, replicated=True) was given, but the weights of the {ranks} ranks "
            "differ in the first step. Before training, copy the weights of rank 0 to all ranks: "
            "for p in model.parameters(): torch.distributed.broadcast(p.data, src=0)."
        )
    same_input = sums[INPUT] > 0 and _alike(sums, INPUT, ranks=ranks)
    if alike and sums[SEEN] == ranks and sums[INPUT] and not same_input:
        raise LargeBatchError(
            f"The backward call gave the same gradients on all {ranks} ranks, although the "
            "inputs of the ranks differ. Probably one of your hooks averages each gradient before "
            "the gradient can be measured. Average after the last backward call or in "
            "parameter.register_post_accumulate_grad_hook, or wrap the model: "
            "model = torch.nn.parallel.DistributedDataParallel(model)."
        )
    if ranks > 1 and sums[SEEN] == ranks and same_input:
        warnings.warn(
            f"All {ranks} ranks got the same input in the first step, so the whole batch has no "
            "more different samples than one rank, and the variance between ranks is wrong. Load "
            "different samples on each rank: DataLoader(dataset, "
            "sampler=DistributedSampler(dataset)).",
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
