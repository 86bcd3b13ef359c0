"""`lb.Meter(model, replicated=True)`: the user reduces the gradients, and not DDP.

One pair of processes runs all checks, since their start takes seconds.
"""

from __future__ import annotations

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
from small_runs import class_data, class_loss, classifier, weights

pytestmark = pytest.mark.distributed
RANKS, PARTS, SIZE, STEPS = 2, 2, 5, 3
BATCH = RANKS * PARTS * SIZE


def parts(step: int) -> list[tuple[Tensor, Tensor]]:
    """This rank's micro-batches."""
    x, y = class_data(STEPS * BATCH)
    places = range(step * BATCH, (step + 1) * BATCH, SIZE)
    return [(x[at : at + SIZE], y[at : at + SIZE]) for at in places][dist.get_rank() :: RANKS]


def gradients(model: nn.Module) -> list[Tensor]:
    return [p.grad for p in model.parameters() if p.grad is not None]


def average(model: nn.Module) -> None:
    """An all-reduce of the mean, which gloo does not have as one operation."""
    for gradient in gradients(model):
        dist.all_reduce(gradient, op=dist.ReduceOp.SUM)
        gradient.div_(RANKS)


def flat_average(model: nn.Module) -> None:
    """One all-reduce of all gradients in a row, as hand-written loops do for speed."""
    row = torch.cat([gradient.flatten() for gradient in gradients(model)])
    dist.all_reduce(row)
    torch._foreach_copy_(
        gradients(model),
        [
            piece.view_as(gradient)
            for piece, gradient in zip(
                (row / RANKS).split([g.numel() for g in gradients(model)]),
                gradients(model),
                strict=True,
            )
        ],
    )


def new_average(model: nn.Module) -> None:
    """The gradients are replaced by their means."""
    for parameter in model.parameters():
        total = parameter.grad.clone()
        dist.all_reduce(total)
        parameter.grad = total / RANKS


def sum_up(model: nn.Module) -> None:
    for gradient in gradients(model):
        dist.all_reduce(gradient, op=dist.ReduceOp.SUM)


def clip(model: nn.Module) -> None:
    nn.utils.clip_grad_norm_(model.parameters(), 0.05)


def nothing(model: nn.Module) -> None:
    pass


def train(
    *reduce: Callable[[nn.Module], None],
    ddp: bool = False,
    reduction: str = "mean",
    divisor: float = PARTS,
    lr: float = 0.05,
    seed: int = 1,
    rule: Any = None,
    door: str = "attach",
) -> dict[str, Any]:
    """The numbers of each step, and the weights at the end."""
    model: Any = classifier(seed=seed)
    model = DistributedDataParallel(model) if ddp else model
    meter = lb.Meter(model, replicated=not ddp)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    seen = lb.MemoryRecord()
    control: Any = None
    if door == "attach":
        control = lb.attach(
            model,
            optimizer,
            rule or lb.AdaScale(),
            batch_size=BATCH,
            base_batch_size=SIZE,
            meter=meter,
            reduction=reduction,
            record=seen,
        )
    elif door == "watch":
        control = lb.watch(model, optimizer, batch_size=BATCH, meter=meter)
    numbers, gains = [], []
    for step in range(STEPS):
        for at, (x, y) in enumerate(parts(step)):
            with model.no_sync() if ddp and at < PARTS - 1 else nullcontext():
                (class_loss(model, x, y) / divisor).backward()
        for act in reduce:
            act(model)
        optimizer.step()
        optimizer.zero_grad()
        if door == "attach":
            moments = control._seen.moments
            numbers.append((moments.variance, moments.sqnorm, moments.batch_sqnorm))
            gains.append(control.gain)
    if door == "watch":
        numbers = control.series
        assert control.dropped == 0
    return {
        "numbers": numbers,
        "gains": gains,
        "weights": [w.double().flatten().tolist() for w in weights(model)],
    }


def error_of(act: Callable[[], Any]) -> tuple[str, str]:
    try:
        act()
    except Exception as error:
        return type(error).__name__, str(error)
    return "", ""


def differing_weights() -> Any:
    return error_of(lambda: train(average, seed=1 + dist.get_rank()))


def one_weight_differs() -> Any:
    def model_of() -> nn.Module:
        model = classifier()
        if dist.get_rank() == 1:
            with torch.no_grad():
                model[2].bias[0] += 1e-3
        return model

    def act() -> None:
        model = model_of()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        meter = lb.Meter(model, replicated=True)
        lb.attach(
            model, optimizer, lb.AdaScale(), batch_size=BATCH, base_batch_size=SIZE, meter=meter
        )
        for x, y in parts(0):
            (class_loss(model, x, y) / PARTS).backward()
        average(model)
        optimizer.step()

    return error_of(act)


def refused_by_controller() -> Any:
    def act() -> None:
        model = classifier()
        batches = lb.BatchLoader(class_data(), batch_size=BATCH, max_micro_batch_size=SIZE)
        lb.Controller(
            model,
            torch.optim.SGD(model.parameters(), lr=0.1),
            lb.AdaScale(),
            batches,
            base_batch_size=SIZE,
            meter=lb.Meter(model, replicated=True),
        )

    return error_of(act)


def without_saying_so() -> Any:
    return error_of(lambda: lb.Meter(classifier()))


RUNS: dict[str, Callable[[], Any]] = {
    "ddp": lambda: train(ddp=True),
    "ddp, clipped": lambda: train(clip, ddp=True),
    "mean": lambda: train(average),
    "mean of a row": lambda: train(flat_average),
    "mean in new tensors": lambda: train(new_average),
    "sum": lambda: train(sum_up, lr=0.05 / RANKS),
    "sum, divided by all": lambda: train(sum_up, reduction="sum", divisor=PARTS * RANKS),
    "mean, clipped": lambda: train(average, clip),
    "row, clipped": lambda: train(flat_average, clip),
    "watch, ddp": lambda: train(ddp=True, door="watch"),
    "watch, mean": lambda: train(average, door="watch"),
    "bare": lambda: train(average, door=""),
    "not reduced": lambda: error_of(lambda: train(nothing)),
    "reduced on the device of one rank": lambda: error_of(
        lambda: train(lambda m: [g.mul_(1.0 + dist.get_rank()) for g in gradients(m)])
    ),
    "other weights": differing_weights,
    "one other weight": one_weight_differs,
    "controller": refused_by_controller,
    "not said": without_saying_so,
}


def everything() -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, act in RUNS.items():
        torch.manual_seed(0)
        try:
            found[name] = act()
        except Exception:
            found[name] = traceback.format_exc()
        dist.barrier()
    return found


@pytest.fixture(scope="module")
def answers() -> list[dict[str, Any]]:
    return run_on_ranks(everything, RANKS)


def of(answers: list[dict[str, Any]], name: str) -> dict[str, Any]:
    first, second = (answer[name] for answer in answers)
    assert not isinstance(first, str), first
    assert first == second  # every rank has the same numbers and weights
    return first


def close(ours: Any, theirs: Any) -> bool:
    return all(a == pytest.approx(b, rel=1e-5, abs=1e-9) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("mean", "ddp"),
        ("mean of a row", "ddp"),
        ("mean in new tensors", "ddp"),
        ("sum", "ddp"),
        ("sum, divided by all", "ddp"),
        ("mean, clipped", "ddp, clipped"),
        ("row, clipped", "ddp, clipped"),
    ],
)
def test_the_numbers_and_weights_are_those_of_ddp(answers, ours, theirs) -> None:
    mine, ddp = of(answers, ours), of(answers, theirs)
    assert len(ddp["numbers"]) == STEPS
    assert close(mine["numbers"], ddp["numbers"]), (mine["numbers"], ddp["numbers"])
    assert mine["gains"] == pytest.approx(ddp["gains"], rel=1e-5)
    assert close(mine["weights"], ddp["weights"])


def test_clipping_after_the_all_reduce_leaves_the_first_statistic_as_it_was(answers) -> None:
    clipped, free = of(answers, "mean, clipped"), of(answers, "mean")
    assert clipped["numbers"][0] == pytest.approx(free["numbers"][0], rel=1e-5)
    assert clipped["weights"] != free["weights"]
    assert free["numbers"][0][2] > 0.05**2


def test_watch_has_the_numbers_of_ddp_and_changes_no_bit(answers) -> None:
    assert close(of(answers, "watch, mean")["numbers"], of(answers, "watch, ddp")["numbers"])
    assert of(answers, "watch, mean")["weights"] == of(answers, "bare")["weights"]


@pytest.mark.parametrize(
    ("name", "kind", "text"),
    [
        ("not reduced", "RanksDisagree", "The gradients of the 2 ranks differ"),
        ("reduced on the device of one rank", "RanksDisagree", "gradients of the 2 ranks differ"),
        ("other weights", "RanksDisagree", "weights of the 2 ranks differ in the first step"),
        ("one other weight", "RanksDisagree", "weights of the 2 ranks differ in the first step"),
        ("controller", "ValueError", "lb.Controller has no such place"),
        ("not said", "ValueError", "meter=lb.Meter(model, replicated=True)"),
    ],
)
def test_what_would_train_wrong_is_refused_on_all_ranks(answers, name, kind, text) -> None:
    for answer in answers:
        assert answer[name][0] == kind, answer[name]
        assert text in answer[name][1]
