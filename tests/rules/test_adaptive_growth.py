"""Stages that begin when the noise scale asks for them, and the other rules that grow a batch."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from batch_rules import asked, moments_of, see
from growing import CASES, run
from hypothesis import given
from hypothesis import strategies as st

from largebatch import methods
from largebatch.core.decider import Decider
from largebatch.core.decision import Decision
from largebatch.core.measurement import Budget, Measurement, Reading
from largebatch.rules import (
    Accordion,
    AdaptiveGrowth,
    AnyTimeGrowth,
    ClampToNoiseScale,
    HoldThenDecay,
    Linear,
)
from largebatch.rules.stages import Stages, fractions_of, growing_stages, optimal_ratio

TABLE = growing_stages(4, delta=2.0, gamma=1.5)


def steps_with(rule: Any, scales: list[float | None]) -> list[Any]:
    """(batch, rate) of each step, in which these noise scales are measured."""
    decider = Decider.start(rule, base_batch_size=8, batch_size=8,
                            dataset_size=1000)  # fmt: skip
    found = []
    for scale in scales:
        size = decider.batch_size
        moments = None
        if scale is not None:
            moments = moments_of(scale, 1.0 + scale / size, batch_size=size)
        seen = decider.see(Reading(samples=size, moments=moments), base_lr=0.1)
        decider, decision = decider.decide(seen)
        found.append((size, decision.lr_multiplier))
    return found


def test_a_stage_begins_after_so_many_tests_in_a_row() -> None:
    """The first three measurements tell nothing; a test is a step that measures."""
    rule = AdaptiveGrowth(stages=TABLE, patience=2)
    found = steps_with(rule, [20.0, 20.0, 20.0, None, 20.0, None, 20.0, 20.0, 20.0])
    assert found == [(8, 1.0)] * 7 + [(16, 1.5)] * 2, "20 is not enough for 32"
    found = steps_with(AdaptiveGrowth(stages=TABLE, patience=3), [99.0] * 12)
    assert found == [(8, 1.0)] * 6 + [(16, 1.5)] * 3 + [(32, 2.25)] * 3


@pytest.mark.parametrize(("asked", "batch"), [(2, 8), (-2, 8), (2, 32), (-2, 32)])
def test_a_test_that_asks_for_nothing_or_for_the_other_way_begins_the_count_anew(
    asked: int, batch: int
) -> None:
    rule = AdaptiveGrowth(stages=TABLE, patience=3)
    state = replace(rule.init(), first=8, stage=(8, 16, 32).index(batch))
    for noise in (float(batch), 4.0 if batch == 32 else 99.0):
        moments = moments_of(noise, 1.0 + noise / batch, batch_size=batch)
        past = state
        for step in range(4):
            past, _ = rule.update(
                replace(past, asked=asked),
                see(moments, batch_size=batch, samples=batch * step, base_batch_size=8),
                Decision(next_batch_size=batch, base_steps=1.0),
            )
        way = 0 if noise == batch else 1 if noise > batch else -1
        going_on = way * asked > 0
        assert (past.stage != state.stage) == going_on
        assert past.asked == (0 if going_on else way)


def test_the_batch_goes_back_by_one_stage_when_it_is_certainly_too_large() -> None:
    """The noise scale falls from 99 to 9, and the batch to the largest stage that is not above."""
    rule = AdaptiveGrowth(stages=TABLE, patience=2)
    found = [size for size, _ in steps_with(rule, [99.0] * 20 + [9.0] * 80)]
    assert max(found) == 64
    down = found[found.index(64) :]
    assert down == sorted(down, reverse=True)
    assert sorted(set(down)) == [8, 16, 32, 64]
    assert down[-1] == 8
    rates = dict(steps_with(rule, [99.0] * 20 + [9.0] * 80))
    assert rates == {8: 1.0, 16: 1.5, 32: 2.25, 64: 3.375}, "the rate goes back, too"


@pytest.mark.parametrize("patience", [1, 3])
def test_going_back_takes_as_many_tests_in_a_row(patience: int) -> None:
    rule = AdaptiveGrowth(stages=TABLE, patience=patience)
    state = replace(rule.init(), first=8, stage=2)
    stages = []
    for step in range(3 + patience):
        seen = see(
            moments_of(4.0, 1.0 + 4.0 / 32, batch_size=32), batch_size=32,
            samples=32 * step, base_batch_size=8,
        )  # fmt: skip
        state, _ = rule.update(state, seen, Decision(next_batch_size=32, base_steps=4.0))
        stages.append(state.stage)
    assert stages == [2] * (2 + patience) + [1]


def test_a_batch_that_the_interval_does_not_exclude_stays_in_its_stage() -> None:
    """Noise scales of 6 and 20 in turn, of a batch of 16: the estimate is below, the end above."""
    rule = AdaptiveGrowth(stages=TABLE, patience=1)
    state = replace(rule.init(), first=8, stage=1)
    for step in range(20):
        noise = 20.0 if step % 2 else 6.0
        moments = moments_of(noise, 1.0 + noise / 16, batch_size=16)
        seen = see(moments, batch_size=16, samples=16 * step, base_batch_size=8)
        # the stage in hand is the same in each step: what came of the one before does not count
        state = replace(state, stage=1)
        state, _ = rule.update(state, seen, Decision(next_batch_size=16, base_steps=2.0))
    found = state.past.noise_scale()
    assert found is not None
    assert found.value < 16 < found.high
    assert state.stage == 1


def test_stages_that_round_to_one_size_are_passed() -> None:
    """8 x 1.05 rounds up to 9, as 8 x 1.05^2 does."""
    table = growing_stages(60, delta=1.05)
    sizes = [size for size, _ in steps_with(AdaptiveGrowth(stages=table, patience=1), [1e6] * 80)]
    assert sizes == sorted(sizes)
    assert sizes[-1] == table.size(59, first=8, seen=see(batch_size=8))
    assert sizes[-1] > 140


@given(scales=st.lists(st.none() | st.floats(0.1, 300.0), max_size=30), kappa=st.floats(0.1, 4.0))
def test_the_batch_is_never_above_what_the_noise_asked_for(
    scales: list[float | None], kappa: float
) -> None:
    """An average of noise scales is at most the largest of them."""
    found = steps_with(AdaptiveGrowth(stages=TABLE, kappa=kappa, patience=1), scales)
    most = 8.0
    for (size, lr), scale in zip(found, scales, strict=True):
        assert size <= max(most, 8)
        assert lr == TABLE.rate(round(math.log2(size / 8)))
        most = max(most, kappa * (scale or 0.0) * (1 + 1e-9))


def test_adaptive_growth_ends_at_the_size_of_the_data_set() -> None:
    found = steps_with(AdaptiveGrowth(patience=1), [1e6] * 12)
    assert found[-1][0] == 1000


@pytest.mark.parametrize("more", [{"kappa": 0.0}, {"kappa": math.inf}, {"patience": 0}])
def test_impossible_triggers_are_refused(more: Any) -> None:
    with pytest.raises(ValueError, match=r"AdaptiveGrowth\(kappa=1.0, patience=3\)"):
        AdaptiveGrowth(**more)


def test_the_method_refuses_a_batch_that_does_not_grow() -> None:
    with pytest.raises(ValueError, match=r"delta=2\.0"):
        methods.adaptive_growth(delta=1.0)


def bounded_after(rule: Any, seen: Measurement, *, wanted: int, times: int = 4) -> Any:
    """(state, decision) of a bound on a wish after so many equal steps."""
    state, decision = rule.init(), None
    proposed = Decision(next_batch_size=wanted, base_steps=1.0)
    for at in range(times):
        state, decision = rule.update(state, replace(seen, samples=64 * at), proposed)
    return state, decision


def test_the_noise_bounds_growth_and_leaves_the_batch_in_hand() -> None:
    rule = ClampToNoiseScale(kappa=2.0)
    seen = see(moments_of(50.0, 1.0 + 50.0 / 64), batch_size=64)  # noise scale 50
    for wanted, expected in ((32, 32), (80, 80), (200, 100)):
        state, decision = bounded_after(rule, seen, wanted=wanted)
        assert decision.next_batch_size == pytest.approx(expected, abs=1)
    proposed = Decision(next_batch_size=200, base_steps=1.0)
    later = rule.update(state, see(batch_size=64), proposed)[1]
    assert later.next_batch_size == decision.next_batch_size, "the averages count"
    small = see(moments_of(5.0, 1.0 + 5.0 / 64), batch_size=64)
    assert bounded_after(rule, small, wanted=200)[1].next_batch_size == 64
    assert bounded_after(rule, small, wanted=40)[1].next_batch_size == 40, "no wish is raised"


def test_until_the_noise_scale_is_known_the_batch_is_held() -> None:
    rule = ClampToNoiseScale()
    for seen in (see(), see(moments_of(640.0, 11.0)), see(moments_of(0.0, 0.0))):
        _, decision = bounded_after(rule, seen, wanted=10**6, times=3)
        assert decision.next_batch_size == 64
        assert decision.reason == "batch size 1000000 held at 64, noise scale not known yet"
        assert bounded_after(rule, seen, wanted=50, times=3)[1].next_batch_size == 50


def test_growth_beyond_the_low_end_is_twice_as_far_at_most() -> None:
    state = ClampToNoiseScale().init()
    rule, proposed = ClampToNoiseScale(), Decision(next_batch_size=10**6, base_steps=1.0)
    for at, noise in enumerate([500.0, 900.0, 150.0, 700.0, 400.0, 1200.0, 300.0]):
        seen = see(moments_of(noise, 1.0 + noise / 64), samples=64 * at)
        state, decision = rule.update(state, seen, proposed)
    found = state.noise_scale()
    assert found is not None
    assert 64 < found.low < found.value
    most = min(found.value, 2 * found.low)
    assert decision.next_batch_size == math.ceil(most)


def test_the_bound_and_the_stages_read_the_statistic_that_is_named() -> None:
    seen = see(moments_of(1.0, 1.0), preconditioned_moments=moments_of(640.0, 11.0))
    name: Any = "preconditioned_moments"
    _, decision = bounded_after(ClampToNoiseScale(statistic=name), seen, wanted=10**6)
    assert (decision.next_batch_size, decision.measure_next) == (640, {name})
    stages = AdaptiveGrowth(patience=1, statistic=name)
    _, decision = bounded_after(stages, seen, wanted=64)
    assert (decision.next_batch_size, decision.measure_next) == (128, {name})
    for rule in (ClampToNoiseScale, AdaptiveGrowth):
        with pytest.raises(ValueError, match="preconditioned_moments"):
            rule(statistic="loss")  # type: ignore[operator]


def test_the_any_time_law_has_its_batches() -> None:
    case = CASES["anytime_law_const_lr"]
    rule = AnyTimeGrowth(coefficient=case["config"]["c"])
    record = run(rule, budget=Budget(steps=case["config"]["T"]), batch_size=1)
    for row in case["rows"]:
        seen = record[row["step"]][0]
        assert abs(seen.batch_size - row["batch"]) <= 1
        assert seen.samples == pytest.approx(row["samples_before"], rel=1e-3, abs=1)


def test_the_any_time_law_follows_the_rate_before_it() -> None:
    proposed = Decision(next_batch_size=64, base_steps=1.0, lr_multiplier=0.5)
    seen = see(base_lr=0.2)
    rule = AnyTimeGrowth(coefficient=5000.0)
    assert rule.update(rule.init(), seen, proposed)[1].next_batch_size == 100
    with pytest.raises(ValueError, match="coefficient must be a finite number above 0"):
        AnyTimeGrowth(coefficient=0.0)


def test_accordion_switches_when_the_norm_changes_slowly() -> None:
    norms = [10.0] * 10 + [4.0] * 10 + [3.0] * 10 + [2.9] * 10 + [2.8] * 10
    rule, batch, found = Accordion(), 10, []
    state = rule.init()
    for epoch, norm in enumerate(norms):
        moments = moments_of(0.0, norm**2, batch_size=100)
        seen = see(moments, batch_size=100, samples=100 * epoch, dataset_size=100)
        state, decision = rule.update(state, seen, Decision(next_batch_size=batch, base_steps=1.0))
        batch = decision.next_batch_size
        found.append("large" if state.large else "small")
    assert found == ["small"] * 20 + ["large"] * 30
    assert batch == 80


def test_accordion_keeps_the_batch_after_an_epoch_without_a_measurement() -> None:
    rule = Accordion(epochs=1)
    seen = see(batch_size=100, samples=300, dataset_size=100)
    assert asked(rule, seen).next_batch_size == 100
    for more in ({"growth": 1.0}, {"threshold": 0.0}, {"epochs": 0}):
        with pytest.raises(ValueError, match="Example: Accordion"):
            Accordion(**more)


@pytest.mark.parametrize("power", ["0", "1.5", "2"])
def test_stages_that_grow_in_length_have_their_ends(power: str) -> None:
    case = CASES[f"stage_epochs_power_{power}"]
    config = case["config"]
    ratio = config["delta"] ** config["power"]
    ends = (*fractions_of(tuple([ratio**k for k in range(config["stages"])])), 1.0)
    table = growing_stages(config["stages"], delta=config["delta"], gamma=config["gamma"])
    begin = 0.0
    for row, end in zip(case["rows"], ends, strict=True):
        assert (end - begin) * config["epochs"] == pytest.approx(row["epochs_exact"], rel=1e-12)
        assert round(end * config["epochs"]) == row["epoch_end"]
        assert table.required(row["stage"], first=config["b0"]) == row["batch"]
        assert config["lr0"] * table.rate(row["stage"]) == pytest.approx(row["lr"], rel=1e-12)
        begin = end


def test_on_the_relation_equal_steps_go_with_the_root() -> None:
    lengths = [optimal_ratio(delta=2.0, gamma=math.sqrt(2.0)) ** m for m in range(4)]
    ends = fractions_of(tuple(lengths))
    assert [round(200 * end) for end in ends] == [13, 40, 93]


@pytest.mark.parametrize(
    "more",
    [{"batch": ()}, {"batch": (1, 0)}, {"batch": (1, math.inf)}, {"lr": (1,)}, {"of": 0},
     {"lr": (1, -1)}],
)  # fmt: skip
def test_tables_that_cannot_be_are_refused(more: Any) -> None:
    with pytest.raises(ValueError, match="above 0 and finite"):
        Stages(**{"batch": (1, 2), **more})


def test_hold_then_decay_holds_its_height_and_then_decays() -> None:
    factor = HoldThenDecay(start=0.5, factor=Linear(), height=3.0)
    assert [factor(x) for x in (0.0, 0.5, 0.75, 1.0)] == [3.0, 3.0, 1.5, 0.0]
    for more in ({"start": 1.0}, {"start": -0.1}, {"start": 0.1, "height": 0.0}):
        with pytest.raises(ValueError, match=r"HoldThenDecay\(start=0\.1"):
            HoldThenDecay(**more)


def test_every_published_schedule_is_read_under_a_name_of_its_own() -> None:
    text = (Path(__file__).parents[1] / "cases" / "schedules.json").read_text()
    assert len(json.loads(text)["cases"]) == len(CASES)
