"""Read the length of a run as the user gives it: one amount in one unit."""

from __future__ import annotations

import math
from collections.abc import Mapping

from largebatch.core.measurement import Budget


def budget_of(units: Mapping[str, float | None], *, dataset_size: int | None) -> Budget:
    """Return the budget from the one unit that is not None.

    Args:
        units: Amount for each unit ("base_steps", "samples", "epochs" or "steps"); all but one are
            None.
        dataset_size: Number of samples in one epoch; None if unknown.

    Raises:
        ValueError: No unit or more than one was given, the amount is not above 0, or epochs were
            given and their length is unknown.
    """
    given = {unit: amount for unit, amount in units.items() if amount is not None}
    if len(given) != 1 or not all(0 < amount < math.inf for amount in given.values()):
        raise ValueError(
            f"control.steps needs exactly one amount above 0, but got {given or 'none'}. Pass one "
            "of epochs=90, samples=5_000_000, base_steps=10_000 or steps=500, as in "
            "control.steps(epochs=90)."
        )
    ((unit, amount),) = given.items()
    if unit == "base_steps":
        return Budget(base_steps=amount)
    if unit == "steps":
        return Budget(steps=max(round(amount), 1))
    if unit == "epochs":
        if dataset_size is None:
            raise ValueError(
                "A budget in epochs was given, but the number of samples that this loader gives in "
                "one pass is unknown. Pass that number, "
                "lb.BatchLoader(loader, batch_size=64, dataset_size=60_000), or "
                "give the budget in samples: control.steps(samples=5_000_000)."
            )
        amount *= dataset_size
    return Budget(samples=max(round(amount), 1))


def budget_text(budget: Budget) -> str:
    """Return a budget as the user writes it in a call, for example `steps=500`."""
    return f"{budget.unit}={budget.amount:.12g}"
