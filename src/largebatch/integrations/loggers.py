"""Log to TensorBoard, Weights & Biases or MLflow.

Install the packages with `pip install 'largebatch[loggers]'`, and pass the loggers of this module
to `lb.Logged`. The step of a logged value is the number of optimizer steps taken. The number of
samples used is logged as the value `samples`, which can be used as the x axis, too. A resumed run
continues its count of steps.
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
    """Report that the package that a logger requires is not installed."""


class TensorBoardLogger:
    """Write event files for TensorBoard.

        record=lb.Logged(TensorBoardLogger("runs/mine"))          # tensorboard --logdir runs

    Each directory holds one run, so a directory that already has events raises an error. With
    `append=True` a resumed run appends to the directory, and TensorBoard hides the training steps
    that the resumed run repeats. The logger holds the open writer, so its state changes.

    Args:
        directory: Directory of the event files. `start` creates it.
        append: Whether to append to a directory that has events already.

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
        """Create the directory. The facts appear on TensorBoard's "text" page.

        Args:
            facts: Settings of the run by name, as JSON values.

        Raises:
            RecordError: The directory has events, and `append` is False.
        """
        self.close()
        self._goes_on = any(self.directory.glob("events.out.tfevents.*"))
        if self._goes_on and not self.append:
            raise RecordError(
                f"{self.directory} already has the events of a run. Pass another directory, or "
                "append to this directory: "
                f"TensorBoardLogger({str(self.directory)!r}, append=True)."
            )
        self.directory.mkdir(parents=True, exist_ok=True)
        self._facts = dict(facts)

    def log(self, values: Mapping[str, float], *, step: int, samples: int) -> None:
        """Write the numbers of one training step.

        Args:
            values: Finite numbers by name.
            step: Number of optimizer steps taken, this training step included.
            samples: Number of samples used over all ranks, this training step included.
        """
        if self._writer is None:
            self._writer = self._open(step)
        for name, value in {**values, "samples": samples}.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Close the event file. A second call does nothing."""
        self._facts = None
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _open(self, step: int) -> Any:
        """Open a writer. In a resumed run, the writer hides the old events from `step` on."""
        if self._facts is None:
            raise _not_started(self)
        writer = self._tensorboard.SummaryWriter(
            str(self.directory),
            purge_step=step if self._goes_on else None,
            max_queue=1000,  # the default of 10 makes every step wait for the file
            flush_secs=10,
        )
        shown = json.dumps(self._facts, indent=2)
        writer.add_text("run", f"```json\n{shown}\n```", step)
        return writer


class WandbLogger:
    """Write a run of Weights & Biases, offline by default.

        record=lb.Logged(WandbLogger("runs", project="mine"))      # later: wandb sync runs/wandb/*

    To resume an earlier run, pass its `run_id`. In online mode the run is resumed on the server. In
    offline mode a new directory of the same run is written, and `wandb sync` joins the directories.
    The server ignores training steps that a resumed run repeats. The logger holds the open run, so
    its state changes.

    Args:
        directory: Directory in which W&B creates its folder `wandb`.
        project: Name of the W&B project.
        mode: "offline", or "online" to send values to the server that W&B is configured for.
        run_id: Id of the run to resume. If None, a new run starts, and its id is stored in the
            attribute `run_id`.

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
        """Open a W&B run. Other W&B runs of the program stay open. The facts become the config of
        the W&B run.

        Args:
            facts: Settings of the run by name, as JSON values.
        """
        self.close()
        # if the directory is missing, wandb writes to another directory
        self.directory.mkdir(parents=True, exist_ok=True)
        self._run = self._wandb.init(
            project=self.project,
            dir=str(self.directory),
            mode=self.mode,
            id=self.run_id,
            resume="allow",
            config=dict(facts),
            allow_val_change=True,  # a resumed run may have another number of ranks
            settings=self._wandb.Settings(console="off", silent=True, reinit="create_new"),
        )
        self.run_id = self._run.id

    def log(self, values: Mapping[str, float], *, step: int, samples: int) -> None:
        """Log the numbers of one training step.

        Args:
            values: Finite numbers by name.
            step: Number of optimizer steps taken, this training step included.
            samples: Number of samples used over all ranks, this training step included.
        """
        if self._run is None:
            raise _not_started(self)
        self._run.log({**values, "samples": samples}, step=step)

    def close(self) -> None:
        """Finish the run. A second call does nothing."""
        if self._run is not None:
            run, self._run = self._run, None
            run.finish()


class MlflowLogger:
    """Write a run to an MLflow store.

        record=lb.Logged(MlflowLogger("sqlite:///mlflow.db"))

    Values are sent about once per second, because each call to the store takes some milliseconds.
    `close` sends the remaining values and marks the run as finished, even if training failed.
    Training steps that a resumed run repeats appear twice in the history of a metric. If the server
    does not answer, training waits until MLflow stops retrying (see
    MLFLOW_HTTP_REQUEST_MAX_RETRIES). The logger holds values that are not sent yet, so its state
    changes.

    Args:
        tracking_uri: Address of a server, or of a database such as "sqlite:///mlflow.db". A
            database requires SQLAlchemy and alembic. MLflow rejects plain directories since version
            3.17.
        experiment: Name of the experiment. A missing experiment is created.
        run_id: Id of the run to resume. If None, a new run starts, and its id is stored in the
            attribute `run_id`.
        artifact_location: Location for the artifacts of a new experiment, or None for the default
            of the store.

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
        """Open the run. The facts become parameters of the MLflow run.

        A resumed run keeps the parameters that it already has.

        Args:
            facts: Settings of the run by name, as JSON values.

        Raises:
            Exception: Any exception that MLflow raises about the store.
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
        """Collect the numbers of one training step. All collected numbers are sent about once per
        second.

        Args:
            values: Finite numbers by name.
            step: Number of optimizer steps taken, this training step included.
            samples: Number of samples used over all ranks, this training step included.
        """
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
        """Send the remaining values and mark the run as finished. A second call does nothing."""
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
"""Largest number of values that wait to be sent. MLflow accepts 1000 values per call."""

SECONDS_WAITING = 1.0
"""Seconds after which waiting values are sent with the next training step."""

LONGEST_PARAMETER = 6000
"""Largest number of characters in one MLflow parameter."""


def _module(name: str, *, package: str | None = None) -> Any:
    try:
        return import_module(name)
    except ImportError as error:
        raise LoggerMissing(
            f"This logger requires the package {package or name}, which cannot be imported "
            f"({error}). Install it: pip install 'largebatch[loggers]'"
        ) from error


def _not_started(logger: object) -> RecordError:
    return RecordError(f"{type(logger).__name__} is not open. Call logger.start(facts) first.")


def _as_text(fact: object) -> str:
    text = fact if isinstance(fact, str) else json.dumps(fact)
    return text[:LONGEST_PARAMETER]
