"""Loggers for TensorBoard, Weights & Biases and MLflow: `pip install 'largebatch[loggers]'`.

Each is handed to `lb.Logged`. The step is the number of optimizer steps taken; the samples used are
logged beside the other values, as another axis to draw over. A run that goes on keeps its steps.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

from largebatch.core.errors import LargeBatchError, RecordError


class LoggerMissing(LargeBatchError):
    """The package that a logger needs is not installed."""


class TensorBoardLogger:
    """Writes event files for TensorBoard; changes state.

        record=lb.Logged(TensorBoardLogger("runs/mine"))          # tensorboard --logdir runs

    A directory is one run: with events of another in it, it is refused. With `append` a resumed run
    goes on there, and TensorBoard hides the steps that it takes again.

    Args:
        directory: of the event files; made by `start`.
        append: whether to go on in a directory that holds events.

    Raises:
        LoggerMissing: tensorboard is not installed.
    """

    def __init__(self, directory: str | os.PathLike[str], *, append: bool = False) -> None:
        _module("tensorboard")
        self._tensorboard = _module("torch.utils.tensorboard", package="tensorboard")
        self.directory = Path(directory)
        self.append = append
        self._facts: Mapping[str, Any] | None = None
        self._goes_on = False
        self._writer: Any = None

    def start(self, facts: Mapping[str, Any]) -> None:
        """Makes the directory; the facts stand under TensorBoard's texts.

        Raises:
            RecordError: it holds events and `append` is False.
        """
        self.close()
        self._goes_on = any(self.directory.glob("events.out.tfevents.*"))
        if self._goes_on and not self.append:
            raise RecordError(
                f"{self.directory} holds the events of a run. Name another directory, or go on "
                f"with this one: TensorBoardLogger({str(self.directory)!r}, append=True)"
            )
        self.directory.mkdir(parents=True, exist_ok=True)
        self._facts = dict(facts)

    def log(self, values: Mapping[str, float], *, step: int, samples: int) -> None:
        if self._writer is None:
            self._writer = self._open(step)
        for name, value in {**values, "samples": samples}.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._facts = None
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _open(self, step: int) -> Any:
        """The writer, which needs to know at which step the run goes on."""
        if self._facts is None:
            raise _not_started(self)
        writer = self._tensorboard.SummaryWriter(
            str(self.directory),
            purge_step=step if self._goes_on else None,
            max_queue=1000,  # with the default of 10, one step's values wait for the file
            flush_secs=10,
        )
        shown = json.dumps(self._facts, indent=2)
        writer.add_text("run", f"```json\n{shown}\n```", step)
        return writer


class WandbLogger:
    """Writes a run of Weights & Biases, offline by default; changes state.

        record=lb.Logged(WandbLogger("runs", project="mine"))      # later: wandb sync runs/wandb/*

    A run that goes on is named by `run_id`: online it is resumed; offline it is another directory
    of the same run, and `wandb sync` joins them. Steps that it takes again are ignored by the
    server, which has them.

    Args:
        directory: in which W&B makes its folder `wandb`.
        project: of the run.
        mode: "offline", or "online" to send to the server that W&B is set up for.
        run_id: of the run to go on with; None starts one, whose id is then found here.

    Raises:
        LoggerMissing: wandb is not installed.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        *,
        project: str = "largebatch",
        mode: Literal["offline", "online"] = "offline",
        run_id: str | None = None,
    ) -> None:
        self._wandb = _module("wandb")
        self.directory = Path(directory)
        self.project, self.mode, self.run_id = project, mode, run_id
        self._run: Any = None

    def start(self, facts: Mapping[str, Any]) -> None:
        """Opens the run beside any that the program has; the facts are its config."""
        self.close()
        self.directory.mkdir(parents=True, exist_ok=True)  # wandb would take another one
        self._run = self._wandb.init(
            project=self.project,
            dir=str(self.directory),
            mode=self.mode,
            id=self.run_id,
            resume="allow",
            config=dict(facts),
            allow_val_change=True,  # of a run that goes on, on other ranks perhaps
            settings=self._wandb.Settings(console="off", silent=True, reinit="create_new"),
        )
        self.run_id = self._run.id

    def log(self, values: Mapping[str, float], *, step: int, samples: int) -> None:
        if self._run is None:
            raise _not_started(self)
        self._run.log({**values, "samples": samples}, step=step)

    def close(self) -> None:
        if self._run is not None:
            run, self._run = self._run, None
            run.finish()


class MlflowLogger:
    """Writes a run to an MLflow store; changes state.

        record=lb.Logged(MlflowLogger("sqlite:///mlflow.db"))

    Values wait for a second, since each call to the store takes some milliseconds; `close` sends
    the rest and marks the run as finished, whatever became of it. Steps that a resumed run takes
    again stand twice in the history of a metric. A server that does not answer holds training up
    for as long as MLflow tries: MLFLOW_HTTP_REQUEST_MAX_RETRIES.

    Args:
        tracking_uri: a server, or a database such as "sqlite:///mlflow.db", which needs
            SQLAlchemy and alembic. MLflow itself refuses plain folders since 3.17.
        experiment: by name; made where it is missing.
        run_id: of the run to go on with; None starts one, whose id is then found here.
        artifact_location: of an experiment that is made; None for the store's.

    Raises:
        LoggerMissing: mlflow is not installed.
    """

    def __init__(
        self,
        tracking_uri: str,
        *,
        experiment: str = "largebatch",
        run_id: str | None = None,
        artifact_location: str | None = None,
    ) -> None:
        self._mlflow = _module("mlflow.tracking", package="mlflow")
        self._entities = _module("mlflow.entities", package="mlflow")
        self.tracking_uri, self.experiment = tracking_uri, experiment
        self.run_id, self.artifact_location = run_id, artifact_location
        self._client: Any = None
        self._waiting: list[Any] = []
        self._sent = 0.0

    def start(self, facts: Mapping[str, Any]) -> None:
        """Opens the run; the facts are its parameters, of which a run that goes on keeps its own.

        Raises:
            Exception: whatever MLflow raises about the store.
        """
        self.close()
        client = self._mlflow.MlflowClient(self.tracking_uri)
        if self.run_id is None:
            self.run_id = client.create_run(self._experiment_id(client)).info.run_id
        else:
            client.update_run(self.run_id, status="RUNNING")
        there = client.get_run(self.run_id).data.params
        given = {name: _as_text(fact) for name, fact in facts.items() if name not in there}
        client.log_batch(
            self.run_id, params=[self._entities.Param(name, text) for name, text in given.items()]
        )
        self._client, self._sent = client, time.monotonic()

    def log(self, values: Mapping[str, float], *, step: int, samples: int) -> None:
        if self._client is None:
            raise _not_started(self)
        now = int(1000 * time.time())
        self._waiting += [
            self._entities.Metric(name, value, now, step)
            for name, value in {**values, "samples": samples}.items()
        ]
        if len(self._waiting) > MOST_WAITING or time.monotonic() - self._sent > SECONDS_WAITING:
            self._send()

    def close(self) -> None:
        if self._client is not None:
            try:
                self._send()
            finally:
                client, self._client = self._client, None
                client.set_terminated(self.run_id)

    def _send(self) -> None:
        waiting, self._waiting = self._waiting, []
        self._client.log_batch(self.run_id, metrics=waiting)
        self._sent = time.monotonic()

    def _experiment_id(self, client: Any) -> str:
        there = client.get_experiment_by_name(self.experiment)
        if there is not None:
            return str(there.experiment_id)
        return str(
            client.create_experiment(self.experiment, artifact_location=self.artifact_location)
        )


MOST_WAITING = 900
"""Values that wait to be sent to MLflow, which takes 1000 in one call."""

SECONDS_WAITING = 1.0
"""How long they wait at most, as long as values come."""

LONGEST_PARAMETER = 6000
"""Characters that MLflow takes."""


def _module(name: str, *, package: str | None = None) -> Any:
    try:
        return import_module(name)
    except ImportError as error:
        raise LoggerMissing(
            f"This logger needs {package or name}, which cannot be imported ({error}). "
            "Install it: pip install 'largebatch[loggers]'"
        ) from error


def _not_started(logger: object) -> RecordError:
    return RecordError(f"{type(logger).__name__} is not open. Call logger.start(facts) first.")


def _as_text(fact: object) -> str:
    text = fact if isinstance(fact, str) else json.dumps(fact)
    return text[:LONGEST_PARAMETER]
