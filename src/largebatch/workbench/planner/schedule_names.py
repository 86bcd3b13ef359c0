"""Schedules by their names and by strings of steps, each as rules on the clock alone.

What the noise scale bounds in a run is bounded here by the one that is given, so that the steps
are known before.
"""

from __future__ import annotations

import difflib
import math

from largebatch.core.rule import Rule
from largebatch.methods import METHODS, SCHEDULES, batch_steps
from largebatch.rules.batch_steps import parse_steps

EXAMPLE = '"0:768 250B:1536"'

NAMES = tuple(SCHEDULES)
"""The names; a string of steps is a schedule, too, and each method that decides by the clock."""


def schedule_named(
    text: str, *, base_batch_size: int, noise_scale: float | None = None, most: int | None = None
) -> Rule:
    """The rules that a name or a string of steps means.

    >>> schedule_named("0:768 250B:1536", base_batch_size=768).rules[0].over.samples
    250000000000

    Args:
        text: one of `NAMES`, of `METHODS`, or steps as `lb.methods.batch_steps` takes them.
        base_batch_size: B0, in samples, below which no bound goes.
        noise_scale: in samples; bounds the batches of seesaw and smith. None for no such bound.
        most: largest batch in samples, of seesaw and smith; None for no bound.

    Raises:
        ValueError: neither, or a noise scale that is not above 0.
    """
    if noise_scale is not None and not 0.0 < noise_scale < math.inf:
        raise ValueError(
            f"noise_scale={noise_scale!r} is not a number of samples above 0. Pass noise_scale=4000"
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
        + f" Known: {', '.join(NAMES)}, a string of steps such as {EXAMPLE}, and a schedule file."
    )
