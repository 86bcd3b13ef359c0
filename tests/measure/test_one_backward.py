"""A loop with one backward per step on one process is measured by itself, or refused in time."""

from __future__ import annotations

import copy
import random
import threading
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import largebatch as lb
from largebatch.core.errors import LargeBatchError, NoVariance
from largebatch.measure.one_backward import EXAMPLES
from largebatch.measure.timetable import EVERY_STEP, Timetable
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


def attached_to(model: nn.Module, rule: Any) -> Any:
    optimizer = torch.optim.Adam(model.parameters(), lr=0.001)
    return lb.attach(model, optimizer, rule, batch_size=BATCH, base_batch_size=2)


def step_of(model: nn.Module, control: Any, *, batch: int = BATCH, factor: float = 1.0) -> None:
    (factor * class_loss(model, *class_data(batch))).backward()
    control.optimizer.step()
    control.optimizer.zero_grad()


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
        if step == 1:
            control.observer._choice.timetable = Timetable(EVERY_STEP)
        if step and control._seen.moments is not None:
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
    "submodules called directly": (
        classifier,
        {"call": in_turn},
        "submodules of the model directly",
    ),
    "one example": (classifier, {"batch": 1}, "has only one example"),
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
    assert not control.observer._step.forwards.keeps
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


class Tracked(nn.Module):
    """A model whose forward changes all kinds of things beside buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.key = classifier(), classifier()
        self.key.requires_grad_(False)
        self.calls, self.drawn = 0, random.Random(3)
        self.generator = torch.Generator().manual_seed(3)
        self.last: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        x.sub_(0.1)
        with torch.no_grad():
            for key, query in zip(self.key.parameters(), self.net.parameters(), strict=True):
                key.data.mul_(0.9).add_(query, alpha=0.1)
        noise = 0.1 * torch.randn(x.shape[1:], generator=self.generator)
        out = self.net(x + noise + 0.1 * self.drawn.random()) - 0.1 * self.key(x)
        self.last = [*self.last[-1:], out]  # holds the graph
        return out


@pytest.mark.parametrize("door", ["watch", "attach", "examples"])
def test_what_a_forward_pass_changes_is_changed_as_often_as_without(door) -> None:
    found = []
    for measured in (False, True):
        torch.manual_seed(0)
        model = Tracked()
        calls: list[int] = []
        model.net[0].register_forward_hook(lambda *_, calls=calls: calls.append(1))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        if measured and door == "watch":
            noise = lb.watch(model, optimizer, batch_size=BATCH)
        elif measured:
            rule = lb.Observe(statistics=("moments",))
            meter = lb.Meter(model, examples=lb.PerExample()) if door == "examples" else None
            options = {"batch_size": BATCH, "base_batch_size": 2, "meter": meter}
            lb.attach(model, optimizer, rule, **options)
        x, y = class_data(4 * BATCH)
        for own, target in zip(x.split(BATCH), y.split(BATCH), strict=True):
            class_loss(model, own, target).backward()
            optimizer.step()
            optimizer.zero_grad()
        state = [*weights(model), *weights(model.key), x, model.generator.get_state()]
        found.append((state, model.calls, model.drawn.getstate(), len(calls)))
    if door == "watch":
        assert noise.label.startswith("measured from examples")
        assert len(noise.series) == 1
    assert all(map(torch.allclose, found[0][0], found[1][0]))
    assert found[0][1:] == found[1][1:]


class Locked(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(*classifier())
        self.lock = threading.Lock()


def penalty_on_weights(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return cross_entropy(model(x), y) + 0.01 * sum(p.square().sum() for p in model.parameters())


def penalty_on_gradient(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    x = x.requires_grad_()
    out = model(x)
    (slope,) = torch.autograd.grad(out.sum(), x, create_graph=True)
    return cross_entropy(out, y) + slope.square().mean()


def penalty_at_other_points(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    between = (x + x.flip(0)).div(2).requires_grad_()
    (slope,) = torch.autograd.grad(model(between).sum(), between, create_graph=True)
    return cross_entropy(model(x), y) + slope.square().mean()


def one_weight_only(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return cross_entropy(model(x), y) + 0.1 * model[-1].bias.square().sum()


def plain(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return cross_entropy(model(x), y)


def of_two_views(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return cross_entropy(model(x) + model(x.neg()), y)


def beside_a_logging_pass(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    model(x[:3])
    loss = cross_entropy(model(x), y)
    model(x[:4])
    return loss


def scaled(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return 1024 * cross_entropy(model(x), y)


Loss = Callable[[nn.Module, Tensor, Tensor], Tensor]


def measure(loss: Loss, *layers: nn.Module, door: str, clip: str = "", steps: int = 3) -> Any:
    torch.manual_seed(0)
    model = classifier(*layers)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    before = weights(model)
    control: Any
    if door == "watch":
        control = lb.watch(model, optimizer, batch_size=BATCH)
    else:
        options = {"batch_size": BATCH, "base_batch_size": 2}
        control = lb.attach(model, optimizer, lb.AdaScale(), **options)
    x, y = class_data(steps * BATCH)
    for own, target in zip(x.split(BATCH), y.split(BATCH), strict=True):
        loss(model, own, target).backward()
        if clip == "norm":
            nn.utils.clip_grad_norm_(model.parameters(), 0.01)
        if clip == "value":
            nn.utils.clip_grad_value_(model.parameters(), 0.001)
        try:
            optimizer.step()
        finally:
            control.moved = not all(map(torch.equal, before, weights(model)))
        optimizer.zero_grad()
    return control


@pytest.mark.parametrize("clip", ["", "norm", "value"])
@pytest.mark.parametrize("layers", [(), (nn.Dropout(0.4),)], ids=["fixed", "dropout"])
@pytest.mark.parametrize(
    "loss", [penalty_on_weights, penalty_on_gradient, penalty_at_other_points, one_weight_only]
)
def test_a_term_beside_the_models_output_is_found_in_the_first_step(loss, layers, clip) -> None:
    with pytest.raises(NoVariance, match=r"do not add up .* weight_decay") as error:
        measure(loss, *layers, door="attach", clip=clip, steps=1)
    assert "PerExample" not in str(error.value)
    noise = measure(loss, *layers, door="watch", clip=clip)
    assert noise.label.startswith("measured from pairs")
    assert (noise.dropped, len(noise.series)) == (0, 1)


@pytest.mark.parametrize("clip", ["", "norm", "value"])
@pytest.mark.parametrize("layers", [(), (nn.Dropout(0.4),)], ids=["fixed", "dropout"])
@pytest.mark.parametrize("loss", [plain, of_two_views, beside_a_logging_pass, scaled])
@pytest.mark.parametrize("door", ["watch", "attach"])
def test_a_loss_of_the_models_output_alone_is_measured(door, loss, layers, clip) -> None:
    control = measure(loss, *layers, door=door, clip=clip)
    if door == "watch":
        assert control.label.startswith("measured from examples")
        assert (control.dropped, len(control.series)) == (0, 1)
    else:
        assert control.optimizer_steps == 3


class Layered(nn.Module):
    """Returns a hidden output and what was computed from it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        hidden = self.first(x).tanh()
        return {"hidden": hidden, "out": self.second(hidden)}


def test_an_output_that_another_one_was_computed_from_counts_once() -> None:
    model = Layered()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    noise = lb.watch(model, optimizer, batch_size=BATCH)
    x, y = torch.randn(3, BATCH, 4), torch.randint(3, (3, BATCH))
    for own, target in zip(x, y, strict=True):
        found = model(own)
        loss = cross_entropy(found["out"], target) + found["hidden"].square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert noise.label.startswith("measured from examples")
    assert (noise.dropped, len(noise.series)) == (0, 1)


def test_a_model_that_cannot_be_copied_is_refused_by_name() -> None:
    model = Locked()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    lb.attach(model, optimizer, lb.AdaScale(), batch_size=BATCH, base_batch_size=2)
    class_loss(model, *class_data(BATCH)).backward()
    with pytest.raises(NoVariance, match=r"cannot be copied.*lock"):
        optimizer.step()


def later(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """A penalty that comes after the first step."""
    model.steps = vars(model).get("steps", 0) + 1
    return (penalty_on_weights if model.steps > 1 else plain)(model, x, y)


def test_examples_that_are_refused_in_a_later_step_give_way_to_pairs_under_watch() -> None:
    with pytest.warns(RuntimeWarning, match="do not add up to the gradient of"):
        noise = measure(later, door="watch", steps=4)
    assert noise.label.startswith("measured from pairs")
    assert (noise.dropped, len(noise.series)) == (1, 1)
    with pytest.raises(LargeBatchError, match="do not add up to the gradient of"):
        measure(later, door="attach", steps=4)


@pytest.mark.parametrize("sizes", [(6, 4), (6, 6, 1), (6, 5, 6, 2)])
@pytest.mark.parametrize("logs", [False, True])
@pytest.mark.parametrize("told", [None, lambda args, kwargs: len(args[0])])
def test_a_short_last_batch_counts_its_samples_in_every_step(sizes, logs, told) -> None:
    model = classifier()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    control = lb.attach(
        model, optimizer, lb.AdaScale(), batch_size=BATCH, base_batch_size=2, samples=told
    )
    true = 0
    for _ in range(8):
        for size in sizes:
            x, y = class_data(size)
            class_loss(model, x, y).backward()
            if logs and told is None:
                model(torch.randn(50, x.shape[1]))
            optimizer.step()
            optimizer.zero_grad()
            true += size
            assert control.samples == true


def test_pairs_of_steps_take_the_true_samples_of_a_short_batch() -> None:
    model = classifier(nn.BatchNorm1d(7))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    noise = lb.watch(model, optimizer, batch_size=BATCH)
    gradients, samples = [], [BATCH, BATCH, 4]
    for size in samples:
        x, y = class_data(size)
        class_loss(model, x, y).backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
        optimizer.step()
        optimizer.zero_grad()
    (variance, _) = noise.series[0]
    n, m = samples[1:]
    apart = float((gradients[1] - gradients[2]).square().sum())
    assert variance == pytest.approx(apart / (1 / n + 1 / m), rel=1e-4)


@pytest.mark.parametrize("size", [5, 7])
def test_another_batch_size_than_the_models_is_refused_before_a_weight_moves(size) -> None:
    model = classifier()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    lb.attach(model, optimizer, lb.AdaScale(), batch_size=BATCH, base_batch_size=2)
    before = weights(model)
    class_loss(model, *class_data(size)).backward()
    with pytest.raises(NoVariance, match=f"=6 was given, .* received {size} examples"):
        optimizer.step()
    assert all(map(torch.equal, before, weights(model)))


@pytest.mark.parametrize("door", ["watch", "attach"])
def test_a_block_of_several_backward_calls_has_no_examples(door) -> None:
    model = classifier()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    control: Any
    if door == "watch":
        control = lb.watch(model, optimizer, batch_size=BATCH)
    else:
        options = {"batch_size": BATCH, "base_batch_size": 2}
        control = lb.attach(model, optimizer, lb.AdaScale(), **options)
    x, y = class_data(6 * BATCH)
    before = weights(model)
    for own, target in zip(x.split(2 * BATCH), y.split(2 * BATCH), strict=True):
        with control.part(samples=BATCH):
            class_loss(model, own[:BATCH], target[:BATCH]).backward()
            class_loss(model, own[BATCH:], target[BATCH:]).backward()
        if door == "attach":
            with pytest.raises(NoVariance, match="had 2 backward calls"):
                optimizer.step()
            assert all(map(torch.equal, before, weights(model)))
            return
        optimizer.step()
        optimizer.zero_grad()
    assert control.label.startswith("measured from pairs")
    assert (control.dropped, len(control.series)) == (0, 1)


def asked(steps: int) -> Any:
    """AdaScale that asks for moments in the first steps and in each multiple of `steps`."""
    return lb.Every(lb.AdaScale(), steps=steps, first=steps)


def measured_steps(rule: Any, *, steps: int, poisoned: tuple[int, ...] = ()) -> list[int]:
    _, seen, _ = train(classifier(), steps=steps, rule=rule, poisoned=poisoned)
    return [step for step, one in enumerate(seen) if one is not None and step not in poisoned]


@pytest.mark.parametrize("every", [7, 10, 16, 100])
def test_a_rule_that_asks_in_some_steps_is_measured_in_them_to_the_end(every) -> None:
    """Fixed steps, every 160th from the 129th on, never met the multiples of 10 or 16."""
    measured = measured_steps(asked(every), steps=800)
    assert all(step % every == 0 or step < every for step in measured)
    gaps = [b - a for a, b in pairwise(measured)]
    assert min(gaps) >= 8
    assert min(gaps[16:], default=160) >= 160
    least = [8] * 16 + [160] * 800
    assert all(gap < wait + every for gap, wait in zip(gaps, least, strict=False))
    assert 800 - measured[-1] < 160 + every


def test_rules_that_ask_for_different_statistics_both_get_theirs() -> None:
    rule = lb.chain(asked(10), lb.Observe(statistics=("preconditioned_moments",)))
    model = classifier()
    control = attached_to(model, rule)
    found: dict[str, list[int]] = {"moments": [], "preconditioned_moments": []}
    for step in range(700):
        step_of(model, control)
        for name, steps in found.items():
            if getattr(control._seen, name) is not None:
                steps.append(step)
    later = {name: [step for step in steps if step > 320] for name, steps in found.items()}
    assert len(later["preconditioned_moments"]) >= 2
    assert len(later["moments"]) >= 2
    assert all(step % 10 == 0 for step in later["moments"])
    assert sum(map(len, found.values())) < 4 * 18 + 10


def test_a_measured_step_that_is_skipped_is_measured_again_at_once() -> None:
    rule = lb.Observe(statistics=("moments",))
    assert measured_steps(rule, steps=30, poisoned=(9, 10)) == [1, 11, 19, 27]
    # a skipped step does not count, so the rule's 20th step is the 22nd of the loop
    assert measured_steps(asked(10), steps=40, poisoned=(20, 21)) == [1, 9, 22, 32]


def test_a_measured_step_of_one_example_is_measured_again_at_once() -> None:
    """If the last batch of each epoch has one example, it might fall on each measured step."""
    model, found = classifier(), []
    control = attached_to(model, lb.Observe(statistics=("moments",)))
    for step in range(30):
        step_of(model, control, batch=1 if step == 9 else BATCH)
        found += [step] * (control._seen.moments is not None)
    assert found == [1, 10, 18, 26]


def test_a_resumed_run_measures_often_at_first_again() -> None:
    model = classifier()
    control = attached_to(model, asked(10))
    for _ in range(200):
        step_of(model, control)
    control.close()
    resumed, found = attached_to(model, asked(10)), []
    resumed.load_state_dict(control.state_dict())
    for step in range(200, 240):
        step_of(model, resumed)
        found += [step] * (resumed._seen.moments is not None)
    assert found == [210, 220, 230]
