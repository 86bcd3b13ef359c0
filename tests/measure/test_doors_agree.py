"""`lb.attach` and `lb.Controller` measure the same where they measure the same parts."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from typing import Any

import pytest
import torch.distributed as dist
from doors import (
    BATCH,
    STEPS,
    Run,
    all_but_one_on_rank_0,
    attached,
    driven,
    mean,
    model_of,
    sequences,
    steps_of,
    weights_of,
)
from gradient_twin import twin_of

from distributed import run_on_ranks

SINGLE = "single examples"
PARTS = (2, 4, 16, SINGLE)


def options(parts: int | str) -> dict[str, Any]:
    if parts == SINGLE:
        return {"size": 8, "examples": True}
    return {"size": BATCH // int(parts)}


def check_twin(run: Run, data: Any, *, size: int, factor: float = 1.0) -> None:
    """Compare each step with whole gradients of each micro-batch at the same weights."""
    model = model_of()
    for state, seen, step in zip(
        run.models, run.seen.steps, steps_of(data, size=size), strict=True
    ):
        model.load_state_dict(state)
        twin = twin_of(model, mean, step, weights=weights_of(step))
        found = seen.moments
        assert found.variance == pytest.approx(factor * twin.variance, rel=1e-9)
        assert found.batch_sqnorm == pytest.approx(factor * twin.batch_sqnorm, rel=1e-9)
        assert found.sqnorm == pytest.approx(factor * twin.sqnorm, rel=1e-6, abs=1e-12)


def check_doors(parts: int | str, weighted: bool) -> list[float]:
    """Compare both doors, and the numbers that do not depend on the ranks with the twin."""
    data = sequences(equal=not weighted)
    chosen = options(parts)
    ours = attached(data, weighted=weighted, **chosen)
    theirs = driven(data, weighted=weighted, **chosen)
    if theirs.seen.steps:  # the first rank records
        assert len(ours.gains) == STEPS
        assert max(ours.gains) > 1.01
        assert ours.numbers == pytest.approx(theirs.numbers, rel=1e-6)
        if parts != SINGLE:
            check_twin(ours, data, size=chosen["size"])
    return ours.numbers


@pytest.mark.parametrize("weighted", [False, True], ids=["equal shares", "token weights"])
@pytest.mark.parametrize("parts", PARTS)
def test_attach_measures_what_the_controller_does(parts, weighted) -> None:
    check_doors(parts, weighted)


@pytest.mark.parametrize("weighted", [False, True], ids=["equal shares", "token weights"])
def test_attach_measures_what_the_controller_does_as_adam_sees_it(weighted) -> None:
    data = sequences(equal=not weighted)
    ours = attached(data, size=8, weighted=weighted, adam=True)
    theirs = driven(data, size=8, weighted=weighted, adam=True)
    assert ours.numbers == pytest.approx(theirs.numbers, rel=1e-6)


@pytest.mark.parametrize("weighted", [False, True], ids=["equal shares", "token weights"])
def test_blocks_of_two_backward_calls_are_as_one(weighted) -> None:
    data = sequences(equal=not weighted)
    ours, one = (attached(data, size=8, weighted=weighted, blocks=b) for b in (True, False))
    assert ours.numbers == pytest.approx(one.numbers, rel=1e-9)


@pytest.mark.parametrize("unit", [1e-3, 1.0, 700.0])
def test_the_unit_of_the_weights_does_not_matter(unit) -> None:
    data = sequences(equal=False)
    ours = attached(data, size=8, weighted=True, unit=unit)
    assert ours.numbers == pytest.approx(driven(data, size=8, weighted=True).numbers, rel=1e-9)


def test_weights_that_are_not_told_give_another_gain() -> None:
    """So the comparison above can fail."""
    data = sequences(equal=False)
    told, not_told = (attached(data, size=2, weighted=w).numbers for w in (True, False))
    assert told != pytest.approx(not_told, rel=1e-3)


def on_ranks() -> dict[str, Any]:
    """Each check's numbers, or what it raised."""
    found: dict[str, Any] = {}
    for name, function in CHECKS.items():
        try:
            found[name] = function()
        except Exception:
            found[name] = traceback.format_exc()
        dist.barrier()
    return found


def by_sum() -> list[float]:
    """Each rank divides by the tokens of all ranks, and the ranks' gradients are averaged."""
    data = sequences(equal=False)
    run = attached(data, size=8, weighted=True, reduction="sum")
    if run.seen.steps:
        check_twin(run, data, size=8)
    return run.numbers


def unequal_ranks() -> list[float]:
    """The first rank has three of the four micro-batches."""
    data = sequences(equal=False)
    run = attached(data, size=8, weighted=True, mine=all_but_one_on_rank_0)
    if run.seen.steps:
        check_twin(run, data, size=8)
    return run.numbers


def by_hand(reduction: str, how: Any) -> list[float]:
    """Without DDP: the loop averages or adds up the gradients itself."""
    data = sequences(equal=False)
    run = attached(data, size=8, weighted=True, reduction=reduction, by_hand=how)
    if run.seen.steps:
        check_twin(run, data, size=8)
    return run.numbers


def blocks() -> list[float]:
    """Each micro-batch has two backward calls, of which DDP reduces one."""
    return attached(sequences(equal=False), size=8, weighted=True, blocks=True).numbers


CHECKS: dict[str, Callable[[], list[float]]] = {
    **{
        f"{parts}, {'token weights' if weighted else 'equal shares'}": (
            lambda parts=parts, weighted=weighted: check_doors(parts, weighted)
        )
        for parts in PARTS
        for weighted in (False, True)
    },
    "reduction=sum": by_sum,
    "unequal ranks": unequal_ranks,
    "blocks": blocks,
    "averaged by hand": lambda: by_hand("mean", dist.ReduceOp.AVG),
    "added up by hand": lambda: by_hand("sum", dist.ReduceOp.SUM),
    "divided by all tokens and averaged by hand": lambda: by_hand("sum", dist.ReduceOp.AVG),
}


@pytest.fixture(scope="module")
def two_ranks() -> list[dict[str, Any]]:
    return run_on_ranks(on_ranks, 2)


@pytest.mark.distributed
@pytest.mark.parametrize("name", CHECKS)
def test_two_ranks_measure_what_one_process_does(name, two_ranks) -> None:
    first, second = (found[name] for found in two_ranks)
    assert not isinstance(first, str), first
    assert not isinstance(second, str), second
    if ", " not in name:
        alone = attached(sequences(equal=False), size=8, weighted=True).numbers
    else:
        parts, how = name.split(", ")
        weighted = how == "token weights"
        chosen = options(SINGLE if parts == SINGLE else int(parts))
        alone = attached(sequences(equal=not weighted), weighted=weighted, **chosen).numbers
    assert first == pytest.approx(alone, rel=1e-6)
    assert second == pytest.approx(alone[:STEPS], rel=1e-6)  # its gains; it writes no record
