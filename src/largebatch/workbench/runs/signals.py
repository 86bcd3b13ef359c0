"""SIGTERM and Ctrl-C end a saved run after the step in hand."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from largebatch.act.controller import Controller
from largebatch.core.errors import Stopped
from largebatch.workbench.runs.launcher import launched


@contextmanager
def stopping(control: Controller, *, announce: Callable[[], None] | None = None) -> Iterator[None]:
    """Stop the run at the first signal while the context is open, all ranks at the same step.

    A second Ctrl-C interrupts at once, but not under torchrun, which sends its own after each; it
    kills what does not end in time. A signal that is ignored stays so, as Ctrl-C under nohup.
    Outside the main thread nothing is caught.

    Args:
        control: of the run.
        announce: called by the first signal, which may interrupt anything, printing too.

    Raises:
        Stopped: with the signal that was caught.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    caught: list[int] = []

    def on_signal(number: int, frame: FrameType | None) -> None:
        if caught and number == signal.SIGINT and not launched():
            raise KeyboardInterrupt
        caught.append(number)
        control.stop()
        if announce is not None and len(caught) == 1:
            announce()

    before = {
        number: signal.signal(number, on_signal)
        for number in (signal.SIGINT, signal.SIGTERM)
        if signal.getsignal(number) is not signal.SIG_IGN
    }
    try:
        yield
    except Stopped as stopped:
        if caught:
            stopped.signal = caught[0]
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
