"""Measure the time to add up and reduce the squared norms of all micro-batches of a step.

    python benchmarks/sums.py [--rounds 50]

The gradients are not squared here, because the squared norm of each parameter is given. Two ranks
are simulated, so no collective operation is timed. The baseline only adds up the same scalars with
`math.fsum`. The last table is for a whole `BlockNorms`. The baseline of this table only squares the
same gradients and does not add them up.
"""

from __future__ import annotations

import argparse
import math
import time
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from _timing import Run, interleave
from largebatch.measure.blocks import BlockNorms
from largebatch.measure.parameters import Parameters
from largebatch.measure.ranks import Ranks
from largebatch.measure.squares import squared_norm_of_each, squarer
from largebatch.measure.sums import Sums, rows_by_name


class TwoRanks(Ranks):
    """Simulate two ranks without a collective operation."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 2

    def sum_(self, values: Tensor) -> Tensor:
        """Return the values of this rank."""
        return values


@dataclass(frozen=True, slots=True)
class Size:
    """Describe the numbers of tensors, micro-batches and blocks of a step."""

    tensors: int
    micro_batches: int
    blocks: int = 1

    def shown(self) -> str:
        """Return the size as text, such as "300 tensors x 8, 1 block"."""
        plural = "" if self.blocks == 1 else "s"
        return f"{self.tensors} tensors x {self.micro_batches}, {self.blocks} block{plural}"


SIZES = (
    Size(20, 4),
    Size(300, 8),
    Size(300, 32),
    Size(1000, 8),
    Size(300, 8, 300),
    Size(1000, 8, 300),
)


def step_of(size: Size, ranks: Ranks) -> Run:
    """Return a function that adds up and reduces the squared norms of one step."""
    parts = [f"parts of {block}" for block in range(size.blocks)]
    batch = [f"batch of {block}" for block in range(size.blocks)]
    sums, rows = Sums(ranks, device=torch.device("cpu")), rows_by_name(["loss", *batch, *parts])
    scalars = torch.rand(size.tensors).unbind()
    pieces = [scalars[block :: size.blocks] for block in range(size.blocks)]

    def step() -> None:
        sums.open(rows)
        for _ in range(size.micro_batches):
            sums.add("loss", scalars[0], coefficient=4.0)
            for name, piece in zip(parts, pieces, strict=True):
                sums.add(name, *piece, coefficient=4.0)
        for name, piece in zip(batch, pieces, strict=True):
            sums.add(name, *piece)
        sums.put({"parts": 8, "weight": 4.0, "digest": time.perf_counter_ns() % 2**31})
        sums.reduce()

    return step


def added_by_hand(size: Size) -> Run:
    """Return a function that adds up the same scalars with `math.fsum`."""
    scalars = torch.rand(size.tensors).unbind()

    def step() -> None:
        for _ in range(size.micro_batches + 1):
            math.fsum([scalar.item() for scalar in scalars])

    return step


def model_of(size: Size) -> nn.Module:
    """Return a model with the given numbers of small parameters and blocks."""
    counts = [len(range(block, size.tensors, size.blocks)) for block in range(size.blocks)]
    blocks = [nn.ParameterList([torch.ones(4) for _ in range(count)]) for count in counts]
    return nn.ModuleList(blocks)


def block_norms_step(size: Size, ranks: Ranks) -> Run:
    """Return a function that computes one step of `BlockNorms`, from the gradients to the sums."""
    model = model_of(size)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    statistic, parameters = BlockNorms(), Parameters.of(model, optimizer)
    statistic.bind(parameters, optimizer)
    for parameter in parameters.tensors:
        parameter.grad = torch.ones_like(parameter)
    sums = Sums(ranks, device=torch.device("cpu"))
    rows = rows_by_name([*statistic.of_parts, *statistic.of_batch])

    def step() -> None:
        sums.open(rows)
        for _ in range(size.micro_batches):
            for index, parameter in enumerate(parameters.tensors):
                statistic.see(index, parameter.grad)
            statistic.close_part(sums, coefficient=4.0)
        statistic.close_batch(sums, share=1.0)
        sums.reduce()

    return step


def squares_step(size: Size) -> Run:
    """Return a function that only squares the same gradients."""
    parameters = list(model_of(size).parameters())
    gradients = [(torch.ones_like(p), squarer(p)) for p in parameters]

    def step() -> None:
        for _ in range(size.micro_batches):
            for gradient, square in gradients:
                square(gradient)
        squared_norm_of_each([gradient for gradient, _ in gradients])

    return step


def main() -> None:
    """Print a table for each size."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=50)
    rounds = parser.parse_args().rounds
    for size in SIZES:
        show(
            size.shown(),
            {"by hand": added_by_hand(size), "null": added_by_hand(size)}
            | {"one process": step_of(size, Ranks()), "two ranks": step_of(size, TwoRanks())},
            rounds=rounds,
        )
    size = SIZES[-1]
    show(
        f"BlockNorms, {size.shown()}",
        {"squares": squares_step(size), "null": squares_step(size)}
        | {"one process": block_norms_step(size, Ranks())}
        | {"two ranks": block_norms_step(size, TwoRanks())},
        rounds=rounds,
    )


def show(title: str, runs: dict[str, Run], *, rounds: int) -> None:
    """Time all runs, print them compared with the first one, and print their fastest round."""
    first, _, *ours = runs
    times = interleave(runs, rounds=rounds)
    print(times.table(title, to=first, per=1, unit="step"))
    fastest = [f"{name} {min(times.cpu[name]) * 1e3:.2f} ms" for name in ours]
    print(f"CPU time of the fastest round: {', '.join(fastest)}")


if __name__ == "__main__":
    main()
