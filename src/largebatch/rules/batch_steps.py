"""Batches as trainers of language models have them: by strings of steps, or as a ramp.

    "0:768 250B:1536"    768 from the beginning, 1536 from 250 billion on
    ramp                 start + increment floor(samples seen / (ramp samples / increments))

The forms of NVIDIA's Megatron-LM, `--step-batch-size-schedule` and the former
`--rampup-batch-size`. Both fill the table of `Growth`, in absolute batches.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from largebatch.core.amounts import parse_amount
from largebatch.core.measurement import Budget
from largebatch.rules.growth import Growth
from largebatch.rules.stages import Stages

MAX_AMOUNT = 10**18
"""Samples or tokens, far more than any run has."""

EXAMPLE = "0:768 250B:1536 500B:3072"


def parse_steps(text: str) -> tuple[tuple[int, int], ...]:
    """Return (threshold, batch) of each step in a string of them.

    >>> parse_steps("0:768 1.5K:1536")
    ((0, 768), (1500, 1536))

    Args:
        text: "threshold:batch" with spaces or commas between. Both numbers may be written in each
            form that `core.amounts` reads: 250B, 250G, 2.5e11.

    Raises:
        ValueError: another form, a first threshold that is not 0, thresholds that do not rise, or a
            batch of 0.
    """
    steps = [_step(piece, text) for piece in text.replace(",", " ").split()]
    for (before, _), (after, _) in pairwise(steps):
        if after <= before:
            raise ValueError(
                f'The thresholds rise, as in "{EXAMPLE}"; in {text!r} {after} comes after {before}.'
            )
    if not steps or steps[0][0] != 0 or any(batch < 1 for _, batch in steps):
        raise ValueError(
            "The first step begins at 0, and each batch is at least 1, as in "
            f'"{EXAMPLE}"; got {text!r}.'
        )
    return tuple(steps)


def _step(piece: str, text: str) -> tuple[int, int]:
    """Return one step's threshold and batch."""
    amounts = [parse_amount(part) for part in piece.split(":")]
    numbers = [one.whole for one in amounts if one is not None and one.unit == "samples"]
    if len(amounts) != 2 or len(numbers) != 2:
        raise ValueError(
            f'A step is threshold:batch, as in "{EXAMPLE}"; got {piece!r} in {text!r}.'
        )
    sound = [n for n in numbers if n is not None and 0 <= n <= MAX_AMOUNT]
    if len(sound) != 2:
        raise ValueError(
            "A step's threshold and batch are whole numbers from 0 to "
            f'{MAX_AMOUNT:.0e}, as in "{EXAMPLE}"; got {piece!r} in {text!r}.'
        )
    return sound[0], sound[1]


def growth_by_steps(text: str, *, tokens_per_sample: int = 1) -> Growth:
    """The batches of a string of steps; the learning rate is left as it is.

    >>> growth_by_steps("0:768 4K:1536", tokens_per_sample=3).over.samples
    1334

    Args:
        text: as `parse_steps` reads it; a threshold counts once it is reached.
        tokens_per_sample: the length of a sequence where thresholds are in tokens; 1 where they
            are in samples.

    Raises:
        ValueError: a string that `parse_steps` refuses, or a length below 1.

    Reference: Megatron-LM's `--step-batch-size-schedule`.
    """
    if tokens_per_sample < 1:
        raise ValueError(
            f"tokens_per_sample is the length of a sequence, as in tokens_per_sample=8192; got "
            f"{tokens_per_sample!r}."
        )
    steps = parse_steps(text)
    begins = [-(-threshold // tokens_per_sample) for threshold, _ in steps]
    return growth_at_samples(begins, [batch for _, batch in steps])


def growth_by_ramp(*, start: int, increment: int, samples: int, size: int) -> Growth:
    """The batch rises in equal increments over the first samples, and then stays.

    >>> growth_by_ramp(start=16, increment=8, samples=400, size=32).stages.batch
    (16, 24, 32)

    Args:
        start: the first batch.
        increment: what each stage adds; it divides `size` - `start`.
        samples: those seen when `size` is reached.
        size: the last batch.

    Raises:
        ValueError: numbers below 1, or increments that do not lead to `size`.

    Reference: Megatron-LM's former `--rampup-batch-size`.
    """
    if min(start, increment, samples) < 1 or size <= start or (size - start) % increment:
        raise ValueError(
            "A ramp goes from its start to the size in whole increments, as in "
            f"batch_ramp(start=16, increment=8, samples=300_000, size=1024); got start={start}, "
            f"increment={increment}, samples={samples}, size={size}."
        )
    count = (size - start) // increment
    begins = [-(-m * samples // count) for m in range(count + 1)]
    return growth_at_samples(begins, [start + increment * m for m in range(count + 1)])


def growth_at_samples(begins: Sequence[int], batches: Sequence[int]) -> Growth:
    """Absolute batches from these samples on, the first from 0 on.

    >>> growth_at_samples([0, 100, 400], [8, 16, 32]).at
    (0.25, 1.0)

    Raises:
        ValueError: two that begin at the same sample.
    """
    if len(set(begins)) < len(begins):
        raise ValueError(
            f"Each batch begins later than the one before, at least one sample; got {begins}."
        )
    over = Budget(samples=max(begins[-1], 1))
    at = tuple([begin / over.amount for begin in begins[1:]])
    return Growth(stages=Stages(batch=tuple(batches), of=1), at=at, over=over)
