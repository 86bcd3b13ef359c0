"""Half precision and the gradient scaler."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.amp import GradScaler

from largebatch.checks.finding import Finding

HALVES = {torch.float16: "float16", torch.bfloat16: "bfloat16"}


@contextmanager
def precisions_of(model: nn.Module) -> Iterator[set[torch.dtype]]:
    """Fills the set with the half precisions in which the model's modules compute inside, by
    autocast or by their own parameters."""
    found: set[torch.dtype] = set()

    def look(module: nn.Module, inputs: Any, output: Any) -> None:
        for tensor in (*module.parameters(recurse=False), output):
            if isinstance(tensor, Tensor) and tensor.dtype in HALVES:
                found.add(tensor.dtype)

    hooks = [module.register_forward_hook(look) for module in model.modules()]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def check_precision(found: set[torch.dtype], scaler: GradScaler | None) -> list[Finding]:
    """float16 without a scaler, or a scaler without float16."""
    scaled = scaler is not None and scaler.is_enabled()
    shown = " and ".join(HALVES[dtype] for dtype in HALVES if dtype in found) or "float32"
    if torch.float16 in found and not scaled:
        return [
            Finding(
                name="half precision",
                level="warning",
                seen="The model computes in float16, and the run has no gradient scaler.",
                why="Gradients below 6e-8 become zero, also in what is measured.",
                remedy="lb.Controller(..., scaler=torch.amp.GradScaler()), or bfloat16: "
                "torch.autocast(device_type, dtype=torch.bfloat16).",
            )
        ]
    if scaled and torch.float16 not in found:
        return [
            Finding(
                name="half precision",
                level="note",
                seen=f"The run has a gradient scaler, and the model computes in {shown}.",
                why="That has float32's range, so the scaler only costs: a host sync a step, and "
                "steps left out while it finds its scale.",
                remedy="Leave scaler= out, or torch.amp.GradScaler(enabled=False).",
            )
        ]
    if found:
        with_it = ", with a gradient scaler" if scaled else ""
        seen = f"The model computes in {shown}{with_it}."
        return [Finding(name="half precision", level="ok", seen=seen)]
    return []
