from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from made_up_runs import digits

import largebatch as lb
from largebatch.core.codec import decode, encode
from largebatch.record import read_record
from largebatch.workbench.runs.results import Progress, RunResult
from largebatch.workbench.runs.train import train
from largebatch.workbench.workloads import evaluate


def by_hand(*, scale: int, base_steps: float, seed: int) -> tuple[lb.Controller, dict[str, float]]:
    """Train the run that `train` should make with the library's public classes."""
    workload = digits()
    data = workload.data()
    model, optimizer = workload.fresh(seed=seed)
    batches = lb.BatchLoader(data.train, batch_size=16 * scale, max_micro_batch_size=16, seed=seed)
    control = lb.Controller(model, optimizer, lb.AdaScale(), batches, base_batch_size=16)
    for batch in control.steps(base_steps=base_steps):
        for micro_batch in batch:
            control.backward(workload.loss(model, micro_batch))
        control.step()
    return control, evaluate(model, workload, data.validation)


def test_a_run_equals_a_loop_written_by_hand() -> None:
    control, metrics = by_hand(scale=4, base_steps=60, seed=3)
    result = train("digits", method="adascale", scale=4, budget="60base", seed=3)
    assert (result.steps, result.samples) == (control.optimizer_steps, control.samples)
    assert result.base_steps == control.base_steps
    assert result.validation == metrics
    assert result.mean_gain == control.base_steps / control.optimizer_steps
    assert result.mean_lr_multiplier == pytest.approx(result.mean_gain)


def test_the_curve_has_its_points_at_even_parts_and_ends_at_the_end() -> None:
    result = train("digits", method="linear", scale=2, budget="640", evaluations=4)
    assert [point.samples for point in result.curve] == [160, 320, 480, 640]
    assert [point.step for point in result.curve] == [5, 10, 15, 20]
    assert result.curve[-1].validation == result.validation
    assert result.curve[-1].base_steps == result.base_steps == 40.0
    assert train("digits", budget="160", evaluations=0).curve[0].samples == 160


def test_the_train_loss_of_a_point_is_the_mean_since_the_last(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    result = train("digits", budget="20base", evaluations=2, record=path)
    losses = [step.seen.loss or 0.0 for step in read_record(path).steps]
    assert [p.train_loss for p in result.curve] == pytest.approx(
        [sum(losses[:10]) / 10, sum(losses[10:]) / 10]
    )


def test_an_epoch_is_base_steps_for_a_method_with_its_own_clock_and_samples_for_another() -> None:
    n = len(digits().data().train[0])
    linear = train("digits", method="linear", scale=8, budget="1ep")
    adascale = train("digits", method="adascale", scale=8, budget="1ep")
    assert linear.base_steps - 8 < n / 16 <= linear.base_steps == linear.samples / 16
    assert adascale.base_steps - 8 < n / 16 <= adascale.base_steps
    assert adascale.samples > linear.samples
    assert linear.mean_gain == 8.0


def test_a_result_comes_back_from_json() -> None:
    result = train("digits", scale=2, budget="64")
    assert decode(RunResult, json.loads(json.dumps(encode(result), allow_nan=False))) == result


def test_the_record_says_which_run_it_is(tmp_path: Path) -> None:
    path = tmp_path / "new" / "run.jsonl"
    result = train("digits", scale=2, budget="64", seed=5, lr=0.02, clip_norm=1.0, record=path)
    record = read_record(path)
    expected = {"workload": "digits", "method": "adascale", "scale": 2, "seed": 5, "lr": 0.02}
    assert expected.items() <= record.header.items()
    assert len(record.steps) == result.steps
    assert record.steps[0].seen.base_lr == 0.02


def test_a_record_is_never_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    path.write_text("mine")
    with pytest.raises(lb.errors.RecordError, match="never overwritten"):
        train("digits", budget="64", record=path)
    assert path.read_text() == "mine"


def test_progress_is_reported_for_each_step_and_reaches_the_end() -> None:
    told: list[Any] = []
    result = train("digits", method="linear", scale=2, budget="640", progress=told.append)
    assert [p.step for p in told] == list(range(1, result.steps + 1))
    assert [p.samples for p in told] == [32 * step for step in range(1, result.steps + 1)]
    assert told[-1] == Progress(
        label="digits: linear, scale 2", step=20, samples=640, batch_size=32,
        lr_multiplier=2.0, loss=told[-1].loss, fraction=1.0, lr=0.02, gain=2.0,
    )  # fmt: skip
    assert told[4].fraction == pytest.approx(0.25)


def test_a_rule_may_stand_in_a_methods_place() -> None:
    named = train("digits", method="linear", scale=2, budget="160")
    own = train("digits", method=lb.LinearScaling(), scale=2, budget="160")
    assert own.method == "LinearScaling"
    assert replace(own, method="linear", seconds=0.0) == replace(named, seconds=0.0)


def test_the_workloads_schedule_follows_the_rule() -> None:
    workload = digits(schedule=lb.rules.Linear())
    told: list[Any] = []
    train(workload, method="linear", scale=2, budget="128", progress=told.append)
    assert [p.lr_multiplier for p in told] == pytest.approx([2.0, 1.5, 1.0, 0.5])


def test_a_schedule_that_no_record_could_name_is_refused() -> None:
    with pytest.raises(ValueError, match=r"schedule=lb\.Cosine\(\)"):
        digits(schedule=lambda fraction: 1.0 - fraction)


def test_a_run_leaves_the_global_generator_alone_and_does_not_depend_on_it() -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = train("digits", budget="64")
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert train("digits", budget="64").validation == first.validation


def test_a_diverged_run_is_an_error_and_its_record_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    with pytest.raises(lb.errors.NotFinite, match=r"diverged after \d+ steps.*lr=") as error:
        train("digits", budget="200base", lr=1e30, record=path)
    assert str(path) in str(error.value)
    assert read_record(path).steps[-1].seen.finite is False


def test_a_loss_that_was_never_finite_is_not_laid_to_the_rate() -> None:
    workload = digits(loss=lambda model, batch: model(batch[0]).mean() * float("nan"))
    with pytest.raises(lb.errors.NotFinite, match="before its first update") as error:
        train(workload, budget="200base")
    assert "in the data" in str(error.value)
    assert "--lr" not in str(error.value)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"method": "adascal"}, "Did you mean 'adascale'"),
        ({"scale": 0}, "Pass scale=8"),
        ({"scale": -1}, "must be 1 to"),
        ({"scale": 10**20}, "must be 1 to 1000000"),
        ({"seed": 10**30}, "64 bits"),
        ({"budget": "5epochs"}, "5ep"),
        ({"lr": 0.0}, "Pass lr=0.01"),
        ({"lr": float("nan")}, "finite"),
        ({"clip_norm": -1.0}, "Pass clip_norm=1"),
        ({"evaluations": -1}, "must be at least 0"),
    ],
)
def test_train_refuses_arguments_that_mean_nothing(options: dict[str, Any], expected: str) -> None:
    with pytest.raises(ValueError) as error:
        train("digits", **{"budget": "64", **options})
    assert expected in str(error.value)
