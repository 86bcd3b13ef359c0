"""Several processes decide alike, equal one process on the same micro-batches, and stop together.

Each group of processes is started once and goes through all the cases; a test looks at one of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.lr_scheduler import ReduceLROnPlateau

from distributed import run_on_ranks
from largebatch.act.attached import attach
from largebatch.act.controller import Controller
from largebatch.act.loader import BatchLoader
from largebatch.core.errors import RanksDisagree
from largebatch.core.plan import BatchPlan
from largebatch.core.rule import Rule
from largebatch.measure.meter import Meter
from largebatch.measure.taps import Detached
from largebatch.rules.adascale import AdaScale
from small_rules import Factor, Growing
from small_runs import data, loss_of, sgd, small_model, train

pytestmark = pytest.mark.distributed


@dataclass(frozen=True)
class Run:
    """What one rank came to."""

    gains: list[float]
    clocks: tuple[float, int, int, int]
    weights: list[float]


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def rank_count() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def model_here() -> nn.Module:
    """On several ranks in DistributedDataParallel."""
    model = small_model()
    return DistributedDataParallel(model) if dist.is_initialized() else model


def controller(
    source: Any = None,
    *,
    rule: Rule | None = None,
    batch_size: int = 16,
    base_batch_size: int = 4,
    most: int | None = 4,
    seed: int = 0,
    lr: float = 0.05,
    **options: Any,
) -> Controller:
    model = model_here()
    batches = BatchLoader(
        data() if source is None else source,
        batch_size=batch_size,
        max_micro_batch_size=most,
        seed=seed,
    )
    optimizer = sgd(model)
    optimizer.param_groups[0]["lr"] = lr
    if "meter" in options:
        options["meter"] = Meter(model, tap=options["meter"])
    return Controller(
        model, optimizer, rule or AdaScale(), batches, base_batch_size=base_batch_size, **options
    )


def outcome(control: Any, model: nn.Module, gains: list[float]) -> Run:
    return Run(
        gains=gains,
        clocks=(control.base_steps, control.samples, control.optimizer_steps, control.skipped),
        weights=torch.cat([p.detach().reshape(-1) for p in model.parameters()]).tolist(),
    )


def run(control: Controller, **options: Any) -> Run:
    gains = [decision.lr_multiplier for decision in train(control, **options)]
    return outcome(control, control.model, gains)


# Cases: each is run on every rank, and by one process where that makes sense


def equal_sizes() -> Run:
    return run(controller(), samples=112)


def unequal_sizes() -> Run:
    return run(controller(batch_size=14), samples=60, clip_norm=0.7)


def detached() -> Run:
    return run(controller(meter=Detached()), samples=112)


def growing() -> Run:
    return run(controller(rule=Growing(first=8, after_samples=24), batch_size=8), samples=72)


def attached(micro_batches: bool = False) -> Run:
    model, (x, y) = model_here(), data()
    optimizer = sgd(model)
    plan = BatchPlan(batch_size=16, ranks=rank_count(), max_micro_batch_size=4)
    told = plan.accumulation if micro_batches else None
    gains = []
    with attach(
        model, optimizer, AdaScale(), batch_size=16, base_batch_size=4, micro_batches=told
    ) as control:
        for step in range(7):
            for offset, size in plan.chunks(rank=rank()):
                rows = (torch.arange(size) + step * 16 + offset) % 48
                (loss_of(model, x[rows], y[rows]) / plan.accumulation).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 0.7)
            optimizer.step()
            optimizer.zero_grad()
            control.advance()
            gains.append(control.lr_multiplier)
    return outcome(control, model, gains)


def attached_told() -> Run:
    return attached(micro_batches=True)


def one_nan() -> Run:
    """NaN in one sample, that is on one rank, in the second of the steps."""
    order = BatchLoader(torch.arange(48), batch_size=48)
    order.bind(rank=0, ranks=1, least_parts=1)
    ((drawn, _),) = order.next_step()  # type: ignore[misc]
    x, y = data()
    y[drawn[17]] = math.nan
    return run(controller((x, y)), samples=48)


CASES = (
    equal_sizes, unequal_sizes, detached, growing, attached, attached_told, one_nan,
)  # fmt: skip


# Cases of several ranks alone


def message(kind: type[Exception], does: Callable[[], Any]) -> str:
    try:
        does()
    except kind as error:
        return str(error)
    return "nothing was raised"


def disagreements() -> dict[str, str]:
    here = rank() == 1

    def started(**options: Any) -> str:
        return message(RanksDisagree, lambda: controller(**options).steps(samples=32))

    def attached_to(**options: Any) -> str:
        def does() -> None:
            model = model_here()
            options.setdefault("base_batch_size", 4)
            attach(model, sgd(model), AdaScale(), batch_size=16, **options)

        return message(RanksDisagree, does)

    return {
        "rule": started(rule=AdaScale(window=500.0 if here else 1000.0)),
        "base_batch_size": started(base_batch_size=8 if here else 4),
        "dataset_size": started(source=data(40 if here else 48)),
        "seed": started(seed=rank()),
        "learning rate": started(lr=0.1 if here else 0.05),
        "budget": message(RanksDisagree, lambda: controller().steps(samples=33 if here else 32)),
        "attached base_batch_size": attached_to(base_batch_size=8 if here else 4),
        "attached dataset_size": attached_to(dataset_size=48 if here else 47),
        "batch_size": message(RanksDisagree, resized_on_one_rank),
        "max_micro_batch_size": started(most=2 if here else 4),
        "clip_norm": message(RanksDisagree, clipped_apart),
        "learning rate in a step": message(RanksDisagree, driven_apart),
        "attached learning rate in a step": message(RanksDisagree, driven_apart_attached),
    }


def resized_on_one_rank() -> None:
    control = controller(rule=Factor())
    for batch in control.steps(samples=160):
        for x, y in batch:
            control.backward(loss_of(control.model, x, y))
        control.step()
        if rank() == 1 and control.optimizer_steps == 2:
            control.resize(24)


def clipped_apart() -> None:
    control = controller()
    for batch in control.steps(samples=48):
        for x, y in batch:
            control.backward(loss_of(control.model, x, y))
        control.step(clip_norm=0.1 if rank() == 1 else 0.5)


def driven_apart() -> None:
    """A scheduler that follows a metric of each rank's own."""
    control = controller()
    scheduler = ReduceLROnPlateau(control.optimizer, patience=0)
    for batch in control.steps(samples=80):
        for x, y in batch:
            control.backward(loss_of(control.model, x, y))
        control.step()
        control.advance(scheduler, metric=(rank() - 0.5) * control.optimizer_steps)


def driven_apart_attached() -> None:
    model, (x, y) = model_here(), data()
    optimizer = sgd(model)
    with attach(model, optimizer, AdaScale(), batch_size=16, base_batch_size=4):
        for step in range(3):
            loss_of(model, x[rank() :: 4], y[rank() :: 4]).backward()
            optimizer.step()
            optimizer.zero_grad()
            if step == 1:
                optimizer.param_groups[0]["lr"] *= 1.0 + rank()


def corrected_after_a_disagreement() -> int:
    """The same controller may be started with the right budget afterwards."""
    control = controller()
    message(RanksDisagree, lambda: control.steps(samples=33 if rank() == 1 else 32))
    train(control, samples=32)
    return control.samples


def one_shorter_iterator() -> Run:
    x, y = data()
    parts: list[tuple[Tensor, Tensor]] = [(x[:4], y[:4])] * (7 if rank() == 0 else 3)
    control = controller(iter(parts), batch_size=4 * rank_count(), most=None)
    return run(control, samples=10_000)


def too_few_samples() -> dict[str, Any]:
    control = controller()
    train(control, samples=17)
    return {
        "batch": message(ValueError, lambda: controller(batch_size=1)),
        "last step": control.samples - 16,
    }


def bare_model() -> str:
    model = small_model()
    batches = BatchLoader(data(), batch_size=16)
    return message(
        ValueError, lambda: Controller(model, sgd(model), Factor(), batches, base_batch_size=4)
    )


TOGETHER = (
    disagreements, corrected_after_a_disagreement, one_shorter_iterator, too_few_samples,
    bare_model,
)  # fmt: skip


def all_cases() -> dict[str, Any]:
    return {case.__name__: case() for case in (*CASES, *TOGETHER)}


@cache
def on_ranks(ranks: int) -> list[dict[str, Any]]:
    return run_on_ranks(all_cases, ranks)


# Tests


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("ranks", [2, 4])
def test_every_rank_decides_and_moves_alike(ranks: int, case: Callable[[], Run]) -> None:
    first, *others = [results[case.__name__] for results in on_ranks(ranks)]
    assert len(others) == ranks - 1
    for other in others:
        assert other == first


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("ranks", [2, 4])
def test_ranks_equal_one_process_on_the_same_micro_batches(
    ranks: int, case: Callable[[], Run]
) -> None:
    together, alone = on_ranks(ranks)[0][case.__name__], case()
    assert together.gains == pytest.approx(alone.gains, rel=1e-4)
    assert together.clocks == pytest.approx(alone.clocks, rel=1e-4)
    assert together.weights == pytest.approx(alone.weights, rel=1e-4, abs=1e-5)
    assert max(together.gains) > 1.0


@pytest.mark.parametrize("ranks", [2, 4])
def test_a_nan_on_one_rank_is_skipped_by_all(ranks: int) -> None:
    for results in on_ranks(ranks):
        base_steps, samples, steps, skipped = results["one_nan"].clocks
        assert (samples, steps, skipped) == (48, 2, 1)
        assert all(map(math.isfinite, (base_steps, *results["one_nan"].weights)))


@pytest.mark.parametrize(
    "name",
    ["rule", "base_batch_size", "dataset_size", "seed", "learning rate", "budget",
     "attached base_batch_size", "attached dataset_size", "batch_size",
     "max_micro_batch_size", "clip_norm", "learning rate in a step",
     "attached learning rate in a step"],
)  # fmt: skip
@pytest.mark.parametrize("ranks", [2, 4])
def test_ranks_that_disagree_raise_an_error_on_every_rank_that_names_the_difference(
    ranks: int, name: str
) -> None:
    fact = name.removeprefix("attached ").removesuffix(" in a step")
    for results in on_ranks(ranks):
        assert f"disagree about {fact} (rank 0: " in results["disagreements"][name]


@pytest.mark.parametrize("ranks", [2, 4])
def test_a_run_may_be_started_again_once_the_ranks_agree(ranks: int) -> None:
    assert [r["corrected_after_a_disagreement"] for r in on_ranks(ranks)] == [32] * ranks


@pytest.mark.parametrize("ranks", [2, 4])
def test_all_ranks_stop_with_the_shortest_iterator(ranks: int) -> None:
    for results in on_ranks(ranks):
        stopped = results["one_shorter_iterator"]
        assert stopped.clocks[1:3] == (12 * ranks, 3)
        assert stopped == on_ranks(ranks)[0]["one_shorter_iterator"]


@pytest.mark.parametrize("ranks", [2, 4])
def test_fewer_samples_than_ranks_are_refused_but_for_the_last_step(ranks: int) -> None:
    for results in on_ranks(ranks):
        few = results["too_few_samples"]
        assert f"batch_size={ranks} or more" in few["batch"]
        assert few["last step"] == ranks


@pytest.mark.parametrize("ranks", [2, 4])
def test_a_model_that_is_not_replicated_is_refused(ranks: int) -> None:
    for results in on_ranks(ranks):
        assert "DistributedDataParallel(model)" in results["bare_model"]
