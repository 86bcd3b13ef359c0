"""Test `largebatch train --logger`: what is logged, what is rejected, and resumed runs."""

from __future__ import annotations

import csv
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from made_up_runs import digits

import largebatch as lb
from largebatch.record import read_record
from largebatch.workbench.cli.main import cli
from largebatch.workbench.runs.train import train
from programs import run_command_on_ranks

ROOT = Path(__file__).parents[3]


@pytest.fixture(autouse=True)
def _in_a_directory_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def rows(path: str) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def losses_of_tensorboard(directory: str) -> dict[int, float]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    read = EventAccumulator(directory)
    read.Reload()
    scalars = read.Scalars("loss")
    assert len({event.step for event in scalars}) == len(scalars)
    return {event.step: event.value for event in scalars}


def losses_of_mlflow(uri: str) -> list[dict[int, float]]:
    """Return the logged values of each run in the experiment."""
    from mlflow.tracking import MlflowClient

    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("largebatch")
    assert experiment is not None
    return [
        {m.step: m.value for m in client.get_metric_history(run.info.run_id, "loss")}
        for run in client.search_runs([experiment.experiment_id])
    ]


def test_the_command_logs_beside_its_record() -> None:
    command = "train digits --scale 2 --budget 320 --record a.jsonl"
    loggers = "--logger csv=logs/a.csv --logger tensorboard=board"
    result = CliRunner().invoke(cli, f"{command} {loggers}".split())
    assert result.exit_code == 0, result.output
    steps = read_record("a.jsonl").steps
    losses = [step.seen.loss for step in steps]
    assert len(losses) == 10
    assert [float(row["loss"]) for row in rows("logs/a.csv")] == losses
    assert list(losses_of_tensorboard("board").values()) == pytest.approx(losses, rel=1e-6)


class Told:
    """Keep all logged values in memory."""

    def __init__(self) -> None:
        self.facts: Mapping[str, Any] = {}
        self.steps: list[int] = []
        self.closed = 0

    def start(self, facts: Mapping[str, Any]) -> None:
        self.facts = facts

    def log(self, values: Mapping[str, float], *, step: int, samples: int) -> None:
        self.steps.append(step)

    def close(self) -> None:
        self.closed += 1


def test_loggers_may_be_objects_and_are_closed_whatever_becomes_of_the_run() -> None:
    told = Told()
    result = train("digits", scale=2, budget="64", seed=3, loggers=[told])
    assert told.steps == list(range(1, result.steps + 1))
    expected = {"workload": "digits", "method": "adascale", "scale": 2, "seed": 3}
    assert expected.items() <= told.facts.items()
    assert told.closed == 1
    told = Told()
    with pytest.raises(lb.errors.NotFinite):
        train("digits", budget="200base", lr=1e30, loggers=[told])
    assert told.closed == 1


class Interruption(Exception):
    """Stop a run as a crash would."""


def interrupted(at: int) -> Any:
    def report(progress: Any) -> None:
        if not isinstance(progress, str) and progress.step == at:
            raise Interruption

    return report


def test_a_resumed_run_continues_every_log(tmp_path: Path) -> None:
    store = f"sqlite:///{tmp_path}/m.db"  # MLflow keeps relative ones open
    log = ["csv=a.csv", "tensorboard=board", "wandb=w", f"mlflow={store}"]
    options: dict[str, Any] = {"scale": 2, "budget": "20steps", "checkpoint": "ck", "log": log}
    with pytest.raises(Interruption):
        train("digits", checkpoint_every="5steps", progress=interrupted(13), **options)
    time.sleep(1.1)  # wandb names a directory by the second in which it begins
    train("digits", checkpoint_every="5steps", resume=True, **options)
    train("digits", scale=2, budget="20steps", log=["csv=whole.csv"])

    whole = {int(row["step"]): float(row["loss"]) for row in rows("whole.csv")}
    assert list(whole) == list(range(1, 21))
    steps = [int(row["step"]) for row in rows("a.csv")]
    assert steps == [*range(1, 14), *range(11, 21)]
    last = {row["step"]: row for row in rows("a.csv")}
    assert list(last.values()) == rows("whole.csv")  # the averaged noise scale, too
    assert losses_of_tensorboard("board") == pytest.approx(whole, rel=1e-6)
    assert losses_of_mlflow(store) == [whole]
    ids = {path.stem for path in Path("w").glob("wandb/offline-run-*/*.wandb")}
    assert len(list(Path("w").glob("wandb/offline-run-*"))) == 2
    assert len(ids) == 1


def test_a_log_that_joins_at_a_resumption_and_leaves_again_keeps_its_run(tmp_path: Path) -> None:
    store = f"sqlite:///{tmp_path}/m.db"
    options: dict[str, Any] = {"scale": 2, "budget": "12steps", "checkpoint": "ck"}
    options |= {"checkpoint_every": "2steps"}
    log = [f"mlflow={store}"]
    for resume, at, given in ((False, 3, log), (True, 6, []), (True, 9, log)):
        with pytest.raises(Interruption):
            train("digits", progress=interrupted(at), resume=resume, log=given, **options)
    (losses,) = losses_of_mlflow(store)
    assert list(losses) == [1, 2, 3, 5, 6, 7, 8, 9]


@pytest.mark.parametrize(
    ("log", "package"),
    [
        ("tensorboard=a", "tensorboard"),
        ("wandb=a", "wandb"),
        ("mlflow=sqlite:///a.db", "mlflow.tracking"),
    ],
)
def test_a_missing_logger_package_is_reported_before_data_is_loaded(
    log: str, package: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setitem(sys.modules, "sklearn", None)  # the data's, which would be told instead
    result = CliRunner().invoke(cli, ["train", "digits", "--budget", "16", "--logger", log])
    assert result.exit_code == 1
    assert "pip install 'largebatch[loggers]'" in result.stderr
    assert "Traceback" not in result.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("log", "expected"),
    [
        ("csv=mine.csv", "never overwritten. Pass another file: log='csv=other.csv'"),
        ("csv=mine.csv/a", "cannot be written"),
        ("csv=.", "is a directory"),
    ],
)
def test_a_log_file_that_cannot_be_written_is_reported_before_data_is_loaded(
    log: str, expected: str
) -> None:
    Path("mine.csv").write_text("mine")

    def data() -> Any:
        raise AssertionError("loaded")

    with pytest.raises(lb.errors.RecordError, match=expected):
        train(digits(data=data), budget="16", log=[log])
    assert Path("mine.csv").read_text() == "mine"


def test_a_logger_directory_that_mlflow_does_not_support_prints_a_short_error() -> None:
    result = CliRunner().invoke(
        cli, ["train", "digits", "--budget", "16", "--logger", "mlflow=mlruns"]
    )
    assert result.exit_code == 1
    assert "MlflowLogger could not start" in result.stderr
    assert "sqlite:///" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.distributed
def test_only_the_first_of_several_processes_logs(tmp_path: Path) -> None:
    command = (
        "train digits --scale 4 --budget 640 --record a.jsonl "
        "--logger csv=a.csv --logger tensorboard=board"
    )
    done = run_command_on_ranks(*command.split(), cwd=Path.cwd())
    assert done.returncode == 0, done.stderr
    losses = [step.seen.loss for step in read_record("a.jsonl").steps]
    assert [float(row["loss"]) for row in rows("a.csv")] == losses
    assert len(losses) == 10
    assert len(list(Path("board").iterdir())) == 1
    assert list(losses_of_tensorboard("board").values()) == pytest.approx(losses, rel=1e-6)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--record", "x.csv", "--logger", "csv=x.csv"],
        ["--record", "x.csv", "--logger", "csv=./x.csv", "--checkpoint", "ck", "--resume"],
        ["--logger", "csv=x.csv", "--logger", "csv=./x.csv"],
    ],
)
def test_two_writers_of_one_file_are_refused_with_what_to_type(arguments: list[str]) -> None:
    told = CliRunner().invoke(cli, ["train", "digits", "--budget", "3steps", *arguments])
    assert told.exit_code == 2
    assert "Pass another file: --logger csv=other.csv" in told.stderr
    assert "lb." not in told.stderr
    assert not Path("x.csv").exists()
