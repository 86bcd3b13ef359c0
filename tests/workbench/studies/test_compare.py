from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from made_up_runs import digits

import largebatch as lb
from largebatch.core.codec import decode, encode
from largebatch.core.measurement import Budget
from largebatch.workbench.runs.results import Progress, RunResult
from largebatch.workbench.runs.train import train
from largebatch.workbench.studies.compare.compare import Comparison, compare
from largebatch.workbench.workloads import sgd

METHODS = ("adascale", "linear", "linear+")


def small(out: Path, **options: Any) -> Comparison:
    given = {"methods": METHODS, "scales": (1, 8), "seeds": 2, "budget": "0.5ep", **options}
    return compare("digits", out=out, **given)


def runs_of(comparison: Comparison, method: str, scale: int = 8) -> list[RunResult]:
    return [run for run in comparison.runs if (run.method, run.scale) == (method, scale)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    return small(tmp_path_factory.mktemp("whole"))


def test_scale_one_runs_once_a_seed_for_all_methods(whole: Comparison) -> None:
    assert [(run.method, run.seed) for run in whole.runs if run.scale == 1] == [
        ("any", 0), ("any", 1),
    ]  # fmt: skip
    n = len(digits().data().train[0])
    assert whole.base_steps == math.ceil(0.5 * n / 16)
    assert {run.steps for run in whole.runs if run.scale == 1} == {whole.base_steps}


def test_a_fixed_clock_gets_exactly_the_samples_of_scale_one(whole: Comparison) -> None:
    assert {run.samples for run in runs_of(whole, "linear")} == {16 * whole.base_steps}


def test_adascale_runs_to_its_own_end_and_the_plus_form_takes_as_many_steps(
    whole: Comparison,
) -> None:
    own, stretched = runs_of(whole, "adascale"), runs_of(whole, "linear+")
    assert [run.budget for run in own] == [Budget(base_steps=whole.base_steps)] * 2
    assert all(run.base_steps >= whole.base_steps for run in own)
    assert [run.steps for run in stretched] == [run.steps for run in own]
    assert [run.samples for run in stretched] == [run.samples for run in own]


def test_a_run_of_a_comparison_is_the_run_of_train(whole: Comparison) -> None:
    (_, run) = runs_of(whole, "adascale")
    alone = train("digits", scale=8, budget=f"{whole.base_steps}base", seed=1)
    assert replace(run, seconds=0.0) == replace(alone, seconds=0.0)


def test_a_comparison_comes_back_from_json(whole: Comparison) -> None:
    plain = json.loads(json.dumps(encode(whole), allow_nan=False))
    assert decode(Comparison, plain) == whole


@pytest.mark.parametrize("cut", [1, 4])
def test_an_interrupted_comparison_resumes_and_gives_the_same_table(
    whole: Comparison, tmp_path: Path, cut: int
) -> None:
    def interrupt(report: Progress | str) -> None:
        if isinstance(report, Progress) and report.label.startswith(f"run {cut + 1} of 8"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        small(tmp_path, progress=interrupt)
    with open(tmp_path / "runs.jsonl", "ab") as file:
        file.write(b'{"workload":"dig')  # as a crash in the middle of a line would leave it
    told: list[Progress | str] = []
    again = small(tmp_path, progress=told.append)
    assert again.found == cut
    assert told[0] == f"loaded {cut} of 8 runs from {tmp_path}"
    assert again.rows == whole.rows
    assert small(tmp_path).found == 8


def test_more_seeds_and_methods_may_be_added(whole: Comparison, tmp_path: Path) -> None:
    small(tmp_path, methods=["adascale"], seeds=1)
    more = small(tmp_path)
    assert more.found == 2
    assert more.rows == whole.rows


def test_the_default_directory_follows_the_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    def directory(workload: lb.workloads.Workload, budget: str) -> str:
        options: Any = {"methods": ["linear"], "scales": [1], "seeds": 1}
        return compare(workload, budget=budget, **options).directory

    first = directory(digits(), "64")
    assert first.startswith("runs/compare-")
    assert (tmp_path / first / "runs.jsonl").exists()
    assert directory(digits(), "64") == first
    assert len({first, directory(digits(), "80"), directory(digits(base_lr=0.02), "64")}) == 3


def test_at_equal_steps_needs_no_plus(tmp_path: Path, whole: Comparison) -> None:
    result = small(tmp_path, methods=["adascale", "linear"], at="equal-steps")
    steps = [run.steps for run in runs_of(result, "linear+")]
    assert steps == [run.steps for run in runs_of(whole, "adascale")]


def test_a_warm_up_that_acts_at_scale_one_runs_there(tmp_path: Path) -> None:
    result = small(tmp_path, methods=["legw", "linear"], seeds=1)
    assert [(run.scale, run.method) for run in result.runs] == [
        (1, "any"), (1, "legw"), (8, "legw"), (8, "linear"),
    ]  # fmt: skip
    assert result.runs[0].validation != result.runs[1].validation


def test_a_diverged_run_is_a_result_and_nobody_takes_its_steps(tmp_path: Path) -> None:
    told: list[Any] = []
    workload = digits(base_lr=1e30)
    result = compare(
        workload, methods=METHODS, scales=[8], seeds=1, budget="2ep", out=tmp_path,
        progress=told.append,
    )  # fmt: skip
    assert [(run.method, run.diverged) for run in result.runs] == [
        ("any", True), ("adascale", True), ("linear", True),
    ]  # fmt: skip
    assert all(0 < run.steps < 20 for run in result.runs)
    assert [row.diverged for row in result.rows] == [1, 1, 1]
    assert result.margin is None
    assert "linear+ at scale 8, seed 0 is skipped, because" in " ".join(
        t for t in told if type(t) is str
    )
    again = compare(workload, methods=METHODS, scales=[8], seeds=1, budget="2ep", out=tmp_path)
    assert again.found == 3


def test_metrics_without_a_loss_are_refused_with_the_remedy(tmp_path: Path) -> None:
    workload = digits(metrics=lambda model, batch: {"size": batch[1].float().mean()})
    with pytest.raises(ValueError, match=r"metrics of the workload digits are \['size'\]"):
        compare(workload, methods=["none"], scales=[1], seeds=1, budget="16", out=tmp_path)


def test_metrics_may_be_left_out(tmp_path: Path) -> None:
    workload = digits(metrics=None, optimizer=sgd(momentum=0.0))
    result = compare(workload, methods=["none"], scales=[2], seeds=1, budget="64", out=tmp_path)
    assert [list(row.validation) for row in result.rows] == [["loss"], ["loss"]]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"scales": (8, 0)}, "Pass scale=8"),
        ({"seeds": 0}, "Pass seeds=5"),
        ({"margin": -0.1}, "margin"),
        ({"budget": "-3ep"}, "above 0"),
    ],
)
def test_what_cannot_be_compared_is_refused_before_anything_is_written(
    tmp_path: Path, options: dict[str, Any], expected: str
) -> None:
    with pytest.raises(ValueError) as error:
        small(tmp_path / "new", **options)
    assert expected in str(error.value)
    assert not (tmp_path / "new").exists()


def test_several_processes_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="runs on one process, but torchrun started 2"):
        small(tmp_path)


def names(rows: Sequence[Any]) -> list[str]:
    return [row.method for row in rows]


def test_the_rows_stand_in_the_order_asked_for(tmp_path: Path) -> None:
    result = small(tmp_path, methods=["linear+", "adascale"], seeds=1)
    assert names(result.rows) == ["any", "linear+", "adascale"]
