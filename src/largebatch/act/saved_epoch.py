"""A resumed run keeps the epoch that it was started with."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from largebatch.core.decider import Decider


def with_saved_epoch(decider: Decider, plain: Any) -> Decider:
    """Return the decider with the `dataset_size` of a saved state.

    It is for an epoch that was counted: the count follows the number of ranks, and version 0.1
    counted the data set behind the loader. Budgets and schedules were fixed with the saved number.
    Whether the data are the same is checked by the state of the loader.
    """
    if not isinstance(plain, Mapping) or "dataset_size" not in plain:
        return decider
    return replace(decider, dataset_size=plain["dataset_size"])


def warn_of_other_epoch(*, saved: int | None, counted: int | None) -> None:
    """Warn if a resumed run keeps another number than its loader gives now."""
    if saved != counted:
        warnings.warn(
            f"The run was started with {saved} samples in an epoch, but one pass of this loader "
            f"over all ranks has {counted}. The run resumes with {saved}, so that its budget and "
            "schedules stay as they were. To use the new number, start a new run.",
            stacklevel=4,
        )
