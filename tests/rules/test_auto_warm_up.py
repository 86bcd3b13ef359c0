"""The warm-up that ends itself, open loop: losses go in, rates come out."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from largebatch.core.codec import decode, encode, renewed
from largebatch.core.decider import Decider
from largebatch.core.errors import LargeBatchError
from largebatch.core.measurement import Budget, GradientMoments, Reading
from largebatch.core.rule import Rule, chain
from largebatch.rules import (
    AdaScale,
    AutoWarmUp,
    ClampLr,
    Every,
    Legw,
    Linear,
    LinearScaling,
    Schedule,
    SqrtScaling,
    StepClock,
    WarmUp,
)
from largebatch.rules.auto_warm_up.rule import WarmUpState, warm_up_rate
from largebatch.rules.kinds import KINDS, KINDS_TO_RESUME

ALL = json.loads((Path(__file__).parents[1] / "cases" / "autowu.json").read_text())
CASES = ALL["cases"] + ALL["extra_runs"]
BATCH = 10


def curve_of(case: dict[str, Any]) -> np.ndarray:
    """The losses of a case, as `how_to_rebuild` says."""
    steps, longest = case["config"]["total_steps"], case["config"]["W"]
    z = np.random.default_rng(case["seed"]).standard_normal(steps)
    u = np.arange(1, steps + 1) / longest
    valley = np.where(u < 0.6, 2.3 - 1.8 * u / 0.6, 0.5 + 3.0 * (u - 0.6) / 0.4) + 0.10 * z
    falling = 0.5 + 1.8 * np.exp(-4 * u) + 0.05 * z
    with np.errstate(over="ignore"):
        explosion = np.where(u > 0.5, np.expm1(60 * (u - 0.5)), 0.0)
    diverging = np.where(u > 0.66, np.nan, np.where(u > 0.65, np.inf, falling + explosion))
    curves = {
        "b_vshape": valley,
        "f_small_scale": 0.01 * valley,
        "c_diverge": diverging,
        "c2_sudden_nan": np.where(u > 0.5, np.nan, falling),
        "d_plateau": 2.3 + 0.05 * z,
        "d2_plateau_bignoise": 2.3 + 0.5 * z,
        "a_monotone_clean": 0.1 + 2.2 * np.exp(-3 * u),
        "a_monotone": 0.1 + 2.2 * np.exp(-3 * u) + 0.02 * z,
    }
    return curves[case["curve"]].astype(np.float32)


@dataclass(frozen=True, slots=True, kw_only=True)
class Driven:
    """What a rule made of losses.

    Args:
        rates: of each step; those of steps that were lost are NaN.
        reasons, notices: of each step.
        switch: the step, counted from 1, in which the warm-up ended.
        decays_from: the rate after it.
    """

    rates: list[float]
    reasons: list[str]
    notices: list[str]
    switch: int | None
    decays_from: float | None


def drive(
    rule: Any,
    losses: Iterable[float],
    *,
    budget: Budget,
    epoch: int = 20,
    base_lr: float = 1.0,
) -> Driven:
    """Feeds losses to a rule, one a step."""
    decider = Decider.start(
        rule,
        base_batch_size=BATCH,
        batch_size=BATCH,
        dataset_size=epoch * BATCH,
        budget=budget,
    )
    rates, reasons, notices, switch, decays_from = [], [], [], None, None
    for step, loss in enumerate(losses, 1):
        reading = Reading(samples=BATCH, finite=math.isfinite(loss), loss=float(loss))
        decider, decision = decider.decide(decider.see(reading, base_lr=base_lr))
        rates.append(decision.lr_multiplier * base_lr if reading.finite else math.nan)
        reasons.append(decision.reason)
        notices.append(decision.notice)
        search = decider.state[0][0]
        if switch is None and search.ended is not None:
            switch, decays_from = step, search.rate
    return Driven(
        rates=rates, reasons=reasons, notices=notices, switch=switch, decays_from=decays_from
    )


def rule_of(case: dict[str, Any], **changes: Any) -> AutoWarmUp:
    config = case["config"]
    settings: dict[str, Any] = {
        "low": config["min_lr"],
        "high": config["max_lr"],
        "fraction": config["max_warmup_fraction"],
        "cooldown": 1.0 if config["immediate_cooldown"] else config["cooldown_fraction"],
        "paper": True,
        "patience": 3,
    }
    return AutoWarmUp(**(settings | changes))


def of_case(case: dict[str, Any], **changes: Any) -> Driven:
    config = case["config"]
    return drive(
        rule_of(case, **changes),
        curve_of(case),
        budget=Budget(steps=config["total_steps"]),
        epoch=config["steps_per_epoch"],
    )


def name_of(case: dict[str, Any]) -> str:
    epochs = f"{case['config']['total_epochs']}x{case['config']['steps_per_epoch']}"
    kind = "" if case["config"]["immediate_cooldown"] else "-hold"
    return f"{case['curve']}-{case['seed']}-{epochs}{kind}-{case['gpytorch']}"


@pytest.mark.parametrize("case", CASES, ids=map(name_of, CASES))
def test_the_curves_are_those_that_the_program_saw(case: dict[str, Any]) -> None:
    if "curve_check" in case:
        first = case["curve_check"]["first3"]
        np.testing.assert_allclose(curve_of(case)[:3], first, rtol=1e-6)


@pytest.mark.parametrize("case", CASES, ids=map(name_of, CASES))
def test_the_paper_mode_decides_as_the_authors_program(case: dict[str, Any]) -> None:
    found, epoch = of_case(case), case["config"]["steps_per_epoch"]
    if case["curve"] == "f_small_scale":
        # their program leaves losses in their unit and takes 0.001 for the first noise: 12 checks
        # late on a hundredth of the loss; here it is the curve of b_vshape
        assert found.switch == 680
        assert case["gp_switch_step"] == 920
    elif case["gp_switch_step"] is not None:
        assert found.switch is not None
        assert abs(found.switch - case["gp_switch_step"]) <= epoch
        factor = 2.0 if case["curve"] == "c_diverge" else 1.15
        expected = case["lr_at_posterior_argmin"]
        assert expected / factor < found.decays_from < factor * expected
    elif case["curve"] == "c2_sudden_nan":
        assert found.switch is None, "no rule is asked about a loss that is not finite"
    else:
        assert found.switch == case["config"]["W"] + 1
        assert found.decays_from == pytest.approx(case["peak_lr_used"], rel=1e-6)


@pytest.mark.parametrize("case", CASES, ids=map(name_of, CASES))
def test_the_rates_of_the_warm_up_are_those_of_the_authors_program(case: dict[str, Any]) -> None:
    found = of_case(case)
    end = min(found.switch or math.inf, case["warmup_end_step"])
    compared = 0
    for step, rate in case["lr_at_step"].items():
        if int(step) < end and math.isfinite(found.rates[int(step) - 1]):
            assert found.rates[int(step) - 1] == pytest.approx(rate, rel=1e-6)
            compared += 1
    assert compared >= 2


def test_held_then_cosine_is_that_of_the_authors_program() -> None:
    case = next(c for c in CASES if not c["config"]["immediate_cooldown"])
    found = of_case(case)
    held = found.rates[found.switch :][: 1600 - found.switch]
    assert held == pytest.approx([found.decays_from] * len(held))
    assert found.rates[1799] == pytest.approx(0.5 * found.decays_from, rel=0.01)


# the default mode


STEPS = 1000
BUDGET = Budget(steps=STEPS)


def valley(
    *, at: float = 0.5, steps: int = STEPS, noise: float = 0.1, seed: int = 0
) -> list[float]:
    """Falls to `at` of the longest warm-up (half of the steps), then rises."""
    u = np.arange(steps) / (0.5 * steps)
    z = np.random.default_rng(seed).standard_normal(steps)
    return list(2.3 - 1.8 * np.minimum(u / at, 1.0) + 5.0 * np.maximum(u - at, 0.0) + noise * z)


@pytest.mark.parametrize("at", [0.3, 0.5, 0.8])
@pytest.mark.parametrize(
    "budget", [BUDGET, Budget(samples=STEPS * BATCH), Budget(base_steps=STEPS)]
)
def test_auto_warm_up_finds_the_rate_at_the_minimum_in_any_unit(at: float, budget: Budget) -> None:
    found = drive(AutoWarmUp(backoff=1.0), valley(at=at), budget=budget)
    true = warm_up_rate(x=at, low=1e-5, high=1.0)
    assert found.switch is not None
    assert 0.5 * STEPS * at < found.switch < 0.5 * STEPS * (at + 0.2)
    assert true / 1.6 < found.decays_from < 1.6 * true
    assert "warm-up ended" in found.reasons[found.switch - 1]


def test_auto_warm_up_decays_from_a_part_of_the_rate_at_the_minimum() -> None:
    whole = drive(AutoWarmUp(backoff=1.0), valley(), budget=BUDGET)
    quarter = drive(AutoWarmUp(), valley(), budget=BUDGET)
    assert quarter.switch == whole.switch
    assert quarter.decays_from == pytest.approx(0.25 * whole.decays_from)


def test_the_rate_grows_by_its_bound_between_checks_and_there_are_100_or_more() -> None:
    found = drive(AutoWarmUp(low=1e-7, high=10.0), [2.3] * 500, budget=Budget(steps=2000))
    at = [i for i, reason in enumerate(found.reasons) if "with probability" in reason]
    growths = [found.rates[b] / found.rates[a] for a, b in itertools.pairwise(at)]
    assert max(growths) <= 1.15 * 1e8 ** (1 / 1000), "to the next whole step"
    found = drive(AutoWarmUp(low=1e-3), [2.3] * 999, budget=Budget(steps=2000))
    assert sum("with probability" in reason for reason in found.reasons) == 99


def test_the_decay_is_a_cosine_from_the_switch_and_ends_above_zero() -> None:
    found = drive(AutoWarmUp(), valley(), budget=BUDGET)
    assert found.switch is not None
    start, left = found.switch - 1, STEPS - (found.switch - 1)
    for step in (start, start + left // 2, STEPS - 1):
        factor = 0.5 * (1.0 + math.cos(math.pi * (step - start) / left))
        assert found.rates[step] == pytest.approx(found.decays_from * factor, rel=1e-9)
    assert found.rates[-1] > 0.0


def test_auto_warm_up_holds_the_rate_before_a_short_decay_of_another_shape() -> None:
    found = drive(AutoWarmUp(cooldown=0.2, decay=Linear()), valley(), budget=BUDGET)
    assert found.rates[found.switch : 800] == pytest.approx(
        [found.decays_from] * (800 - found.switch)
    )
    assert found.rates[900] == pytest.approx(0.5 * found.decays_from)


def test_a_linear_warm_up_rises_in_a_straight_line() -> None:
    rule = AutoWarmUp(low=0.0001, high=1.0, growth="linear", backoff=1.0)
    found = drive(rule, valley(at=0.7), budget=BUDGET)
    assert found.rates[100] == pytest.approx(0.0001 + 0.9999 * 0.2)
    assert found.decays_from == pytest.approx(0.7, rel=0.15)


@pytest.mark.parametrize("paper", [True, False])
def test_a_loss_in_other_units_changes_no_rate(paper: bool) -> None:
    one = drive(AutoWarmUp(paper=paper), valley(noise=0.5), budget=BUDGET)
    other = drive(AutoWarmUp(paper=paper), [1e3 * y for y in valley(noise=0.5)], budget=BUDGET)
    assert other.switch == one.switch
    assert other.rates == pytest.approx(one.rates, rel=1e-9)


def test_a_plateau_does_not_end_the_warm_up_and_the_decay_starts_at_most_at_the_last_rate() -> None:
    for seed in range(20):
        losses = 2.3 + 0.5 * np.random.default_rng(seed).standard_normal(STEPS)
        found = drive(AutoWarmUp(), list(losses), budget=BUDGET)
        assert found.switch == 501
        assert found.decays_from <= found.rates[499]


def trained(
    *, best: float, high: float = 1.0, noise: float = 0.1, seed: int = 0, steps: int = STEPS
) -> list[float]:
    """A loss that falls with the sum of the rates so far, and rises with the decades above `best`;
    the rates are those of a warm-up to `high`."""
    lr = np.minimum(1e-5 * (high / 1e-5) ** (np.arange(steps) / (0.5 * steps)), high)
    z = np.random.default_rng(seed).standard_normal(steps)
    fall = 2.3 / np.sqrt(1.0 + 200.0 * np.cumsum(lr) / steps)
    return list(0.1 + fall + np.maximum(2.0 * np.log(lr / best), 0.0) + noise * z)


CEILING = "the highest learning rate, high=1, was reached while the loss still fell"


@pytest.mark.parametrize("noise", [0.0, 0.1, 0.5])
@pytest.mark.parametrize("seed", range(3))
def test_a_loss_that_falls_to_the_ceiling_decays_from_the_last_rate_and_says_so(
    noise: float, seed: int
) -> None:
    """The best rate is 3.2, and the warm-up ends at 1: a quarter of that would be worse still."""
    found = drive(AutoWarmUp(), trained(best=3.2, noise=noise, seed=seed), budget=BUDGET)
    assert found.switch == 501
    assert found.decays_from == pytest.approx(found.rates[499])
    assert found.reasons[500].endswith(CEILING)
    assert found.notices[500].startswith("AutoWarmUp reached its highest learning rate, high=1, ")
    assert found.notices[500].endswith("start a new run with lb.AutoWarmUp(high=10).")
    assert [bool(notice) for notice in found.notices] == [i == 500 for i in range(STEPS)]
    assert found.rates[700] == pytest.approx(
        found.decays_from * 0.5 * (1.0 + math.cos(math.pi * 200 / 500))
    )


@pytest.mark.parametrize("seed", range(3))
def test_the_ceiling_that_the_notice_names_finds_the_best_rate(seed: int) -> None:
    losses = trained(best=3.2, high=10.0, seed=seed)
    found = drive(AutoWarmUp(high=10.0, backoff=1.0), losses, budget=BUDGET)
    assert found.switch < 501
    assert 3.2 / 2.5 < found.decays_from < 2.5 * 3.2
    assert not any(found.notices)


@pytest.mark.parametrize("best", [0.003, 0.03, 0.3])
def test_a_minimum_inside_of_the_curve_ends_the_warm_up_without_a_notice(best: float) -> None:
    found = drive(AutoWarmUp(), trained(best=best), budget=BUDGET)
    assert found.switch < 501
    assert found.decays_from < best
    assert not any(found.notices)


def test_a_part_of_the_last_rate_decays_from_a_ceiling_if_asked_for() -> None:
    losses = [2.3 - i / STEPS for i in range(STEPS)]
    last = drive(AutoWarmUp(), losses, budget=BUDGET).rates[499]
    half = drive(AutoWarmUp(backoff_at_high=0.5), losses, budget=BUDGET)
    assert half.decays_from == pytest.approx(0.5 * last)
    assert half.reasons[500].endswith(CEILING)
    as_before = drive(AutoWarmUp(backoff_at_high=None), losses, budget=BUDGET)
    assert as_before.decays_from == pytest.approx(0.25 * last)
    assert as_before.reasons[500].endswith("no rise of the loss was detected")
    assert not any(as_before.notices)


FLAT = "the highest learning rate, high=1, was reached and the loss has hardly changed"


def test_noise_around_a_plateau_is_no_fall_and_the_notice_says_so() -> None:
    """None of the rates did anything, so a quarter of one at a chance minimum does nothing."""
    flat = 0
    for seed in range(60):
        losses = 2.3 + 0.5 * np.random.default_rng(seed).standard_normal(502)
        found = drive(AutoWarmUp(), list(losses), budget=BUDGET)
        if found.reasons[500].endswith(FLAT):
            flat += 1
            assert found.decays_from == pytest.approx(found.rates[499])
            assert [bool(notice) for notice in found.notices] == [i == 500 for i in range(502)]
            assert "the loss has hardly changed" in found.notices[500]
            assert found.notices[500].endswith("start a new run with lb.AutoWarmUp(high=10).")
        else:
            assert "no rise of the loss was detected" in found.reasons[500]
            assert not any(found.notices)
    assert flat >= 55


@pytest.mark.parametrize("at", [0.1, 0.3, 0.5])
@pytest.mark.parametrize("seed", range(4))
def test_a_loss_that_fell_and_then_lies_on_a_plateau_decays_from_the_minimum(
    at: float, seed: int
) -> None:
    u = np.arange(502) / 500
    z = np.random.default_rng(seed).standard_normal(502)
    losses = 2.3 - np.minimum(u / at, 1.0) + 0.3 * z
    found = drive(AutoWarmUp(), list(losses), budget=BUDGET)
    assert "no rise of the loss was detected" in found.reasons[500]
    assert not any(found.notices)
    assert found.decays_from < 0.3 * found.rates[499]


def test_a_loss_that_hardly_moved_has_no_notice_in_version_0_1_or_the_papers_mode() -> None:
    losses = list(2.3 + 0.5 * np.random.default_rng(0).standard_normal(502))
    for rule in (AutoWarmUp(backoff_at_high=None), AutoWarmUp(paper=True)):
        found = drive(rule, losses, budget=BUDGET)
        assert "no rise of the loss was detected" in found.reasons[500]
        assert not any(found.notices)
    half = drive(AutoWarmUp(backoff_at_high=0.5), losses, budget=BUDGET)
    assert half.reasons[500].endswith(FLAT)
    assert half.decays_from == pytest.approx(0.5 * half.rates[499])


def test_a_ceiling_is_told_where_rules_follow_the_warm_up() -> None:
    rule = AutoWarmUp(after=AdaScale())
    found = drive(rule, trained(best=3.2), budget=BUDGET)
    assert CEILING in found.reasons[500]
    assert [i for i, notice in enumerate(found.notices) if notice] == [500]


def test_the_paper_mode_decays_from_the_last_rate_and_tells_nothing() -> None:
    found = drive(AutoWarmUp(paper=True), trained(best=3.2), budget=BUDGET)
    assert found.decays_from == pytest.approx(found.rates[499])
    assert found.reasons[500].endswith("no rise of the loss was detected")
    assert not any(found.notices)


@pytest.mark.parametrize(("paper", "part"), [(True, 1.0), (False, 0.25)])
def test_a_backoff_is_honoured_in_both_modes(paper: bool, part: float) -> None:
    def decays_from(backoff: float | None) -> float:
        rule = AutoWarmUp(paper=paper, backoff=backoff)
        found = drive(rule, valley(at=0.4), budget=BUDGET)
        assert found.switch < 501
        return found.decays_from

    whole = decays_from(1.0)
    assert decays_from(0.5) == pytest.approx(0.5 * whole)
    assert decays_from(0.25) == pytest.approx(0.25 * whole)
    assert decays_from(None) == pytest.approx(part * whole)


OF_0_1 = {name: value for name, value in encode(AutoWarmUp(), kind=True).items()
          if name != "backoff_at_high"}  # fmt: skip


@pytest.mark.parametrize("paper", [True, False])
@pytest.mark.parametrize("backoff", [0.25, 0.5])
def test_the_fields_of_version_0_1_decide_as_they_did(paper: bool, backoff: float) -> None:
    """It ignored `backoff` if `paper` was given, and divided by it at the ceiling otherwise."""
    plain = {**OF_0_1, "paper": paper, "backoff": backoff}
    rule = decode(Rule, plain, kinds=KINDS)
    part = 1.0 if paper else backoff
    whole = drive(AutoWarmUp(paper=paper, backoff=1.0), valley(at=0.4), budget=BUDGET)
    inside = drive(rule, valley(at=0.4), budget=BUDGET)
    assert inside.decays_from == pytest.approx(part * whole.decays_from)
    ceiling = drive(rule, trained(best=3.2), budget=BUDGET)
    assert ceiling.decays_from == pytest.approx(part * ceiling.rates[499])
    assert not any(ceiling.notices)
    assert decode(Rule, encode(rule, kind=True), kinds=KINDS) == rule


@pytest.mark.parametrize(
    "rule",
    [
        AutoWarmUp(), AutoWarmUp(paper=True), AutoWarmUp(paper=True, backoff=0.25),
        AutoWarmUp(backoff=0.25), AutoWarmUp(backoff_at_high=None), AutoWarmUp(backoff_at_high=0.5),
    ],
)  # fmt: skip
def test_the_fields_of_today_are_read_as_they_are(rule: AutoWarmUp) -> None:
    assert decode(Rule, encode(rule, kind=True), kinds=KINDS) == rule


@pytest.mark.parametrize("rule", [AutoWarmUp(), AutoWarmUp(paper=True), AutoWarmUp(backoff=0.5)])
def test_a_run_of_version_0_1_is_resumed_by_todays_rule(rule: AutoWarmUp) -> None:
    backoff = 0.25 if rule.backoff is None else rule.backoff
    plain = {**OF_0_1, "paper": rule.paper, "backoff": backoff}
    assert renewed(plain, kinds=KINDS_TO_RESUME) == encode(rule, kind=True)
    today = encode(rule, kind=True)
    assert renewed(today, kinds=KINDS_TO_RESUME) == today


def test_a_constant_loss_decays_from_the_last_rate() -> None:
    found = drive(AutoWarmUp(backoff=1.0), [2.3] * STEPS, budget=BUDGET)
    assert found.switch == 501
    assert found.decays_from == pytest.approx(found.rates[499])
    assert "the loss has hardly changed" in found.notices[500]


def test_a_forced_end_goes_back_to_a_minimum_that_was_passed() -> None:
    """The loss turns so late that ten checks in a row have no room: the rate goes back to its
    minimum all the same, which the authors' program leaves out."""
    losses = valley(at=0.96, noise=0.01)
    ours = drive(AutoWarmUp(backoff=1.0, patience=10), losses, budget=BUDGET)
    theirs = drive(AutoWarmUp(paper=True, patience=10), losses, budget=BUDGET)
    assert ours.switch == theirs.switch == 501
    assert ours.decays_from < theirs.decays_from
    assert ours.decays_from == pytest.approx(warm_up_rate(x=0.96, low=1e-5, high=1.0), rel=0.3)


@pytest.mark.parametrize("factor", [1.3, 2.0, 3.0, 10.0])
@pytest.mark.parametrize("steps", [200, 1000])
def test_an_exploding_loss_ends_the_warm_up_within_five_checks(steps: int, factor: float) -> None:
    """Beside 1e38, a Gaussian takes all that came before for one value with noise."""
    past = np.maximum(np.arange(steps) - 0.3 * steps, 0.0)
    losses = np.array(valley(at=0.6, steps=steps)) + np.expm1(
        np.minimum(past * math.log(factor), 87)
    )
    found = drive(AutoWarmUp(backoff=1.0), list(losses), budget=Budget(steps=steps))
    check = steps // 100
    assert found.switch is not None
    assert found.switch <= 0.3 * steps + 5 * check
    true = warm_up_rate(x=0.6, low=1e-5, high=1.0)
    assert true / 2.5 < found.decays_from < 1.2 * true


@pytest.mark.parametrize(("far", "ends"), [(1, False), (2, True)])
def test_losses_far_above_all_earlier_losses_end_the_warm_up_at_once(far: int, ends: bool) -> None:
    """Here they come between two checks, and votes would take four more."""
    losses = valley(at=0.9)[:151] + [3.6] * far + valley(at=0.9)[151:153]
    found = drive(AutoWarmUp(backoff=1.0), losses, budget=BUDGET)
    assert (found.switch == 153) is ends
    if ends:
        assert "the loss 3.6 is far above the losses before it" in found.reasons[152]
        assert found.decays_from == pytest.approx(found.rates[150], rel=0.2)


def test_a_single_loss_far_above_leaves_no_mark() -> None:
    clean, spoiled = valley(at=0.6), valley(at=0.6)
    spoiled[100] = 1e6
    found, other = (drive(AutoWarmUp(), losses, budget=BUDGET) for losses in (spoiled, clean))
    assert found.switch == other.switch
    assert found.decays_from == pytest.approx(other.decays_from, rel=0.1)


@pytest.mark.parametrize(("lost", "ends"), [(2, False), (3, True), (9, True)])
def test_losses_that_are_not_finite_end_the_warm_up_and_decay_starts_at_a_safe_rate(
    lost: int, ends: bool
) -> None:
    losses = valley(at=0.9)
    whole = drive(AutoWarmUp(backoff=1.0), losses[:201], budget=BUDGET)
    losses[200 : 200 + lost] = [math.inf] * lost
    found = drive(AutoWarmUp(), losses, budget=BUDGET)
    if not ends:
        assert found.switch is not None
        assert found.switch > 450
        return
    assert found.switch == 201 + lost
    assert found.decays_from <= 0.5 * 0.25 * whole.rates[199]
    assert f"{lost} losses in a row were not finite" in found.reasons[found.switch - 1]


def test_steps_lost_in_the_first_tenth_of_a_warm_up_do_not_end_the_warm_up() -> None:
    """A gradient scaler that looks for its scale loses the first steps of a run."""
    losses = [math.inf] * 5 + [2.3] + [math.inf] * 3 + valley()
    found = drive(AutoWarmUp(), losses, budget=Budget(samples=STEPS * BATCH))
    assert found.switch is not None
    assert found.switch > 250


def test_lost_steps_count_for_nothing_in_the_curve() -> None:
    losses = valley()
    holes = list(losses)
    for step in range(10, 1000, 25):
        holes[step] = math.nan
    one, other = (drive(AutoWarmUp(), y, budget=Budget(samples=10_000)) for y in (losses, holes))
    assert other.decays_from == pytest.approx(one.decays_from, rel=0.25)


def test_history_stays_short() -> None:
    decider = Decider.start(
        AutoWarmUp(), base_batch_size=1, batch_size=1, budget=Budget(steps=100_000)
    )
    for step in range(20_000):
        seen = decider.see(Reading(samples=1, loss=2.3 - step / 1e5), base_lr=1.0)
        decider, _ = decider.decide(seen)
        if step % 1999 == 0:
            assert len(decider.state[0][0].losses.means) <= 128
    assert decider.state[0][0].losses.recorded == 20_000


def test_the_optimizers_rate_does_not_matter() -> None:
    one = drive(AutoWarmUp(), valley(), budget=BUDGET, base_lr=0.1)
    other = drive(AutoWarmUp(), valley(), budget=BUDGET, base_lr=30.0)
    assert other.rates == pytest.approx(one.rates, rel=1e-12)


# what it refuses


@pytest.mark.parametrize(
    "wrong",
    [
        {"low": 0.0}, {"low": 1.0, "high": 0.1}, {"low": 1.0, "high": 1.0}, {"high": math.inf},
        {"low": math.nan}, {"fraction": 0.0}, {"fraction": 1.0}, {"cooldown": 0.0},
        {"cooldown": 1.5}, {"confidence": 0.3}, {"confidence": 1.0}, {"patience": 0},
        {"backoff": 0.0}, {"backoff": 1.5}, {"paper": True, "backoff": 0.0},
        {"backoff_at_high": 0.0}, {"backoff_at_high": 1.5},
    ],
)  # fmt: skip
def test_settings_outside_their_bounds_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"given, but .*\. Example: lb\.AutoWarmUp\("):
        AutoWarmUp(**wrong)


@pytest.mark.parametrize(
    "other",
    [
        AutoWarmUp(), WarmUp(), Legw(warmup_epochs=1.0), Schedule(), LinearScaling(),
        SqrtScaling(), AdaScale(), chain(AdaScale()),
    ],
)  # fmt: skip
def test_a_rule_that_would_multiply_the_rate_is_refused(other: Any) -> None:
    for rules in ((AutoWarmUp(), other), (other, AutoWarmUp())):
        with pytest.raises(ValueError, match="AutoWarmUp"):
            chain(*rules)


def test_a_bound_on_the_rate_may_follow_an_auto_warm_up() -> None:
    found = drive_chain(chain(AutoWarmUp(), ClampLr(max=0.01)))
    assert max(found) == 0.01


def drive_chain(rule: Any) -> list[float]:
    decider = Decider.start(rule, base_batch_size=BATCH, batch_size=BATCH, budget=BUDGET)
    rates = []
    for loss in valley(at=0.9)[:400]:
        decider, decision = decider.decide(
            decider.see(Reading(samples=BATCH, loss=loss), base_lr=1.0)
        )
        rates.append(decision.lr_multiplier)
    return rates


def test_steps_that_count_one_are_counted_so() -> None:
    rule = chain(StepClock(), AutoWarmUp())
    decider = Decider.start(rule, base_batch_size=1, batch_size=32, budget=Budget(base_steps=80))
    _, decision = decider.decide(decider.see(Reading(samples=32, loss=2.3), base_lr=1.0))
    assert decision.reason.startswith("warm-up: lr 1e-05")


@pytest.mark.parametrize("steps", [1, 20, 79])
def test_a_budget_too_short_is_refused_with_one_that_is_not(steps: int) -> None:
    with pytest.raises(
        ValueError, match=r"30 losses and then 10 checks.* at least 80 optimizer steps"
    ):
        drive(AutoWarmUp(), [2.3], budget=Budget(steps=steps))
    assert drive(AutoWarmUp(), [2.3] * 5, budget=Budget(steps=80)).rates[0] == 1e-5


def test_an_optimizer_without_a_rate_is_refused() -> None:
    with pytest.raises(ValueError, match="Pass any value above 0"):
        drive(AutoWarmUp(), [2.3], budget=BUDGET, base_lr=0.0)


@pytest.mark.parametrize("at", [1, 400])
def test_a_scheduler_that_comes_to_zero_is_refused(at: int) -> None:
    decider = Decider.start(AutoWarmUp(), base_batch_size=BATCH, batch_size=BATCH, budget=BUDGET)
    for loss in valley(at=0.4)[:at]:
        seen = decider.see(Reading(samples=BATCH, loss=loss), base_lr=1.0)
        decider, _ = decider.decide(seen)
    with pytest.raises(ValueError, match="use no scheduler"):
        decider.decide(decider.see(Reading(samples=BATCH, loss=2.3), base_lr=0.0))


@pytest.mark.parametrize("inner", [AutoWarmUp(), chain(AutoWarmUp()), Every(AutoWarmUp())])
def test_an_auto_warm_up_around_another_is_refused(inner: Any) -> None:
    with pytest.raises(ValueError, match=r"after=AdaScale\(\)"):
        AutoWarmUp(after=inner)


def test_a_batch_that_changes_in_the_warm_up_is_refused_and_later_it_is_not() -> None:
    decider = Decider.start(
        AutoWarmUp(after=AdaScale()), base_batch_size=BATCH, batch_size=BATCH, budget=BUDGET
    )
    gains = []
    for step, loss in enumerate(valley(at=0.4)):
        if step == 50:
            grown = replace(decider, batch_size=2 * BATCH)
            seen = grown.see(Reading(samples=2 * BATCH, loss=loss), base_lr=1.0)
            with pytest.raises(LargeBatchError, match="from 10 to 20 samples during the warm-up"):
                grown.decide(seen)
        if step == 600:
            decider = replace(decider, batch_size=4 * BATCH)
        samples = decider.batch_size
        moments = GradientMoments(
            batch_size=samples, parts=4, batch_sqnorm=1.0 + 40.0 / samples, variance=40.0
        )
        reading = Reading(
            samples=samples,
            loss=loss,
            moments=moments if "moments" in decider.measure else None,
        )
        decider, decision = decider.decide(decider.see(reading, base_lr=1.0))
        gains.append((decision.base_steps, decision.reason))
    assert gains[599][0] == pytest.approx(1.0)
    # of a batch of 10: variance 4, squared norm 1; S = 4: (4 + 1) / (4 / 4 + 1)
    assert gains[600][0] == pytest.approx(2.5, rel=0.02)
    assert "gain" in gains[600][1]


def test_rules_after_an_auto_warm_up_count_base_steps_by_the_batch_of_the_warm_up() -> None:
    """At twice the base batch, a step of the warm-up's batch is worth two base steps."""
    rule = AutoWarmUp(after=AdaScale())
    decider = Decider.start(
        rule, base_batch_size=BATCH, batch_size=2 * BATCH, budget=Budget(steps=STEPS)
    )
    for loss in valley(at=0.4):
        seen = decider.see(Reading(samples=2 * BATCH, loss=loss), base_lr=1.0)
        decider, decision = decider.decide(seen)
        assert decision.base_steps == pytest.approx(2.0)


def test_nothing_is_measured_before_the_rules_after_it_need_it() -> None:
    decider = Decider.start(
        AutoWarmUp(after=AdaScale()), base_batch_size=BATCH, batch_size=BATCH, budget=BUDGET
    )
    wanted = []
    for loss in valley(at=0.4)[:400]:
        seen = decider.see(Reading(samples=BATCH, loss=loss), base_lr=1.0)
        decider, decision = decider.decide(seen)
        wanted.append(bool(decision.measure_next))
    ended = wanted.index(True)
    assert 100 < ended < 300
    assert all(wanted[ended:])


# the formula


@given(x=st.floats(0, 1), low=st.floats(1e-8, 1e-2), factor=st.floats(2, 1e6))
def test_a_rate_lies_between_its_ends(x: float, low: float, factor: float) -> None:
    for linear in (True, False):
        rate = warm_up_rate(x=x, low=low, high=low * factor, linear=linear)
        assert low * (1 - 1e-9) <= rate <= low * factor * (1 + 1e-9)


def test_the_state_before_the_first_step_knows_nothing() -> None:
    search, after = AutoWarmUp().init()
    assert search == WarmUpState()
    assert after == ()
