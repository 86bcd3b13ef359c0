"""Read batch schedules in the forms of language-model trainers: strings of steps, or a ramp.

    "0:768 250B:1536"    batch size 768 from the start, 1536 from 250 billion samples on
    ramp                 start + increment * floor(samples seen / (ramp samples / increments))

NVIDIA's Megatron-LM reads schedules in two options: `--step-batch-size-schedule` and the former
`--rampup-batch-size`. Both forms fill the table of `Growth` with absolute batch sizes.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from largebatch.core.amounts import parse_amount
from largebatch.core.measurement import Budget
from largebatch.rules.growth import Growth
from largebatch.rules.stages import Stages

MAX_AMOUNT = 10**18
"""Largest number of samples or tokens that is accepted; no real run has more."""

EXAMPLE = "0:768 250B:1536 500B:3072"


def parse_steps(text: str) -> tuple[tuple[int, int], ...]:
    """Return the threshold and the batch size of each step in a string.

    >>> parse_steps("0:768 1.5K:1536")
    ((0, 768), (1500, 1536))

    Args:
        text: Pairs "threshold:batch", separated by spaces or commas. The threshold and the batch
            size may be written in every form that `core.amounts` reads: 250B, 250G, 2.5e11.

    Raises:
        ValueError: If the string has another form, if the first threshold is not 0, if the
            thresholds do not rise, or if a batch size is 0.
    """
    steps = [_step(piece, text) for piece in text.replace(",", " ").split()]
    for (before, _), (after, _) in pairwise(steps):
        if after <= before:
            raise ValueError(
                f"{text!r} was given, but its threshold {after} follows {before}, and thresholds "
                f'must rise. Example: "{EXAMPLE}"'
            )
    if not steps or steps[0][0] != 0 or any(batch < 1 for _, batch in steps):
        raise ValueError(
            f"{text!r} was given, but the first threshold must be 0 and each batch size at least "
            f'1. Example: "{EXAMPLE}"'
        )
    return tuple(steps)


def _step(piece: str, text: str) -> tuple[int, int]:
    """Return the threshold and the batch size of one step."""
    amounts = [parse_amount(part) for part in piece.split(":")]
    numbers = [one.whole for one in amounts if one is not None and one.unit == "samples"]
    if len(amounts) != 2 or len(numbers) != 2:
        raise ValueError(
            f"{text!r} was given, but its part {piece!r} is not of the form threshold:batch. "
            f'Example: "{EXAMPLE}"'
        )
    sound = [n for n in numbers if n is not None and 0 <= n <= MAX_AMOUNT]
    if len(sound) != 2:
        raise ValueError(
            f"{text!r} was given, but threshold and batch size in its part {piece!r} must be whole "
            f'numbers from 0 to {MAX_AMOUNT:.0e}. Example: "{EXAMPLE}"'
        )
    return sound[0], sound[1]


def growth_by_steps(text: str, *, tokens_per_sample: int = 1) -> Growth:
    """Return the rule that sets the batch sizes of a string of steps, and leaves the learning rate
    unchanged.

    >>> growth_by_steps("0:768 4K:1536", tokens_per_sample=3).over.samples
    1334

    Args:
        text: Steps in the form that `parse_steps` reads. A batch size applies from the step in
            which its threshold is reached.
        tokens_per_sample: Length of a sequence in tokens, if the thresholds count tokens; 1 if the
            thresholds count samples.

    Raises:
        ValueError: If `parse_steps` rejects the string, or if `tokens_per_sample` is below 1.

    Reference: none; the form is that of Megatron-LM's `--step-batch-size-schedule`.
    """
    if tokens_per_sample < 1:
        raise ValueError(
            f"tokens_per_sample={tokens_per_sample!r} was given, but the length of a sequence must "
            "be at least 1 token. Example: tokens_per_sample=8192"
        )
    steps = parse_steps(text)
    begins = [-(-threshold // tokens_per_sample) for threshold, _ in steps]
    return growth_at_samples(begins, [batch for _, batch in steps])


def growth_by_ramp(*, start: int, increment: int, samples: int, size: int) -> Growth:
    """Return the rule that raises the batch size in equal increments, and then keeps the last batch
    size.

    >>> growth_by_ramp(start=16, increment=8, samples=400, size=32).stages.batch
    (16, 24, 32)

    Args:
        start: First batch size, in samples.
        increment: Number of samples that each stage adds to the batch; `size` - `start` must be a
            multiple of `increment`.
        samples: Number of samples seen when the batch reaches `size`.
        size: Last batch size, in samples.

    Raises:
        ValueError: If a number is below 1, or if the increments do not end at `size`.

    Reference: none; the form is that of Megatron-LM's former `--rampup-batch-size`.
    """
    if min(start, increment, samples) < 1 or size <= start or (size - start) % increment:
        raise ValueError(
            f"start={start}, increment={increment}, samples={samples} and size={size} were given, "
            "but all numbers must be at least 1, and size must be start plus a whole number of "
            "increments. "
            "Example: batch_ramp(start=16, increment=8, samples=300_000, size=1024)"
        )
    count = (size - start) // increment
    begins = [-(-m * samples // count) for m in range(count + 1)]
    return growth_at_samples(begins, [start + increment * m for m in range(count + 1)])


def growth_at_samples(begins: Sequence[int], batches: Sequence[int]) -> Growth:
    """Return the rule that sets absolute batch sizes at given numbers of samples seen.

    >>> growth_at_samples([0, 100, 400], [8, 16, 32]).at
    (0.25, 1.0)

    Args:
        begins: Number of samples seen when each batch size begins; the first number is 0.
        batches: Batch sizes in samples, one for each entry of `begins`.

    Raises:
        ValueError: If two batch sizes begin at the same sample.
    """
    if len(set(begins)) < len(begins):
        raise ValueError(
            f"The batch sizes begin at the samples {begins}, but two of them begin at the same "
            "sample. Let each batch size begin at least one sample after the batch size before."
        )
    over = Budget(samples=max(begins[-1], 1))
    at = tuple([begin / over.amount for begin in begins[1:]])
    return Growth(stages=Stages(batch=tuple(batches), of=1), at=at, over=over)
