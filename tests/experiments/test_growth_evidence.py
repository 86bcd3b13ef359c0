"""Test the runs of the experiments on growing batch sizes."""

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
from experiments.lab.run import Extra, Result

from largebatch.rules import Growth
from largebatch.workbench.planner.plan import ALONE, FITTED


def test_the_full_gradient_equals_that_of_one_large_batch_and_the_model_is_unchanged() -> None:
    workload, split = workloads.workload("digits"), workloads.data("digits").train
    model, _ = workload.fresh(seed=3)
    before = torch.random.get_rng_state()
    found = full_gradient_norm(model, workload, split)
    assert torch.equal(before, torch.random.get_rng_state())
    assert all(p.grad is None for p in model.parameters())
    workload.loss(model, split).backward()
    naive = math.sqrt(sum(float(p.grad.square().sum()) for p in model.parameters()))
    assert found == pytest.approx(naive, rel=1e-5)


def test_runs_that_choose_the_learning_rate_do_not_measure_the_full_gradient() -> None:
    make = relation.constants(DIGITS)["batch 16"]
    assert not make(0.1, 5).full_gradient
    assert make(0.1, 4).full_gradient


def test_the_two_rows_of_a_pair_differ_only_in_the_lengths_of_their_stages() -> None:
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
        train={}, validation={}, test={}, extra=Extra(trace=trace),
    )  # fmt: skip
    return seesaw_runs.limit(result, cell) / (cell.samples / cell.start)


def test_the_smallest_number_of_steps_follows_the_decay_up_to_the_noise_scale() -> None:
    assert limited((0.0, math.inf)) == pytest.approx(0.5, abs=1e-3), "the mean of a cosine"
    assert limited((0.0, 16.0)) == pytest.approx(1.0), "no batch above the first one"
    # On [0, 1/2], the factor (1 + cos pi x) / 2 is above 1/2, and its mean is 1/2 + 1/pi.
    assert limited((0.0, 32.0)) == pytest.approx(0.5 * (0.5 + 1 / math.pi) + 0.25, abs=1e-3)


def test_a_difference_is_higher_or_lower_only_if_its_interval_excludes_zero() -> None:
    assert direction(mean([1.0, 1.1, 0.9])) == "higher"
    assert direction(mean([-1.0, -1.1, -0.9])) == "lower"
    assert direction(mean([1.0, -1.1, 0.1])) == "not shown to differ"


def test_the_rank_correlation_is_spearmans_with_ties_and_diverged_runs() -> None:
    assert spearman([1.0, 2.0, 3.0], [1.0, 3.0, 2.0]) == pytest.approx(0.5)
    assert spearman([1.0, 2.0, math.inf], [0.1, 0.2, 0.3]) == pytest.approx(1.0)
    tied = spearman([1.0, 1.0, 2.0, math.inf], [1.0, 2.0, 3.0, 3.0])
    assert tied == pytest.approx(8.0 / 9.0)


def test_a_schedule_exceeds_the_base_learning_rate_exactly_if_it_is_marked_faster() -> None:
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
