"""Measuring under `attach`: a loop of the user's own gives what the measuring_controller gives."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import pytest
import torch
from gradient_twin import twin_of
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge
from torch.autograd.variable import Variable
from torch.utils.checkpoint import checkpoint

import largebatch as lb
from largebatch.act.loader import BatchLoader
from largebatch.core.errors import LargeBatchError, MicroBatchMissed, NoVariance
from largebatch.measure.meter import Meter
from largebatch.measure.taps import Detached
from largebatch.measure.temporal import TemporalMoments
from largebatch.rules import Observe
from largebatch.rules.adascale import AdaScale
from small_runs import Seen, class_data, class_loss, classifier, measuring_controller


def attached(
    model: nn.Module, optimizer: torch.optim.Optimizer, *, batch_size: int = 20, **more: Any
) -> tuple[Any, Seen]:
    seen = Seen()
    ask = Observe(statistics=more.pop("ask", ("moments",)))
    control = lb.attach(
        model, optimizer, ask, batch_size=batch_size, base_batch_size=4, record=seen, **more
    )
    return control, seen


def chunks(sizes: Sequence[int] = (5, 5, 5, 5)) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """The data, step by step, cut into micro-batches of these sizes; copies, since where a view
    begins in memory decides the last digit on some processors."""
    x, y = class_data()
    at = 0
    while at + sum(sizes) <= len(x):
        step = []
        for size in sizes:
            step.append((x[at : at + size].clone(), y[at : at + size].clone()))
            at += size
        yield step


def loop(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    factor: float = 0.25,
    steps: int = 3,
    sizes: Sequence[int] = (5, 5, 5, 5),
    told: Callable[[int], None] | None = None,
    before_step: Callable[[], Any] = lambda: None,
    clear: Callable[[], Any] | None = None,
    losses: Callable[..., list[Tensor]] = lambda m, x, y: [class_loss(m, x, y)],
) -> list[Any]:
    """A user's own loop; returns the twin of each step."""
    twins = []
    for step, _ in zip(chunks(sizes), range(steps), strict=False):
        twins.append(twin_of(model, class_loss, step, weights=[1.0] * len(step)))
        for x, y in step:
            if told:
                told(len(x))
            for loss in losses(model, x, y):
                (loss * factor).backward()
        before_step()
        optimizer.step()
        (clear or optimizer.zero_grad)()
    return twins


@pytest.mark.parametrize("micro_batches", [None, 4])
@pytest.mark.parametrize("make", [torch.optim.SGD, torch.optim.Adam])
def test_attach_equals_the_controller_bit_for_bit_on_equal_micro_batches(make, micro_batches):
    rule = AdaScale(statistic="moments" if make is torch.optim.SGD else "preconditioned_moments")
    driven, own = classifier(), classifier()
    first, second = make(driven.parameters(), lr=0.05), make(own.parameters(), lr=0.05)
    batches = BatchLoader(class_data(), batch_size=20, max_micro_batch_size=5, shuffle=False)
    control = lb.Controller(driven, first, rule, batches, base_batch_size=4)
    watched = lb.attach(
        own, second, rule, batch_size=20, base_batch_size=4, micro_batches=micro_batches
    )
    multipliers = []
    for epoch in range(3):
        for batch in control.steps(steps=9):
            for x, y in batch:
                control.backward(class_loss(driven, x, y))
            control.step()
            multipliers.append(control.lr_multiplier)
            if control.optimizer_steps == 3 * (epoch + 1):
                break
        loop(own, second)
        assert watched.lr_multiplier == multipliers[-1]
        assert watched.base_steps == control.base_steps
        for ours, theirs in zip(driven.parameters(), own.parameters(), strict=True):
            assert torch.equal(ours, theirs)
    assert len(set(multipliers)) > 1


@pytest.mark.parametrize("micro_batches", [None, 4])
@pytest.mark.parametrize("set_to_none", [True, False])
@pytest.mark.parametrize("factor", [0.25, 1.0, 3.0])
def test_moments_are_the_twins_whatever_the_loss_is_divided_by(factor, set_to_none, micro_batches):
    model = classifier()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    _, seen = attached(model, optimizer, micro_batches=micro_batches)
    twins = loop(
        model,
        optimizer,
        factor=factor,
        clear=lambda: optimizer.zero_grad(set_to_none=set_to_none),
    )
    square = (4 * factor) ** 2  # the gradient that the optimizer gets is that much larger
    for step, twin in zip(seen.steps, twins, strict=True):
        assert step.moments.variance / square == pytest.approx(twin.variance, rel=3e-5)
        assert step.moments.batch_sqnorm / square == pytest.approx(twin.batch_sqnorm, rel=3e-5)
        assert step.moments.noise_scale == pytest.approx(
            twin.variance / twin.sqnorm if twin.sqnorm > 0 else math.inf, rel=1e-3
        )
        assert step.batch_size == 20


def test_the_users_clipping_leaves_the_statistic_unclipped():
    found = []
    for clip in (False, True):
        model = classifier()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        _, seen = attached(model, optimizer)
        norm = 1e-3 if clip else 1e6
        loop(
            model,
            optimizer,
            steps=1,
            before_step=lambda m=model, n=norm: nn.utils.clip_grad_norm_(m.parameters(), n),
        )
        found.append(seen.steps[0])
    assert found[0] == found[1]
    assert found[0].batch_sqnorm > 1e-3


@pytest.mark.parametrize("micro_batches", [None, 3])
def test_unequal_sizes_that_are_passed_give_the_unbiased_variance(micro_batches):
    model, sizes = classifier(), (7, 2, 11)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    control, seen = attached(model, optimizer, micro_batches=micro_batches)
    twins = loop(
        model,
        optimizer,
        factor=1 / 3,
        sizes=sizes,
        told=partial(control.micro_batch, weight=1),
        steps=3,
    )
    inverse = sum(1 / n for n in sizes)
    for step, twin in zip(seen.steps, twins, strict=True):
        # the twin took equal weights and units; its L - B = v' (3 - 1) / 3 gives the true one
        gap = twin.variance / 20 * 2
        variance = gap / (inverse / 3 - inverse / 9)
        assert step.moments.variance == pytest.approx(variance, rel=1e-4)
        assert step.moments.batch_size == pytest.approx(9 / inverse)
        assert step.batch_size == 20


def test_moments_of_unequal_micro_batches_are_unbiased_over_many_steps():
    generator = torch.Generator().manual_seed(5)
    weight = nn.Parameter(torch.zeros(4))
    optimizer = torch.optim.SGD([weight], lr=0.0)
    control, seen = attached(nn.ParameterList([weight]), optimizer)
    mean, sizes = torch.tensor([0.5, 0.0, -0.5, 1.0]), (7, 2, 11)
    for _ in range(1500):
        for size in sizes:
            control.micro_batch(size, weight=1)
            noise = torch.randn(size, 4, generator=generator).mean(0)
            (weight @ (mean + noise) / 3).backward()
        optimizer.step()
        optimizer.zero_grad()
    moments = [step.moments for step in seen.steps]
    assert sum(m.variance for m in moments) / 1500 == pytest.approx(4.0, abs=0.2)
    assert sum(m.sqnorm for m in moments) / 1500 == pytest.approx(1.5, abs=0.06)


def test_sizes_passed_for_only_some_micro_batches_are_refused():
    model = classifier()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    control, _ = attached(model, optimizer)
    for size in (5, 5, 5):
        control.micro_batch(size)
    with pytest.raises(MicroBatchMissed, match="called 3 times in this step, but 4"):
        loop(model, optimizer)


def two_losses(model: nn.Module, x: Tensor, y: Tensor) -> list[Tensor]:
    return [class_loss(model, x, y), model(x).square().mean()]


def test_two_backward_calls_for_one_micro_batch_are_refused_if_their_number_was_given():
    model = classifier()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    attached(model, optimizer, micro_batches=4)
    with pytest.raises(LargeBatchError, match=r"0\.weight got 8 .*micro_batches=4 allows"):
        loop(model, optimizer, losses=two_losses)


def test_a_missing_micro_batch_is_refused_and_the_next_step_starts_clean():
    model = classifier()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    _, seen = attached(model, optimizer, micro_batches=4)
    with pytest.raises(MicroBatchMissed, match="after 3 micro-batches"):
        loop(model, optimizer, sizes=(5, 5, 5))
    optimizer.zero_grad()
    (twin,) = loop(model, optimizer, steps=1)
    assert seen.steps[0].moments.variance == pytest.approx(twin.variance, rel=3e-5)


@pytest.mark.parametrize("micro_batches", [None, 4])
def test_gradients_that_were_not_cleared_are_refused_in_the_very_next_step(micro_batches):
    model = classifier()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    _, seen = attached(model, optimizer, micro_batches=micro_batches)
    with pytest.raises(MicroBatchMissed, match=r"optimizer\.zero_grad\(\)"):
        loop(model, optimizer, clear=lambda: None)
    assert len(seen.steps) == 1
    optimizer.zero_grad()
    loop(model, optimizer, steps=1)
    assert seen.steps[0].moments == seen.steps[1].moments


def test_a_step_without_a_backward_is_refused():
    model = classifier()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    attached(model, optimizer)
    with pytest.raises(MicroBatchMissed, match="without a backward"):
        optimizer.step()


def test_one_backward_per_step_has_no_variance_for_a_meter_of_micro_batches():
    model = classifier()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    attached(model, optimizer, batch_size=5, meter=Meter(model))
    with pytest.raises(NoVariance, match=r"two or more micro-batches.*TemporalMoments"):
        loop(model, optimizer, sizes=(5,))


def test_a_last_step_of_one_micro_batch_gives_no_moments_but_ends_no_run():
    model = classifier()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    _, seen = attached(model, optimizer)
    loop(model, optimizer, steps=1)
    loop(model, optimizer, steps=1, sizes=(5,), factor=1.0)
    assert [step.moments is None for step in seen.steps] == [False, True]
    assert [step.batch_size for step in seen.steps] == [20, 5]


@pytest.mark.parametrize("micro_batches", [None, 1, 4])
def test_temporal_moments_need_no_second_micro_batch(micro_batches):
    model = classifier()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    sizes = (5,) * (micro_batches or 1)
    _, seen = attached(
        model,
        optimizer,
        batch_size=sum(sizes),
        micro_batches=micro_batches,
        meter=Meter(model, statistics=[TemporalMoments()]),
    )
    twins = loop(model, optimizer, sizes=sizes, factor=1 / len(sizes))
    assert [step.moments is None for step in seen.steps] == [True, False, False]
    assert all(step.moments.source == "temporal" for step in seen.steps[1:])
    squares = [step.batch_sqnorm for step in seen.steps]
    assert squares == pytest.approx([twin.batch_sqnorm for twin in twins], rel=3e-5)


def test_a_layer_unused_in_some_micro_batches_is_measured():
    class Sometimes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.rare = nn.Linear(5, 3), nn.Linear(5, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.body(x) + (self.rare(x) if x[0, 0] > 0 else 0.0)

    found = []
    for micro_batches in (4, None):
        torch.manual_seed(0)
        model = Sometimes()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        _, seen = attached(model, optimizer, micro_batches=micro_batches)
        twins = loop(model, optimizer)
        found += [(s.moments.variance, t.variance) for s, t in zip(seen.steps, twins, strict=True)]
    for ours, theirs in found:
        assert ours == pytest.approx(theirs, rel=3e-5)


def test_a_step_that_measures_nothing_has_no_norm_and_accepts_any_number_of_sizes():
    model = classifier()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    control, seen = attached(model, optimizer, ask=())
    loop(model, optimizer, told=partial(control.micro_batch, weight=1), sizes=(7, 2, 11))
    loop(model, optimizer, steps=1)
    assert [step.batch_size for step in seen.steps] == [20] * 4
    assert all(step.batch_sqnorm is None and step.moments is None for step in seen.steps)


def test_attach_refuses_another_tap_and_a_closure():
    model = classifier()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    with pytest.raises(ValueError, match="The tap Detached was given"):
        attached(model, optimizer, meter=Meter(model, tap=Detached()))
    attached(model, optimizer)
    with pytest.raises(LargeBatchError, match="closure"):
        optimizer.step(lambda: torch.tensor(0.0))


def test_closing_takes_every_hook_off():
    model = classifier()
    plain = copy.deepcopy(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    control, seen = attached(model, optimizer)
    loop(model, optimizer, steps=1)
    control.close()
    loop(model, optimizer, sizes=(5,))
    assert len(seen.steps) == 1
    reference = torch.optim.SGD(plain.parameters(), lr=0.05)
    loop(plain, reference, steps=1)
    loop(plain, reference, sizes=(5,))
    for ours, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_a_gradient_that_is_not_finite_is_reported_and_the_next_step_is_measured():
    model = classifier()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    _, seen = attached(model, optimizer)
    loop(model, optimizer, steps=1)
    loop(
        model,
        optimizer,
        steps=1,
        losses=lambda m, x, y: [class_loss(m, x, y) * math.inf],
        before_step=model.zero_grad,  # as a user's own guard may do, who keeps the weights
    )
    loop(model, optimizer, steps=1)
    assert [step.finite for step in seen.steps] == [True, False, True]
    assert seen.steps[0].moments == seen.steps[2].moments


@pytest.mark.parametrize("at", [0, 1])
def test_a_step_with_a_backward_that_failed_is_refused_and_the_next_one_starts_clean(at):
    model = classifier()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    _, seen = attached(model, optimizer)

    def explode(gradient):
        raise FloatingPointError("in the backward")

    x, y = class_data()
    given = x[:5].clone().requires_grad_()
    hidden = model[1](model[0](given))
    (given if at == 0 else hidden).register_hook(explode)  # after all gradients, or after some
    with pytest.raises(FloatingPointError):
        nn.functional.cross_entropy(model[2](hidden), y[:5]).backward()
    optimizer.zero_grad()  # and the user goes on
    with pytest.raises(LargeBatchError, match="raised an exception"):
        loop(model, optimizer)
    optimizer.zero_grad()
    (twin,) = loop(model, optimizer, steps=1)
    assert len(seen.steps) == 1
    assert seen.steps[0].moments.variance == pytest.approx(twin.variance, rel=3e-5)


def test_reentrant_checkpointing_is_measured():
    model = classifier()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    _, seen = attached(model, optimizer)

    def losses(m, x, y):
        hidden = checkpoint(m[:2], x.detach().requires_grad_(), use_reentrant=True)
        return [nn.functional.cross_entropy(checkpoint(m[2], hidden, use_reentrant=True), y)]

    twins = loop(model, optimizer, losses=losses)
    for step, twin in zip(seen.steps, twins, strict=True):
        assert step.moments.variance == pytest.approx(twin.variance, rel=3e-5)
        assert step.batch_sqnorm == pytest.approx(twin.batch_sqnorm, rel=3e-5)


def test_a_model_moved_after_attach_is_refused_by_name():
    model = classifier()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    attached(model, optimizer)
    model.double()
    x, y = class_data(dtype=torch.float64)
    class_loss(model, x, y).backward()
    with pytest.raises(LargeBatchError, match=r"0\.weight was moved"):
        optimizer.step()


def test_torch_calls_back_once_at_the_end_of_each_backward():
    """The private interface that `Observer` builds on, alone."""
    weight, events = nn.Parameter(torch.ones(2)), []
    node = get_gradient_edge(weight).node

    def ended() -> None:
        events.append(("end", weight.grad.tolist()))

    def hook(gradients: tuple[Tensor, ...]) -> None:
        events.append(("gradient", gradients[0].tolist()))
        Variable._execution_engine.queue_callback(
            lambda: Variable._execution_engine.queue_callback(ended)
        )

    node.register_prehook(hook)
    for _ in range(2):
        (weight * 3).sum().backward()
    assert events == [
        ("gradient", [3.0, 3.0]),
        ("end", [3.0, 3.0]),
        ("gradient", [3.0, 3.0]),
        ("end", [6.0, 6.0]),
    ]
    with pytest.raises(RuntimeError):
        Variable._execution_engine.queue_callback(ended)  # outside a backward there is no end


def test_controller_and_attach_agree_on_adams_preconditioned_moments():
    driven, own = classifier(), classifier()
    first = torch.optim.Adam(driven.parameters(), lr=0.01)
    second = torch.optim.Adam(own.parameters(), lr=0.01)
    ask = ("preconditioned_moments",)
    control, seen = measuring_controller(driven, first, ask=ask)
    for batch in control.steps(steps=9):
        for x, y in batch:
            control.backward(class_loss(driven, x, y))
        control.step()
    _, watched = attached(own, second, ask=ask)
    for _ in range(3):
        loop(own, second)
    for a, b in zip(seen.steps, watched.steps, strict=True):
        assert a.preconditioned_moments == b.preconditioned_moments
