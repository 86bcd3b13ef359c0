"""Collect the parameters that a run measures: the trainable parameters of its optimizer."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

WHOLE = -1
"""Index that stands for all parameters in one row, in place of the index of one parameter."""


@dataclass(frozen=True, slots=True)
class Parameters:
    """Hold the trainable parameters of an optimizer, each parameter once, with its name."""

    names: tuple[str, ...]
    tensors: tuple[nn.Parameter, ...]

    @classmethod
    def of(cls, model: nn.Module, optimizer: Optimizer) -> Parameters:
        """Return the trainable parameters of an optimizer; tied parameters count once.

        Args:
            model: The model, whose names of the parameters are used.
            optimizer: The optimizer, whose frozen parameters are left out.

        Raises:
            ValueError: The optimizer lacks a trainable parameter of the model, or has no parameter
                of the model, or all parameters are frozen.
        """
        name_of = {parameter: name for name, parameter in bare(model).named_parameters()}
        held = {p: None for group in optimizer.param_groups for p in group["params"]}
        if not any(p in name_of for p in held):
            raise ValueError(
                "The optimizer contains no parameter of this model. Build it from the same model: "
                "optimizer = torch.optim.SGD(model.parameters(), lr=0.1)."
            )
        missing = [name for p, name in name_of.items() if p.requires_grad and p not in held]
        if missing:
            raise ValueError(
                f"The optimizer lacks {len(missing)} trainable parameters of the model, for "
                f"example {missing[0]!r}, whose gradients would be measured but never used. Add "
                "the parameters: optimizer.add_param_group({'params': [...]}). If other optimizers "
                "update these parameters, pass all optimizers: "
                "lb.attach(model, [adam, muon], ...). To freeze "
                f"a parameter, use model.get_parameter({missing[0]!r}).requires_grad_(False)."
            )
        moved = [p for p in held if p.requires_grad]
        if not moved:
            raise ValueError(
                "All parameters of the optimizer are frozen, so there is nothing to train. Make "
                "the parameters trainable: model.requires_grad_(True)."
            )
        names = [name_of.get(p, f"parameter {i} of the optimizer") for i, p in enumerate(moved)]
        return cls(names=tuple(names), tensors=tuple(moved))

    def __len__(self) -> int:
        return len(self.tensors)

    @property
    def real_numbers(self) -> int:
        """Return the number of real numbers in the parameters; a complex element counts twice."""
        return sum(self._sizes())

    @property
    def real_dtype(self) -> torch.dtype:
        """Return the type in which gradients are summed.

        The type is float64 if one of the parameters has the type float64 or complex128, and float32
        otherwise.
        """
        wide = any(t.dtype in (torch.float64, torch.complex128) for t in self.tensors)
        return torch.float64 if wide else torch.float32

    def split_real(self, row: Tensor) -> list[Tensor]:
        """Return for each parameter a view into a row of all real numbers.

        The view has the shape of `as_real(parameter)`. The view of a complex parameter has an
        additional last dimension of size 2.
        """
        pieces = row.split(self._sizes())
        return [
            piece.view(*t.shape, 2) if t.is_complex() else piece.view(t.shape)
            for piece, t in zip(pieces, self.tensors, strict=True)
        ]

    def _sizes(self) -> list[int]:
        return [t.numel() * (2 if t.is_complex() else 1) for t in self.tensors]

    def split(self, row: Tensor) -> list[Tensor]:
        """Return for each parameter a view into a row of all elements, in the parameter's shape."""
        pieces = row.split([t.numel() for t in self.tensors])
        return [piece.view(t.shape) for piece, t in zip(pieces, self.tensors, strict=True)]


def replica(model: nn.Module) -> nn.parallel.DistributedDataParallel | None:
    """Return the DistributedDataParallel module around a model; None without such a module.

    The DistributedDataParallel module is also found inside the wrappers of `torch.compile` and of
    Lightning's `fabric.setup`.
    """
    model = _unwrapped(model)
    return model if isinstance(model, nn.parallel.DistributedDataParallel) else None


def bare(model: nn.Module) -> nn.Module:
    """Return the model without its wrappers, which is the module to use for evaluation.

    The removed wrappers are DistributedDataParallel, the wrapper of `torch.compile` and the wrapper
    of Lightning's `fabric.setup`.
    """
    inside = replica(model)
    return _unwrapped(model if inside is None else inside.module)


def _unwrapped(model: nn.Module) -> nn.Module:
    """Return the module inside the wrappers of `torch.compile` and Lightning's `fabric.setup`."""
    children = dict(model.named_children())
    inside = children.get("_orig_mod", children.get("_forward_module"))
    return model if inside is None else _unwrapped(inside)
