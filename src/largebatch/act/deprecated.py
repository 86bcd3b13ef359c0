"""Methods of 0.1 that are functions now; removed in 0.3.

The functions stand in `checks`, which imports this package. So they are reached through the public
names, when a method is called.
"""

from __future__ import annotations

import warnings
from typing import Any


def call_check(control: Any, *inputs: Any, seconds: float) -> Any:
    """Warns and calls `lb.check(control, *inputs)`."""
    import largebatch

    names = ", ".join(("control", "loss", "batch")[: 1 + len(inputs)])
    _warn(old="control.check", new=f"lb.check({names})")
    return largebatch.check(control, *inputs, seconds=seconds)


def call_fit_micro_batch(control: Any, loss: Any, **options: Any) -> Any:
    """Warns and calls `lb.fit_micro_batch(control, loss)`."""
    import largebatch

    _warn(old="control.fit_micro_batch", new="lb.fit_micro_batch(control, loss)")
    return largebatch.fit_micro_batch(control, loss, **options)


def _warn(*, old: str, new: str) -> None:
    warnings.warn(
        f"{old} is a function now, and the method is removed in 0.3. Write {new}.",
        DeprecationWarning,
        stacklevel=4,  # the line that calls the method
    )
