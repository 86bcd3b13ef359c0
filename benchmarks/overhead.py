"""Measure the overhead of AdaScale per training step, compared with fairscale's AdaScale.

    python benchmarks/overhead.py [--rounds 30] [--only "MLP 94k"]

Every candidate trains the same model on the same random data with 4 micro-batches per step, fused
SGD with momentum and one thread. Each step of this library writes a line of the record, while
fairscale writes no record. The baseline is the bare loop.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

import largebatch as lb
from _timing import Paired, Run, interleave

PARTS = 4


@dataclass(frozen=True)
class Case:
    """Describe a model and its training.

    Args:
        name: Name in the table.
        model: Function that makes the model.
        shape: Shape of one sample.
        micro_batch: Number of samples in one backward call.
        steps: Number of optimizer steps in one timed run.
    """

    name: str
    model: Callable[[], nn.Module]
    shape: tuple[int, ...]
    micro_batch: int
    steps: int


def mlp(*widths: int) -> nn.Module:
    """Return a multi-layer perceptron with the given layer widths."""
    layers = [nn.Linear(a, b) for a, b in itertools.pairwise(widths)]
    return nn.Sequential(*[m for layer in layers for m in (layer, nn.ReLU())][:-1])


def cnn() -> nn.Module:
    """Return a network of four convolutions with 99k parameters."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, padding=1, stride=2),
        nn.ReLU(), nn.Conv2d(32, 64, 3, padding=1, stride=2), nn.ReLU(),
        nn.Conv2d(64, 128, 3, padding=1, stride=2), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 10),
    )  # fmt: skip


CASES = [
    Case("MLP 94k, micro-batch 32", lambda: mlp(64, 272, 272, 10), (64,), 32, 25),
    Case("CNN 99k, micro-batch 16", cnn, (1, 28, 28), 16, 5),
    Case("MLP 9.8M, micro-batch 32", lambda: mlp(784, 2048, 2048, 1900, 10), (784,), 32, 1),
    Case("MLP 9.8M, micro-batch 128", lambda: mlp(784, 2048, 2048, 1900, 10), (784,), 128, 1),
]

loss_of = nn.CrossEntropyLoss()


def build(case: Case) -> tuple[nn.Module, torch.optim.Optimizer]:
    """Return the model and the optimizer, which are the same for every candidate."""
    torch.manual_seed(0)
    model = case.model()
    return model, torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9, fused=True)


def hand_batches(case: Case, x: Tensor, y: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield micro-batches as a hand-written loop does, by slicing a permutation."""
    while True:
        order = torch.randperm(len(x))
        for at in range(0, len(x) - case.micro_batch + 1, case.micro_batch):
            index = order[at : at + case.micro_batch]
            yield x[index], y[index]


def bare(case: Case, x: Tensor, y: Tensor) -> Run:
    """Return a bare loop with gradient accumulation."""
    model, optimizer = build(case)
    batches = hand_batches(case, x, y)

    def run() -> None:
        for _ in range(case.steps):
            for _ in range(PARTS):
                inputs, targets = next(batches)
                (loss_of(model(inputs), targets) / PARTS).backward()
            optimizer.step()
            optimizer.zero_grad()

    return run


def controlled(
    case: Case, x: Tensor, y: Tensor, *, rule: lb.Rule, folder: Path, tap: Callable[[], object]
) -> Run:
    """Return a loop with `lb.Controller` and a record."""
    model, optimizer = build(case)
    batch = PARTS * case.micro_batch
    batches = lb.BatchLoader((x, y), batch_size=batch, max_micro_batch_size=case.micro_batch)
    record = lb.JsonlRecord(folder / f"{len(list(folder.iterdir()))}.jsonl")
    control = lb.Controller(
        model, optimizer, rule, batches, base_batch_size=case.micro_batch,
        meter=lb.Meter(model, tap=tap()), record=record,
    )  # fmt: skip
    steps = control.steps(samples=10**12)

    def run() -> None:
        for batch in itertools.islice(steps, case.steps):
            for inputs, targets in batch:
                control.backward(loss_of(model(inputs), targets))
            control.step()

    return run


def attached(case: Case, x: Tensor, y: Tensor, *, folder: Path) -> Run:
    """Return a loop with `lb.attach` and a record."""
    model, optimizer = build(case)
    batches = hand_batches(case, x, y)
    record = lb.JsonlRecord(folder / f"{len(list(folder.iterdir()))}.jsonl")
    lb.attach(
        model, optimizer, lb.AdaScale(), batch_size=PARTS * case.micro_batch,
        base_batch_size=case.micro_batch, micro_batches=PARTS, record=record,
    )  # fmt: skip

    def run() -> None:
        for _ in range(case.steps):
            for _ in range(PARTS):
                inputs, targets = next(batches)
                (loss_of(model(inputs), targets) / PARTS).backward()
            optimizer.step()
            optimizer.zero_grad()

    return run


def fairscale(case: Case, x: Tensor, y: Tensor) -> Run:
    """Return a loop with the AdaScale of fairscale 0.4.13, which writes no record."""
    from fairscale.optim import AdaScale

    model, optimizer = build(case)
    wrapped = AdaScale(optimizer, num_gradients_to_accumulate=PARTS, world_size=1)
    batches = hand_batches(case, x, y)

    def run() -> None:
        for _ in range(case.steps):
            for _ in range(PARTS):
                inputs, targets = next(batches)
                (loss_of(model(inputs), targets) / PARTS).backward()
            wrapped.step()
            wrapped.zero_grad()

    return run


def measure(case: Case, *, rounds: int) -> Paired:
    """Time all candidates on one case."""
    generator = torch.Generator().manual_seed(0)
    samples = 16 * PARTS * case.micro_batch
    x = torch.randn(samples, *case.shape, generator=generator)
    y = torch.randint(0, 10, (samples,), generator=generator)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)

        def ours(rule: lb.Rule, tap: Callable[[], object] = lb.measure.LeafHooks) -> Run:
            return controlled(case, x, y, rule=rule, folder=folder, tap=tap)

        candidates: dict[str, Run] = {
            "bare": bare(case, x, y),
            "null": bare(case, x, y),
            "every step": ours(lb.AdaScale()),
            "flat": ours(lb.AdaScale(), lb.measure.Flat),
            "detached": ours(lb.AdaScale(), lb.measure.Detached),
            "every 10th": ours(lb.Every(lb.AdaScale(), steps=10)),
            "attach": attached(case, x, y, folder=folder),
        }
        try:
            candidates["fairscale"] = fairscale(case, x, y)
        except ImportError:
            print(
                "fairscale is left out because it is not installed. Install fairscale: "
                "pip install fairscale==0.4.13"
            )
        return interleave(candidates, rounds=rounds)


def main() -> None:
    """Print a table for each case."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--only", default="", help="part of a case's name")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for case in CASES:
        if arguments.only not in case.name:
            continue
        times = measure(case, rounds=arguments.rounds)
        parameters = sum(p.numel() for p in case.model().parameters())
        title = f"{case.name}, {parameters:,} parameters"
        print(times.table(title, to="bare", per=case.steps, unit="step"))


if __name__ == "__main__":
    main()
