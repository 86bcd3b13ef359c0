"""Pass the numbers of each training step to loggers."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from typing import Any

from largebatch.core.codec import encode
from largebatch.core.decision import Decision
from largebatch.core.errors import LargeBatchError, RecordError
from largebatch.core.measurement import Measurement
from largebatch.core.moving_moments import MovingMoments
from largebatch.core.protocols import Logger
from largebatch.core.scalars import averaged, scalars_of
from largebatch.core.version import __version__


class Logged:
    """Pass the numbers of each training step to one or more loggers.

    Pass this object to a run as `record=lb.Logged(lb.CsvLogger("run.csv"))`. The numbers are loss,
    lr, lr_multiplier, batch_size, base_steps, gain, noise_scale and skipped. A number that a
    training step lacks, or that is not finite, is left out. The noise scale is computed from
    exponential averages of (variance, sqnorm) over 100 base batches, as in `lb.Averaged`. In a
    resumed run, all numbers continue except the averages of the noise scale. To continue the
    averages, too, set `moments` to the saved averages.

    A logger that raises in `start` ends the run before its first training step. A logger that
    raises after `start` gets no more values, and a RuntimeWarning is given. So training continues
    even if the server of a logger cannot be reached. To end the run when a logger raises, call
    `warnings.simplefilter("error", RuntimeWarning)`.

    The object holds the averages and the values that are not logged yet, so its state changes.

    >>> import largebatch as lb
    >>> record = lb.Logged(lb.CsvLogger(getfixture("tmp_path") / "run.csv"), every=10)
    >>> record.start({"base_batch_size": 64})
    >>> record.close()
    >>> (getfixture("tmp_path") / "run.csv").read_text()[:20]
    'step,samples,loss,lr'

    Attributes:
        moments: Running averages of (variance, sqnorm), a frozen value.

    Args:
        *loggers: Loggers that receive the numbers, at least one.
        every: Number of training steps from one logged training step to the next. Skipped training
            steps and the last training step are always logged.

    Raises:
        ValueError: There is no logger, an argument is a path instead of a logger, or `every` is
            below 1.
    """

    def __init__(self, *loggers: Logger, every: int = 1) -> None:
        if every < 1:
            raise ValueError(
                f"every={every!r} was given, but it must be a number of training steps, at least "
                "1. Pass every=10."
            )
        if not loggers or any(isinstance(item, (str, os.PathLike)) for item in loggers):
            raise ValueError(
                f"{loggers!r} was given to lb.Logged, which takes one or more loggers and no "
                "paths. Pass a logger: lb.Logged(lb.CsvLogger('run.csv'))."
            )
        self.loggers, self.every = loggers, every
        self.moments = MovingMoments()
        self._open: list[Logger] = []
        self._sound: list[Logger] = []
        self._held: tuple[dict[str, float], int, int] | None = None

    def start(self, facts: Mapping[str, Any]) -> None:
        """Start every logger with the facts and the version of largebatch.

        Args:
            facts: Settings of the run by name, as JSON values.

        Raises:
            LargeBatchError: A logger could not start. All loggers that had started are closed.
        """
        self.close()
        told = {**encode(facts), "version": __version__}
        for logger in self.loggers:
            self._open.append(logger)
            try:
                logger.start(told)
            except Exception as error:
                self.close()
                if isinstance(error, LargeBatchError):
                    raise
                raise RecordError(
                    f"{type(logger).__name__} could not start ({_shown(error)}). Fix the cause, or "
                    "remove this logger from lb.Logged(...)."
                ) from error
        self._sound = list(self._open)

    def write(self, seen: Measurement, decision: Decision) -> None:
        """Log one training step. If `every` leaves the step out, keep its numbers for `close`.

        Args:
            seen: Measurement of the training step.
            decision: Decision that the rule made from the measurement.
        """
        self.moments = averaged(self.moments, seen)
        values = scalars_of(seen, decision, moments=self.moments)
        step, samples = seen.step + seen.finite, seen.samples + seen.batch_size
        self._held = (values, step, samples)
        if step % self.every == 0 or not seen.finite:
            self._give()

    def close(self) -> None:
        """Log the last training step and close all loggers, even if one of the loggers raises.

        A second call does nothing.
        """
        self._give()
        self._sound = []
        while self._open:
            logger = self._open.pop()
            try:
                logger.close()
            except Exception as error:
                _warn(f"{type(logger).__name__} could not be closed ({_shown(error)})")

    def _give(self) -> None:
        if self._held is None:
            return
        (values, step, samples), self._held = self._held, None
        for logger in tuple(self._sound):
            try:
                logger.log(values, step=step, samples=samples)
            except Exception as error:
                self._sound.remove(logger)
                _warn(
                    f"{type(logger).__name__} failed at step {step} ({_shown(error)}). This logger "
                    "gets no more values in this run, and training continues"
                )


def _shown(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def _warn(text: str) -> None:
    warnings.warn(f"{text}.", RuntimeWarning, stacklevel=4)
