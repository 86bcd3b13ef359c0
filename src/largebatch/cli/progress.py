"""How a run shows on the terminal: one live line, or plain lines where nobody watches."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.live import Live
from rich.text import Text

from largebatch.commands.results import Progress


class ProgressLine:
    """A line that follows the run; call it with what the run reports.

    Mutable: holds the last report.

    Args:
        console: of stderr, so that results alone go to stdout.
        parts: plain lines a run where the console is no terminal.
        silent: whether to show nothing, as on all ranks but the first.
    """

    def __init__(self, console: Console, *, parts: int = 10, silent: bool = False) -> None:
        self.console, self.parts, self.silent = console, parts, silent
        self._label, self._line, self._written = "", "loading", 0
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
        self._follow(report.label, report.fraction, line_of(report))

    def counting(self, label: str) -> Callable[[int, int], None]:
        """What to call with (steps done, steps in all) of something that reports no more."""

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


def line_of(progress: Progress) -> str:
    """One line about a run after a step.

    >>> line_of(Progress(label="digits", step=3, samples=384, batch_size=128,
    ...     lr_multiplier=2.5, loss=0.5, fraction=0.1))
    'digits   10 %  step 3  samples 384  batch 128  lr x2.50  loss 0.500'
    """
    cut = " (last, cut)" if progress.cut else ""
    loss = "" if progress.loss is None else f"  loss {progress.loss:.3f}"
    return (
        f"{progress.label}  {100 * progress.fraction:3.0f} %  step {progress.step}  "
        f"samples {progress.samples}  batch {progress.batch_size}{cut}  "
        f"lr x{progress.lr_multiplier:.2f}{loss}"
    )
