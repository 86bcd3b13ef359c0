"""Runs the same steps through `lb.attach` and through `lb.Controller`, on sequences of tokens.

A sample is a sequence of up to `LONGEST` tokens; each token has a class. All is in float64, so that
two doors that measure the same agree to many digits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

import largebatch as lb
from small_runs import Seen

BATCH, BASE, STEPS, LONGEST = 32, 8, 12, 9
NO_TOKEN = -100
Batch = tuple[Tensor, Tensor]


def sequences(*, equal: bool) -> Batch:
    """Inputs `[N, T, 5]` and classes `[N, T]` of all steps; what is behind the end is NO_TOKEN."""
    generator = torch.Generator().manual_seed(3)
    count = BATCH * STEPS
    x = torch.randn(count, LONGEST, 5, generator=generator, dtype=torch.float64)
    y = (x[..., 0] > 0).long() + torch.randint(0, 2, (count, LONGEST), generator=generator)
    lengths = torch.randint(1, LONGEST + 1, (count, 1), generator=generator)
    if not equal:
        y[torch.arange(LONGEST) >= lengths] = NO_TOKEN
    return x, y


def model_of() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3)).double()


def summed(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """The sum of all tokens' losses."""
    scores = model(x).flatten(0, 1)
    return cross_entropy(scores, y.flatten(), ignore_index=NO_TOKEN, reduction="sum")


def tokens_in(y: Tensor) -> int:
    return int((y != NO_TOKEN).sum())


def mean(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """The mean over the tokens of this micro-batch."""
    return summed(model, x, y) / tokens_in(y)


def ranks() -> tuple[int, int]:
    """This process's rank and the number of processes."""
    together = dist.is_initialized()
    return (dist.get_rank(), dist.get_world_size()) if together else (0, 1)


def called(model: nn.Module, *, by_hand: bool = False) -> nn.Module:
    return DistributedDataParallel(model) if dist.is_initialized() and not by_hand else model


def meter_of(model: nn.Module, *, examples: bool, by_hand: bool = False) -> lb.Meter:
    if examples:
        return lb.Meter(model, examples=lb.PerExample())
    return lb.Meter(model, replicated=True) if by_hand else lb.Meter(model)


def steps_of(data: Batch, *, size: int) -> Iterator[list[Batch]]:
    """The micro-batches of each step over all ranks; number j is that of rank j mod ranks."""
    for at in range(0, len(data[0]), BATCH):
        cuts = range(at, at + BATCH, size)
        yield [(data[0][i : i + size], data[1][i : i + size]) for i in cuts]


def made(model: nn.Module, *, adam: bool) -> torch.optim.Optimizer:
    if adam:
        return torch.optim.Adam(model.parameters(), lr=0.01)
    return torch.optim.SGD(model.parameters(), lr=0.05)


def rule_of(*, adam: bool) -> lb.AdaScale:
    return lb.AdaScale(statistic="preconditioned_moments" if adam else "moments")


def quiet(model: nn.Module, *, last: bool) -> AbstractContextManager[None]:
    """DDP reduces the last micro-batch's gradient alone."""
    if last or not isinstance(model, DistributedDataParallel):
        return nullcontext()
    return model.no_sync()


Mine = Callable[[list[Batch]], list[Batch]]


def in_turn(step: list[Batch]) -> list[Batch]:
    rank, count = ranks()
    return step[rank::count]


def all_but_one_on_rank_0(step: list[Batch]) -> list[Batch]:
    return step[:-1] if ranks()[0] == 0 else step[-1:]


class Run:
    """What one door has measured.

    Mutable: filled step by step.
    """

    def __init__(self) -> None:
        self.seen, self.gains = Seen(), []
        self.models: list[dict[str, Any]] = []

    @property
    def numbers(self) -> list[float]:
        """Variance, squared norm, samples and gain of each step; in Adam's first ones the gain."""
        moments = [one.moments or one.preconditioned_moments for one in self.seen.steps]
        found: list[float] = list(self.gains)
        for one in filter(None, moments):
            found += [one.variance, one.batch_sqnorm, one.noise_scale, one.batch_size, one.parts]
        return found


def driven(
    data: Batch, *, size: int, weighted: bool, examples: bool = False, adam: bool = False
) -> Run:
    """Run `lb.Controller`, which gets the mean loss, and the tokens if they are the weight."""
    bare, run = model_of(), Run()
    model = called(bare)
    control = lb.Controller(
        model,
        made(bare, adam=adam),
        rule_of(adam=adam),
        lb.BatchLoader(data, batch_size=BATCH, max_micro_batch_size=size, shuffle=False),
        base_batch_size=BASE,
        meter=meter_of(model, examples=examples),
        record=run.seen,
    )
    for batch in control.steps(steps=STEPS):
        for x, y in batch:
            weight = tokens_in(y) if weighted else None
            control.backward(mean(model, x, y), weight=weight)
        control.step()
        run.gains.append(control.lr_multiplier)
    return run


def attached(
    data: Batch,
    *,
    size: int,
    weighted: bool,
    examples: bool = False,
    reduction: Any = "mean",
    unit: float = 1.0,
    adam: bool = False,
    blocks: bool = False,
    mine: Mine = in_turn,
    by_hand: Any = None,
) -> Run:
    """Run a loop of the user's own under `lb.attach`, and keep the weights before each step.

    Args:
        data: of all steps.
        size: samples of a micro-batch.
        weighted: whether each token has the same weight, which is told; else each micro-batch.
        examples: whether single examples are the parts.
        reduction: as in attach.
        unit: of the weights.
        adam: whether Adam trains, and the gradient as it sees it is measured.
        blocks: whether each micro-batch has two backward calls, in a block.
        mine: which micro-batches of a step this rank gets.
        by_hand: how the loop itself reduces the gradients over the ranks; None takes DDP.
    """
    bare, run = model_of(), Run()
    model = called(bare, by_hand=by_hand is not None)
    count = ranks()[1]
    optimizer = made(bare, adam=adam)
    control = lb.attach(
        model,
        optimizer,
        rule_of(adam=adam),
        batch_size=BATCH,
        base_batch_size=BASE,
        meter=meter_of(model, examples=examples, by_hand=by_hand is not None),
        record=run.seen,
        reduction=reduction,
    )
    times = count if reduction == "mean" else 1
    for step in steps_of(data, size=size):
        run.models.append({name: value.clone() for name, value in bare.state_dict().items()})
        total, here = sum(tokens_in(y) for _, y in step), mine(step)
        for at, (x, y) in enumerate(here):
            told: dict[str, Any] = {"samples": len(x)}
            if weighted:
                told["weight"] = unit * tokens_in(y)
            share = times / total if weighted else times / len(step) / tokens_in(y)
            if weighted and not blocks:
                control.micro_batch(**told)
            with (
                control.part(**told) if blocks else nullcontext(),
                quiet(model, last=at + 1 == len(here)),
            ):
                for part in (0.25, 0.75) if blocks else (1.0,):
                    (summed(model, x, y) * (part * share)).backward()
        for parameter in bare.parameters():
            if by_hand is not None:
                dist.all_reduce(parameter.grad, op=by_hand)
            if reduction == "sum" and by_hand != dist.ReduceOp.SUM:
                parameter.grad *= count  # so that the weights move as in the run of one process
        optimizer.step()
        optimizer.zero_grad()
        run.gains.append(control.lr_multiplier)
    return run


def weights_of(step: Sequence[Batch]) -> list[float]:
    return [float(tokens_in(y)) for _, y in step]
