"""What a run's steps leave behind: the record, the watcher's report and the validation curve."""

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
    """The part of the log that a checkpoint holds; `runs` are loggers' names and ids."""

    points: tuple[Point, ...]
    multipliers: float
    losses: tuple[float, ...]
    batch_size: int
    moments: MovingMoments
    adam_moments: MovingMoments
    runs: Mapping[str, str]
    extra_samples: int = field(default=0, metadata=LATER)


class RunLog:
    """A sink that passes each step on to the record and to whoever watches, and keeps sums.

    Mutable: gathers the sums since the last point of the curve, and over the run.

    Attributes:
        seconds_before: of the parts before this one, where the run was resumed.
        extra_samples: spent on measuring besides the training samples.
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
        self._batch_size = spec.batch_size  # wished for of the next step
        self._moments = self._adam_moments = MovingMoments()
        self._loggers = loggers
        self._ids: Mapping[str, str] = {}  # of loggers that the resumed run had

    @property
    def seconds(self) -> float:
        """Wall time of all parts of the run up to now, without what lies between them."""
        return self.seconds_before + time.perf_counter() - self._began

    def start(self, facts: Mapping[str, Any]) -> None:
        if self.record is not None:
            self.record.start({**facts, **self.spec.facts})

    def write(self, seen: Measurement, decision: Decision) -> None:
        if self.record is not None:
            self.record.write(seen, decision)
        if seen.finite:
            self.multipliers += decision.lr_multiplier
            self._losses.append(float("nan") if seen.loss is None else seen.loss)
        self.extra_samples += seen.extra_samples
        self._moments = averaged(self._moments, seen)
        as_adam_sees_it = replace(seen, moments=seen.preconditioned_moments)
        self._adam_moments = averaged(self._adam_moments, as_adam_sees_it)
        if self.report is not None:
            self.report(self._progress(seen, decision))
        self._batch_size = decision.next_batch_size

    def close(self) -> None:
        if self.record is not None:
            self.record.close()

    def state_dict(self) -> str:
        """The curve and the sums, as JSON text."""
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
        """Goes on from what `state_dict` gave.

        Raises:
            ValueError, RecordError: something else.
        """
        saved: SavedLog = decode(SavedLog, json.loads(text), where="the curve")
        self.points, self.multipliers = list(saved.points), saved.multipliers
        self._losses, self._batch_size = list(saved.losses), saved.batch_size
        self._moments, self._adam_moments = saved.moments, saved.adam_moments
        self._ids, self.extra_samples = saved.runs, saved.extra_samples
        if self._loggers is not None:
            self._loggers.go_on(saved.runs, saved.moments)

    def add_point(self, control: Controller, validation: Metrics) -> None:
        """Adds where the run stands to the curve."""
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
