"""Measure the overhead of single-example gradient statistics in a forward and backward pass.

    python benchmarks/per_example.py [--rounds 20] [--only CNN] [--memory]

Every candidate computes the same gradient of the same batch and reads one measured number. BackPACK
and Opacus are timed if they can be imported. To install them without another version of torch, run
`pip install --no-deps --target DIR backpack-for-pytorch opacus opt_einsum` and add DIR to the
variable PYTHONPATH. On the transformer, BackPACK and Opacus are not timed, because they would leave
out parameters.
"""

from __future__ import annotations

import argparse
import itertools
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.functional import cross_entropy
from torch.profiler import profile

import largebatch as lb
from _timing import Run, interleave
from largebatch.measure.examples.example_gradients import ExampleGradients
from largebatch.measure.examples.tally import WantedSums
from largebatch.measure.parameters import Parameters
from largebatch.measure.ranks import Ranks
from largebatch.measure.taps import LeafHooks
from largebatch.workbench.workloads.models import ByteTransformer, cnn, mlp

GROUPS = 4


def wide_cnn() -> nn.Module:
    """Return a network with two 5 x 5 convolutions of 16 and 32 channels, 28,938 parameters."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(32 * 7 * 7, 10),
    )  # fmt: skip


def images(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Return the mean loss of a classifier."""
    return cross_entropy(model(x), y)


def tokens(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Return the mean loss of a sequence model."""
    return cross_entropy(model(x).flatten(0, 1), y.flatten())


@dataclass(frozen=True)
class Case:
    """Describe a model, its loss and the shape of its batch."""

    name: str
    model: Callable[[], nn.Module]
    loss: Callable[[nn.Module, Tensor, Tensor], Tensor]
    shape: tuple[int, ...]

    def batch(self) -> tuple[Tensor, Tensor]:
        """Return random inputs and targets."""
        generator = torch.Generator().manual_seed(0)
        if self.loss is tokens:
            x, y = torch.randint(0, 256, (2, *self.shape), generator=generator).unbind()
            return x, y
        x = torch.randn(self.shape, generator=generator)
        return x, torch.randint(0, 10, self.shape[:1], generator=generator)


CASES = [
    Case("MLP 1.0M, batch 256", lambda: mlp(inputs=784, width=680, classes=10), images, (256, 784)),
    Case("CNN 29k, batch 256", wide_cnn, images, (256, 1, 28, 28)),
    Case("fashion-cnn 20k, batch 256", lambda: cnn(width=16, classes=10), images, (256, 1, 28, 28)),
    Case(
        "transformer 0.47M, batch 32 x 64",
        lambda: ByteTransformer(layers=2, width=128, heads=4, context=64),
        tokens,
        (32, 64),
    ),
]


def build(case: Case) -> nn.Module:
    """Return the model, which is the same for every candidate."""
    torch.manual_seed(0)
    return case.model()


def clear(model: nn.Module) -> None:
    """Remove all gradients."""
    for parameter in model.parameters():
        parameter.grad = None


def plain(case: Case) -> Run:
    """Return a function that makes a forward and a backward pass without measuring."""
    model, (x, y) = build(case), case.batch()

    def run() -> None:
        clear(model)
        case.loss(model, x, y).backward()

    return run


def ours(
    case: Case, want: WantedSums, groups: int | None = None, *, exact_training: bool = False
) -> Run:
    """Return a forward and backward pass with `ExampleGradients`, called as a meter calls it."""
    model, (x, y) = build(case), case.batch()
    parameters = Parameters.of(model, torch.optim.SGD(model.parameters(), lr=0.1))
    examples = ExampleGradients(groups=groups, exact_training=exact_training)
    hooks = LeafHooks()
    examples.bind(model, parameters)
    hooks.bind(parameters, Ranks())
    see = examples.see

    def run() -> None:
        clear(model)
        examples.open(want)
        loss = case.loss(model, x, y)
        examples.begin()
        hooks.begin(see)
        loss.backward()
        hooks.end(last=True)
        part = examples.end()
        if want.sqnorm or want.squares:
            torch.stack(part.sqnorm()).sum().item()
        if want.products:
            gradients = {index: p.grad for index, p in enumerate(parameters.tensors)}
            examples.products(part, gradients).square().sum().item()

    return run


def with_products_alone(case: Case) -> Run | None:
    """Return a plain pass with the matrix products that coordinate-wise sums need at least.

    Each linear layer needs one product of the size of its weight's gradient. The result is None if
    the model has other layers.
    """
    model, (x, _) = build(case), case.batch()
    layers = [m for m in model.modules() if isinstance(m, nn.Linear)]
    if any(p.dim() > 2 for p in model.parameters()) or case.loss is tokens:
        return None
    run = plain(case)
    pairs = [
        (torch.rand(len(x), m.out_features), torch.rand(len(x), m.in_features)) for m in layers
    ]

    def both() -> None:
        run()
        for of_output, of_input in pairs:
            of_output.t() @ of_input

    return both


def micro_batches(case: Case) -> Run:
    """Return a pass with the usual meter on four micro-batches."""
    model, (x, y) = build(case), case.batch()
    meter = lb.Meter(model)
    meter.bind(torch.optim.SGD(model.parameters(), lr=0.1))
    pairs = list(zip(x.chunk(GROUPS), y.chunk(GROUPS), strict=True))

    def run() -> None:
        clear(model)
        meter.open(frozenset({"moments"}))
        for at, (few, labels) in enumerate(pairs, 1):
            share, n = 1 / GROUPS, len(few)
            loss = case.loss(model, few, labels)
            meter.backward(loss, share=share, weight=n, samples=n, last=at == GROUPS)
        meter.close(planned_weight=len(x))

    return run


def by_vmap(case: Case, *, squares: bool) -> Run:
    """Return a pass with `torch.func`: each example's gradient, the mean and the squares."""
    model, (x, y) = build(case), case.batch()
    parameters = {name: p.detach() for name, p in model.named_parameters()}

    def loss(values: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        def called(x: Tensor) -> Tensor:
            return functional_call(model, values, (x,))

        return case.loss(called, x.unsqueeze(0), y.unsqueeze(0))  # type: ignore[arg-type]

    gradients = vmap(grad(loss), in_dims=(None, 0, 0))

    def run() -> None:
        found = gradients(parameters, x, y)
        for name, parameter in model.named_parameters():
            parameter.grad = found[name].mean(0)
        squared = [g.square_().sum(0) if squares else g.square_().sum() for g in found.values()]
        squared[0].sum().item()

    return run


def by_backpack(case: Case, extension: str) -> Run | None:
    """Return a pass with a BackPACK extension.

    The result is None if BackPACK is not installed or does not support the model.
    """
    try:
        from backpack import backpack, extend, extensions
    except ImportError:
        return None
    if case.loss is tokens:
        return None
    model, (x, y) = extend(build(case)), case.batch()
    loss = extend(nn.CrossEntropyLoss())
    kind = getattr(extensions, extension)
    name = {"BatchL2Grad": "batch_l2", "SumGradSquared": "sum_grad_squared"}[extension]

    def run() -> None:
        clear(model)
        with backpack(kind()):
            loss(model(x), y).backward()
        sum(getattr(p, name).sum() for p in model.parameters()).item()

    return run


def by_opacus(case: Case, *, ghost: bool) -> Run | None:
    """Return a pass with the hooks of Opacus.

    The result is None if Opacus is not installed or does not support the model.

    Args:
        case: Model and batch.
        ghost: Whether to compute only the norms where Opacus has a formula, instead of every
            example's gradient.
    """
    try:
        from opacus.grad_sample import GradSampleModule
        from opacus.grad_sample.grad_sample_module_fast_gradient_clipping import (
            GradSampleModuleFastGradientClipping,
        )
    except ImportError:
        return None
    x, y = case.batch()
    if case.loss is tokens:
        return None  # Opacus sees no examples in the position embedding.
    if ghost:
        model = GradSampleModuleFastGradientClipping(
            build(case), max_grad_norm=1.0, use_ghost_clipping=True
        )
    else:
        model = GradSampleModule(build(case))

    def run() -> None:
        clear(model)
        case.loss(model, x, y).backward()
        parameters = list(model.parameters())
        if ghost:
            sum(p._norm_sample.square().sum() for p in parameters).item()
        else:
            sum(p.grad_sample.square().sum() for p in parameters).item()
            for parameter in parameters:
                parameter.grad_sample = None

    return run


def bare(case: Case) -> dict[str, Callable[[], Run | None]]:
    """Return the two copies of the plain pass.

    The null comes first. The null therefore runs after the last candidate of a round, which can
    leave its own data in the cache.
    """
    return {"null": lambda: plain(case), "plain": lambda: plain(case)}


def own(case: Case) -> dict[str, Callable[[], Run | None]]:
    """Return functions that build this package's candidates, by name."""
    return {
        "sum of squares": lambda: ours(case, WantedSums(sqnorm=True)),
        "the same, exact training": lambda: ours(
            case, WantedSums(sqnorm=True), exact_training=True
        ),
        "coordinate-wise": lambda: ours(case, WantedSums(squares=True)),
        "plain + its products": lambda: with_products_alone(case),
        "with products": lambda: ours(case, WantedSums(sqnorm=True, products=True)),
        "4 groups": lambda: ours(case, WantedSums(sqnorm=True), GROUPS),
        "4 micro-batches": lambda: micro_batches(case),
    }


def peers(case: Case) -> dict[str, Callable[[], Run | None]]:
    """Return functions that build the candidates of other packages, by name.

    These candidates are timed in separate rounds, because some of them fill the caches.
    """
    return {
        "vmap, sum of squares": lambda: by_vmap(case, squares=False),
        "vmap, coordinate-wise": lambda: by_vmap(case, squares=True),
        "BackPACK BatchL2Grad": lambda: by_backpack(case, "BatchL2Grad"),
        "BackPACK SumGradSquared": lambda: by_backpack(case, "SumGradSquared"),
        "Opacus ghost": lambda: by_opacus(case, ghost=True),
        "Opacus grad_sample": lambda: by_opacus(case, ghost=False),
    }


def peak(run: Run) -> float:
    """Return the peak memory of tensors in a run, in MB above the smallest memory in the run."""
    for _ in range(2):
        run()
    with profile(profile_memory=True) as seen:
        run()
    events = [e for e in seen.profiler.kineto_results.events() if e.name() == "[memory]"]
    sizes = [e.nbytes() for e in sorted(events, key=lambda e: e.start_ns())]
    live = list(itertools.accumulate(sizes, initial=0))
    return (max(live) - min(live)) / 2**20


def memory(case: Case, runs: Mapping[str, Run]) -> str:
    """Return a table of the peak memory of each candidate, compared with the plain pass."""
    base = peak(runs["plain"])
    lines = [f"\n{case.name}: peak memory of tensors, MB, and its ratio to plain"]
    for name, run in runs.items():
        found = peak(run)
        lines.append(f"{name:26}{found:10.1f}{found / base:8.2f}")
    return "\n".join(lines)


def main() -> None:
    """Print a table for each case."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--only", default="", help="part of a case's name")
    parser.add_argument("--memory", action="store_true", help="measure peak memory instead of time")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", module="opacus|backpack|torch")
    for case in CASES:
        if arguments.only not in case.name:
            continue
        for candidates in (own(case), peers(case)):
            built = {name: build() for name, build in (bare(case) | candidates).items()}
            runs = {name: run for name, run in built.items() if run is not None}
            if arguments.memory:
                print(memory(case, runs))
                continue
            times = interleave(runs, rounds=arguments.rounds)
            parameters = sum(p.numel() for p in case.model().parameters())
            title = f"{case.name}, {parameters:,} parameters"
            print(times.table(title, to="plain", per=1, unit="step"))


if __name__ == "__main__":
    main()
