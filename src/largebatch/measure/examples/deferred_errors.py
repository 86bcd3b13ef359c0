"""Keep an error that is raised within the user's backward call until the call has ended."""

from __future__ import annotations

from collections.abc import Callable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


class DeferredErrors:
    """Run functions within the user's calls, and raise their first error later in `check`.

    Mutable: holds the first error. After an error, no function runs until `check` or `clear`.

    Args:
        defer: Whether errors are raised later; if False, they are raised immediately.
    """

    def __init__(self, *, defer: bool) -> None:
        self._defer = defer
        self._error: Exception | None = None

    def guard(self, function: Callable[P, R]) -> Callable[P, R | None]:
        """Wrap a function so that its errors are kept, and it does not run after an error."""
        if not self._defer:
            return function

        def guarded(*args: P.args, **kwargs: P.kwargs) -> R | None:
            if self._error is not None:
                return None
            try:
                return function(*args, **kwargs)
            except Exception as error:  # the user's call must not fail
                self._error = error
                return None

        return guarded

    def clear(self) -> None:
        """Discard the kept error."""
        self._error = None

    def check(self) -> None:
        """Raise the kept error once; do nothing if no error was kept.

        Raises:
            Exception: The first error that a function raised.
        """
        error, self._error = self._error, None
        if error is not None:
            raise error
