"""Checks that checkpoints of version 0.1.0 resume under rules whose running averages have changed.

`test_old_averages.py` has the same for records and states.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import old_files
import old_runs
import pytest
from old_files import FOLDER, RUNS, STATES, one_warning

import largebatch as lb

NEARLY = 1e-4
"""Relative tolerance, as in `test_old_files.py`."""


def check_begin(found: list[Any], old: list[Any]) -> None:
    """Assert that a resumed run takes the same samples as in 0.1.0, from the same weights."""
    assert found[0].get("samples") == old[0].get("samples")
    assert found[0]["losses"] == pytest.approx(old[0]["losses"], rel=NEARLY)


@pytest.mark.parametrize("name", old_runs.AVERAGING)
def test_a_checkpoint_resumes_with_one_warning(name: str) -> None:
    run, old = old_runs.RUNS[name], RUNS[name]
    control = run.build()
    _, told = old_files.warned(lambda: old_runs.load(name, control.model, control))
    one_warning(told)
    assert control.optimizer_steps == run.cut
    found, told = old_files.warned(lambda: run.train(control))
    assert [text for text in told if old_files.SAID_ONCE in text] == []
    check_begin(found["steps"], old["steps"])
    assert found["steps"] != old["steps"], "the averages count otherwise"
    assert found["end"]["used"] >= 0.9 * old["end"]["used"]
    assert all(0.0 <= step["lr_multiplier"] < 8.0 for step in found["steps"])


@pytest.mark.filterwarnings("ignore:The batch did not grow")
@pytest.mark.parametrize("name", old_runs.AVERAGING)
def test_a_resumed_checkpoint_is_saved_and_resumes_without_a_warning(name: str) -> None:
    run = old_runs.RUNS[name]
    whole = run.build()
    old_files.warned(lambda: old_runs.load(name, whole.model, whole))
    expected = run.train(whole)
    control = run.build()
    old_files.warned(lambda: old_runs.load(name, control.model, control))
    found = run.train(control, stop_after=run.cut + 4)["steps"]
    again = run.build()
    again.load_state_dict(json.loads(json.dumps(control.state_dict())))
    again.model.load_state_dict(control.model.state_dict())
    again.optimizer.load_state_dict(control.optimizer.state_dict())
    rest = run.train(again)  # a second warning of the resumed state would be an error
    assert found + rest["steps"] == expected["steps"]
    assert rest["end"] == expected["end"]


def test_a_checkpoint_of_an_attached_run_resumes_with_one_warning() -> None:
    model = old_runs.small_model()
    with old_runs.attach(model) as control:
        _, told = old_files.warned(lambda: old_runs.load("attach", model, control))
        one_warning(told)
        assert control.optimizer_steps == 7
        assert control.samples == 7 * 16
        found, told = old_files.warned(lambda: old_runs.train_attached(control, model, steps=9))
        assert told == []
        check_begin(found["steps"], RUNS["attach"]["steps"])
        assert control.optimizer_steps == 16
        state = json.loads(json.dumps(control.state_dict()))
    with old_runs.attach(model) as control:
        control.load_state_dict(state)
        assert control.state_dict() == state


def test_a_checkpoint_of_another_method_is_refused_and_the_run_stays() -> None:
    control = replace(old_runs.RUNS["adasgd"], rule=lambda: lb.methods.adasgd(every=4)).build()
    state = lb.Checkpoints(FOLDER / "checkpoints" / "adasgd").load().state["control"]
    before = control.state_dict()
    with pytest.raises(lb.errors.CheckpointError, match="was saved with rule"):
        control.load_state_dict(state)
    assert control.state_dict() == before


def test_a_training_of_0_1_0_is_resumed_from_its_directory(tmp_path: Path) -> None:
    """`largebatch train --checkpoint --record` wrote the directory and the record."""
    lines = (FOLDER / "train" / "record.jsonl").read_text().splitlines(keepends=True)
    checkpoints = tmp_path / "checkpoints"
    shutil.copytree(FOLDER / "train", checkpoints, ignore=shutil.ignore_patterns("*.jsonl"))
    (taken,) = lb.Checkpoints(checkpoints).paths
    cut = int(taken.stem.removeprefix("step-"))
    record = tmp_path / "record.jsonl"
    record.write_text("".join(lines[: 1 + cut]))
    _, told = old_files.warned(
        lambda: old_files.train_workload(
            old_runs.workload(),
            method="adascale",
            scale=4,
            budget="64base",
            record=record,
            checkpoint=checkpoints,
            checkpoint_every="5steps",
            resume=True,
        )
    )
    one_warning(told)
    found, old = lb.read_record(record), lb.read_record(FOLDER / "train" / "record.jsonl")
    assert found.redone == 0
    assert found.steps[:cut] == old.steps[:cut]
    first, there = found.steps[cut].seen, old.steps[cut].seen
    for clock in ("step", "samples", "base_steps", "batch_size", "skipped"):
        assert getattr(first, clock) == getattr(there, clock), clock
    assert first.loss == pytest.approx(there.loss, rel=NEARLY)
    last = found.steps[-1]
    assert last.seen.base_steps + last.decision.base_steps >= 64.0


def test_a_training_by_a_changed_method_is_resumed_from_its_directory(tmp_path: Path) -> None:
    """The chain of adasgd had other rules in 0.1.0. The checkpoint is that of AdaScale, edited."""
    state = lb.Checkpoints(FOLDER / "train").load().state
    control = {name: value for name, value in state["control"].items() if name != "batches"}
    rules = json.loads(STATES["methods/adasgd"]["state"]["rule"])["rules"]
    rules.append(json.loads(control["rule"])["rules"][-1])  # the workload's schedule
    averages = json.loads(control["state"])[0]
    control["rule"] = old_files.written({"kind": "Chain", "rules": rules})
    control["state"] = old_files.written([[averages, None], None, None, None])
    state["control"] = {**old_files.signed(control), "batches": state["control"]["batches"]}
    state["run"] |= {
        "method": '"adasgd"',
        "rule": json.dumps({"kind": "Chain", "rules": rules}, sort_keys=True),
    }
    lb.Checkpoints(tmp_path).save(state, step=control["step"])

    def resume() -> Any:
        return old_files.train_workload(
            old_runs.workload(),
            method="adasgd",
            scale=4,
            budget="64base",
            checkpoint=tmp_path,
            checkpoint_every="5steps",
            resume=True,
        )

    result, told = old_files.warned(resume)
    assert "averages of NormTest" in one_warning(
        [text for text in told if old_files.SAID_ONCE in text]
    )
    assert result.base_steps >= 64.0


# Loggers' averages.


def test_loggers_averages_of_0_1_0_begin_anew() -> None:
    """The checkpoint of `largebatch train` holds them."""
    (path,) = lb.Checkpoints(FOLDER / "train").paths
    saved = old_files.averages_in(lb.Checkpoints(FOLDER / "train").load(path).state)
    assert saved.average.count > 0
    assert saved.outdated
    assert old_files.noise_scale_of(saved) is None
    moments = lb.GradientMoments(batch_size=16, parts=4, batch_sqnorm=3.0, variance=16.0)
    seen = lb.Measurement(
        step=40, samples=640, base_steps=40.0, batch_size=16, base_batch_size=4, moments=moments
    )
    unmeasured = replace(seen, moments=None)
    assert old_files.averaged(saved, unmeasured) == saved
    after = old_files.averaged(saved, seen)
    assert after == old_files.averaged(type(saved)(), seen)
    assert old_files.noise_scale_of(after) == pytest.approx(moments.noise_scale)
