"""Each tap sees the gradient of each part, whatever the model does."""

from __future__ import annotations

import shutil

import pytest
import torch
from gradient_twin import twin_of
from torch import nn
from torch.utils.checkpoint import checkpoint

from largebatch.core.errors import LargeBatchError, MicroBatchMissed
from largebatch.measure.meter import Meter
from largebatch.measure.taps import Detached, Flat, LeafHooks
from small_runs import class_data, class_loss, classifier, measuring_controller, train

TAPS = [LeafHooks, Detached, Flat]
every_tap = pytest.mark.parametrize("tap", TAPS)


def measured(model, *, tap=LeafHooks, loss_fn=class_loss, steps=2, between=None, rel=3e-5, **kw):
    """Runs steps in which moments and gradients must equal the twin's; returns what was seen."""
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.01)
    control, seen = measuring_controller(
        model, optimizer, micro=7, meter=Meter(model, tap=tap()), **kw
    )
    for batch in control.steps(steps=steps):
        micro_batches = []
        for micro_batch in batch:
            micro_batches.append(tuple(micro_batch))
            control.backward(loss_fn(model, *micro_batch))
            if between is not None:
                between(model, *micro_batch)
        control.measure()
        twin = twin_of(model, loss_fn, micro_batches)
        trained = [p for p in model.parameters() if p.requires_grad]
        for parameter, expected in zip(trained, twin.gradient, strict=True):
            if expected is None:
                assert parameter.grad is None or not parameter.grad.any()
            else:
                torch.testing.assert_close(
                    parameter.grad.double(), expected, rtol=10 * rel, atol=rel
                )
        control.step()
        moments = seen.steps[-1].moments
        assert moments.batch_sqnorm == pytest.approx(twin.batch_sqnorm, rel=rel)
        assert moments.variance == pytest.approx(twin.variance, rel=rel)
    return seen


@every_tap
def test_a_frozen_layer_is_left_out(tap):
    model = classifier()
    model[0].requires_grad_(False)
    measured(model, tap=tap)


class Branches(nn.Module):
    """Uses `rare` for some micro-batches only, and `never` for none."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.rare, self.never = nn.Linear(5, 3), nn.Linear(5, 3), nn.Linear(5, 3)

    def forward(self, x):
        return self.body(x) + (self.rare(x) if x[0, 0] > 0 else 0.0)


@every_tap
def test_a_layer_unused_in_some_or_all_micro_batches_counts_as_no_gradient(tap):
    x, _ = class_data()
    assert {bool(x[k, 0] > 0) for k in (0, 7, 14, 20, 27, 34)} == {True, False}
    model = Branches()
    measured(model, tap=tap)
    assert (model.never.weight.grad is None) == (tap is not Flat)


def saved(layer, x, *, reentrant):
    """A checkpoint; `torch.autograd.grad` refuses reentrant ones, so the float64 twin has none."""
    if reentrant and x.dtype is torch.float64:
        return layer(x)
    return checkpoint(layer, x, use_reentrant=reentrant)


class Tied(nn.Module):
    def __init__(self, *, reentrant: bool | None = None) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(5, 5), nn.Linear(5, 5)
        self.second.weight = self.first.weight
        self.reentrant = reentrant

    def forward(self, x):
        for layer in (self.first, self.second):
            if self.reentrant is None:
                x = torch.tanh(layer(x))
            else:
                x = torch.tanh(saved(layer, x, reentrant=self.reentrant))
        return x[:, :3]


@every_tap
def test_a_tied_weight_is_measured_once_with_its_whole_gradient(tap):
    measured(Tied(), tap=tap)


def with_gradient(model, x, y):
    return class_loss(model, x.detach().requires_grad_(), y)


@every_tap
def test_checkpointing_that_is_not_reentrant_is_exact_with_tied_weights(tap):
    measured(Tied(reentrant=False), tap=tap)


class Checkpointed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(5, 5), nn.Linear(5, 5)])

    def forward(self, x):
        for layer in self.layers:
            x = torch.tanh(saved(layer, x, reentrant=True))
        return x[:, :3]


@every_tap
def test_reentrant_checkpointing_is_exact_without_tied_weights(tap):
    measured(Checkpointed(), tap=tap, loss_fn=with_gradient)


def test_reentrant_checkpointing_with_tied_weights_is_refused_by_name():
    with pytest.raises(LargeBatchError, match=r"first\.weight got several.*Detached"):
        measured(Tied(reentrant=True), loss_fn=with_gradient)


@pytest.mark.parametrize("tap", [Detached, Flat])
def test_reentrant_checkpointing_with_tied_weights_is_exact_where_gradients_are_whole(tap):
    measured(Tied(reentrant=True), tap=tap, loss_fn=with_gradient)


class Scalars(nn.Module):
    """A 0-dim, an empty and an ordinary parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.5))
        self.nothing = nn.Parameter(torch.empty(0))
        self.linear = nn.Linear(5, 3)

    def forward(self, x):
        return self.scale * self.linear(x) + self.nothing.sum()


@every_tap
def test_scalar_and_empty_parameters_are_measured(tap):
    measured(Scalars(), tap=tap)


@every_tap
def test_a_bfloat16_model_is_measured_as_well_as_its_gradients_are(tap):
    x, y = class_data()
    measured(classifier(dtype=torch.bfloat16), tap=tap, samples=(x.bfloat16(), y), rel=0.05)


class Transposed(nn.Module):
    """Gives a gradient that is not contiguous, and one that is expanded."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 5))
        self.shift = nn.Parameter(torch.zeros(2, 3))

    def forward(self, x):
        return (self.weight.t().contiguous().t() @ x.t()).t() + self.shift.sum(0)


@every_tap
def test_gradients_that_are_not_contiguous_are_measured(tap):
    measured(Transposed(), tap=tap)


class NoGradientFor(torch.autograd.Function):
    @staticmethod
    def forward(context, x, weight):
        return x.clone()

    @staticmethod
    def backward(context, gradient):
        return gradient, None


class Silent(nn.Module):
    """Its second weight is used by a Function that gives it None."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.ignored = nn.Linear(5, 3), nn.Parameter(torch.ones(3))

    def forward(self, x):
        return NoGradientFor.apply(self.linear(x), self.ignored)


@every_tap
def test_a_function_that_gives_no_gradient_for_a_weight_is_no_error(tap):
    measured(Silent(), tap=tap)


class Words(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(8, 4, sparse=True), nn.Linear(4, 3)

    def forward(self, x):
        return self.head(self.table((x.abs() * 3).long().clamp(max=7)).mean(1))


@pytest.mark.parametrize("tap", [LeafHooks, Detached])
def test_sparse_gradients_are_measured(tap):
    model, (x, y) = Words(), class_data()
    meter = Meter(model, tap=tap())
    meter.bind(torch.optim.SGD(model.parameters(), lr=0.1))
    meter.open(frozenset({"moments"}))
    cuts = [(x[:5], y[:5]), (x[5:10], y[5:10])]
    for cut in cuts:
        loss = class_loss(model, *cut)
        meter.backward(loss, share=0.5, weight=5, samples=5, last=cut is cuts[1])
    moments = meter.close(planned_weight=10).moments
    model.table.sparse = False
    twin = twin_of(model, class_loss, cuts)
    assert moments.variance == pytest.approx(twin.variance, rel=1e-5)
    assert moments.batch_sqnorm == pytest.approx(twin.batch_sqnorm, rel=1e-5)


@every_tap
def test_a_users_own_autograd_grad_between_backward_calls_is_not_counted(tap):
    def own(model, x, y):
        torch.autograd.grad(100 * class_loss(model, x, y), list(model.parameters()))

    measured(classifier(), tap=tap, between=own)


needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs g++")


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # inside the compiler
@pytest.mark.parametrize(
    ("tap", "backend"),
    [
        *[(tap, "aot_eager") for tap in TAPS],
        pytest.param(LeafHooks, "inductor", marks=needs_compiler),  # takes seconds, so one alone
    ],
)
def test_a_compiled_model_is_measured_exactly(tap, backend):
    model = classifier() if backend == "aot_eager" else nn.Linear(5, 3)
    compiled = torch.compile(model, backend=backend, dynamic=True)
    measured(
        model, tap=tap, loss_fn=lambda m, x, y: class_loss(compiled if m is model else m, x, y)
    )


def test_names_are_those_of_the_model_inside_the_compiler():
    model = torch.compile(classifier(), backend="aot_eager")
    meter = Meter(model)
    meter.bind(torch.optim.SGD(model.parameters(), lr=0.1))
    assert meter.parameters.names == ("0.weight", "0.bias", "2.weight", "2.bias")


@every_tap
def test_dropout_and_inplace_layers_are_measured_as_they_ran(tap):
    model = nn.Sequential(nn.Linear(5, 7), nn.ReLU(inplace=True), nn.Dropout(), nn.Linear(7, 3))

    def seeded(m, x, y):  # the same masks for the twin, which also runs in float64
        hidden = m[1](m[0](x) * 1.0)
        torch.manual_seed(int(1000 * abs(x[0, 0].item())))
        return nn.functional.cross_entropy(m[3](hidden * (torch.rand(hidden.shape) > 0.5)), y)

    measured(model, tap=tap, loss_fn=seeded)
    control, seen = measuring_controller(
        model, torch.optim.SGD(model.parameters(), lr=0.1), meter=Meter(model, tap=tap())
    )
    for batch in control.steps(steps=2):
        for x, y in batch:
            control.backward(class_loss(model, x, y))
        control.step()
    assert all(step.moments.variance > 0 for step in seen.steps)


def test_a_model_moved_after_the_meter_was_bound_is_refused_by_name():
    model, (x, y) = classifier(), class_data(dtype=torch.float64)
    control, _ = measuring_controller(
        model, torch.optim.SGD(model.parameters(), lr=0.1), samples=(x, y)
    )
    model.double()
    with pytest.raises(LargeBatchError, match=r"0\.weight was moved"):
        train(control, loss=class_loss, steps=1)


def test_hooks_change_no_gradient_and_leave_none_behind():
    model, (x, y) = classifier(), class_data()
    class_loss(model, x[:5], y[:5]).backward()
    plain = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    meter = Meter(model)
    meter.bind(torch.optim.SGD(model.parameters(), lr=0.1))
    meter.open(frozenset({"moments"}))
    meter.backward(class_loss(model, x[:5], y[:5]), share=1.0, weight=5, samples=5, last=True)
    assert all(torch.equal(a, p.grad) for a, p in zip(plain, model.parameters(), strict=True))
    assert len(meter.tap._handles) == 4
    meter.open(frozenset())
    assert meter.tap._handles == []


class Own(torch.optim.SGD):
    """Clears in its own way: to zeros."""

    def zero_grad(self, set_to_none: bool = True) -> None:
        super().zero_grad(set_to_none=False)


@pytest.mark.parametrize("tap", [LeafHooks, Detached])
def test_gradients_are_cleared_as_the_optimizer_does_it(tap):
    for kind, cleared in ((torch.optim.SGD, None), (Own, 0.0)):
        model = classifier()
        control, _ = measuring_controller(
            model, kind(model.parameters(), lr=0.1), meter=Meter(model, tap=tap())
        )
        train(control, loss=class_loss, steps=1)
        for parameter in model.parameters():
            left = None if parameter.grad is None else parameter.grad.abs().max().item()
            assert left == cleared


@pytest.mark.parametrize("after", [1, 4])
def test_flat_refuses_gradients_cleared_behind_its_back_before_the_optimizer_moves(after):
    model = classifier()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    control, seen = measuring_controller(model, optimizer, meter=Meter(model, tap=Flat()))
    with pytest.raises(
        MicroBatchMissed, match=r"0\.weight is no longer in|cleared between two backward calls"
    ):
        for batch in control.steps(steps=1):
            for at, (x, y) in enumerate(batch, start=1):
                control.backward(class_loss(model, x, y))
                if at == after:
                    optimizer.zero_grad()
            control.step()
    assert seen.steps == []
