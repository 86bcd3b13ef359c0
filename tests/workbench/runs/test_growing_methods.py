"""Test the methods whose batch grows, as the command line runs them."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from largebatch.core.measurement import Budget
from largebatch.methods import METHODS, full_gradient_growth
from largebatch.record import read_record
from largebatch.rules import Cosine, Schedule
from largebatch.workbench.cli.tables import train_table
from largebatch.workbench.runs.run_spec import RunSpec
from largebatch.workbench.runs.train import train
from largebatch.workbench.workloads import load

late = pytest.mark.filterwarnings("ignore:The batch did not grow:RuntimeWarning")


@late
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


CHECKED = full_gradient_growth(eps0=2.0, check=20)


def test_the_workloads_data_are_passed_over_and_their_samples_are_shown(tmp_path: Path) -> None:
    record = tmp_path / "run.jsonl"
    result = train("digits", method=CHECKED, budget="2ep", record=record, evaluations=1)
    steps = list(read_record(record).steps)
    passes = [seen for seen, _ in steps if seen.full_sqnorm is not None]
    assert [seen.step % 20 for seen in passes] == [19] * len(passes)
    assert len({seen.batch_size for seen, _ in steps[:-1]}) > 1
    dataset_size = passes[0].dataset_size
    assert dataset_size is not None
    assert result.extra_samples == len(passes) * dataset_size > 0
    shown = Console(width=300, file=io.StringIO(), record=True)
    shown.print(train_table(result))
    text = shown.export_text()
    assert f"{result.samples} samples" in text
    assert f"additional samples for measuring: {result.extra_samples}" in text


def test_the_sum_of_a_resumed_run_is_that_of_the_whole_one(tmp_path: Path) -> None:
    whole = train("digits", method=CHECKED, budget="2ep", evaluations=1)

    class Stop(Exception):
        pass

    def stop(progress: Any) -> None:
        if getattr(progress, "step", 0) == 47:
            raise Stop

    saved: Any = {"method": CHECKED, "budget": "2ep", "evaluations": 1, "checkpoint": tmp_path,
             "checkpoint_every": "0.1ep"}  # fmt: skip
    with pytest.raises(Stop):
        train("digits", progress=stop, **saved)
    again = train("digits", resume=True, **saved)
    assert again.extra_samples == whole.extra_samples > 0
    assert again.validation == whole.validation


def test_the_method_of_the_command_line_runs_and_says_that_it_measured_nothing() -> None:
    with pytest.warns(RuntimeWarning, match="FullGradientGrowth has measured nothing so far"):
        result = train("digits", method="full-gradient-growth", budget="30steps", evaluations=0)
    assert (result.steps, result.extra_samples) == (30, 0), "its first check is in step 1000"


def test_a_schedule_that_a_method_brings_takes_the_place_of_the_workloads() -> None:
    workload = replace(load("digits"), schedule=Cosine())
    for name, count in (("seesaw", 1), ("growth", 1)):
        plan = RunSpec(workload=workload, rule=METHODS[name].rule(), method=name, scale=1,
                    budget=Budget(samples=1000))  # fmt: skip
        rules = plan.whole_rule.rules  # type: ignore[attr-defined]
        assert sum(isinstance(rule, Schedule) for rule in rules) == count
