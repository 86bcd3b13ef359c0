"""A run's steps as numbers for loggers."""

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
    """A sink that gives each step's numbers to loggers:
    `record=lb.Logged(lb.CsvLogger("run.csv"))`.

    The numbers are those of `SCALARS`: loss, lr, lr_multiplier, batch_size, base_steps, gain,
    noise_scale, skipped. One that a step lacks is left out, never NaN. The noise scale is that of
    the exponential averages of (variance, sqnorm) over 100 base batches, as `Averaged` takes
    them. A resumed run goes on with all of them but these averages, which it begins anew unless it
    is given them: `moments`.

    A logger that raises in `start` ends the run before its first step. One that raises later is
    left out from then on, with a RuntimeWarning: a server that does not answer costs its curves
    and not the training. `warnings.simplefilter("error", RuntimeWarning)` makes it end the run.

    Mutable: holds the averages and what is not logged yet.

    Attributes:
        moments: the averages, a frozen value.

    Args:
        loggers: what to feed.
        every: log each step whose number is a multiple of this; lost steps, and the last one, are
            logged in any case.

    Raises:
        ValueError: no logger, something else, or an `every` below 1.
    """

    def __init__(self, *loggers: Logger, every: int = 1) -> None:
        if every < 1:
            raise ValueError(f"every is a number of steps, at least 1; got {every!r}.")
        if not loggers or any(isinstance(item, (str, os.PathLike)) for item in loggers):
            raise ValueError(
                "Loggers are objects, one or more, not paths: lb.Logged(lb.CsvLogger('run.csv')); "
                f"got {loggers!r}."
            )
        self.loggers, self.every = loggers, every
        self.moments = MovingMoments()
        self._open: list[Logger] = []
        self._sound: list[Logger] = []
        self._held: tuple[dict[str, float], int, int] | None = None

    def start(self, facts: Mapping[str, Any]) -> None:
        """Starts every logger with the facts and the version of this package.

        Raises:
            LargeBatchError: a logger could not start; those before it are closed.
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
                    f"{type(logger).__name__} could not start ({_shown(error)}). Mend the cause, "
                    "or leave this logger out."
                ) from error
        self._sound = list(self._open)

    def write(self, seen: Measurement, decision: Decision) -> None:
        self.moments = averaged(self.moments, seen)
        values = scalars_of(seen, decision, moments=self.moments)
        step, samples = seen.step + seen.finite, seen.samples + seen.batch_size
        self._held = (values, step, samples)
        if step % self.every == 0 or not seen.finite:
            self._give()

    def close(self) -> None:
        """Logs the last step and closes every logger, all of them whatever one does; a second call
        does nothing."""
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
                    f"{type(logger).__name__} failed at step {step} ({_shown(error)}) and gets no "
                    "more of this run; training goes on"
                )


def _shown(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def _warn(text: str) -> None:
    warnings.warn(f"{text}.", RuntimeWarning, stacklevel=4)
