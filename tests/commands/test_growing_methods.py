"""The methods whose batch grows, as the command line runs them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from largebatch.commands.planned_run import Plan
from largebatch.commands.train import train
from largebatch.core.measurement import Budget
from largebatch.methods import METHODS
from largebatch.record import read_record
from largebatch.rules import Cosine, Schedule
from largebatch.workloads import load


@pytest.mark.parametrize("name", ["growth", "adaptive-growth", "seesaw", "smith"])
def test_the_batch_grows_and_the_record_says_why(name: str, tmp_path: Path) -> None:
    record = tmp_path / "run.jsonl"
    result = train("digits", method=name, budget="3ep", record=record, evaluations=1)
    steps = list(read_record(record).steps)
    sizes = [seen.batch_size for seen, _ in steps[:-1]]
    assert sizes == sorted(sizes)
    assert sizes[-1] > sizes[0]
    assert any("batch" in decision.reason for _, decision in steps)
    assert result.steps < result.samples / sizes[0]


def test_a_schedule_that_a_method_brings_takes_the_place_of_the_workloads() -> None:
    workload = replace(load("digits"), schedule=Cosine())
    for name, count in (("seesaw", 1), ("growth", 1)):
        plan = Plan(workload=workload, rule=METHODS[name].rule(), method=name, scale=1,
                    budget=Budget(samples=1000))  # fmt: skip
        rules = plan.whole_rule.rules  # type: ignore[attr-defined]
        assert sum(isinstance(rule, Schedule) for rule in rules) == count
