"""What the runs on growth schedules are made of."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from experiments.growth import forecasts, relation, schedules, seesaw_runs
from experiments.growth.setup import DIGITS, direction, full_gradient_norm
from experiments.lab import workloads
from experiments.lab.findings import mean
from experiments.lab.ranks import spearman
from experiments.lab.run import Result, Told

from largebatch.rules import Growth
from largebatch.workbench.planner.plan import ALONE, FITTED


def test_the_full_gradient_is_that_of_all_samples_at_once_and_leaves_the_model_alone() -> None:
    workload, split = workloads.workload("digits"), workloads.data("digits").train
    model, _ = workload.fresh(seed=3)
    before = torch.random.get_rng_state()
    found = full_gradient_norm(model, workload, split)
    assert torch.equal(before, torch.random.get_rng_state())
    assert all(p.grad is None for p in model.parameters())
    workload.loss(model, split).backward()
    naive = math.sqrt(sum(float(p.grad.square().sum()) for p in model.parameters()))
    assert found == pytest.approx(naive, rel=1e-5)


def test_tuning_seeds_are_not_reported_and_look_at_no_gradient() -> None:
    make = relation.constants(DIGITS)["batch 16"]
    assert not make(0.1, 5).full_gradient
    assert make(0.1, 4).full_gradient


def test_a_pair_differs_by_the_lengths_of_its_stages_alone() -> None:
    for on, off in relation.pairs(DIGITS).values():
        grown = [make(0.1, 0).rule.rules[0] for make in (on, off)]
        assert all(isinstance(rule, Growth) for rule in grown)
        assert grown[0].stages == grown[1].stages
        assert grown[0].at != grown[1].at


def limited(*noise: tuple[float, float]) -> float:
    cell = seesaw_runs.CELLS[0]
    trace = tuple((samples, 16.0, scale) for samples, scale in noise)
    result = Result(
        steps=1, samples=2, base_steps=1.0, mean_gain=1.0, mean_multiplier=1.0, diverged=False,
        train={}, validation={}, test={}, told=Told(trace=trace),
    )  # fmt: skip
    return seesaw_runs.limit(result, cell) / (cell.samples / cell.start)


def test_the_limit_of_the_steps_is_the_mean_decay_or_what_the_noise_leaves_of_it() -> None:
    assert limited((0.0, math.inf)) == pytest.approx(0.5, abs=1e-3), "the mean of a cosine"
    assert limited((0.0, 16.0)) == pytest.approx(1.0), "no batch above the first one"
    # (1 + cos pi x) / 2 is above a half on [0, 1/2], of mean 1/2 + 1/pi there
    assert limited((0.0, 32.0)) == pytest.approx(0.5 * (0.5 + 1 / math.pi) + 0.25, abs=1e-3)


def test_a_direction_is_what_the_interval_shows() -> None:
    assert direction(mean([1.0, 1.1, 0.9])) == "higher"
    assert direction(mean([-1.0, -1.1, -0.9])) == "lower"
    assert direction(mean([1.0, -1.1, 0.1])) == "not shown to differ"


def test_ranks_are_spearmans_with_ties_and_divergences() -> None:
    assert spearman([1.0, 2.0, 3.0], [1.0, 3.0, 2.0]) == pytest.approx(0.5)
    assert spearman([1.0, 2.0, math.inf], [0.1, 0.2, 0.3]) == pytest.approx(1.0)
    tied = spearman([1.0, 1.0, 2.0, math.inf], [1.0, 2.0, 3.0, 3.0])
    assert tied == pytest.approx(8.0 / 9.0)


def test_the_schedules_that_are_ranked_go_no_faster_than_they_say() -> None:
    for cell in forecasts.CELLS:
        for name, one in schedules.schedules(cell).items():
            rates = [rate for _, rate, _ in schedules.pieces(cell, one)]
            assert (max(rates) > 1.05) == one.faster, name  # batches are whole


def test_the_growth_plans_state_the_numbers_that_were_measured() -> None:
    path = Path(__file__).parents[2] / "experiments" / "growth" / "expected.json"
    measured = json.loads(path.read_text())["rank"]
    found = {
        which: [
            v["value"] for name, v in measured.items() if f"at most the base rate: {which}" in name
        ]
        for which in ("the record", "the noise scale")
    }
    for words, values in ((FITTED, found["the record"]), (ALONE, found["the noise scale"])):
        assert f"{min(values):.2f} to {max(values):.2f}" in words
