"""Raise errors for arguments that do not fit together, before any training step."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

from torch import nn
from torch.amp import GradScaler
from torch.optim import LBFGS, Optimizer

from largebatch.act.loader import BatchLoader
from largebatch.core.decider import Decider
from largebatch.core.errors import LargeBatchError
from largebatch.core.protocols import Sink
from largebatch.core.rule import Chain, Rule, name_of, within
from largebatch.measure.meter import Meter
from largebatch.rules import ClampBatch


def check_parts(
    model: nn.Module,
    optimizer: Optimizer | Sequence[Optimizer],
    record: Sink | None,
) -> None:
    """Check the model, the optimizer and the record, and that no optimizer is L-BFGS.

    Raises:
        ValueError: An argument has the wrong type, or an optimizer is L-BFGS.
    """
    members = optimizer if isinstance(optimizer, (list, tuple)) else [optimizer]
    if not isinstance(model, nn.Module) or not all(isinstance(m, Optimizer) for m in members):
        raise ValueError(
            f"The first two arguments were {_kind(model)} and {_kind(optimizer)}, but they must be "
            "a torch.nn.Module and an optimizer that was built from its parameters. For example: "
            "lb.attach(model, torch.optim.SGD(model.parameters(), lr=0.1), lb.AdaScale(), ...)."
        )
    if any(isinstance(member, LBFGS) for member in members):
        raise ValueError(
            "L-BFGS is not supported, because it computes several gradients per step and a rule "
            "decides about only one gradient. Use another optimizer: "
            "torch.optim.SGD(model.parameters(), lr=0.1)."
        )
    if isinstance(record, (str, os.PathLike)):
        raise ValueError(
            f"record={os.fspath(record)!r} is a path, but a record must be an object that "
            f"writes. Pass record=lb.JsonlRecord({os.fspath(record)!r})."
        )


def check_loads_batches(batches: object) -> None:
    """Check that the batches come from a `BatchLoader`.

    Raises:
        ValueError: Another kind of loader was given; the message shows how to wrap that loader.
    """
    if not isinstance(batches, BatchLoader):
        raise ValueError(
            f"batches is a {type(batches).__name__}, but lb.Controller needs a BatchLoader. Wrap "
            "your loader or data set: lb.BatchLoader(loader_or_dataset, batch_size=64)."
        )


def check_cap(rule: Rule, *, batch_size: int) -> None:
    """Check that the first batch is not larger than the largest batch size that the rule allows.

    Raises:
        ValueError: The first batch is larger than the rule allows; the message names both sizes.
    """
    for one in within(rule):
        if isinstance(one, ClampBatch) and one.max is not None and one.max < batch_size:
            raise ValueError(
                f"The first batch has {batch_size} samples, but the rule caps the batch size at "
                f"{one.max}. Start with a smaller batch, "
                f"lb.BatchLoader(dataset, batch_size={one.max}), or raise the cap, "
                f"lb.ClampBatch(max={batch_size})."
            )


def check_variance(decider: Decider, *, least: int) -> None:
    """Check that a rule that sets the batch size can measure a variance in the first batch.

    Args:
        decider: Decider before the first step.
        least: Smallest number of samples that a step needs for a variance.

    Raises:
        ValueError: The first batch has fewer samples than `least`.
    """
    if "batch" in decider.rule.changes and decider.batch_size < least:
        raise ValueError(
            f"The first batch has {decider.batch_size} sample, so no variance can be measured and "
            "the batch would never grow. Start with at least two samples: "
            "lb.BatchLoader(dataset, batch_size=2)."
        )


def rule_names(rules: Chain, chosen: Callable[[Rule], bool]) -> str:
    """Return the names of the rules of a chain for which `chosen` returns True."""
    return ", ".join(name_of(rule) for rule in rules.rules if chosen(rule))


def check_no_batch_rule(decider: Decider) -> None:
    """Check that no rule changes or bounds the batch size, because the user's own loader sets it.

    Raises:
        ValueError: A rule changes or bounds the batch size; the message names the rule.
    """
    names = rule_names(decider.rule, lambda rule: "batch" in rule.changes | rule.bounds)
    if names:
        raise ValueError(
            f"{names} changes or bounds the batch size, but with lb.attach your own data loader "
            "sets the batch size. Use lb.Controller, which loads the data itself: "
            "lb.Controller(model, optimizer, rule, "
            "lb.BatchLoader(dataset, batch_size=64), base_batch_size=64)."
        )


def check_not_joined(replica: nn.parallel.DistributedDataParallel | None) -> None:
    """Check that the step is not inside `model.join()`, before the ranks communicate.

    Args:
        replica: DistributedDataParallel wrapper of the model; None if the model has no such
            wrapper.

    Raises:
        LargeBatchError: torch's `Join` is active.
    """
    if replica is not None and replica._join_config.enable:
        raise LargeBatchError(
            "The model is inside model.join(), or was inside it before (torch leaves the setting "
            "on afterwards). model.join() is not supported: a rank without data takes part only "
            "in DistributedDataParallel's communication, so the other ranks would wait for it "
            "forever. Remove model.join(), give every rank the same number of batches, "
            "DistributedSampler(dataset, drop_last=True), and wrap the model again: "
            "model = DistributedDataParallel(module)."
        )


def check_patience(patience: int) -> None:
    """Check that the patience is at least 1.

    Raises:
        ValueError: The patience is below 1.
    """
    if patience < 1:
        raise ValueError(
            f"patience={patience!r} was given, but it must be a number of steps of "
            "at least 1. For example: patience=10."
        )


def check_scaler_of_one(members: Sequence[Optimizer], scaler: GradScaler | None) -> None:
    """Check that a GradScaler is used with one optimizer only.

    A GradScaler could skip the step of one of several optimizers and not the others.

    Raises:
        ValueError: An enabled scaler and several optimizers were given.
    """
    if len(members) > 1 and scaler is not None and scaler.is_enabled():
        raise ValueError(
            f"A GradScaler was given for {len(members)} optimizers, but it may skip the step of "
            "only one of them. Use bfloat16, which needs no scaler: "
            "torch.autocast(device, dtype=torch.bfloat16)."
        )


def check_one_optimizer(optimizer: object) -> None:
    """Check that `lb.Controller` was given one optimizer, because `lb.Controller` cannot step
    several optimizers together.

    Raises:
        ValueError: A list of optimizers was given.
    """
    if isinstance(optimizer, (list, tuple)):
        raise ValueError(
            f"A list of {len(optimizer)} optimizers was given, but lb.Controller takes only one. "
            "Keep your own loop: lb.attach(model, [adam, muon], rule, batch_size=512, "
            "base_batch_size=64)."
        )


def check_reduced_by_ddp(meter: Meter) -> None:
    """Check that the meter does not expect the user's own loop to average the gradients over the
    ranks.

    `lb.Controller` takes the optimizer step itself, so the user's code cannot average the gradients
    before the step.

    Raises:
        ValueError: The meter was built with `replicated=True`.
    """
    if meter.replicated:
        raise ValueError(
            "lb.Meter(model, replicated=True) was given, but lb.Controller leaves no place in the "
            "loop for your own averaging of the gradients. Wrap the model, "
            "model = torch.nn.parallel.DistributedDataParallel(model), or use lb.attach."
        )


def check_batch_size(batch_size: int) -> None:
    """Check that the batch size is a whole number of samples.

    Raises:
        ValueError: The batch size is not a whole number, or it is below 1.
    """
    if not isinstance(batch_size, int) or isinstance(batch_size, bool) or batch_size < 1:
        raise ValueError(
            f"batch_size={batch_size!r} was given, but it must be a whole number of samples of at "
            "least 1. For example: lb.watch(model, optimizer, batch_size=512)."
        )


def check_micro_batches(micro_batches: int | None) -> None:
    """Check that the number of micro-batches is at least 1.

    Raises:
        ValueError: The number is below 1.
    """
    if micro_batches is not None and micro_batches < 1:
        raise ValueError(
            f"micro_batches={micro_batches!r} was given, but it must be at least 1, "
            "or None to take the number from the first step. For example: micro_batches=4."
        )


def has_closure(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Return whether `optimizer.step` was called with a closure.

    Args:
        args, kwargs: Arguments that torch passes to a step's pre-hook; the first of `args` is the
            optimizer.
    """
    return any(callable(value) for value in (*args[1:], *kwargs.values()))


def refuse_closure(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Raise an error if `optimizer.step` was called with a closure.

    Args:
        args, kwargs: Arguments that torch passes to a step's pre-hook; the first of `args` is the
            optimizer.

    Raises:
        LargeBatchError: One of the arguments is callable.
    """
    if has_closure(args, kwargs):
        raise LargeBatchError(
            "optimizer.step(closure) runs the backward call inside the step, but the gradients are "
            "measured before the step. Run the closure before the step: closure(); "
            "optimizer.step()."
        )


def _kind(value: object) -> str:
    return f"the class {value.__name__}" if isinstance(value, type) else type(value).__name__
