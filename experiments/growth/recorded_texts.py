"""Put the texts of recorded answers of `largebatch critical` into plain words.

The record holds the texts of the version that measured it.
"""

from __future__ import annotations

import re

PLAIN = (
    (
        (
            r"the batch at which the (bare gradient|gradient as Adam scales it) is as much "
            r"signal as noise\. Curvature counts alike in all directions, and the theory is "
            r"for plain SGD"
        ),
        (
            r"The answer is the batch size at which the noise of the \1 equals its squared "
            r"norm. The theory holds for SGD without momentum and for equal curvature in all"
            r" directions"
        ),
    ),
    (
        (r"bare gradient"),
        (r"raw gradient"),
    ),
    (
        (r"gradient as Adam scales it"),
        (r"preconditioned gradient"),
    ),
    (
        (
            r"the largest batch whose validation loss, averaged over the last quarter of the"
            r" ([\d,]+) samples after the fork, exceeds the base branch's by (\d+ %) of it "
            r"at most; the rate times (\S+), as for (\w+) \(\w+\)\. What a window does not "
            r"show is taken not to show later; in units of the grid"
        ),
        (
            r"The answer is the largest batch size whose validation loss exceeds that of the"
            r" base batch size by at most \2. Each branch trains on \1 samples, and its loss"
            r" is averaged over the last quarter of them. With k times the batch size, the "
            r"learning rate is multiplied by \3, as is usual for \4. A difference that "
            r"appears only after these samples is not seen, and batch sizes between those of"
            r" the grid are not tried"
        ),
    ),
    (
        (
            r"steps to a validation loss of ([\d.]+), the base batch's at (\d+%) of the run,"
            r" at each batch's best constant rate\. McCandlish: the batch with twice the "
            r"fewest steps and samples; Iiduka: the one with the fewest samples; each takes "
            r"its curve for granted"
        ),
        (
            r"The sweep counts the steps to a validation loss of \1, which the base batch "
            r"size reaches after \2 of the run. Each batch size has its best constant "
            r"learning rate. On the curve of McCandlish, the critical batch size takes twice"
            r" the smallest number of steps and twice the smallest number of samples. On the"
            r" curve of Iiduka, it takes the smallest number of samples. Both methods assume"
            r" that their curve is right"
        ),
    ),
)
"""Recorded sentences, as regular expressions -> the same sentences in plain words."""


def plain(text: str) -> str:
    """Return a text of a recorded answer in plain words.

    >>> plain("the batch with a large bare gradient")
    'the batch with a large raw gradient'
    """
    for recorded, words in PLAIN:
        text = re.sub(recorded, words, text)
    return text
