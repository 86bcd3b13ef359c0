"""The parameters that a run measures: those that its optimizer moves, by name."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

WHOLE = -1
"""Stands for the index of a parameter where all of them are meant, in one row."""


@dataclass(frozen=True, slots=True)
class Parameters:
    """Trainable parameters in the optimizer's order, each once, with their names."""

    names: tuple[str, ...]
    tensors: tuple[nn.Parameter, ...]

    @classmethod
    def of(cls, model: nn.Module, optimizer: Optimizer) -> Parameters:
        """The parameters that `optimizer` moves; frozen ones are left out, tied ones count once.

        Raises:
            ValueError: the optimizer lacks a trainable parameter of the model, or holds none of it.
        """
        name_of = {parameter: name for name, parameter in bare(model).named_parameters()}
        held = {p: None for group in optimizer.param_groups for p in group["params"]}
        if not any(p in name_of for p in held):
            raise ValueError(
                "The optimizer moves no parameter of this model. Build it from the same model: "
                "optimizer = torch.optim.SGD(model.parameters(), lr=0.1)."
            )
        missing = [name for p, name in name_of.items() if p.requires_grad and p not in held]
        if missing:
            raise ValueError(
                f"The optimizer lacks {len(missing)} trainable parameters of the model, first "
                f"{missing[0]!r}: their gradient would be measured but never used. Add them, "
                f"optimizer.add_param_group({{'params': [...]}}). If other optimizers move them, "
                "pass all of them to lb.attach(model, [adam, muon], ...). Or freeze them: "
                f"model.get_parameter({missing[0]!r}).requires_grad_(False)."
            )
        moved = [p for p in held if p.requires_grad]
        if not moved:
            raise ValueError(
                "All parameters are frozen, so there is nothing to train. Release some: "
                "model.requires_grad_(True)."
            )
        names = [name_of.get(p, f"parameter {i} of the optimizer") for i, p in enumerate(moved)]
        return cls(names=tuple(names), tensors=tuple(moved))

    def __len__(self) -> int:
        return len(self.tensors)

    @property
    def real_numbers(self) -> int:
        """Return how many real numbers the parameters hold; a complex element holds two."""
        return sum(self._sizes())

    @property
    def real_dtype(self) -> torch.dtype:
        """Return the type in which sums over the parameters' gradients are formed: float64 if one
        of them has it, or complex128, else float32."""
        wide = any(t.dtype in (torch.float64, torch.complex128) for t in self.tensors)
        return torch.float64 if wide else torch.float32

    def split_real(self, row: Tensor) -> list[Tensor]:
        """Return one view into a row of all real numbers for each parameter, in the shape of
        `as_real(parameter)`: a complex parameter's has a further last dimension of 2."""
        pieces = row.split(self._sizes())
        return [
            piece.view(*t.shape, 2) if t.is_complex() else piece.view(t.shape)
            for piece, t in zip(pieces, self.tensors, strict=True)
        ]

    def _sizes(self) -> list[int]:
        return [t.numel() * (2 if t.is_complex() else 1) for t in self.tensors]

    def split(self, row: Tensor) -> list[Tensor]:
        """One view into a row of all parameters' elements for each parameter, in its shape."""
        pieces = row.split([t.numel() for t in self.tensors])
        return [piece.view(t.shape) for piece, t in zip(pieces, self.tensors, strict=True)]


def replica(model: nn.Module) -> nn.parallel.DistributedDataParallel | None:
    """The DistributedDataParallel that `model` is, also inside `torch.compile` and Lightning's
    `fabric.setup`; None without."""
    model = _unwrapped(model)
    return model if isinstance(model, nn.parallel.DistributedDataParallel) else None


def bare(model: nn.Module) -> nn.Module:
    """The module inside DistributedDataParallel, `torch.compile` and Lightning's `fabric.setup`,
    else the model itself; evaluate that one."""
    inside = replica(model)
    return _unwrapped(model if inside is None else inside.module)


def _unwrapped(model: nn.Module) -> nn.Module:
    """The module inside `torch.compile` and Lightning's `fabric.setup`, else the module itself."""
    children = dict(model.named_children())
    inside = children.get("_orig_mod", children.get("_forward_module"))
    return model if inside is None else _unwrapped(inside)
