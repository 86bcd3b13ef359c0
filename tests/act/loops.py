"""Training loops as people write them, each with the naive gradients of its micro-batches.

A loop gets the model to call, the bare model and the micro-batches of one step, and runs forward
and backward calls. `loss` gives the loss of each micro-batch, as it enters the step's gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint

PARTS, SIZE = 4, 8
Batch = list[tuple[Tensor, Tensor]]
Around = Callable[[], AbstractContextManager[None]]


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, 12), nn.Tanh())
        self.head = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


@dataclass(frozen=True)
class Loop:
    """One loop.

    Args:
        run: (called, bare, micro-batches, around) runs a step's forward and backward calls;
            `around()` is a context for the calls of one micro-batch.
        loss: (model, x, y) -> the loss of one micro-batch, divided as in the loop.
        remedy: whether it needs `control.part()` from the first step on.
        warned: whether it is measured wrong without it, with a warning that names it.
    """

    run: Callable[[Any, Net, Batch, Around], None]
    loss: Callable[[Any, Tensor, Tensor], Tensor]
    remedy: bool = False
    warned: bool = False


def batches(steps: int, *, seed: int = 0) -> Iterator[Batch]:
    """Micro-batches, independent of each other, of so many steps."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        x = torch.randn(PARTS, SIZE, 6, generator=generator)
        y = torch.randint(0, 3, (PARTS, SIZE), generator=generator)
        yield list(zip(x, y, strict=True))


def one(model: Any, x: Tensor, y: Tensor) -> Tensor:
    return cross_entropy(model(x), y) / PARTS


def two(model: Any, x: Tensor, y: Tensor) -> Tensor:
    out = model(x)
    return (cross_entropy(out, y) + out.square().mean()) / PARTS


def views(model: Any, x: Tensor, y: Tensor) -> Tensor:
    return -(model(x) * model(x.flip(1))).mean() / PARTS


def plain(called: Any, bare: Net, batch: Batch, around: Around) -> None:
    for x, y in batch:
        with around():
            one(called, x, y).backward()


def submodules(called: Any, bare: Net, batch: Batch, around: Around) -> None:
    for x, y in batch:
        with around():
            (cross_entropy(bare.head(bare.body(x)), y) / PARTS).backward()


def forwards_first(called: Any, bare: Net, batch: Batch, around: Around) -> None:
    losses = [one(called, x, y) for x, y in batch]
    for loss in losses:
        with around():
            loss.backward()


def prefetched(called: Any, bare: Net, batch: Batch, around: Around) -> None:
    coming = called(batch[0][0])
    for at, (_, y) in enumerate(batch):
        out = coming
        if at + 1 < len(batch):
            coming = called(batch[at + 1][0])
        with around():
            (cross_entropy(out, y) / PARTS).backward()


def logged(called: Any, bare: Net, batch: Batch, around: Around) -> None:
    for x, y in batch:
        with around():
            out = called(x)
            (cross_entropy(out, y) / PARTS).backward(retain_graph=True)
            called(x).detach().mean().item()  # a line of a log, without no_grad
            (out.square().mean() / PARTS).backward()


def reentrant(called: Any, bare: Net, batch: Batch, around: Around) -> None:
    for x, y in batch:
        with around():
            out = checkpoint(called, x.requires_grad_(), use_reentrant=True)
            (cross_entropy(out, y) / PARTS).backward()


def real_and_fake(called: Any, bare: Net, batch: Batch, around: Around) -> None:
    for x, y in batch:
        with around():
            (cross_entropy(called(x), y) / PARTS).backward()
            (called(x.flip(1)).square().mean() / PARTS).backward()


def gan(model: Any, x: Tensor, y: Tensor) -> Tensor:
    return (cross_entropy(model(x), y) + model(x.flip(1)).square().mean()) / PARTS


def two_views(called: Any, bare: Net, batch: Batch, around: Around) -> None:
    for x, y in batch:
        with around():
            views(called, x, y).backward()


def two_losses(called: Any, bare: Net, batch: Batch, around: Around) -> None:
    for x, y in batch:
        with around():
            out = called(x)
            (cross_entropy(out, y) / PARTS).backward(retain_graph=True)
            (out.square().mean() / PARTS).backward()


LOOPS = {
    "plain": Loop(plain, one),
    "submodules called directly": Loop(submodules, one),
    "all forwards first": Loop(forwards_first, one),
    "prefetched forward": Loop(prefetched, one),
    "logging forward between two losses": Loop(logged, two, remedy=True),
    "reentrant checkpoint": Loop(reentrant, one),
    "GAN": Loop(real_and_fake, gan, warned=True),
    "two views": Loop(two_views, views),
    "two losses": Loop(two_losses, two, remedy=True),
}


def moments(bare: Net, loop: Loop, batch: Batch) -> tuple[float, float]:
    """The variance of one sample and the squared norm, from whole gradients."""
    parameters = list(bare.parameters())
    grads = [
        torch.cat([g.flatten() for g in torch.autograd.grad(loop.loss(bare, x, y), parameters)])
        for x, y in batch
    ]
    each = torch.stack(grads).double() * PARTS
    mean_sqnorm = float(each.square().sum(1).mean())
    sqnorm = float(each.mean(0).square().sum())
    variance = (mean_sqnorm - sqnorm) / (1 / SIZE - 1 / (SIZE * PARTS))
    return variance, sqnorm - variance / (SIZE * PARTS)


NO_BLOCK: Around = nullcontext
