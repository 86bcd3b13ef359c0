"""Check half precision and the gradient scaler."""

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
    """Collect the half precisions in which the model's modules compute inside the `with` block.

    A module computes in half precision through autocast or through its own parameters.
    """
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
    """Report float16 without a gradient scaler, and a gradient scaler without float16."""
    scaled = scaler is not None and scaler.is_enabled()
    shown = " and ".join(HALVES[dtype] for dtype in HALVES if dtype in found) or "float32"
    if torch.float16 in found and not scaled:
        return [
            Finding(
                name="half precision",
                level="warning",
                seen="The model computes in float16, but the run has no gradient scaler.",
                why="Gradients below 6e-8 become zero, also in the measured statistics.",
                remedy="Pass a scaler, lb.Controller(..., scaler=torch.amp.GradScaler()), or use "
                "bfloat16, torch.autocast(device_type, dtype=torch.bfloat16).",
            )
        ]
    if scaled and torch.float16 not in found:
        return [
            Finding(
                name="half precision",
                level="note",
                seen=f"The run has a gradient scaler, but the model computes in {shown}.",
                why=f"{shown} has the range of float32, so the scaler has no use. A scaler "
                "waits for the device once per step, and it skips steps while it searches for a "
                "scale.",
                remedy="Remove the scaler argument, or pass torch.amp.GradScaler(enabled=False).",
            )
        ]
    if found:
        with_it = ", with a gradient scaler" if scaled else ""
        seen = f"The model computes in {shown}{with_it}."
        return [Finding(name="half precision", level="ok", seen=seen)]
    return []
