"""Return a schedule by its name or by a string of batch sizes, as rules that need no measurement.

In a run, some schedules grow the batch only up to the measured noise scale. A caller of this module
passes the noise scale, so that the steps can be counted before the run.
"""

from __future__ import annotations

import difflib
import math

from largebatch.core.rule import Rule
from largebatch.methods import METHODS, SCHEDULES, batch_steps
from largebatch.rules.batch_steps import parse_steps

EXAMPLE = '"0:768 250B:1536"'

NAMES = tuple(SCHEDULES)
"""Names of the schedules, besides the methods whose steps can be counted before the run."""


def schedule_named(
    text: str, *, base_batch_size: int, noise_scale: float | None = None, most: int | None = None
) -> Rule:
    """Return the rules of a schedule given by its name or as a string.

    >>> schedule_named("0:768 250B:1536", base_batch_size=768).rules[0].over.samples
    250000000000

    Args:
        text: Name in `NAMES` or `METHODS`, or a string that `lb.methods.batch_steps` accepts.
        base_batch_size: Base batch size B0 in samples; every limit on the batch size is at least
            B0.
        noise_scale: Gradient noise scale in samples, up to which the schedules seesaw and smith
            increase the batch size; None for no limit.
        most: Largest batch size of the schedules seesaw and smith, in samples; None for no limit.

    Raises:
        ValueError: The name is unknown, the string is invalid, or the noise scale is not above 0.
    """
    if noise_scale is not None and not 0.0 < noise_scale < math.inf:
        raise ValueError(
            f"noise_scale={noise_scale!r} was given, but the noise scale must be a finite number "
            "of samples above 0. Pass noise_scale=4000"
        )
    if ":" in text:
        parse_steps(text)
        return batch_steps(text)
    method = SCHEDULES.get(text) or METHODS.get(text)
    if method is not None and method.noise_bounded:
        bounds = [] if noise_scale is None else [math.ceil(noise_scale)]
        bounds += [] if most is None else [most]
        bound = max(min(bounds), base_batch_size) if bounds else None
        return method.rule(kappa=None, max=bound)
    if method is not None:
        return method.rule()
    known = sorted({*NAMES, *METHODS})
    close = difflib.get_close_matches(text, known, n=1)
    raise ValueError(
        f"There is no schedule {text!r}."
        + (f" Did you mean {close[0]!r}?" if close else "")
        + f" Pass one of {', '.join(NAMES)}, a string such as {EXAMPLE}, or the path of a schedule "
        "file."
    )
