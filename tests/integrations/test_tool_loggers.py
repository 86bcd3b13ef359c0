"""Test what each logging tool stored of a real run, read back with the tool itself."""

from __future__ import annotations

import copy
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import largebatch as lb
import small_runs
from largebatch.core.version import __version__
from largebatch.integrations.loggers import (
    LoggerMissing,
    MlflowLogger,
    TensorBoardLogger,
    WandbLogger,
)

Values = dict[tuple[str, int], float]
"""(name, step) -> value."""


def controller(*sinks: Any) -> lb.Controller:
    model = small_runs.small_model()
    batches = lb.BatchLoader(small_runs.data(), batch_size=16, max_micro_batch_size=4)
    return lb.Controller(
        model, small_runs.sgd(model), lb.AdaScale(), batches, base_batch_size=4,
        record=lb.Tee(*sinks),
    )  # fmt: skip


def whole_run(logger: Any, *, steps: int = 6) -> Values:
    """Return what a run of some steps should have logged."""
    memory = lb.MemoryRecord()
    small_runs.train(controller(lb.Logged(logger), memory), steps=steps)
    return expected(memory)


def run_in_two(make: Callable[[bool], Any], *, redone: int = 0) -> tuple[Values, Any, Any]:
    """A run of 6 steps that stops after the fourth, and goes on from the checkpoint that was
    written `redone` steps before; each part with the logger that `make(goes_on)` gives."""
    first = make(False)
    control = controller(lb.Logged(first))
    state: dict[str, Any] = {}
    for batch in control.steps(steps=6):
        for x, y in batch:
            control.backward(small_runs.loss_of(control.model, x, y))
        control.step()
        if control.optimizer_steps == 4 - redone:
            parts = (control, control.model, control.optimizer)
            state = {str(at): part.state_dict() for at, part in enumerate(parts)}
            state = copy.deepcopy(state)  # training goes on
        if control.optimizer_steps == 4:
            break
    control.close()
    second = make(True)
    again = controller(lb.Logged(second))
    for at, part in enumerate((again, again.model, again.optimizer)):
        part.load_state_dict(state[str(at)])
    small_runs.train(again, steps=6)
    memory = lb.MemoryRecord()
    small_runs.train(controller(memory), steps=6)
    return expected(memory), first, second


def expected(memory: lb.MemoryRecord) -> Values:
    """What the steps say, without the noise scale, whose average a resumed run begins anew."""
    values: Values = {}
    for seen, decision in memory.steps:
        step = seen.step + 1
        values |= {
            ("loss", step): seen.loss or 0.0,
            ("lr", step): seen.base_lr * decision.lr_multiplier,
            ("lr_multiplier", step): decision.lr_multiplier,
            ("batch_size", step): seen.batch_size,
            ("base_steps", step): seen.base_steps + decision.base_steps,
            ("gain", step): decision.base_steps,
            ("skipped", step): 0.0,
            ("samples", step): seen.samples + seen.batch_size,
        }
    return values


def check(found: Values, values: Values, *, rel: float = 0.0) -> None:
    noise = {key: value for key, value in found.items() if key[0] == "noise_scale"}
    assert noise
    assert all(value > 0.0 for value in noise.values())
    assert {key: found[key] for key in found if key not in noise} == pytest.approx(
        values, rel=rel, abs=0.0
    )


def events(directory: Path) -> tuple[Values, str]:
    """TensorBoard's scalars and text."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    read = EventAccumulator(str(directory), size_guidance={"scalars": 0})
    read.Reload()
    values = {
        (tag, event.step): event.value
        for tag in read.Tags()["scalars"]
        for event in read.Scalars(tag)
    }
    count = sum(len(read.Scalars(tag)) for tag in read.Tags()["scalars"])
    assert count == len(values), "a step is shown twice"
    return values, read.Tensors("run/text_summary")[0].tensor_proto.string_val[0].decode()


FLOAT32 = 1e-6
"""TensorBoard keeps single precision."""


def test_tensorboard_shows_each_step(tmp_path: Path) -> None:
    values = whole_run(TensorBoardLogger(tmp_path / "run"))
    found, text = events(tmp_path / "run")
    check(found, values, rel=FLOAT32)
    assert json.loads(text.strip("`").removeprefix("json"))["version"] == __version__


@pytest.mark.parametrize("redone", [0, 2])
def test_a_resumed_tensorboard_log_shows_no_step_twice(tmp_path: Path, redone: int) -> None:
    values, _, _ = run_in_two(
        lambda goes_on: TensorBoardLogger(tmp_path, append=goes_on), redone=redone
    )
    check(events(tmp_path)[0], values, rel=FLOAT32)


def test_a_tensorboard_directory_is_one_run(tmp_path: Path) -> None:
    whole_run(TensorBoardLogger(tmp_path), steps=1)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(lb.errors.RecordError, match=r"TensorBoardLogger\(.*, append=True\)"):
        TensorBoardLogger(tmp_path).start({})
    assert sorted(tmp_path.iterdir()) == before


def stored(uri: str, run_id: str) -> tuple[Any, Values, int]:
    """An MLflow run, its metrics, and how many entries they have."""
    from mlflow.tracking import MlflowClient

    client = MlflowClient(uri)
    run = client.get_run(run_id)
    history = [
        (metric.key, metric.step, metric.value)
        for name in run.data.metrics
        for metric in client.get_metric_history(run_id, name)
    ]
    return run, {(name, step): value for name, step, value in history}, len(history)


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A store of MLflow; making one takes seconds."""
    return f"sqlite:///{tmp_path_factory.mktemp('store')}/mlflow.db"


def test_mlflow_stores_each_step_and_what_describes_the_run(uri: str, tmp_path: Path) -> None:
    place = tmp_path.as_uri()
    logger = MlflowLogger(uri, experiment="whole", artifact_location=place)
    values = whole_run(logger)
    assert logger.run_id is not None
    run, found, count = stored(uri, logger.run_id)
    check(found, values)
    assert count == len(found)
    assert run.info.status == "FINISHED"
    assert run.info.artifact_uri.startswith(place)
    assert run.data.params["base_batch_size"] == "4"
    assert json.loads(run.data.params["rule"])["rules"][0]["kind"] == "AdaScale"


def test_a_resumed_mlflow_logger_continues_the_same_run(uri: str, tmp_path: Path) -> None:
    loggers: list[MlflowLogger] = []

    def make(goes_on: bool) -> MlflowLogger:
        there = loggers[0].run_id if goes_on else None
        loggers.append(
            MlflowLogger(uri, experiment="two", run_id=there, artifact_location=tmp_path.as_uri())
        )
        return loggers[-1]

    values, first, second = run_in_two(make, redone=1)
    assert first.run_id == second.run_id
    run, found, count = stored(uri, second.run_id)
    check(found, values)
    assert count == len(found) + 9  # the step that was taken again stands twice
    assert run.info.status == "FINISHED"


def test_starting_one_mlflow_logger_twice_continues_its_run(uri: str) -> None:
    logger = MlflowLogger(uri, experiment="again")
    for step, ranks in ((1, 1), (2, 2)):
        logger.start({"ranks": ranks, f"from {step}": True})
        logger.log({"loss": 1.0}, step=step, samples=8 * step)
        logger.close()
    assert logger.run_id is not None
    run, found, _ = stored(uri, logger.run_id)
    assert set(found) == {(name, step) for name in ("loss", "samples") for step in (1, 2)}
    assert run.data.params == {"ranks": "1", "from 1": "true", "from 2": "true"}


def test_mlflow_gets_many_values_in_few_calls_and_at_last_all(uri: str) -> None:
    logger = MlflowLogger(uri, experiment="many")
    logger.start({"long": "x" * 9000})
    for step in range(1, 251):
        logger.log({f"a{i}": 1.0 * i for i in range(8)}, step=step, samples=step)
    logger.close()
    logger.close()
    assert logger.run_id is not None
    run, found, count = stored(uri, logger.run_id)
    assert count == len(found) == 250 * 9
    assert len(run.data.params["long"]) == 6000


def test_a_store_that_mlflow_does_not_support_raises_an_error_before_the_first_step(
    tmp_path: Path,
) -> None:
    control = controller(lb.Logged(MlflowLogger(str(tmp_path / "mlruns"))))
    with pytest.raises(lb.errors.RecordError, match=r"MlflowLogger could not start .*sqlite:///"):
        small_runs.train(control, steps=1)
    assert control.optimizer_steps == 0


def records(path: Path) -> Iterator[bytes]:
    """The records of a file in LevelDB's log format: blocks of 32 KiB, in which each fragment has
    a check sum (4 bytes), a length (2) and its place in the record (1: whole, first, middle, last).
    """
    content, at, whole = path.read_bytes(), 7, b""  # after the file's own 7 bytes
    while at < len(content):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
            continue
        size, place = int.from_bytes(content[at + 4 : at + 6], "little"), content[at + 6]
        whole += content[at + 7 : at + 7 + size]
        at += 7 + size
        if place in (1, 4):
            yield whole
            whole = b""


def runs(directory: Path) -> list[tuple[str, str, Values, dict[str, Any]]]:
    """(id, project, values, config) of each offline run, in order of time."""
    import wandb
    from wandb.proto.wandb_internal_pb2 import Record

    wandb.teardown()  # W&B writes in a process of its own, which may go on after the run's end
    found = []
    for path in sorted(directory.glob("wandb/offline-run-*/*.wandb"), key=os.path.getctime):
        run_id, project, values, config = "", "", {}, {}
        for content in records(path):
            record = Record()
            record.ParseFromString(content)
            if record.HasField("run"):
                run_id, project = record.run.run_id, record.run.project
                config |= {u.key: json.loads(u.value_json) for u in record.run.config.update}
            elif record.HasField("history"):
                items = record.history.item
                row = {(i.key or i.nested_key[0]): json.loads(i.value_json) for i in items}
                step = row.pop("_step", record.history.step.num)
                values |= {
                    (name, step): value for name, value in row.items() if not name.startswith("_")
                }
        found.append((run_id, project, values, config))
    return found


def test_wandb_keeps_each_step_offline(tmp_path: Path) -> None:
    logger = WandbLogger(tmp_path / "new", project="mine")
    values = whole_run(logger)
    ((run_id, project, found, config),) = runs(tmp_path / "new")
    check(found, values)
    assert (run_id, project) == (logger.run_id, "mine")
    assert config["base_batch_size"] == 4
    assert config["rule"]["rules"][0]["kind"] == "AdaScale"


def test_a_resumed_wandb_logger_keeps_its_run_id(tmp_path: Path) -> None:
    def make(goes_on: bool) -> WandbLogger:
        if goes_on:
            time.sleep(1.1)  # wandb names a directory by the second in which it begins
        return WandbLogger(tmp_path, run_id="mine")

    values, first, second = run_in_two(make)
    assert first.run_id == second.run_id == "mine"
    one, two = runs(tmp_path)
    assert one[0] == two[0] == "mine"
    assert {step for _, step in one[2]} == {1, 2, 3, 4}
    assert {step for _, step in two[2]} == {5, 6}
    check({**one[2], **two[2]}, values)


def test_wandb_leaves_a_run_of_the_programs_own_alone(tmp_path: Path) -> None:
    import wandb

    own = wandb.init(
        mode="offline", dir=str(tmp_path), settings=wandb.Settings(console="off", silent=True)
    )
    whole_run(WandbLogger(tmp_path), steps=1)
    assert wandb.run is own
    own.log({"mine": 1.0})
    own.finish()


def missing(kind: Callable[[str], Any], package: str) -> Any:
    return pytest.param(kind, package, id=package)


@pytest.mark.parametrize(
    ("kind", "package"),
    [
        missing(TensorBoardLogger, "tensorboard"),
        missing(WandbLogger, "wandb"),
        missing(MlflowLogger, "mlflow.tracking"),
    ],
)
def test_a_missing_logger_package_raises_an_error_with_the_extra_to_install(
    kind: Callable[[str], Any], package: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(LoggerMissing, match=r"pip install 'largebatch\[loggers\]'"):
        kind(str(tmp_path / "place"))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", [TensorBoardLogger, WandbLogger, MlflowLogger])
def test_a_logger_that_is_not_open_takes_nothing_and_may_be_closed(
    kind: Callable[[str], Any], tmp_path: Path
) -> None:
    logger = kind(str(tmp_path / "place"))
    logger.close()
    with pytest.raises(lb.errors.RecordError, match="is not open"):
        logger.log({"loss": 1.0}, step=1, samples=8)
    assert not list(tmp_path.iterdir())
