from __future__ import annotations

import math

import numpy as np
import pytest

import largebatch as lb
from largebatch.workbench.planner.baselines import baselines
from largebatch.workbench.planner.forecasts import pieces_of
from largebatch.workbench.planner.model import model_of
from largebatch.workbench.planner.optimum import ScheduleSpace, least_loss
from largebatch.workbench.planner.plan import ALONE, plan
from largebatch.workbench.planner.request import PlanRequest, Price
from largebatch.workbench.planner.rounding import round_stages
from largebatch.workbench.planner.table import clock_schedule
from largebatch.workbench.quadratic.minimise import coordinate_search

SMALL = {"budget": 10**6, "base_batch_size": 64, "noise_scales": [500.0], "stages": 3}
PRICE = Price(latency=0.1, throughput=1000.0)


@pytest.fixture(scope="module")
def plans() -> dict[str, tuple[PlanRequest, object]]:
    requests = {
        "steps": PlanRequest(**SMALL, minimise="steps"),  # type: ignore[arg-type]
        "samples": PlanRequest(**SMALL, minimise="samples"),  # type: ignore[arg-type]
        "time": PlanRequest(
            **SMALL, minimise="time", price=PRICE, memory_limit=2048, max_lr=3.0  # type: ignore[arg-type]
        ),
    }  # fmt: skip
    return {name: (request, plan(request)) for name, request in requests.items()}


@pytest.mark.parametrize("name", ["steps", "samples", "time"])
def test_a_plan_is_no_worse_than_any_other_schedule_in_its_table(name: str, plans) -> None:  # type: ignore[no-untyped-def]
    request, found = plans[name]
    cost = {"steps": "steps", "samples": "samples", "time": "seconds"}[name]
    first, *others = found.rows
    assert first.schedule == found.name
    assert first.reaches
    assert first.loss <= found.target * (1.0 + 1e-9)
    assert all(getattr(first, cost) <= getattr(row, cost) for row in others if row.reaches)
    assert found.least_loss == min(row.loss for row in found.rows)
    names = {row.schedule for row in found.rows}
    assert {"constant", "cosine", "seesaw", "growth"} <= names
    assert found.table.budget <= request.budget
    assert found.notes[-1] == ALONE


def test_no_forecast_curve_goes_beyond_the_budget(plans) -> None:  # type: ignore[no-untyped-def]
    request, found = plans["steps"]
    assert {max(x for x, _ in row.curve) for row in found.rows if row.schedule != "plan"} <= {
        float(row.samples) for row in found.rows
    }
    assert all(x <= request.budget for row in found.rows for x, _ in row.curve)


def test_a_plan_respects_the_caps_and_reports_them(plans) -> None:  # type: ignore[no-untyped-def]
    _, found = plans["time"]
    assert all(64 <= row.batch_size <= 2048 for row in found.table.rows)
    assert all(row.lr <= 3.0 for row in found.table.rows)
    assert any("capped" in note for note in found.notes)
    assert [one.workers for one in found.workers] == [1, 2, 4, 8, 16, 32]
    assert found.workers[0].speed_up == 1.0
    assert all(
        a.seconds > b.seconds for a, b in zip(found.workers, found.workers[1:], strict=False)
    )
    assert all(one.speed_up <= one.workers * 1.05 for one in found.workers)


def test_planning_twice_with_the_same_inputs_gives_the_same_plan(plans) -> None:  # type: ignore[no-untyped-def]
    request, found = plans["steps"]
    assert plan(request) == found


def test_the_searched_loss_is_the_forecasts() -> None:
    model = model_of([500.0], budget=10**6, base_batch_size=64, bins=100)
    stages = [(64.0, 1.0, 5000.0), (128.0, 0.5, 3000.5), (500.0, 0.3, 200.0)]
    assert model.final_loss(stages) == pytest.approx(model.forecast(stages).loss[-1], rel=1e-12)


def test_the_least_loss_is_below_that_of_random_schedules() -> None:
    model = model_of([500.0], budget=10**6, base_batch_size=64, bins=60)
    space = ScheduleSpace(
        model=model, budget=10**6, smallest=64, largest=4096, max_lr=4.0, stages=2
    )
    low, high = space.bounds
    _, least = least_loss(space)
    generator = np.random.default_rng(0)
    tried = [model.final_loss(space.stages_of(generator.uniform(low, high))) for _ in range(3000)]
    assert least <= min(tried)


def test_a_search_never_ends_above_its_start_and_stays_within_bounds() -> None:
    low, high = np.array([-2.0, 0.0]), np.array([1.0, 3.0])
    start = np.array([0.0, 3.0])
    x, value = coordinate_search(
        lambda v: float((v[0] - 5.0) ** 2 + abs(v[1] - 1.0)), start, low=low, high=high
    )
    assert value <= 27.0
    assert x[0] == 1.0
    assert x[1] == pytest.approx(1.0, abs=0.03)
    x, value = coordinate_search(lambda v: math.inf, start, low=low, high=high)
    assert (x == start).all()


def test_the_pieces_of_a_smooth_rate_are_its_steps() -> None:
    rule = lb.methods.seesaw(kappa=None, max=300)
    counted = clock_schedule(rule, budget=40_000, base_batch_size=16)
    pieces = list(pieces_of(counted))
    assert sum(steps for *_, steps in pieces) == counted.table.steps
    x = 0.0
    for batch, rate, steps in pieces:
        middle = min((x + batch * (steps // 2)) / 40_000, 1.0)
        cosine = 0.5 * (1.0 + math.cos(math.pi * middle))
        assert rate == pytest.approx(cosine * math.sqrt(batch / 16), rel=1e-9)
        x += batch * steps


def test_stages_are_rounded_to_whole_steps_within_the_budget() -> None:
    stages = [(100.4, 1.0, 20.3), (250.6, 0.51234567, 10.7), (250.7, 0.51234, 3.2), (9.0, 0.1, 5.0)]
    table = round_stages(stages, base_batch_size=100).table
    assert [row.batch_size for row in table.rows] == [100, 251, 9]
    assert [row.lr for row in table.rows] == [1.0, 0.5123, 0.1]
    assert table.budget <= sum(b * k for b, _, k in stages)
    assert table.budget == sum(row.batch_size * row.steps for row in table.rows)


def test_no_stage_takes_more_samples_than_it_has() -> None:
    stages = [(64.0, 1.0, 577.0), (882.0, 0.56, 3.0), (9166.0, 1.0, 0.48), (64.0, 0.5, 0.9)]
    table = round_stages(stages, base_batch_size=64).table
    assert [(row.batch_size, row.steps) for row in table.rows] == [(64, 577), (882, 3), (4399, 1)]
    assert table.budget <= sum(b * k for b, _, k in stages)


def test_a_stage_without_a_step_of_the_base_batch_is_part_of_the_next() -> None:
    table = round_stages([(64.0, 1.0, 0.5), (64.0, 0.5, 10.0)], base_batch_size=64).table
    assert [(row.lr, row.steps) for row in table.rows] == [(0.5, 10)]


def test_the_model_has_the_noise_scales_that_were_given() -> None:
    one = model_of([700.0], budget=10**7, base_batch_size=64)
    assert one.spectrum.noise_scale == pytest.approx(700.0)
    steps = 10**7 // 64
    last = one.forecast([(64.0, 1.0, steps)]).noise_scale[-1]
    two = model_of([700.0, last], budget=10**7, base_batch_size=64)
    assert two.exponent == pytest.approx(0.5, abs=0.02)
    reached = two.forecast([(64.0, 1.0, steps)]).noise_scale[-1]
    assert reached == pytest.approx(last, rel=0.05)
    with pytest.raises(ValueError, match=r"and 0\.5 \(last steps\) were given"):
        model_of([700.0, 0.5], budget=10**7, base_batch_size=64)


def test_the_base_rate_is_the_best_one_for_a_cosine() -> None:
    model = model_of([500.0], budget=10**6, base_batch_size=64)
    others = baselines(
        budget=10**6, base_batch_size=64, largest=4096, max_lr=model.max_lr, noise_scale=500.0
    )
    cosine = [(b, f, k) for b, f, k in pieces_of(others["cosine"])]
    losses = [
        model.forecast([(b, f * factor, k) for b, f, k in cosine]).loss[-1]
        for factor in (0.5, 1.0, 2.0)
    ]
    assert min(losses) == losses[1]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"minimise": "time"}, "duration of a step"),
        ({"budget": 100}, "one step of the base batch size 64 per stage"),
        ({"max_lr": 0.5}, "finite and at least 1"),
        ({"max_lr": math.nan}, "finite and at least 1"),
        ({"within": 0.0}, "excess of the loss"),
        ({"stages": 0}, "1 to 40 stages"),
        ({"stages": 41}, "1 to 40 stages"),
        ({"workers": 0}, "at least 1 worker"),
        ({"memory_limit": 8}, "less than the base batch size 64"),
    ],
)
def test_requests_that_mean_nothing_are_refused(change: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        PlanRequest(**{**SMALL, **change})  # type: ignore[arg-type]


@pytest.mark.parametrize("latency", [0.0, -1.0, math.nan, math.inf])
def test_a_price_is_above_zero(latency: float) -> None:
    with pytest.raises(ValueError, match="above 0"):
        Price(latency=latency, throughput=10.0)
    with pytest.raises(ValueError, match="above 0"):
        Price(latency=1.0, throughput=latency)


def test_a_price_by_hand() -> None:
    price = Price(latency=0.5, throughput=100.0, workers=4)
    assert price.seconds(200) == 1.0
    assert price.total(steps=10, samples=2000) == 10 * price.seconds(200)
