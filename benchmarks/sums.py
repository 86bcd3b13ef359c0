"""What the sums of a step cost: adding the squared norms of every micro-batch, and the reduction.

    python benchmarks/sums.py [--rounds 50]

The gradients are not squared here: the squared norm of each parameter is a scalar that is there
already. `Ranks` of two processes are imitated, so that no collective is timed. The peer adds up the
same scalars with `math.fsum` and does nothing else. The last table is that of a whole `BlockNorms`,
whose peer squares the same gradients and adds nothing up.
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
    """Two ranks without a collective."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 2

    def sum_(self, values: Tensor) -> Tensor:
        """Return the values of this rank."""
        return values


@dataclass(frozen=True, slots=True)
class Size:
    """How much a step adds up."""

    tensors: int
    micro_batches: int
    blocks: int = 1

    def shown(self) -> str:
        """As in "300 tensors x 8, 1 block"."""
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
    """One step of the sums."""
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
    """The same scalars read and added up."""
    scalars = torch.rand(size.tensors).unbind()

    def step() -> None:
        for _ in range(size.micro_batches + 1):
            math.fsum([scalar.item() for scalar in scalars])

    return step


def model_of(size: Size) -> nn.Module:
    """A model of so many small parameters in so many blocks."""
    counts = [len(range(block, size.tensors, size.blocks)) for block in range(size.blocks)]
    blocks = [nn.ParameterList([torch.ones(4) for _ in range(count)]) for count in counts]
    return nn.ModuleList(blocks)


def block_norms_step(size: Size, ranks: Ranks) -> Run:
    """One step of `BlockNorms`, from the gradients to the sums."""
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
    """The squares of the same gradients, which nobody adds up."""
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
    """Time all runs against the first one, and print them with their fastest round."""
    first, _, *ours = runs
    times = interleave(runs, rounds=rounds)
    print(times.table(title, to=first, per=1, unit="step"))
    fastest = [f"{name} {min(times.cpu[name]) * 1e3:.2f} ms" for name in ours]
    print(f"CPU of the fastest round: {', '.join(fastest)}")


if __name__ == "__main__":
    main()
