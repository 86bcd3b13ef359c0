"""What describes a run, and what must be the same on every rank, as plain values."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import Any

from torch.optim import Optimizer

from largebatch.act.joint_optimizers import optimizer_names
from largebatch.core.codec import encode
from largebatch.core.decider import Decider


def clocks_of(decider: Decider) -> dict[str, Any]:
    """What must be the same on every rank before each step, as plain values."""
    return {
        "step": decider.step,
        "samples": decider.samples,
        "base_steps": decider.base_steps,
        "batch_size": decider.batch_size,
        "measure": sorted(decider.measure),
        "state": repr(decider.state),
    }


def digest_of(facts: Mapping[str, Any]) -> int:
    """A number below 2^32 that differs when one of the facts does.

    The same on every rank and in every process, unlike `hash`.
    """
    return zlib.crc32(repr(facts).encode())


def run_facts(decider: Decider) -> dict[str, Any]:
    """What describes a run, as plain values: for the record's header and the ranks' agreement."""
    return {
        "rule": encode(decider.rule, kind=True),
        "base_batch_size": decider.base_batch_size,
        "batch_size": decider.batch_size,
        "ranks": decider.ranks,
        "dataset_size": decider.dataset_size,
        "budget": encode(decider.budget),
    }


def optimizer_facts(optimizer: Optimizer) -> dict[str, Any]:
    """What the record's header says of the optimizer, by its first group."""
    group = optimizer.param_groups[0]
    numbers = {name: float(group.get(name) or 0.0) for name in ("momentum", "dampening")}
    return {"name": optimizer_names(optimizer), **numbers}
