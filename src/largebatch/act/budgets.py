"""A run's length as the user gives it: one amount in one unit."""

from __future__ import annotations

import math
from collections.abc import Mapping

from largebatch.core.measurement import Budget


def budget_of(units: Mapping[str, float | None], *, dataset_size: int | None) -> Budget:
    """The budget from the one unit that is not None.

    Raises:
        ValueError: no unit or several, an amount that is not above 0, epochs of an unknown length.
    """
    given = {unit: amount for unit, amount in units.items() if amount is not None}
    if len(given) != 1 or not all(0 < amount < math.inf for amount in given.values()):
        raise ValueError(
            "A run's budget is one amount above 0 in one unit, as in control.steps(epochs=90), "
            f"samples=5_000_000, base_steps=10_000 or steps=500; got {given or 'none'}."
        )
    ((unit, amount),) = given.items()
    if unit == "base_steps":
        return Budget(base_steps=amount)
    if unit == "steps":
        return Budget(steps=max(round(amount), 1))
    if unit == "epochs":
        if dataset_size is None:
            raise ValueError(
                "How many samples this loader gives in a pass is not known, so epochs have no "
                "length. Pass it, lb.BatchLoader(loader, batch_size=64, dataset_size=60_000), or "
                "give the budget in samples: control.steps(samples=5_000_000)."
            )
        amount *= dataset_size
    return Budget(samples=max(round(amount), 1))


def budget_text(budget: Budget) -> str:
    """Return a budget as it is written in a call: `steps=500`."""
    return f"{budget.unit}={budget.amount:.12g}"
