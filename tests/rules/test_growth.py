"""Batch and rate that go from stage to stage by the clock."""

from __future__ import annotations

import math
from typing import Any

import pytest
from growing import CASES, changes, run, walk
from hypothesis import given
from hypothesis import strategies as st

from largebatch import methods
from largebatch.core.measurement import Budget
from largebatch.core.rule import chain
from largebatch.rules import (
    AdaScale,
    ClampBatch,
    ClampLr,
    Cosine,
    Growth,
    HoldThenDecay,
    Schedule,
    SqrtScaling,
)
from largebatch.rules.stages import Stages, fractions_of, growing_stages, linear_stages

N = 50_000


def check_rows(rule: Any, case: dict[str, Any], *, rel: float = 1e-12, ends: bool = True) -> None:
    """Batch and rate of each row from its epoch on; where rows begin stages, the former batch one
    sample earlier."""
    config = case["config"]
    rows = [row for row in case["rows"] if not row.get("end")]
    points = [row["epoch"] * N for row in rows]
    budget = Budget(samples=config["epochs"] * N)
    found = walk(rule, points, first=config["b0"], budget=budget)
    before = config["b0"]
    for row, (early, size, factor) in zip(rows, found, strict=True):
        assert size == row["batch"]
        assert not ends or early == before
        assert factor * config["lr0"] == pytest.approx(row["lr"], rel=rel)
        before = row["batch"]


def equal(count: int, **more: Any) -> dict[str, Any]:
    return {"stages": count, "lengths": (1,) * count, **more}


@pytest.mark.parametrize(
    ("name", "rule"),
    [
        ("constant", methods.growth(**equal(1, delta=2.0, gamma=1.0))),
        ("doubling_const_lr", methods.growth(**equal(10, delta=2.0, gamma=1.0))),
        (
            "growth_both_2_1.4_cap_b_only",
            methods.growth(**equal(10, delta=2.0, gamma=1.4, most=128, rate_goes_on=True)),
        ),
        (
            "growth_both_2_1.4_cap_gates_lr",
            methods.growth(**equal(10, delta=2.0, gamma=1.4, most=32)),
        ),
        ("linear_batch_growth", methods.linear_growth(step=0.5, stages=8, most=128)),
        ("lr_growth_to_max", methods.growth(**equal(10, delta=2.0, gamma=2.0 ** (1 / 9)))),
    ],
)
def test_the_papers_schedules_have_their_batches_and_rates(name: str, rule: Any) -> None:
    check_rows(rule, CASES[name])


@pytest.mark.parametrize("samples", [N, 2048])
def test_the_authors_program_is_eight_stages_of_25_epochs(samples: int) -> None:
    """docs/explanation/rules.md: batches 16 to 2048, rates 1.4^0 to 1.4^7, at the epochs 25 to 175
    of 200."""
    rule, budget = methods.growth(delta=2, gamma=1.4, lengths=(25,) * 8), 200 * samples
    begins = [25 * m * samples for m in range(8)]
    found = walk(rule, begins, first=16, budget=Budget(samples=budget))
    assert [size for _, size, _ in found] == [16 * 2**m for m in range(8)]
    assert [early for early, *_ in found] == [16, *(16 * 2**m for m in range(7))]
    assert [factor for *_, factor in found] == pytest.approx([1.4**m for m in range(8)], rel=1e-12)
    if samples == 2048:
        whole = changes(run(rule, budget=Budget(samples=budget), batch_size=16))
        assert [(start, size) for start, size, _ in whole] == [
            (begin, 16 * 2**m) for m, begin in enumerate(begins)
        ]


def warm_up_table() -> Growth:
    """Nine rises of the rate in the first stage of the batch, as the authors' staircase."""
    rises = tuple([2.0 ** (k / 9) for k in range(10)])
    at = tuple([3 * k / 300 for k in range(1, 10)] + [30 * m / 300 for m in range(1, 10)])
    batch = (1.0,) * 10 + tuple([2.0**m for m in range(1, 10)])
    return Growth(stages=Stages(batch=batch, lr=rises + (2.0,) * 9), at=at)


def test_a_warm_up_in_the_table_raises_the_rate_while_the_batch_grows() -> None:
    check_rows(warm_up_table(), CASES["warmup_const"])


def test_a_cosine_follows_the_warm_up() -> None:
    rule = chain(warm_up_table(), Schedule(factor=HoldThenDecay(start=0.1, factor=Cosine())))
    check_rows(rule, CASES["warmup_cosine"], rel=1e-10, ends=False)


def test_nanochats_ramp_is_a_table_and_the_root_of_the_batch() -> None:
    case = CASES["nanochat_ramp"]
    full = case["config"]["full"]
    table = Growth(stages=Stages(batch=(0.25, 0.5, 1.0), of=full), at=(0.03, 0.1))
    samples = 10**12
    points = [int(row["token_fraction"] * samples) for row in case["rows"]]
    found = walk(
        chain(table, SqrtScaling()), points, first=full // 4, budget=Budget(samples=samples),
        base=full,
    )  # fmt: skip
    assert [size for _, size, _ in found] == [row["batch_tokens"] for row in case["rows"]]
    assert [lr for _, _, lr in found] == pytest.approx([row["lr_mult"] for row in case["rows"]])
    steps = sum(
        (end - begin) / row["batch_tokens"]
        for begin, end, row in zip((0, 0.03, 0.1), (0.03, 0.1, 1.0), case["rows"], strict=True)
    )
    assert steps * full == pytest.approx(case["steps_ratio"])


def test_batch_and_rate_change_in_the_same_step() -> None:
    rule = methods.growth(**equal(4, delta=2.0, gamma=1.5))
    record = run(rule, budget=Budget(samples=4 * 120))
    assert changes(record) == [(0, 8, 1.0), (120, 16, 1.5), (248, 32, 2.25), (376, 64, 3.375)]


@given(
    count=st.integers(1, 5),
    lost=st.sets(st.integers(0, 30), max_size=8).map(tuple),
    unit=st.sampled_from(["samples", "steps", "base_steps"]),
)
def test_a_lost_step_delays_both(count: int, lost: tuple[int, ...], unit: str) -> None:
    stages = growing_stages(count, delta=2.0, gamma=1.5)
    rule = Growth(stages=stages, at=fractions_of((1.0,) * count))
    record = run(rule, budget=Budget(**{unit: {"samples": 400, "steps": 20}.get(unit, 40)}),
                 lost=lost)  # fmt: skip
    for seen, decision in record[:-1]:
        if seen.finite:
            stage = round(math.log2(seen.batch_size / 8))
            assert decision.lr_multiplier == stages.rate(stage)


def test_a_naive_walk_finds_the_same_batches() -> None:
    at, batch = (0.1, 0.35, 0.8), (1.0, 3.0, 1.5, 6.0)
    rule = Growth(stages=Stages(batch=batch), at=at)
    for seen, _ in run(rule, budget=Budget(samples=1000))[:-1]:
        stage = sum(seen.samples >= round(1000 * a) for a in at)
        assert seen.batch_size == 8 * batch[stage]


def test_the_first_batch_of_the_run_is_that_of_the_first_stage() -> None:
    record = run(Growth(), budget=Budget(samples=4000), batch_size=24, base_batch_size=8)
    assert [batch for _, batch, _ in changes(record)] == [24, 48, 96, 192]


def test_growth_by_absolute_batches_refuses_a_run_that_starts_with_another_batch() -> None:
    rule = Growth(stages=Stages(batch=(8, 64), of=1), at=(0.5,))
    assert [b for _, b, _ in changes(run(rule, budget=Budget(samples=400)))] == [8, 64]
    with pytest.raises(ValueError, match=r"begins with a batch of 8.*batch_size=8"):
        run(rule, budget=Budget(samples=400), batch_size=16)


def test_a_stage_too_short_for_a_step_is_skipped_and_reported() -> None:
    rule = Growth(stages=Stages(batch=(1, 2, 4, 8)), at=(0.501, 0.51, 0.9))
    reasons = [decision.reason for _, decision in run(rule, budget=Budget(samples=400))]
    assert (
        "stage 3 of 4 begins, stages skipped as shorter than one step: 1; batch size 32" in reasons
    )


def test_a_bound_on_the_batch_leaves_the_rate_and_one_on_the_rate_tells() -> None:
    whole = methods.growth(**equal(4, delta=2.0, gamma=2.0, max_lr=4.0))
    record = run(chain(whole, ClampBatch(max=16)), budget=Budget(samples=640))
    assert [found[1:] for found in changes(record)] == [(8, 1), (16, 2), (16, 4)]
    assert record[-1][1].reason == (
        "growth: lr x8; lr x8 changed to x4 by ClampLr; batch size 64 changed to 16 by ClampBatch"
    )


def test_the_rate_follows_the_batch_in_hand_where_no_gamma_is_given() -> None:
    rule = chain(methods.growth(stages=4), ClampBatch(max=32))
    record = run(rule, budget=Budget(samples=15 * 80))
    for seen, decision in record:
        assert decision.lr_multiplier == math.sqrt(seen.batch_size / 8)
    steps = [sum(s.batch_size == b for s, _ in record) for b in (8, 16)]
    assert steps == [10, 10], "as many steps in each stage"


def test_a_rule_behind_that_slows_the_clock_takes_no_stage_back() -> None:
    rule = chain(Growth(), AdaScale())
    record = run(rule, budget=Budget(base_steps=40.0))
    sizes = [seen.batch_size for seen, _ in record]
    assert sizes == sorted(sizes)


def test_growth_with_its_own_horizon_ends_with_the_last_stage() -> None:
    rule = Growth(stages=Stages(batch=(1, 2)), at=(1.0,), over=Budget(samples=80))
    assert rule.needs == frozenset()
    record = run(rule, budget=Budget(samples=400))
    assert changes(record) == [(0, 8, 1.0), (80, 16, 1.0)]


def test_a_stage_that_the_run_does_not_reach_is_refused() -> None:
    rule = Growth(stages=Stages(batch=(1, 2, 4)), at=(0.5, 1.0), over=Budget(samples=800))
    with pytest.raises(ValueError, match="Stage 3 of 3 would begin at 800 samples"):
        run(rule, budget=Budget(samples=800))
    with pytest.raises(ValueError, match="Stage 2 of 3 would begin at 400 samples"):
        run(rule, budget=Budget(samples=400))
    run(rule, budget=Budget(samples=808))
    run(rule, budget=Budget(steps=3))  # nobody can tell


def test_a_run_within_its_first_batch_is_refused() -> None:
    with pytest.raises(ValueError, match="but its first batch has 64"):
        run(Growth(), budget=Budget(samples=63), batch_size=64)


@pytest.mark.parametrize(
    "more",
    [{"at": (0.5,)}, {"at": (0.0, 0.5, 0.6)}, {"at": (0.5, 0.5, 0.6)}, {"at": (0.1, 0.2, 1.1)},
     {"at": (0.1, math.nan, 0.3)}, {"at": ()}],
)  # fmt: skip
def test_points_that_do_not_fit_the_table_are_refused(more: Any) -> None:
    with pytest.raises(ValueError, match=r"Example: Growth\(stages=Stages"):
        Growth(**more)


@pytest.mark.parametrize(
    "more",
    [{"delta": 0.0}, {"delta": -2.0}, {"gamma": 0.0}, {"gamma": -1.0}, {"stages": 0},
     {"stages": 2000}, {"delta": math.nan}, {"most": 0.5}, {"lengths": (1, 2), "stages": 3},
     {"lengths": (1, 1, 0, 1, 1)}, {"lengths": ()}, {"rate_goes_on": True}],
)  # fmt: skip
def test_growth_that_cannot_be_is_refused(more: Any) -> None:
    with pytest.raises(ValueError):
        methods.growth(**more)


def test_linear_growth_refuses_a_step_of_zero() -> None:
    with pytest.raises(ValueError, match="step above 0"):
        linear_stages(3, step=0.0)


def test_a_peak_below_the_base_rate_is_refused() -> None:
    with pytest.raises(ValueError, match=r"peak=2\.0"):
        methods.warmup_growth(peak=0.5)


def test_warm_up_growth_rises_to_its_peak_and_decays() -> None:
    rule = methods.warmup_growth(stages=4, peak=4.0, fraction=0.25)
    record = run(rule, budget=Budget(samples=640), batch_size=8)
    rates = [decision.lr_multiplier for _, decision in record]
    assert rates[0] == 1.0
    assert max(rates) == pytest.approx(4.0)
    assert next(seen.samples for seen, d in record if d.lr_multiplier == 4.0) == 160
    assert rates[-1] < 0.5
    assert ClampLr in {type(r) for r in methods.growth(max_lr=2.0).rules}
