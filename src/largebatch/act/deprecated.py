"""Keep two methods of version 0.1, `control.check` and `control.fit_micro_batch`, until version
0.3.

The functions `lb.check` and `lb.fit_micro_batch`, which replace the two methods, are in the package
`checks`, which imports the package `act`. To avoid a circular import, this module imports
`largebatch` only when one of the methods is called.
"""

from __future__ import annotations

import warnings
from typing import Any


def call_check(control: Any, *inputs: Any, seconds: float) -> Any:
    """Warn about the deprecated method and call `lb.check(control, *inputs)`."""
    import largebatch

    names = ", ".join(("control", "loss", "batch")[: 1 + len(inputs)])
    _warn(old="control.check", new=f"lb.check({names})")
    return largebatch.check(control, *inputs, seconds=seconds)


def call_fit_micro_batch(control: Any, loss: Any, **options: Any) -> Any:
    """Warn about the deprecated method and call `lb.fit_micro_batch(control, loss)`."""
    import largebatch

    _warn(old="control.fit_micro_batch", new="lb.fit_micro_batch(control, loss)")
    return largebatch.fit_micro_batch(control, loss, **options)


def _warn(*, old: str, new: str) -> None:
    warnings.warn(
        f"{old} is deprecated and will be removed in 0.3. Call {new} instead.",
        DeprecationWarning,
        stacklevel=4,  # points to the line that calls the method
    )
