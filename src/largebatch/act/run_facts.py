"""Collect the plain values that describe a run, or that must be the same on every rank."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import Any

from torch.optim import Optimizer

from largebatch.act.joint_optimizers import optimizer_names
from largebatch.core.codec import encode
from largebatch.core.decider import Decider


def clocks_of(decider: Decider) -> dict[str, Any]:
    """Return the values that must be the same on every rank before each step."""
    return {
        "step": decider.step,
        "samples": decider.samples,
        "base_steps": decider.base_steps,
        "batch_size": decider.batch_size,
        "measure": sorted(decider.measure),
        "state": repr(decider.state),
    }


def digest_of(facts: Mapping[str, Any]) -> int:
    """Return a number below 2^32 that almost certainly changes when one of the facts changes.

    Unlike `hash`, the number is the same on every rank and in every process.
    """
    return zlib.crc32(repr(facts).encode())


def run_facts(decider: Decider) -> dict[str, Any]:
    """Return the values that describe a run, for the record's header and the comparison of the
    ranks.
    """
    return {
        "rule": encode(decider.rule, kind=True),
        "base_batch_size": decider.base_batch_size,
        "batch_size": decider.batch_size,
        "ranks": decider.ranks,
        "dataset_size": decider.dataset_size,
        "budget": encode(decider.budget),
    }


def optimizer_facts(optimizer: Optimizer) -> dict[str, Any]:
    """Return the optimizer's name and momentum for the record's header, from its first parameter
    group.
    """
    group = optimizer.param_groups[0]
    numbers = {name: float(group.get(name) or 0.0) for name in ("momentum", "dampening")}
    return {"name": optimizer_names(optimizer), **numbers}
