"""Keeps an error that arises within the user's forward or backward until the backward is over."""

from __future__ import annotations

from collections.abc import Callable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


class DeferredErrors:
    """Runs functions within the user's calls; the first error is raised later, by `check`.

    Mutable: holds that error. While there is one, no function runs.

    Args:
        defer: whether errors wait; if False, they are raised where they arise.
    """

    def __init__(self, *, defer: bool) -> None:
        self._defer = defer
        self._error: Exception | None = None

    def guard(self, function: Callable[P, R]) -> Callable[P, R | None]:
        """Return the function, which returns None if an error waits."""
        if not self._defer:
            return function

        def guarded(*args: P.args, **kwargs: P.kwargs) -> R | None:
            if self._error is not None:
                return None
            try:
                return function(*args, **kwargs)
            except Exception as error:  # it must not reach the user's forward or backward
                self._error = error
                return None

        return guarded

    def clear(self) -> None:
        """Forget the error."""
        self._error = None

    def check(self) -> None:
        """Raise the error that waits, and forget it.

        Raises:
            Exception: whatever a function has raised.
        """
        error, self._error = self._error, None
        if error is not None:
            raise error
