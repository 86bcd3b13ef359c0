"""Define the error for single examples that cannot be measured."""

from __future__ import annotations

from largebatch.core.errors import LargeBatchError


class ExamplesRefused(LargeBatchError):
    """Report that single examples of a backward call cannot be measured."""
