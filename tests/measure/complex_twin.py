"""A model with complex parameters, and the same one written with two real parameters for each."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def numbers() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    draw = torch.Generator().manual_seed(1)
    return tuple(torch.randn(*shape, generator=draw) for shape in [(4, 3)] * 2 + [(3,)] * 2)


class ComplexModel(nn.Module):
    """Reads a complex weight, and the conjugate of another.

    Args:
        lazy: leave `shift.grad` conjugated lazily, which torch's own Adam does not take.
    """

    def __init__(self, dtype: torch.dtype = torch.complex64, *, lazy: bool = True) -> None:
        super().__init__()
        self.lazy = lazy
        a, b, c, d = numbers()
        self.weight = nn.Parameter(torch.complex(a, b).to(dtype))
        self.shift = nn.Parameter(torch.complex(c, d).to(dtype))

    def forward(self, x: Tensor) -> Tensor:
        shift = self.shift if self.lazy else 1.0 * self.shift
        z = x.to(self.weight.dtype) @ self.weight + shift.conj()
        return z.real + 2.0 * z.imag.sin()


class RealModel(nn.Module):
    """The same function of real parameters."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        a, b, c, d = (nn.Parameter(value.to(dtype)) for value in numbers())
        self.weight_real, self.weight_imag, self.shift_real, self.shift_imag = a, b, c, d

    def forward(self, x: Tensor) -> Tensor:
        x = x.to(self.weight_real.dtype)
        real = x @ self.weight_real + self.shift_real
        imag = x @ self.weight_imag - self.shift_imag
        return real + 2.0 * imag.sin()


class Mixed(nn.Module):
    """One of the two models, followed by a real layer whose size is odd."""

    def __init__(self, first: nn.Module) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor([0.7, -0.4, 1.1]))
        self.first = first

    def forward(self, x: Tensor) -> Tensor:
        return self.first(x).to(self.scale.dtype) * self.scale


def twins(*, mixed: bool, lazy: bool = True) -> tuple[nn.Module, nn.Module]:
    pair = ComplexModel(lazy=lazy), RealModel()
    return (Mixed(pair[0]), Mixed(pair[1])) if mixed else pair


def true_norm(model: nn.Module) -> float:
    """The norm of the gradient, with |z|^2 = re^2 + im^2."""
    squares = [p.grad.abs().double().square().sum() for p in model.parameters()]
    return torch.stack(squares).sum().sqrt().item()
