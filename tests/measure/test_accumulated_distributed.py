"""What one rank alone does to its gradients is refused on all of them; right loops raise no alarm.

One pair of processes runs all checks, since their start takes seconds.
"""

from __future__ import annotations

import itertools
import traceback
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import largebatch as lb
from distributed import run_on_ranks
from largebatch.act.attached import Attached
from largebatch.core.errors import MicroBatchMissed
from small_runs import class_data, class_loss, classifier, weights

pytestmark = pytest.mark.distributed
RANKS, PARTS, SIZE = 2, 3, 5
BATCH = RANKS * PARTS * SIZE


def replace_all(model: nn.Module, optimizer: Any) -> None:
    for parameter in model.parameters():
        parameter.grad = 0.5 * parameter.grad


def multiply_all(model: nn.Module, optimizer: Any) -> None:
    for parameter in model.parameters():
        parameter.grad.mul_(0.5)


CHANGES: dict[str, Callable[[nn.Module, Any], Any]] = {
    "zero_grad": lambda m, o: o.zero_grad(),
    "zero_grad to zeros": lambda m, o: o.zero_grad(set_to_none=False),
    "clip_grad_norm_": lambda m, o: nn.utils.clip_grad_norm_(m.parameters(), 1e-3),
    "its norm alone": lambda m, o: nn.utils.clip_grad_norm_(m.parameters(), torch.inf),
    "multiplied": multiply_all,
    "replaced": replace_all,
}
OPTIONS = {
    f"view={view} no_sync={quiet} unused={unused} static={static}": (view, quiet, unused, static)
    for view, quiet, unused, static in itertools.product((True, False), repeat=4)
    if not (quiet and static)  # torch's own error: the first backward must communicate
}


def own(step: int) -> list[tuple[Tensor, Tensor]]:
    """This rank's micro-batches."""
    return parts(step)[dist.get_rank() :: RANKS]


def parts(step: int) -> list[tuple[Tensor, Tensor]]:
    x, y = class_data(2 * BATCH)
    places = range(step * BATCH, (step + 1) * BATCH, SIZE)
    return [(x[at : at + SIZE], y[at : at + SIZE]) for at in places]


def backwards(
    model: DistributedDataParallel,
    step: int,
    *,
    quiet: bool = True,
    after: Callable[[int], Any] = lambda at: None,
) -> None:
    for at, (x, y) in enumerate(own(step)):
        with model.no_sync() if quiet and at < PARTS - 1 else nullcontext():
            (class_loss(model, x, y) / PARTS).backward()
        after(at)


def attach(model: nn.Module, optimizer: Any) -> Attached:
    rule = lb.Observe(statistics=("moments",))
    return lb.attach(model, optimizer, rule, batch_size=BATCH, base_batch_size=SIZE)


def error_of(act: Callable[[], Any]) -> tuple[str, str]:
    try:
        act()
    except Exception as error:
        return type(error).__name__, str(error)
    return "", ""


def refused_under_attach(name: str, *, ranks: tuple[int, ...]) -> tuple[Any, ...]:
    model = DistributedDataParallel(classifier())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    control = attach(model, optimizer)
    before = weights(model)

    def after(at: int) -> None:
        if at == 1 and dist.get_rank() in ranks:
            CHANGES[name](model, optimizer)

    backwards(model, 0, after=after)
    error = error_of(optimizer.step)
    moved = not all(map(torch.equal, before, weights(model)))
    optimizer.zero_grad()
    backwards(model, 1)
    optimizer.step()  # the next step is measured afresh
    return (*error, moved, control.optimizer_steps)


def refused_under_controller(name: str, *, ranks: tuple[int, ...]) -> tuple[Any, ...]:
    model = DistributedDataParallel(classifier())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    batches = lb.BatchLoader(class_data(), batch_size=BATCH, max_micro_batch_size=SIZE)
    control = lb.Controller(model, optimizer, lb.AdaScale(), batches, base_batch_size=SIZE)
    before = weights(model)

    def run() -> None:
        for batch in control.steps(steps=2):
            for at, (x, y) in enumerate(batch):
                control.backward(class_loss(model, x, y))
                if at == 1 and dist.get_rank() in ranks:
                    CHANGES[name](model, optimizer)
            control.step()

    error = error_of(run)
    moved = not all(map(torch.equal, before, weights(model)))
    return (*error, moved, control.optimizer_steps + 1)


def left_over(dropped: bool) -> tuple[Any, ...]:
    """Rank 1 drops a pass without clearing its gradients, or does not clear those of a step."""
    model = DistributedDataParallel(classifier())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    control = attach(model, optimizer)
    second = dist.get_rank() == 1
    if not dropped:
        backwards(model, 0)
        optimizer.step()
        if not second:
            optimizer.zero_grad()
    before = weights(model)
    backwards(model, 1, after=lambda at: control.drop() if dropped and second and at == 0 else None)
    error = error_of(optimizer.step)
    return (*error, all(map(torch.equal, before, weights(model))))


def right(view: bool, quiet: bool, unused: bool, static: bool) -> tuple[Any, ...]:
    """(whether the weights are those without attach, moments of each step)."""
    trained, moments = [], []
    for watched in (False, True):
        model = DistributedDataParallel(
            classifier(),
            gradient_as_bucket_view=view,
            find_unused_parameters=unused,
            static_graph=static,
        )
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        control = attach(model, optimizer) if watched else None
        for step in range(2):
            backwards(model, step, quiet=quiet)
            optimizer.step()
            optimizer.zero_grad()
            if control is not None:
                found = control._seen.moments
                moments.append((found.variance, found.sqnorm))
        trained.append(weights(model))
    return all(map(torch.equal, *trained)), moments


def answered(act: Callable[[], Any]) -> Any:
    try:
        return act()
    except Exception:
        return traceback.format_exc()
    finally:
        dist.barrier()


@pytest.fixture(scope="module")
def answers() -> list[dict[str, Any]]:
    return run_on_ranks(everything, RANKS)


def everything() -> dict[str, Any]:
    torch.manual_seed(0)
    found: dict[str, Any] = {}
    for door, refused in DOORS.items():
        for name in CHANGES:
            for ranks in ((1,), (0, 1)):
                found[f"{door} {name} {ranks}"] = answered(
                    lambda r=refused, n=name, k=ranks: r(n, ranks=k)
                )
    for dropped in (True, False):
        found[f"left over {dropped}"] = answered(lambda d=dropped: left_over(d))
    for name, options in OPTIONS.items():
        found[name] = answered(lambda o=options: right(*o))
    return found


DOORS = {"attach": refused_under_attach, "controller": refused_under_controller}


@pytest.mark.parametrize("name", CHANGES)
@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("ranks", [(1,), (0, 1)])
def test_a_change_on_one_rank_is_the_same_error_on_all(answers, door, name, ranks) -> None:
    first, second = (answer[f"{door} {name} {ranks}"] for answer in answers)
    assert first == second
    kind, text, moved, steps = first
    assert kind == MicroBatchMissed.__name__, text
    assert text.startswith(f"Rank {ranks[0]} of 2: The gradient was ")
    assert not moved
    assert steps == 1


@pytest.mark.parametrize("dropped", [True, False])
def test_gradients_left_over_on_one_rank_are_the_same_error_on_all(answers, dropped) -> None:
    first, second = (answer[f"left over {dropped}"] for answer in answers)
    assert first == second
    kind, text, still = first
    assert kind == MicroBatchMissed.__name__, text
    if dropped:
        assert text.startswith("Rank 1 of 2: control.drop() dropped the earlier backward calls")
    else:
        assert "A parameter had a gradient before" in text
    assert still


def twin() -> list[tuple[float, float]]:
    """The moments of each step, from whole gradients on one process."""
    torch.manual_seed(0)
    model, found = classifier(), []
    for step in range(2):
        grads = torch.stack(
            [
                torch.cat(
                    [
                        g.flatten().double()
                        for g in torch.autograd.grad(
                            class_loss(model, x, y), list(model.parameters())
                        )
                    ]
                )
                for x, y in parts(step)
            ]
        )
        sqnorm = float(grads.mean(0).square().sum())
        gap = float(grads.square().sum(1).mean()) - sqnorm
        variance = gap / (1 / SIZE - 1 / BATCH)
        found.append((variance, sqnorm - variance / BATCH))
        mean, at = grads.mean(0).float(), 0
        with torch.no_grad():
            for parameter in model.parameters():
                parameter -= 0.1 * mean[at : at + parameter.numel()].view_as(parameter)
                at += parameter.numel()
    return found


@pytest.mark.parametrize("name", OPTIONS)
def test_distributed_data_parallel_raises_no_alarm(answers, name) -> None:
    first, second = (answer[name] for answer in answers)
    assert first == second
    assert not isinstance(first, str), first
    same, moments = first
    assert same
    for ours, theirs in zip(moments, twin(), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-3)
