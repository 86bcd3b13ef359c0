"""Show the progress of a run: one live line on a terminal, a few plain lines elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.live import Live
from rich.text import Text

from largebatch.workbench.cli.pace import Pace
from largebatch.workbench.runs.launcher import launched_rank
from largebatch.workbench.runs.results import Progress

WIDTH = 120
"""Width in columns of a progress line if the output is not a terminal."""


class ProgressLine:
    """Show each progress report of a run as one line. Mutable: holds the last report.

    Args:
        console: Console on stderr; stdout is for results only.
        parts: Number of plain lines per run if the console is not a terminal.
        silent: If true, nothing is shown; used on all ranks except the first.
    """

    def __init__(self, console: Console, *, parts: int = 10, silent: bool = False) -> None:
        self.console, self.parts, self.silent = console, parts, silent
        self._label, self._line, self._written = "", "loading", 0
        self._pace = Pace()
        self._live = (
            Live(console=console, get_renderable=self._shown, transient=True, refresh_per_second=8)
            if console.is_terminal and not silent
            else None
        )

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def __call__(self, report: Progress | str) -> None:
        if isinstance(report, str):
            if not self.silent:
                self._print(report)
            return
        if report.label != self._label:
            self._pace = Pace()
        self._pace.see(samples=report.samples, fraction=report.fraction)
        width = self.console.width if self._live is not None else WIDTH
        self._follow(report.label, report.fraction, line_of(report, pace=self._pace, width=width))

    def counting(self, label: str) -> Callable[[int, int], None]:
        """Return a function that shows (steps done, total steps) under the given label."""

        def count(done: int, total: int) -> None:
            fraction = done / total
            self._follow(label, fraction, f"{label}  {100 * fraction:3.0f} %  step {done}")

        return count

    def _follow(self, label: str, fraction: float, line: str) -> None:
        if label != self._label:
            self._written = 0
        self._label, self._line = label, line
        reached = int(fraction * self.parts + 1e-9)
        if self._live is None and not self.silent and reached > self._written:
            self._written = reached
            self._print(line)

    def _print(self, text: str) -> None:
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def _shown(self) -> Text:
        return Text(self._line, no_wrap=True, overflow="ellipsis")


def progress_on_stderr(*, parts: int = 10) -> ProgressLine:
    """Return a progress line on stderr, which only the first rank shows."""
    return ProgressLine(Console(stderr=True), parts=parts, silent=launched_rank() > 0)


def line_of(progress: Progress, *, pace: Pace | None = None, width: int = WIDTH) -> str:
    """Return one line about a run after a training step; unknown values are left out.

    If the line could exceed `width` columns, the samples are left out first, then the step, then
    the gain, because the percentage and the learning rate contain similar information. Space for
    the speed is always reserved, so that all lines of a run show the same values.

    >>> line_of(Progress(label="digits", step=3, samples=384, batch_size=128, lr=0.25,
    ...     lr_multiplier=2.5, gain=2.0, loss=0.5, fraction=0.1))
    'digits   10 %  step 3  samples 384  batch 128  loss 0.500  lr 0.25 x2.50  gain 2.00'

    Args:
        progress: Report of the run after a training step.
        pace: Speed of the run, or None to leave out speed and remaining time.
        width: Largest length of the line in columns.
    """
    parts = _parts(progress)
    for least in ("samples", "step", "gain"):
        if len(_joined(parts.values())) + len("  98.8k/s  ETA 59m59s") > width:
            parts[least] = ""
    if pace is not None:
        speed, left = pace.samples_per_second, pace.seconds_left
        parts["speed"] = "" if speed is None else f"{_rounded(speed)}/s"
        parts["left"] = "" if left is None else f"ETA {_lasting(left)}"
    return _joined(parts.values())


def _parts(progress: Progress) -> dict[str, str]:
    cut = " (last)" if progress.cut else ""
    rate = "lr" if progress.lr is None else f"lr {progress.lr:.3g}"
    noise, adam_noise = progress.noise_scale, progress.adam_noise_scale
    return {
        "label": f"{progress.label}  {100 * progress.fraction:3.0f} %",
        "left": "",
        "step": f"step {progress.step}",
        "samples": f"samples {progress.samples}",
        "batch": f"batch {progress.batch_size}{cut}",
        "loss": "" if progress.loss is None else f"loss {progress.loss:.3f}",
        "lr": f"{rate} x{progress.lr_multiplier:.2f}",
        "gain": "" if progress.gain is None else f"gain {progress.gain:.2f}",
        "noise": "" if noise is None else f"noise {_rounded(noise)}",
        "adam noise": "" if adam_noise is None else f"noise (Adam) {_rounded(adam_noise)}",
        "skipped": f"skipped {progress.skipped}" if progress.skipped else "",
    }


def _joined(parts: Iterable[str]) -> str:
    return "  ".join(part for part in parts if part)


def _rounded(value: float) -> str:
    """Format a value with three digits; from 10,000 on, in thousands (k) or millions (M).

    >>> _rounded(0.1234), _rounded(1234.5), _rounded(98765.0), _rounded(2.5e6)
    ('0.123', '1230', '98.8k', '2.5M')
    """
    rounded = float(f"{value:.3g}")
    for unit, name in ((1e6, "M"), (1e3, "k")):
        if rounded >= max(unit, 1e4):
            return f"{rounded / unit:g}{name}"
    return f"{rounded:g}"


def _lasting(seconds: float) -> str:
    """Format a time with its two largest units.

    >>> _lasting(0.4), _lasting(59.7), _lasting(200), _lasting(7500), _lasting(100_000)
    ('1s', '1m00s', '3m20s', '2h05m', '1d04h')
    """
    whole = max(round(seconds), 1)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    minutes = round(seconds / 60)
    if minutes < 24 * 60:
        return f"{minutes // 60}h{minutes % 60:02d}m"
    hours = round(seconds / 3600)
    return f"{hours // 24}d{hours % 24:02d}h"
