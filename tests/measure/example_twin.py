"""Single examples' gradients by the definition: one `autograd.grad` for each of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from largebatch.measure.examples.example_gradients import ExampleGradients
from largebatch.measure.examples.tally import WantedSums
from largebatch.measure.parameters import Parameters
from largebatch.measure.ranks import Ranks
from largebatch.measure.taps import LeafHooks

ALL = WantedSums(sqnorm=True, squares=True, products=True)
WANTS = [WantedSums(sqnorm=True), WantedSums(squares=True), ALL]
NAMED_WANTS = dict(zip(("norm", "squares", "all"), WANTS, strict=True))
Loss = Callable[[nn.Module, Tensor, Tensor], Tensor]


@dataclass
class Seen:
    """What was seen of one backward, with each example's gradient for its contribution."""

    rows: int
    sqnorm: Tensor | None
    squares: list[Tensor | None]
    products: Tensor | None
    gradients: list[Tensor | None]


def naive(model: nn.Module, loss: Loss, x: Tensor, y: Tensor) -> list[Tensor]:
    """Each example's gradient of each parameter: [B, *shape], zero where it gets none."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    found = []
    for at in range(len(x)):
        one = loss(model, x[at : at + 1], y[at : at + 1])
        gradients = torch.autograd.grad(one, parameters, allow_unused=True)
        pairs = zip(parameters, gradients, strict=True)
        found.append([torch.zeros_like(p) if g is None else g.to_dense() for p, g in pairs])
    return [torch.stack(column) for column in zip(*found, strict=True)]


def watched(
    model: nn.Module,
    loss: Loss,
    x: Tensor,
    y: Tensor,
    *,
    want: WantedSums = ALL,
    steps: int = 2,
    groups: int | None = None,
    exact_training: bool = False,
    batch_norm_rows: bool = False,
) -> Seen:
    """The same by `ExampleGradients`, as a meter drives it; the last of some equal steps."""
    parameters = Parameters.of(model, torch.optim.SGD(model.parameters(), lr=0.1))
    examples, hooks = (
        ExampleGradients(
            groups=groups, exact_training=exact_training, batch_norm_rows=batch_norm_rows
        ),
        LeafHooks(),
    )
    examples.bind(model, parameters)
    hooks.bind(parameters, Ranks())
    examples.open(want)
    for _ in range(steps):
        model.zero_grad()
        value = loss(model, x, y)
        examples.begin()
        hooks.begin(examples.see)
        value.backward()
        hooks.end(last=True)
        part = examples.end()
    gradients = [p.grad for p in parameters.tensors]
    held = {index: g for index, g in enumerate(gradients) if g is not None}
    n = part.parts
    seen = Seen(
        rows=part.rows,
        sqnorm=sum(part.sqnorm()) * n * n if want.sqnorm else None,
        squares=[
            part.squares[i] * n * n if i in part.squares else None for i in range(len(gradients))
        ],
        products=examples.products(part, held) * n if want.products else None,
        gradients=gradients,
    )
    hooks.rest()
    examples.open(WantedSums())
    return seen


def check(
    model: nn.Module,
    loss: Loss,
    x: Tensor,
    y: Tensor,
    *,
    rel: float = 1e-9,
    want: WantedSums = ALL,
    groups: int | None = None,
) -> Seen:
    """Compare with the definition: sums, coordinates, products, and the gradient itself."""
    plain = naive(model, loss, x, y)
    if groups is not None:
        plain = [g.unflatten(0, (groups, -1)).mean(1) for g in plain]
    seen = watched(model, loss, x, y, want=want, groups=groups)
    assert seen.rows == len(x)
    if seen.sqnorm is not None:
        expected = sum(g.square().sum() for g in plain)
        torch.testing.assert_close(seen.sqnorm.to(expected.dtype), expected, rtol=rel, atol=0.0)
    for squares, g in zip(seen.squares, plain, strict=True):
        if want.squares and squares is not None:
            close(squares, g.square().sum(0), rel=rel)
        elif want.squares:
            assert not g.any()
    if seen.products is not None:
        mean = [g.mean(0) for g in plain]
        products = sum((g * m).reshape(len(g), -1).sum(1) for g, m in zip(plain, mean, strict=True))
        close(seen.products, products, rel=rel)
    for gradient, g in zip(seen.gradients, plain, strict=True):
        close(torch.zeros_like(g[0]) if gradient is None else gradient, g.mean(0), rel=rel)
    return seen


def close(found: Tensor, expected: Tensor, *, rel: float) -> None:
    """Alike, relative to the largest of the expected values."""
    if found.is_sparse:
        found = found.to_dense()
    assert found.shape == expected.shape
    limit = rel * float(expected.abs().max()) + torch.finfo(expected.dtype).tiny
    assert float((found - expected).abs().max()) <= limit


def token_loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Mean cross entropy over all tokens."""
    return cross_entropy(model(x).flatten(0, 1).float(), y.flatten())


def squared_loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Mean over examples of the squared distance between the output and numbers of its own."""
    out = model(x)
    flat = (out[0] if isinstance(out, tuple) else out).flatten(1)
    n = flat.shape[1]
    return (flat - torch.outer(y, torch.arange(1, n + 1) / n)).square().sum(1).mean()
