"""Keep the epoch length with which a resumed run was started."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from largebatch.core.decider import Decider


def with_saved_epoch(decider: Decider, plain: Any) -> Decider:
    """Return the decider with the `dataset_size` of a saved state.

    Use `with_saved_epoch` if the epoch length was counted from a loader. The count depends on the
    number of ranks, and version 0.1 counted the data set behind the loader. Budgets and schedules
    were computed from the saved number, so a resumed run keeps it. The loader checks in its own
    state whether the data are the same.
    """
    if not isinstance(plain, Mapping) or "dataset_size" not in plain:
        return decider
    return replace(decider, dataset_size=plain["dataset_size"])


def warn_of_other_epoch(*, saved: int | None, counted: int | None) -> None:
    """Warn if the saved number of samples per epoch, which a resumed run keeps, is not the number
    that the loader gives now.
    """
    if saved != counted:
        warnings.warn(
            f"The saved run has {saved} samples per epoch, but one pass of this loader over all "
            f"ranks has {counted} samples. The run resumes with {saved}, so that its budget and "
            "schedules do not change. To use the new number, start a new run.",
            stacklevel=4,
        )
