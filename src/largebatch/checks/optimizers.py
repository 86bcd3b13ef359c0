"""Check that the optimizer and the rule fit together."""

from __future__ import annotations

import inspect

from torch.optim import Optimizer

from largebatch.checks.finding import Finding
from largebatch.core.decider import Decider
from largebatch.core.rule import within
from largebatch.measure.preconditioned import PreconditionedNorms
from largebatch.rules import AdaScale, ClampBatch


def check_closure(optimizer: Optimizer) -> list[Finding]:
    """Check that the optimizer can step without a closure.

    Args:
        optimizer: Copy of the optimizer, which may be stepped; its parameters have gradients.
    """
    name = type(optimizer).__name__
    closure = inspect.signature(type(optimizer).step).parameters.get("closure")
    required = closure is not None and closure.default is inspect.Parameter.empty
    cause = "step(closure) requires one"
    if not required:
        try:
            optimizer.step()
            return []
        except Exception as error:
            cause = f"step() raised {type(error).__name__}: {error}".rstrip(": ")
    return [
        Finding(
            name="optimizer",
            level="error",
            seen=f"{name} cannot step without a closure: {cause}.",
            why="L-BFGS, SAM and similar optimizers compute several gradients per step, so a rule "
            "has no single gradient to decide about.",
            remedy="Use another optimizer: torch.optim.SGD(model.parameters(), lr=0.1).",
        )
    ]


def check_rule(optimizer: Optimizer, decider: Decider) -> list[Finding]:
    """Check the rule against the optimizer, the base batch size and the data set.

    The check reports AdaScale with Adam, a batch below the base batch size, and a batch above the
    data set's size.
    """
    found = []
    batch, base = decider.batch_size, decider.base_batch_size
    adascale = next((rule for rule in within(decider.rule) if isinstance(rule, AdaScale)), None)
    adam = PreconditionedNorms().divides(optimizer)
    if adam and adascale is not None and adascale.statistic == "moments":
        found.append(_bare_gradient(type(optimizer).__name__))
    if batch < base:
        found.append(_below_base(batch, base))
    caps = [rule.max for rule in within(decider.rule) if isinstance(rule, ClampBatch) and rule.max]
    largest = max([batch, *caps])
    size = decider.dataset_size
    if size is not None and largest > size:
        found.append(_above_dataset(largest, size, grows=largest > batch))
    return found


def _bare_gradient(optimizer: str) -> Finding:
    return Finding(
        name="AdaScale and Adam",
        level="note",
        seen=f"AdaScale measures the raw gradient, but {optimizer} divides the gradient by the "
        "square root of its running mean square.",
        why="The gain is derived for SGD, and the noise of Adam's preconditioned gradient is "
        "different.",
        remedy='Use lb.AdaScale(statistic="preconditioned_moments", exponent=0.5).',
    )


def _below_base(batch: int, base: int) -> Finding:
    return Finding(
        name="base batch",
        level="note",
        seen=f"The batch has {batch} samples and the base batch has {base} samples, so the scale "
        f"is {batch / base:.3g}.",
        why="At a scale below 1, rules lower the learning rate, but the rules are made for "
        "scales above 1.",
        remedy="Check base_batch_size: it is the batch size for which the learning rate was tuned.",
    )


def _above_dataset(largest: int, size: int, *, grows: bool) -> Finding:
    return Finding(
        name="data set",
        level="note",
        seen=f"The data set has {size} samples, but the largest batch has {largest} samples.",
        why="A step then uses samples more than once, and its noise is not that of fresh samples.",
        remedy=f"Cap the batch size: lb.chain(rule, lb.ClampBatch(max={size}))."
        if grows
        else f"Pass batch_size={size} or less.",
    )
