"""Write each training step to the record, report it, and collect the validation curve."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from largebatch.act.controller import Controller
from largebatch.core.codec import LATER, decode, encode
from largebatch.core.decision import Decision
from largebatch.core.measurement import Measurement
from largebatch.core.moving_moments import MovingMoments
from largebatch.core.protocols import Sink
from largebatch.core.scalars import averaged, noise_scale_of, scalars_of
from largebatch.workbench.runs.logger_options import ResumableLoggers
from largebatch.workbench.runs.results import Metrics, Point, Progress, Report
from largebatch.workbench.runs.run_spec import RunSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedLog:
    """Hold the values of the log that a checkpoint saves.

    Args:
        points: Points of the validation curve so far.
        multipliers: Sum of the learning-rate multipliers of all steps.
        losses: Training losses since the last point of the curve.
        batch_size: Batch size that was decided for the next step.
        moments: Running averages of the raw gradient's statistics.
        adam_moments: Running averages of the preconditioned gradient's statistics.
        runs: Run id of each logger that has one, by the logger's text.
        extra_samples: Number of samples so far that were used only for measuring.
    """

    points: tuple[Point, ...]
    multipliers: float
    losses: tuple[float, ...]
    batch_size: int
    moments: MovingMoments
    adam_moments: MovingMoments
    runs: Mapping[str, str]
    extra_samples: int = field(default=0, metadata=LATER)


class RunLog:
    """Write each training step to the record, report it and add it to the run's sums.

    Mutable: collects sums over the run and since the last point of the validation curve.

    Attributes:
        seconds_before: Wall time of the run before its last resume, in seconds.
        extra_samples: Number of samples so far that were used only for measuring.
    """

    def __init__(
        self,
        spec: RunSpec,
        record: Sink | None,
        report: Report | None,
        label: str,
        *,
        loggers: ResumableLoggers | None = None,
    ) -> None:
        self.spec, self.record, self.report, self.label = spec, record, report, label
        self.points: list[Point] = []
        self.seconds_before, self._began = 0.0, time.perf_counter()
        self.multipliers, self.extra_samples = 0.0, 0
        self._losses: list[float] = []
        self._batch_size = spec.batch_size  # decided for the next step
        self._moments = self._adam_moments = MovingMoments()
        self._loggers = loggers
        self._ids: Mapping[str, str] = {}  # run ids of the loggers before the run was resumed

    @property
    def seconds(self) -> float:
        """Return the wall time of the run so far, in seconds.

        The time between an interruption and the next start is not included.
        """
        return self.seconds_before + time.perf_counter() - self._began

    def start(self, facts: Mapping[str, Any]) -> None:
        """Write the header of the record."""
        if self.record is not None:
            self.record.start({**facts, **self.spec.facts})

    def write(self, seen: Measurement, decision: Decision) -> None:
        """Write one training step to the record, report it and add it to the sums."""
        if self.record is not None:
            self.record.write(seen, decision)
        if seen.finite:
            self.multipliers += decision.lr_multiplier
            self._losses.append(float("nan") if seen.loss is None else seen.loss)
        self.extra_samples += seen.extra_samples
        self._moments = averaged(self._moments, seen)
        preconditioned = replace(seen, moments=seen.preconditioned_moments)
        self._adam_moments = averaged(self._adam_moments, preconditioned)
        if self.report is not None:
            self.report(self._progress(seen, decision))
        self._batch_size = decision.next_batch_size

    def close(self) -> None:
        """Close the record."""
        if self.record is not None:
            self.record.close()

    def state_dict(self) -> str:
        """Return the validation curve and the sums as JSON text."""
        saved = SavedLog(
            points=tuple(self.points),
            multipliers=self.multipliers,
            losses=tuple(self._losses),
            batch_size=self._batch_size,
            moments=self._moments,
            adam_moments=self._adam_moments,
            runs={**self._ids, **(self._loggers.ids if self._loggers else {})},
            extra_samples=self.extra_samples,
        )
        return json.dumps(encode(saved), separators=(",", ":"))

    def load_state_dict(self, text: str) -> None:
        """Restore the validation curve and the sums from the result of `state_dict`.

        Raises:
            ValueError: The text is not JSON.
            RecordError: The text is not the result of `state_dict`.
        """
        saved: SavedLog = decode(SavedLog, json.loads(text), where="the curve")
        self.points, self.multipliers = list(saved.points), saved.multipliers
        self._losses, self._batch_size = list(saved.losses), saved.batch_size
        self._moments, self._adam_moments = saved.moments, saved.adam_moments
        self._ids, self.extra_samples = saved.runs, saved.extra_samples
        if self._loggers is not None:
            self._loggers.go_on(saved.runs, saved.moments)

    def add_point(self, control: Controller, validation: Metrics) -> None:
        """Add a point to the validation curve.

        Args:
            control: Controller of the run, which knows the numbers of steps and samples.
            validation: Validation metrics at the point.
        """
        losses, self._losses = self._losses, []
        self.points.append(
            Point(
                step=control.optimizer_steps,
                samples=control.samples,
                base_steps=control.base_steps,
                train_loss=sum(losses) / len(losses) if losses else float("nan"),
                validation=validation,
            )
        )

    def _progress(self, seen: Measurement, decision: Decision) -> Progress:
        step, samples = seen.step + seen.finite, seen.samples + seen.batch_size
        used = self.spec.budget.used(
            step=step, samples=samples, base_steps=seen.base_steps + decision.base_steps
        )
        values = scalars_of(seen, decision, moments=self._moments)
        return Progress(
            label=self.label,
            step=step,
            samples=samples,
            batch_size=seen.batch_size,
            lr_multiplier=decision.lr_multiplier,
            loss=seen.loss,
            lr=values.get("lr"),
            gain=values.get("gain"),
            noise_scale=noise_scale_of(self._moments),
            adam_noise_scale=noise_scale_of(self._adam_moments),
            skipped=seen.skipped + (not seen.finite),
            fraction=min(used, 1.0),
            cut=used >= 1.0 and seen.batch_size < self._batch_size,
        )
