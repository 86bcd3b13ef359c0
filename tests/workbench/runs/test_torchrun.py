"""Test that `torchrun -m largebatch train` with two processes gives the result of one process."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from largebatch.core.codec import decode
from largebatch.record import read_record
from largebatch.workbench.planner.count import count_schedule
from largebatch.workbench.runs.results import RunResult
from largebatch.workbench.runs.train import train
from programs import run_command_on_ranks, torchrun

pytestmark = pytest.mark.distributed

OWN = """
from dataclasses import replace
from largebatch.workbench.workloads import load

def one_sample():
    return replace(load("digits"), name="one-sample", base_batch_size=1)
"""


def test_two_processes_train_as_one_does(tmp_path: Path) -> None:
    done = torchrun(
        "train", "digits", "--scale", "8", "--budget", "1ep", "--json", "--record", "a.jsonl",
        cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    two = decode(RunResult, json.loads(done.stdout))  # so the second rank printed nothing
    one = train("digits", scale=8, budget="1ep")
    assert two.settings.ranks == 2
    assert (two.steps, two.samples) == (one.steps, one.samples)
    assert two.base_steps == pytest.approx(one.base_steps, rel=1e-5)
    for split in ("validation", "test"):
        found, expected = getattr(two, split), getattr(one, split)
        assert found["loss"] == pytest.approx(expected["loss"], rel=1e-4)
        assert found["accuracy"] == pytest.approx(expected["accuracy"], abs=3e-3)  # one image
    assert len(read_record(tmp_path / "a.jsonl").steps) == two.steps


def test_fewer_samples_than_ranks_are_refused_by_the_first_rank_alone(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(OWN)
    done = run_command_on_ranks("train", "own:one_sample", "--budget", "4", cwd=tmp_path)
    assert done.returncode != 0
    lines = [line for line in done.stderr.splitlines() if line.startswith("error")]
    assert len(lines) == 1, done.stderr
    assert "cannot be shared by 2 ranks" in lines[0]


def test_two_processes_follow_a_schedule_as_one_does(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    table = count_schedule("growth", budget=6400, base_batch_size=16, out=path).table
    done = run_command_on_ranks("train", "digits", "--schedule", str(path), "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    two = decode(RunResult, json.loads(done.stdout))
    one = train("digits", schedule=path)
    assert (two.settings.ranks, two.steps, two.samples) == (2, table.steps, 6400)
    assert two.validation["loss"] == pytest.approx(one.validation["loss"], rel=1e-4)
