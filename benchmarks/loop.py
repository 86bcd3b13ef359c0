"""Measure the overhead of hooks and checks in a training loop of your own.

    python benchmarks/loop.py [--rounds 30]

The first table is for a loop with one backward call per step. This table compares the bare loop
with `lb.attach`, which measures single examples in every 160th step, with `lb.attach` and a rule
that measures nothing, and with `lb.watch`, which measures without changing the training. The second
table is for a loop with gradient accumulation. The second table times two things that are done in
every step: the hook on the forward pass, and the check that `.grad` did not change between two
backward calls.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

import largebatch as lb
from _timing import Paired, Run, interleave
from largebatch.measure.accumulated import AccumulatedGradients
from largebatch.measure.forwards import Forwards
from largebatch.measure.one_backward import EXAMPLES
from overhead import cnn, mlp

EVERY = EXAMPLES.every  # Single examples are measured once in this number of steps.
PARTS = 4
loss_of = nn.CrossEntropyLoss()


def gpt() -> nn.Module:
    """Return a small transformer for 64 positions without dropout, with 0.2M parameters."""
    layer = nn.TransformerEncoderLayer(64, 4, 256, dropout=0.0, batch_first=True)
    return nn.Sequential(
        nn.Embedding(64, 64), nn.TransformerEncoder(layer, 2), Last(), nn.Linear(64, 10)
    )


class Last(nn.Module):
    """Return the last position of a sequence."""

    def forward(self, x: Tensor) -> Tensor:
        return x[:, -1]


def one_backward(make: Callable[[], nn.Module], data: Tensor, entry: str, *, steps: int) -> Run:
    """Return a function that trains `steps` steps with one backward call each.

    Args:
        make: Function that makes the model.
        data: Inputs of the batch.
        entry: Entry point of the library, such as "attach" or "watch"; "bare" and "null" use none.
        steps: Number of steps.
    """
    torch.manual_seed(0)
    model = make()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    size = len(data)
    labels = torch.randint(0, 10, (size,))
    if entry == "attach":
        lb.attach(model, optimizer, lb.AdaScale(), batch_size=size, base_batch_size=size // 4)
    elif entry == "attach, no measurement":
        lb.attach(model, optimizer, lb.SqrtScaling(), batch_size=size, base_batch_size=size // 4)
    elif entry == "watch":
        lb.watch(model, optimizer, batch_size=size)

    def run(steps: int = steps) -> None:
        for _ in range(steps):
            loss_of(model(data), labels).backward()
            optimizer.step()
            optimizer.zero_grad()

    run(EXAMPLES.early * EXAMPLES.early_every + 1)  # These steps are measured more often.
    return run


def each_step(tensors: int, *, steps: int) -> Iterator[tuple[str, Run]]:
    """Yield functions that time the forward hook and the check of `.grad`, with their names.

    Args:
        tensors: Number of parameters of the model.
        steps: Number of steps in one timed run.
    """

    def forwards(hooked: bool) -> Run:
        model = nn.Identity()
        x = torch.zeros(8, requires_grad=True)
        if hooked:
            followed = Forwards(model, reached=lambda number: None, failed=print)
            followed.follow()
            followed.link(False)
            followed.sized = False  # as in all steps after the first one

        def run() -> None:
            for _ in range(steps * PARTS):
                model(x)

        return run

    parameters = [nn.Parameter(torch.zeros(4)) for _ in range(tensors)]
    for parameter in parameters:
        parameter.grad = torch.zeros(4)
    held = AccumulatedGradients([{"params": parameters}])

    def check() -> None:
        for _ in range(steps):
            for _ in range(PARTS):
                held.change()
                held.note()
            held.forget()

    yield "bare", forwards(False)
    yield "forward hook", forwards(True)
    yield ".grad", check


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=30)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    cases = {
        "MLP 94k, batch 64": (lambda: mlp(64, 272, 272, 10), torch.randn(64, 64)),
        "CNN 99k, batch 32": (cnn, torch.randn(32, 1, 28, 28)),
        "GPT 0.2M, batch 8": (gpt, torch.randint(0, 64, (8, 64))),
    }
    for name, (make, data) in cases.items():
        runs = {
            entry: one_backward(make, data, entry, steps=EVERY)
            for entry in ("bare", "null", "attach, no measurement", "attach", "watch")
        }
        print(
            interleave(runs, rounds=rounds).table(name, to="bare", per=EVERY, unit="step"),
            flush=True,
        )
    steps = 500
    times: Paired = interleave(dict(each_step(300, steps=steps)), rounds=rounds)
    hook = times.added("forward hook", to="bare", per=steps).shown(2)
    check = times.each(".grad", per=steps, clock="cpu").shown(2)
    print(
        f"\nCPU us per step of {PARTS} micro-batches: forward hook {hook}, check of .grad {check}"
    )


if __name__ == "__main__":
    main()
