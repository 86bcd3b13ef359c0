"""A decay that is traded for growth."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import pytest
from batch_rules import told
from growing import CASES, changes, run, walk
from hypothesis import given
from hypothesis import strategies as st

from largebatch import methods
from largebatch.core.measurement import Budget, GradientMoments, Measurement
from largebatch.core.rule import chain
from largebatch.rules import (
    ClampBatch,
    Constant,
    Cosine,
    Exponential,
    Linear,
    LinearScaling,
    Polynomial,
    Schedule,
    StepDecay,
)
from largebatch.rules.growth_from_decay import growth_from_decay

SAMPLES = 10_000_000


@dataclass(frozen=True)
class QuarterCosine:
    def __call__(self, fraction: float) -> float:
        return math.cos(0.5 * math.pi * fraction)


def steps_of(ends: tuple[float, ...], batch: tuple[float, ...]) -> float:
    """Steps over those of the first batch."""
    parts = zip(pairwise(ends), batch, strict=True)
    return sum((end - begin) / factor for (begin, end), factor in parts)


def test_seesaw_takes_the_root_of_each_cut_and_multiplies_the_batch() -> None:
    case = CASES["seesaw_step"]
    config = case["config"]
    decay = StepDecay(at=(0.1, 0.2, 0.3, 0.4, 0.5), factor=0.5)
    points = [round(0.1 * k * SAMPLES) for k in range(6)]
    budget = Budget(samples=SAMPLES)
    for method, name in ((methods.seesaw, "seesaw"), (methods.smith, "sgd_equiv")):
        rule = method(factor=decay, kappa=None)
        found = walk(rule, points, first=config["b0"], budget=budget)
        for row, (_, size, lr) in zip(case["rows"], found, strict=True):
            assert size == row[f"{name}_batch"]
            assert lr * config["lr0"] == pytest.approx(row[f"{name}_lr"], rel=1e-12)


def test_seesaw_cuts_a_quarter_cosine_where_it_has_fallen() -> None:
    case = CASES["seesaw_quarter_cosine"]
    growth = growth_from_decay(QuarterCosine(), cut=case["config"]["alpha"])
    rows = case["rows"]
    for row, at, factor in zip(rows[1:], growth.at, growth.stages.batch[1:], strict=False):
        assert at == pytest.approx(row["sample_fraction"], rel=1e-9)
        assert 256 * factor == pytest.approx(row["batch_exact"], rel=1e-9)
        assert 0.003 * QuarterCosine()(at) * math.sqrt(factor) == pytest.approx(row["lr"], rel=1e-9)
    count = len(rows)
    ends = (0.0, *growth.at[: count - 1], 1.0)
    ratio = steps_of(ends, growth.stages.batch[:count])
    assert ratio == pytest.approx(case["steps_ratio"], rel=1e-9)


@pytest.mark.parametrize(
    ("factor", "cut", "expected"),
    [(QuarterCosine(), 2.0, 0.7798267802), (QuarterCosine(), 1.1, 0.6622477124),
     (QuarterCosine(), 1.01, 0.6396112037), (Cosine(), 1.1, 0.5205696981),
     (Cosine(end=0.1), 1.1, 0.5727694002)],
)  # fmt: skip
def test_the_steps_are_the_mean_of_the_staircase(factor: Any, cut: float, expected: float) -> None:
    growth = growth_from_decay(factor, cut=cut)
    ends = (0.0, *growth.at, 1.0)
    ratio = steps_of(ends, growth.stages.batch)
    assert ratio == pytest.approx(expected, abs=2e-5)


def test_smith_grows_the_batch_as_often_as_the_cap_allows() -> None:
    case = CASES["smith_step"]
    decay = StepDecay(at=(60 / 200, 120 / 200, 160 / 200), factor=0.2)
    rules = {
        "decay": chain(Schedule(factor=decay)),
        "hybrid": methods.smith(factor=decay, max=640),
        "increase": methods.smith(factor=decay),
        "inc_capped": methods.smith(factor=decay, max=5120),
    }
    points = [row["epoch"] * 50_000 for row in case["rows"]]
    for name, rule in rules.items():
        found = walk(rule, points, first=128, budget=Budget(samples=200 * 50_000))
        for row, (_, size, lr) in zip(case["rows"], found, strict=True):
            assert size == row[name]["batch"]
            assert 0.1 * lr == pytest.approx(row[name]["lr"], rel=1e-12)


def test_what_a_bound_leaves_of_the_decay_stays_a_decay() -> None:
    rule = methods.smith(factor=Exponential(end=1 / 64), cut=2.0, max=32)
    for seen, decision in run(rule, budget=Budget(samples=5000)):
        noise = decision.lr_multiplier / seen.batch_size
        assert noise == pytest.approx(Exponential(end=1 / 64)(seen.progress) / 8)


def test_seesaw_holds_the_batch_at_the_noise_scale() -> None:
    rule = methods.seesaw(every=1)
    moments = GradientMoments(batch_size=64, parts=4, batch_sqnorm=3.0, variance=128.0)
    seen = Measurement(
        step=9, samples=9000, base_steps=140.0, batch_size=64, base_batch_size=64,
        budget=Budget(samples=10_000), preconditioned_moments=moments,
    )  # fmt: skip
    assert seen.preconditioned_moments is not None
    decision = told(rule, seen, times=3)
    assert decision.next_batch_size == 64
    assert "held at 64, noise scale not known yet" in decision.reason
    decision = told(rule, seen)
    assert decision.next_batch_size == 128
    assert "limited to 128 by the noise scale 128 [128, 128]" in decision.reason


@given(
    cut=st.floats(1.01, 10.0),
    factor=st.sampled_from([Cosine(), Cosine(end=0.05), Linear(), Polynomial(power=0.5),
                            Polynomial(power=3.0), Exponential(end=1e-3), QuarterCosine()]),
)  # fmt: skip
def test_each_cut_is_the_first_point_at_which_the_factor_has_fallen(
    cut: float, factor: Any
) -> None:
    growth = growth_from_decay(factor, cut=cut)
    for k, (at, batch) in enumerate(zip(growth.at, growth.stages.batch[1:], strict=True), 1):
        level = max(cut**-k, 2.0**-20)
        assert factor(at) <= level * (1 + 1e-9)
        assert factor(at * (1 - 1e-7)) >= level * (1 - 1e-9)
        assert batch == pytest.approx(1.0 / factor(at), rel=1e-9) or batch == 2.0**20


def test_growth_ends_at_most_where_a_decay_to_nothing_would_never() -> None:
    growth = growth_from_decay(Linear(), cut=2.0, most=8.0)
    assert growth.stages.batch == pytest.approx((1.0, 2.0, 4.0, 8.0))
    assert growth.at == pytest.approx((0.5, 0.75, 0.875))
    rule = chain(growth, ClampBatch(max=4096), LinearScaling())
    assert changes(run(rule, budget=Budget(samples=800)))[-1][1] == 64


@pytest.mark.parametrize(
    "more",
    [{"factor": Constant()}, {"factor": Cosine(end=0.95)}, {"factor": Linear(end=2.0)},
     {"cut": 1.0}, {"cut": math.inf}, {"most": 1.0}],
)  # fmt: skip
def test_a_decay_that_cannot_be_traded_for_growth_is_refused(more: Any) -> None:
    with pytest.raises(ValueError):
        growth_from_decay(**{"factor": Cosine(), **more})
