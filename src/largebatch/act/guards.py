"""Refuses parts that do not fit together, before any training step."""

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
    """Refuses what is no model, no optimizer or no record, and L-BFGS.

    Raises:
        ValueError: with a line to paste.
    """
    members = optimizer if isinstance(optimizer, (list, tuple)) else [optimizer]
    if not isinstance(model, nn.Module) or not all(isinstance(m, Optimizer) for m in members):
        raise ValueError(
            "model comes first and is a torch.nn.Module, then an optimizer that was built from it; "
            f"got {_kind(model)} and {_kind(optimizer)}. "
            "lb.attach(model, torch.optim.SGD(model.parameters(), lr=0.1), lb.AdaScale(), ...)"
        )
    if any(isinstance(member, LBFGS) for member in members):
        raise ValueError(
            "L-BFGS calls its closure several times in a step, so there is no one gradient to "
            "decide about. Use another optimizer: torch.optim.SGD(model.parameters(), lr=0.1)."
        )
    if isinstance(record, (str, os.PathLike)):
        raise ValueError(
            f"A record is an object that writes, not a path: lb.JsonlRecord({os.fspath(record)!r})."
        )


def check_loads_batches(batches: object) -> None:
    """Refuses to load through anything but a `BatchLoader`.

    Raises:
        ValueError: another loader, with the line that wraps it.
    """
    if not isinstance(batches, BatchLoader):
        raise ValueError(
            f"The Controller loads through a BatchLoader; got {type(batches).__name__}. Wrap "
            "it: lb.BatchLoader(loader_or_dataset, batch_size=64)."
        )


def check_cap(rule: Rule, *, batch_size: int) -> None:
    """Refuses a first batch that is larger than a rule allows.

    Raises:
        ValueError: naming both sizes.
    """
    for one in within(rule):
        if isinstance(one, ClampBatch) and one.max is not None and one.max < batch_size:
            raise ValueError(
                f"The batch starts at {batch_size} samples, above its cap of {one.max}. Start at "
                f"or below it, lb.BatchLoader(dataset, batch_size={one.max}), or raise it, "
                f"lb.ClampBatch(max={batch_size})."
            )


def check_variance(decider: Decider, *, least: int) -> None:
    """Refuses a first batch from which a rule that sets the batch would never see a variance.

    Args:
        decider: before the first step.
        least: samples that a step needs for a variance.

    Raises:
        ValueError: fewer samples than that.
    """
    if "batch" in decider.rule.changes and decider.batch_size < least:
        raise ValueError(
            f"A batch of {decider.batch_size} sample has no variance, so it would never grow. "
            "Start with two or more: lb.BatchLoader(dataset, batch_size=2)."
        )


def rule_names(rules: Chain, chosen: Callable[[Rule], bool]) -> str:
    """Return the names of the rules of a chain for which `chosen` is true."""
    return ", ".join(name_of(rule) for rule in rules.rules if chosen(rule))


def check_no_batch_rule(decider: Decider) -> None:
    """Refuses a rule that changes or bounds the batch, where the user's own loader makes it.

    Raises:
        ValueError: naming the rule.
    """
    names = rule_names(decider.rule, lambda rule: "batch" in rule.changes | rule.bounds)
    if names:
        raise ValueError(
            f"{names} changes or bounds the batch, but under lb.attach your own loader makes it. "
            "Hand loading over: lb.Controller(model, optimizer, rule, "
            "lb.BatchLoader(dataset, batch_size=64), base_batch_size=64)."
        )


def check_not_joined(replica: nn.parallel.DistributedDataParallel | None) -> None:
    """Refuses a step within `model.join()`, before the ranks communicate.

    Args:
        replica: the model's DistributedDataParallel; None without one.

    Raises:
        LargeBatchError: torch's `Join` is on.
    """
    if replica is not None and replica._join_config.enable:
        raise LargeBatchError(
            "The model is in a model.join() context, or was in one before, which torch leaves on. "
            "A rank that has run out of data takes part in DistributedDataParallel's "
            "communication alone, so the other ranks would wait for it here without end. Leave "
            "model.join() out, give every rank equally many batches, "
            "DistributedSampler(dataset, drop_last=True), and wrap the model anew: "
            "model = DistributedDataParallel(module)."
        )


def check_patience(patience: int) -> None:
    """Refuses a patience below 1.

    Raises:
        ValueError: naming it.
    """
    if patience < 1:
        raise ValueError(f"patience is a number of steps, at least 1; got {patience!r}.")


def check_scaler_of_one(members: Sequence[Optimizer], scaler: GradScaler | None) -> None:
    """Refuse a gradient scaler for several optimizers, of which it could skip one alone.

    Raises:
        ValueError: an enabled scaler and several optimizers.
    """
    if len(members) > 1 and scaler is not None and scaler.is_enabled():
        raise ValueError(
            f"A GradScaler was given for {len(members)} optimizers, and it may skip the step of "
            "one of them alone. Use bfloat16, which needs no scaler: "
            "torch.autocast(device, dtype=torch.bfloat16)."
        )


def check_one_optimizer(optimizer: object) -> None:
    """Refuse a list of optimizers, which `lb.Controller` cannot step together.

    Raises:
        ValueError: naming the remedy.
    """
    if isinstance(optimizer, (list, tuple)):
        raise ValueError(
            f"lb.Controller takes one optimizer; got a list of {len(optimizer)}. Keep your own "
            "loop: lb.attach(model, [adam, muon], rule, batch_size=512, base_batch_size=64)."
        )


def check_reduced_by_ddp(meter: Meter) -> None:
    """Refuse a meter for gradients that the user reduces: `lb.Controller` leaves no place for it.

    Raises:
        ValueError: naming the remedy.
    """
    if meter.replicated:
        raise ValueError(
            "lb.Meter(model, replicated=True) is for a loop that averages the gradients by itself, "
            "and lb.Controller has no such place. Use "
            "model = torch.nn.parallel.DistributedDataParallel(model), or lb.attach."
        )


def check_batch_size(batch_size: int) -> None:
    """Refuse a batch size that is no whole number of samples.

    Raises:
        ValueError: naming it.
    """
    if not isinstance(batch_size, int) or isinstance(batch_size, bool) or batch_size < 1:
        raise ValueError(
            f"batch_size is a whole number of samples, at least 1; got {batch_size!r}. "
            "lb.watch(model, optimizer, batch_size=512)"
        )


def check_micro_batches(micro_batches: int | None) -> None:
    """Refuse a number of micro-batches below 1.

    Raises:
        ValueError: naming it.
    """
    if micro_batches is not None and micro_batches < 1:
        raise ValueError(f"micro_batches is at least 1; got {micro_batches!r}.")


def has_closure(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Return whether an `optimizer.step` was given a closure.

    Args:
        args, kwargs: what torch gives a pre-hook; the first of `args` is the optimizer.
    """
    return any(callable(value) for value in (*args[1:], *kwargs.values()))


def refuse_closure(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Refuses an `optimizer.step` that is given a closure.

    Args:
        args, kwargs: what torch gives a pre-hook; the first of `args` is the optimizer.

    Raises:
        LargeBatchError: one of them can be called.
    """
    if has_closure(args, kwargs):
        raise LargeBatchError(
            "optimizer.step(closure) runs its backward inside the step, too late to be "
            "measured. Run the closure yourself: closure(); optimizer.step()."
        )


def _kind(value: object) -> str:
    return f"the class {value.__name__}" if isinstance(value, type) else type(value).__name__
