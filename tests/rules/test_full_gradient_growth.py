"""Stages that end where the full gradient's norm is at their threshold."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
from growing import CASES
from hypothesis import given
from hypothesis import strategies as st

from largebatch import methods
from largebatch.core.decider import Decider
from largebatch.core.decision import Decision
from largebatch.core.measurement import Measurement, Reading
from largebatch.rules import FullGradientGrowth
from largebatch.rules.full_gradient_growth import CheckedStage, threshold
from largebatch.rules.stages import Stages, growing_stages

CONFIG = CASES["eps_stages"]["config"]


def rule_of(config: dict[str, Any], **more: Any) -> FullGradientGrowth:
    return FullGradientGrowth(
        eps0=config["eps0"],
        stages=growing_stages(21, delta=config["delta"], gamma=config["gamma"]),
        max=config["b_max"],
        check=config["check_every"],
        **more,
    )


def steps_with(rule: Any, norms: Sequence[float], *, check: int, **facts: Any) -> list[Any]:
    """(measurement, decision) of each step; the full gradient is measured where it is asked for,
    and its norm at the k-th check is norms[k - 1]."""
    facts = {"base_batch_size": 8, "batch_size": 8, **facts}
    decider, found = Decider.start(rule, **facts), []
    for step in range(check * len(norms) + (check > 1)):
        sqnorm = None
        if "full_sqnorm" in decider.measure:
            assert step > 0
            assert (step + 1) % check == 0
            sqnorm = norms[(step + 1) // check - 1] ** 2
        seen = decider.see(Reading(samples=decider.batch_size, full_sqnorm=sqnorm), base_lr=0.1)
        decider, decision = decider.decide(seen)
        found.append((seen, decision))
    return found


@pytest.mark.parametrize("consistent", [False, True])
def test_the_stages_of_the_paper_have_their_batches_rates_and_thresholds(consistent: bool) -> None:
    rule = rule_of(CONFIG, consistent=consistent)
    level = "eps_cbs_consistent" if consistent else "eps_repo"
    state = rule.init()
    for row in CASES["eps_stages"]["rows"]:
        eps = row[level]
        proposed = Decision(next_batch_size=row["batch"], base_steps=1.0)
        for norm, ends in ((eps * (1 + 1e-9), False), (eps * (1 - 1e-9), row["batch"] < 4096)):
            seen = Measurement(
                step=999, samples=0, base_steps=0.0, batch_size=row["batch"], base_batch_size=8,
                full_sqnorm=norm**2,
            )  # fmt: skip
            after, decision = rule.update(state, seen, proposed)
            assert CONFIG["lr0"] * decision.lr_multiplier == pytest.approx(row["lr"], rel=1e-12)
            assert after.stage == row["m"] + ends
            assert decision.next_batch_size == row["batch"] * (2 if ends else 1)
        state = after


def test_the_trace_of_the_paper_passes_through_the_rule() -> None:
    rows = CASES["eps_stages_trace"]["rows"]
    norms, check = [row["grad_norm"] for row in rows], CONFIG["check_every"]
    steps = steps_with(rule_of(CASES["eps_stages_trace"]["config"]), norms, check=check)
    for row in rows:
        seen, decision = steps[row["step"] - 1]
        assert seen.samples + seen.batch_size == row["samples"]
        assert decision.next_batch_size == row["batch_after"]
        assert (decision.next_batch_size > seen.batch_size) == row["advance"]
        seen, decision = steps[row["step"]]
        assert seen.batch_size == row["batch_after"]
        lr = CONFIG["lr0"] * decision.lr_multiplier
        assert lr == pytest.approx(row["lr_after"], rel=1e-12), "rate and batch change together"


def test_the_thresholds_limits() -> None:
    assert threshold(eps0=0.5, first=8, batch=8) == 0.5
    assert threshold(eps0=0.5, first=8, batch=16, rate=1.4) == pytest.approx(0.4183300132670377)


@given(
    norms=st.lists(st.floats(0.0, 1.0), min_size=1, max_size=12),
    delta=st.floats(1.05, 3.0),
    gamma=st.floats(0.7, 2.0),
    eps0=st.floats(0.05, 1.0),
    most=st.integers(8, 200),
)
def test_full_gradient_growth_decides_as_the_papers_loop(
    norms: list[float], delta: float, gamma: float, eps0: float, most: int
) -> None:
    rule = methods.full_gradient_growth(eps0=eps0, delta=delta, gamma=gamma, max=most, check=2)
    steps = steps_with(rule, norms, check=2)
    m, batch, lr, at = 0, 8, 1.0, 0
    for seen, decision in steps:
        assert seen.batch_size == batch
        assert decision.lr_multiplier == pytest.approx(lr, rel=1e-12)
        if seen.step % 2 == 1:
            norm, at = norms[at], at + 1
            if math.sqrt(norm**2) <= eps0 * math.sqrt(8 / batch) and batch < most and m < 20:
                m += 1
                batch = min(most, math.ceil(8 * delta**m * (1 - 1e-12)))
                lr = gamma**m


def test_at_the_largest_batch_no_pass_is_asked_for() -> None:
    rule = FullGradientGrowth(eps0=1.0, check=1, max=20)
    steps = steps_with(rule, [0.0] * 6, check=1)
    assert [seen.batch_size for seen, _ in steps] == [8, 8, 16, 20, 20, 20]
    assert [seen.full_sqnorm is not None for seen, _ in steps] == [False, True, True] + [False] * 3
    assert steps[-1][1].lr_multiplier == pytest.approx(1.96), "the rate's growth ends there, too"
    sizes = [s.batch_size for s, _ in steps_with(rule, [0.0] * 6, check=1, dataset_size=12)]
    assert sizes == [8, 8, 12, 12, 12, 12]


def test_growth_stays_at_the_last_stage_of_its_table() -> None:
    rule = FullGradientGrowth(eps0=9.0, check=1, stages=Stages(batch=(1, 2), lr=(1, 3)))
    steps = steps_with(rule, [0.0] * 4, check=1)
    assert [seen.batch_size for seen, _ in steps] == [8, 8, 16, 16]
    assert [decision.lr_multiplier for _, decision in steps] == [1, 1, 3, 3]


def test_what_a_neighbour_measures_between_two_checks_ends_no_stage() -> None:
    rule = FullGradientGrowth(check=3)
    for step, stage in ((0, 0), (1, 0), (2, 1), (3, 0), (5, 1)):
        seen = Measurement(
            step=step, samples=0, base_steps=0.0, batch_size=8, base_batch_size=8, full_sqnorm=0.0
        )
        after, _ = rule.update(CheckedStage(), seen, Decision(next_batch_size=8, base_steps=1.0))
        assert after == CheckedStage(first=8, stage=stage)


def test_a_full_gradient_that_is_not_finite_ends_no_stage() -> None:
    for norm in (math.nan, math.inf):
        steps = steps_with(FullGradientGrowth(check=1), [norm, norm], check=1)
        assert {seen.batch_size for seen, _ in steps} == {8}
        assert steps[-1][1].reason == "full gradient's norm is not finite"


@pytest.mark.parametrize(
    "more",
    [{"eps0": 0.0}, {"eps0": -1.0}, {"eps0": math.nan}, {"eps0": math.inf}, {"check": 0},
     {"max": 0}],
)  # fmt: skip
def test_impossible_thresholds_and_checks_are_refused(more: Any) -> None:
    for build in (FullGradientGrowth, methods.full_gradient_growth):
        with pytest.raises(ValueError, match=r"Example: (FullGradientGrowth\(eps0|ClampBatch)"):
            build(**more)


@pytest.mark.parametrize("more", [{"delta": 0.0}, {"gamma": 0.0}, {"gamma": -1.0}, {"delta": -2.0}])
def test_impossible_factors_are_refused(more: Any) -> None:
    with pytest.raises(ValueError, match="delta and gamma above 0"):
        methods.full_gradient_growth(**more)
