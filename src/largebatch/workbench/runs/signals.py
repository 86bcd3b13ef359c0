"""Stop a saved run after the current training step on SIGTERM or Ctrl-C."""

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
    """Stop the run on all ranks after the same training step when a signal arrives.

    Signals are handled while the context is open, and only in the main thread. A second Ctrl-C
    interrupts the run immediately. Under torchrun, a second Ctrl-C does not interrupt the run
    immediately, because torchrun sends a second signal itself and kills a process that does not end
    in time. A signal that was ignored before, such as Ctrl-C under nohup, is still ignored.

    Args:
        control: Controller of the run.
        announce: Function that the handler of the first signal calls. The signal can interrupt any
            code, including code that prints.

    Raises:
        Stopped: A signal stopped the run. The error holds the signal's number.
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
