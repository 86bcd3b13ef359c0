"""What an optimizer and a rule say about each other."""

from __future__ import annotations

import inspect

from torch.optim import Optimizer

from largebatch.checks.finding import Finding
from largebatch.core.decider import Decider
from largebatch.core.rule import within
from largebatch.measure.preconditioned import PreconditionedNorms
from largebatch.rules import AdaScale, ClampBatch


def check_closure(optimizer: Optimizer) -> list[Finding]:
    """Whether a step can be taken without a closure; the optimizer is a copy that may be stepped,
    its parameters have gradients."""
    name = type(optimizer).__name__
    closure = inspect.signature(type(optimizer).step).parameters.get("closure")
    required = closure is not None and closure.default is inspect.Parameter.empty
    cause = "step(closure) needs one"
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
            seen=f"{name} takes no step without a closure: {cause}.",
            why="L-BFGS, SAM and their like compute several gradients in a step, so there is no "
            "one gradient to decide about.",
            remedy="torch.optim.SGD(model.parameters(), lr=0.1)",
        )
    ]


def check_rule(optimizer: Optimizer, decider: Decider) -> list[Finding]:
    """Returns what the rule says about the optimizer, the base batch and the data set: AdaScale for
    Adam, a batch below the base batch, a batch above the data set."""
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
        seen=f"AdaScale measures the bare gradient, and {optimizer} divides "
        "it by its own running size.",
        why="The gain is derived for SGD, and the noise of Adam's step is another one.",
        remedy='lb.AdaScale(statistic="preconditioned_moments", exponent=0.5)',
    )


def _below_base(batch: int, base: int) -> Finding:
    return Finding(
        name="base batch",
        level="note",
        seen=f"The batch has {batch} samples and the base batch {base}: a scale of "
        f"{batch / base:.3g}.",
        why="Below 1 rules lower the learning rate; they are made for larger batches.",
        remedy="base_batch_size is the batch for which the learning rate was tuned.",
    )


def _above_dataset(largest: int, size: int, *, grows: bool) -> Finding:
    return Finding(
        name="data set",
        level="note",
        seen=f"The data set has {size} samples and the largest batch {largest}.",
        why="A step then uses samples more than once, and its noise is not that of fresh ones.",
        remedy=f"lb.chain(rule, lb.ClampBatch(max={size}))"
        if grows
        else f"batch_size={size} or less",
    )
