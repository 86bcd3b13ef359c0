"""The error of single examples that cannot be told apart."""

from __future__ import annotations

from largebatch.core.errors import LargeBatchError


class ExamplesRefused(LargeBatchError):
    """A backward whose single examples cannot be measured."""
