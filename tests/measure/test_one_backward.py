"""A loop with one backward per step on one process is measured by itself, or refused in time."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import largebatch as lb
from largebatch.core.errors import LargeBatchError, NoVariance
from largebatch.measure.one_backward import EXAMPLES, PAIRS, MeasuredSteps
from small_runs import class_data, class_loss, classifier, weights

BATCH = 6
Call = Callable[[Any, Tensor], Tensor]


def train(
    model: nn.Module,
    *,
    steps: int,
    rule: Any = None,
    call: Call = lambda model, x: model(x),
    batch: int = BATCH,
    lr: float = 0.05,
    poisoned: tuple[int, ...] = (),
) -> tuple[Any, list[Any], list[tuple[float, float]]]:
    """The control, the moments of each step, and the exact ones."""
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    control = lb.attach(
        model,
        optimizer,
        rule or lb.Observe(statistics=("moments",)),
        batch_size=batch,
        base_batch_size=2,
    )
    seen, exact = [], []
    x, y = class_data(batch * steps)
    for step, (own, target) in enumerate(zip(x.split(batch), y.split(batch), strict=True)):
        exact.append(moments(model, own, target))
        loss = nn.functional.cross_entropy(call(model, own), target)
        (loss * (torch.nan if step in poisoned else 1.0)).backward()
        optimizer.step()
        optimizer.zero_grad()
        seen.append(control._seen.moments)
    return control, seen, exact


def moments(model: nn.Module, x: Tensor, y: Tensor) -> tuple[float, float]:
    """The unbiased variance of one example and squared norm, from a backward for each example."""
    if len(x) < 2:
        return 0.0, 0.0
    twin = copy.deepcopy(model)
    parameters = [p for p in twin.parameters() if p.requires_grad]
    rows = []
    for at in range(len(x)):
        loss = class_loss(twin.eval(), x[at : at + 1], y[at : at + 1])
        grads = torch.autograd.grad(loss, parameters)
        rows.append(torch.cat([g.flatten().double() for g in grads]))
    each = torch.stack(rows)
    variance = float((each - each.mean(0)).square().sum() / (len(x) - 1))
    return variance, float(each.mean(0).square().sum()) - variance / len(x)


def test_the_first_step_shows_the_loop_and_then_some_are_measured() -> None:
    control, seen, exact = train(classifier(), steps=20)
    measured = [step for step, one in enumerate(seen) if one is not None]
    assert measured == [1, 9, 17]
    for step in measured:
        assert (seen[step].variance, seen[step].sqnorm) == pytest.approx(exact[step], rel=1e-4)
        assert (seen[step].parts, seen[step].source) == (BATCH, "examples")
    assert control.optimizer_steps == 20
    assert control.observer.schedule == EXAMPLES


@pytest.mark.parametrize("schedule", [EXAMPLES, PAIRS, MeasuredSteps()])
def test_the_measured_steps_are_stretches_often_at_first_and_rarely_later(schedule) -> None:
    starts = [at * schedule.early_every for at in range(schedule.early)]
    starts += range(schedule.early * schedule.early_every, 500, schedule.every)
    naive = {start + place: place for start in starts for place in range(schedule.span)}
    assert [schedule.position(step) for step in range(500)] == [naive.get(at) for at in range(500)]


def test_the_variance_is_unbiased_against_that_of_the_whole_data() -> None:
    """At fixed weights the mean over many batches, drawn anew, is the variance of the data."""
    model = classifier()
    x, y = class_data(40)
    truth, _ = moments(model, x, y)
    truth *= 39 / 40  # drawn with replacement: each example has one fortieth
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    control = lb.attach(
        model,
        optimizer,
        lb.Observe(statistics=("moments",)),
        batch_size=4,
        base_batch_size=2,
    )
    generator, found, sqnorms = torch.Generator().manual_seed(3), [], []
    for step in range(600):
        at = torch.randint(0, 40, (4,), generator=generator)
        class_loss(model, x[at], y[at]).backward()
        optimizer.step()
        optimizer.zero_grad()
        if step:
            control.observer.schedule = MeasuredSteps()  # every step
            if control._seen.moments is not None:
                found.append(control._seen.moments.variance)
                sqnorms.append(control._seen.moments.sqnorm)
    assert len(found) > 500
    error = torch.tensor(found).std() / len(found) ** 0.5
    assert sum(found) / len(found) == pytest.approx(truth, abs=4 * float(error))
    assert float(error) < 0.05 * truth


def test_the_trial_at_the_end_of_the_first_step_leaves_no_trace() -> None:
    for make in (classifier, lambda: classifier(nn.Dropout(0.4))):
        trained = []
        for watched in (False, True):
            torch.manual_seed(0)
            model = make()
            if watched:
                train(model, steps=3)
            else:
                optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
                for x, y in zip(*(t.split(BATCH) for t in class_data(18)), strict=True):
                    class_loss(model, x, y).backward()
                    optimizer.step()
                    optimizer.zero_grad()
            trained.append([*weights(model), torch.get_rng_state()])
        # a measured layer forms its gradient in another order
        assert all(map(torch.allclose, *trained))
        assert torch.equal(trained[0][-1], trained[1][-1])


def in_turn(model: nn.Module, x: Tensor) -> Tensor:
    for layer in model:  # type: ignore[attr-defined]
        x = layer(x)
    return x


def compiled_in_place() -> nn.Module:
    torch.compiler.reset()
    model = classifier()
    model.compile(backend="aot_eager")
    return model


def compiled() -> nn.Module:
    torch.compiler.reset()
    return torch.compile(classifier(), backend="aot_eager")


REFUSED = {
    "BatchNorm": (lambda: classifier(nn.BatchNorm1d(7)), {}, "batch normalization"),
    "compiled": (compiled, {}, r"torch\.compile"),
    "compiled in place": (compiled_in_place, {}, "is compiled"),
    "submodules called directly": (classifier, {"call": in_turn}, "submodules are called directly"),
    "one example": (classifier, {"batch": 1}, "has one example"),
}


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_measured_is_refused_before_a_weight_moves(name) -> None:
    make, options, text = REFUSED[name]
    model = make()
    before = weights(model)
    with pytest.raises(NoVariance, match=text) as error:
        train(model, steps=2, rule=lb.AdaScale(), **options)
    assert "lb.Meter(model, statistics=[lb.measure.TemporalMoments()])" in str(error.value)
    assert all(map(torch.equal, before, weights(model)))


def test_a_refused_loop_goes_on_with_two_micro_batches() -> None:
    model = classifier(nn.BatchNorm1d(7))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    control = lb.attach(model, optimizer, lb.AdaScale(), batch_size=12, base_batch_size=2)
    x, y = class_data(12)
    class_loss(model, x, y).backward()
    with pytest.raises(NoVariance):
        optimizer.step()
    optimizer.zero_grad()
    for own, target in zip(x.chunk(2), y.chunk(2), strict=True):
        (class_loss(model, own, target) / 2).backward()
    optimizer.step()
    assert control.optimizer_steps == 1
    assert control._seen.moments.parts == 2


@pytest.mark.parametrize("poisoned", [(0,), (1,), (0, 1)])
def test_a_first_step_that_is_not_finite_ends_as_such(poisoned) -> None:
    """It moves no weight, and the steps after it are measured."""
    model = classifier()
    control, seen, exact = train(model, steps=5, poisoned=poisoned)
    assert control.skipped == len(poisoned)
    assert all(weight.isfinite().all() for weight in weights(model))
    measured = [step for step, one in enumerate(seen) if one is not None]
    assert measured, seen
    for step in measured:
        if step not in poisoned:
            assert seen[step].variance == pytest.approx(exact[step][0], rel=1e-4)


def test_a_rule_that_measures_nothing_is_not_tried_out() -> None:
    control, seen, _ = train(classifier(nn.BatchNorm1d(7)), steps=2, rule=lb.SqrtScaling())
    assert control.optimizer_steps == 2
    assert seen == [None, None]


def test_two_backward_calls_in_a_later_step_are_refused_by_name() -> None:
    model = classifier()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    lb.attach(model, optimizer, lb.AdaScale(), batch_size=BATCH, base_batch_size=2)
    x, y = class_data(2 * BATCH)
    class_loss(model, x[:BATCH], y[:BATCH]).backward()
    optimizer.step()
    optimizer.zero_grad()
    out = model(x[BATCH:])
    nn.functional.cross_entropy(out, y[BATCH:]).backward(retain_graph=True)
    out.square().mean().backward()
    with pytest.raises(LargeBatchError, match=r"loss_1 \+ loss_2"):
        optimizer.step()
