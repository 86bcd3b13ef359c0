"""Test a run that follows a schedule file, and the number of its steps."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import pytest
from made_up_runs import digits

import largebatch as lb
from largebatch.record import read_record
from largebatch.workbench.planner.count import count_schedule
from largebatch.workbench.planner.schedule_file import read_schedule
from largebatch.workbench.planner.table import Table
from largebatch.workbench.runs.results import Progress
from largebatch.workbench.runs.train import train

NAMES = ("constant", "cosine", "growth", "linear-growth", "seesaw", "smith", "0:24 5K:48 7.5K:96")


def planned(name: str, path: Path, *, budget: int = 9999, base: int = 16) -> Table:
    return count_schedule(
        name,
        budget=budget,
        base_batch_size=base,
        noise_scale=None if ":" in name else 200,
        out=path,
    ).table


@pytest.mark.parametrize("name", NAMES)
def test_a_run_takes_the_steps_that_were_counted(name: str, tmp_path: Path) -> None:
    table = planned(name, tmp_path / "a.json")
    record = tmp_path / "run.jsonl"
    result = train("digits", schedule=tmp_path / "a.json", record=record, evaluations=0)
    assert (result.steps, result.samples) == (table.steps, 9999)
    steps = iter(read_record(record).steps)
    for row in table.rows:
        taken = list(itertools.islice(steps, row.steps))
        assert taken[0].seen.samples == row.samples
        assert taken[0].decision.lr_multiplier == row.lr
        assert {step.seen.batch_size for step in taken[:-1]} <= {row.batch_size}
    assert not list(steps)


def test_a_controllers_own_run_has_the_steps_of_the_table() -> None:
    rule = lb.methods.growth(stages=4)
    table = lb_table(rule)
    workload = digits()
    model, optimizer = workload.fresh(seed=0)
    batches = lb.BatchLoader(workload.data().train, batch_size=16, max_micro_batch_size=16, seed=0)
    control = lb.Controller(model, optimizer, rule, batches, base_batch_size=16)
    sizes = []
    for batch in control.steps(samples=5000):
        sizes.append(control.batch_size)
        for micro_batch in batch:
            control.backward(workload.loss(model, micro_batch))
        control.step()
    counted = [row.batch_size for row in table.rows for _ in range(row.steps)]
    assert sizes[:-1] == counted[:-1]  # the last one is cut
    assert len(sizes) == len(counted)


def lb_table(rule: lb.Rule) -> Table:
    from largebatch.workbench.planner.table import table_of

    return table_of(rule, budget=5000, base_batch_size=16)


def test_a_scheduled_run_resumes_with_the_same_bits(tmp_path: Path) -> None:
    planned("seesaw", tmp_path / "a.json")
    schedule = tmp_path / "a.json"
    whole = train("digits", schedule=schedule, record=tmp_path / "whole.jsonl")

    class Cut(Exception):
        pass

    def cut(report: Progress | str) -> None:
        if isinstance(report, Progress) and report.samples > 6000:
            raise Cut

    again = {"schedule": schedule, "record": tmp_path / "run.jsonl", "checkpoint": tmp_path / "ck"}
    with pytest.raises(Cut):
        train("digits", **again, progress=cut)  # type: ignore[arg-type]
    resumed = train("digits", **again, resume=True)  # type: ignore[arg-type]
    assert replace(resumed, seconds=0.0) == replace(whole, seconds=0.0)
    assert read_record(tmp_path / "run.jsonl").steps == read_record(tmp_path / "whole.jsonl").steps


def test_another_schedule_does_not_resume_a_run(tmp_path: Path) -> None:
    planned("growth", tmp_path / "a.json")
    planned("smith", tmp_path / "b.json")
    train("digits", schedule=tmp_path / "a.json", checkpoint=tmp_path / "ck", evaluations=0)
    with pytest.raises(lb.errors.CheckpointError, match="of a run with other settings"):
        train(
            "digits", schedule=tmp_path / "b.json", checkpoint=tmp_path / "ck", resume=True,
            evaluations=0,
        )  # fmt: skip


def test_a_schedule_takes_the_place_of_the_workloads_own(tmp_path: Path) -> None:
    planned("constant", tmp_path / "a.json", budget=320)
    told: list[Progress | str] = []
    train(digits(schedule=lb.Cosine()), schedule=tmp_path / "a.json", progress=told.append)
    assert {p.lr_multiplier for p in told if isinstance(p, Progress)} == {1.0}


@pytest.mark.parametrize("given", [{"method": "linear"}, {"budget": "1ep"}, {"scale": 2}])
def test_an_option_that_the_schedules_file_fixes_is_refused(
    given: dict[str, str], tmp_path: Path
) -> None:
    planned("growth", tmp_path / "a.json")
    with pytest.raises(ValueError, match=f"{next(iter(given))}=.* and a schedule file were given"):
        train("digits", schedule=tmp_path / "a.json", **given)  # type: ignore[arg-type]


def test_a_schedule_made_for_another_base_batch_is_refused(tmp_path: Path) -> None:
    planned("growth", tmp_path / "a.json", base=32)
    with pytest.raises(ValueError, match="is made for the base batch size 32"):
        train("digits", schedule=tmp_path / "a.json")


def test_a_batch_above_the_data_set_is_refused(tmp_path: Path) -> None:
    count_schedule("0:16 1K:4096", budget=10**5, base_batch_size=16, out=tmp_path / "b.json")
    with pytest.raises(ValueError, match=r"Stage 2 of the schedule has the batch size 4,096"):
        train("digits", schedule=tmp_path / "b.json")


def test_the_count_of_a_file_is_that_of_the_schedule(tmp_path: Path) -> None:
    table = planned("growth", tmp_path / "a.json")
    assert count_schedule(str(tmp_path / "a.json")).table.rows == table.rows
    with pytest.raises(ValueError, match="already contains its budget and batch sizes"):
        count_schedule(str(tmp_path / "a.json"), budget=100)
    with pytest.raises(ValueError, match="requires the budget in samples and the base batch size"):
        count_schedule("growth", base_batch_size=16)


def test_a_schedule_at_a_scale_can_be_trained(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    table = count_schedule("linear", budget=6400, base_batch_size=16, scale=4, out=path).table
    result = train("digits", schedule=path, evaluations=0)
    assert result.steps == table.steps == 100
    assert result.batch_size == read_schedule(path).batch_size == 64
    assert result.mean_lr_multiplier == 4.0
