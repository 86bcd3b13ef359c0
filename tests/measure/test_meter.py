"""The meter against its twin: every tap, optimizer and way to weigh micro-batches."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from gradient_twin import Twin, twin_of
from torch import nn

from largebatch.core.errors import MicroBatchMissed
from largebatch.core.measurement import GradientMoments
from largebatch.measure.meter import Meter
from largebatch.measure.preconditioned import PreconditionedNorms
from largebatch.measure.squared_norms import SquaredNorms
from largebatch.measure.taps import Detached, Flat, LeafHooks
from largebatch.measure.temporal import TemporalMoments, temporal_moments
from small_runs import class_data, class_loss, classifier, measuring_controller, train

TAPS = [LeafHooks, Detached, Flat]
OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05),
    "nesterov": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, nesterov=True),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01),
}
# what is asked of: batch size, largest micro-batch, weight of a micro-batch
EQUAL = (20, 5, None)
UNEQUAL = (20, 7, None)
TOKENS = (20, 7, lambda x: 3.0 + 2.0 * len(x) * (x[0, 0].item() > 0))


def agree(seen: GradientMoments | None, twin: Twin, *, rel: float) -> None:
    assert seen is not None
    assert seen.batch_sqnorm == pytest.approx(twin.batch_sqnorm, rel=rel)
    assert seen.variance == pytest.approx(twin.variance, rel=rel)
    assert seen.sqnorm == pytest.approx(twin.sqnorm, rel=rel, abs=rel * twin.batch_sqnorm)


@pytest.mark.parametrize("tap", TAPS)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("form", [EQUAL, UNEQUAL, TOKENS], ids=["equal", "unequal", "tokens"])
@pytest.mark.parametrize(
    ("dtype", "rel"), [(torch.float32, 3e-5), (torch.float64, 1e-11)], ids=["float32", "float64"]
)
def test_moments_gradient_and_weights_equal_those_of_the_plain_loop(
    tap, optimizer, form, dtype, rel
):
    batch_size, micro, weigh = form
    model = classifier(dtype=dtype)
    plain = copy.deepcopy(model)
    control, seen = measuring_controller(
        model,
        OPTIMIZERS[optimizer](model.parameters()),
        samples=class_data(dtype=dtype),
        batch_size=batch_size,
        micro=micro,
        meter=Meter(model, tap=tap()),
    )
    reference = OPTIMIZERS[optimizer](plain.parameters())
    for batch in control.steps(steps=4):
        micro_batches = []
        for x, y in batch:
            micro_batches.append((x, y))
            weight = weigh(x) if weigh else None
            control.backward(class_loss(model, x, y), weight=weight)
        control.measure()
        weights = [weigh(x) for x, _ in micro_batches] if weigh else None
        twin = twin_of(plain, class_loss, micro_batches, weights=weights)
        for parameter, expected in zip(model.parameters(), twin.gradient, strict=True):
            torch.testing.assert_close(parameter.grad, expected.to(dtype), rtol=rel, atol=rel / 30)
        control.step()
        agree(seen.steps[-1].moments, twin, rel=rel)
        assert seen.steps[-1].loss == pytest.approx(twin.loss, rel=1e-6)
        assert seen.steps[-1].batch_sqnorm == pytest.approx(twin.batch_sqnorm, rel=rel)
        assert seen.steps[-1].batch_size == batch_size
        for parameter, gradient in zip(plain.parameters(), twin.gradient, strict=True):
            parameter.grad = gradient.to(dtype)
        reference.step()
        for ours, theirs in zip(model.parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=10 * rel, atol=rel)


@pytest.mark.parametrize("tap", TAPS)
def test_a_meter_alone_gives_the_same_as_in_a_controller(tap):
    model, (x, y) = classifier(), class_data()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    meter = Meter(model, tap=tap())
    meter.bind(optimizer)
    meter.open(frozenset({"moments"}))
    cuts = [(0, 4), (4, 9), (9, 12)]
    for a, b in cuts:
        meter.backward(
            class_loss(model, x[a:b], y[a:b]),
            share=(b - a) / 12,
            weight=b - a,
            samples=b - a,
            last=b == 12,
        )
    reading = meter.close(planned_weight=12)
    agree(
        reading.moments,
        twin_of(model, class_loss, [(x[a:b], y[a:b]) for a, b in cuts]),
        rel=3e-5,
    )
    assert reading.samples == 12
    assert reading.weight == 12.0
    assert reading.finite


def test_weights_that_do_not_sum_to_the_plan_are_put_right():
    model, (x, y) = classifier(dtype=torch.float64), class_data(dtype=torch.float64)
    meter = Meter(model)
    meter.bind(torch.optim.SGD(model.parameters(), lr=0.1))
    meter.open(frozenset({"moments"}))
    for a, weight in ((0, 50.0), (5, 10.0)):  # 60 tokens where 10 were planned
        loss = class_loss(model, x[a : a + 5], y[a : a + 5])
        meter.backward(loss, share=weight / 10, weight=weight, samples=5, last=a == 5)
    reading = meter.close(planned_weight=10)
    twin = twin_of(model, class_loss, [(x[:5], y[:5]), (x[5:10], y[5:10])], weights=[50.0, 10.0])
    agree(reading.moments, twin, rel=1e-11)
    meter.multiply_gradients(10 / reading.weight)
    torch.testing.assert_close(model[0].weight.grad, twin.gradient[0])


def adam_denominators(optimizer: torch.optim.Optimizer, model: nn.Module) -> list[torch.Tensor]:
    """Adam's sqrt(v + mean(v) / 1000) + eps. Of Adagrad v is the mean of the squares."""
    denominators = []
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            state = optimizer.state.get(parameter, {})
            step = float(state.get("step", 0.0))
            eps = group["eps"]
            if "sum" in state:
                second, eps = state["sum"].double() / step, eps / step**0.5
            else:
                weight = 1 - group["betas"][1] ** step
                held = state["max_exp_avg_sq" if group.get("amsgrad") else "exp_avg_sq"]
                second = held.double() / weight
                if isinstance(optimizer, torch.optim.RAdam):
                    eps /= weight**0.5
            second = second + second.mean() / 1000
            denominators.append(second.sqrt() + eps)
    return denominators


def test_a_row_that_had_no_gradient_before_does_not_rule_the_preconditioned_moments() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(50, 8), nn.Flatten(), nn.Linear(8, 3))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    meter = Meter(model)
    meter.bind(optimizer)

    def step(words: list[int]) -> float | None:
        meter.open(frozenset({"preconditioned_moments"}))
        for at, word in enumerate(words):
            x, y = torch.tensor([[word]] * 4), torch.arange(4) % 3
            loss = nn.functional.cross_entropy(model(x), y)
            meter.backward(loss, share=0.5, weight=4, samples=4, last=at == 1)
        moments = meter.close(planned_weight=8).preconditioned_moments
        optimizer.step()
        meter.clear(optimizer)
        return None if moments is None else moments.batch_sqnorm

    for _ in range(20):
        step([0, 1])
    assert step([0, 49]) < 1e6  # divided by eps alone it would be above 1e10


def two_groups(model: nn.Module) -> list[dict[str, object]]:
    return [
        {"params": list(model[0].parameters()), "betas": (0.8, 0.9), "eps": 1e-3},
        {"params": list(model[2].parameters()), "lr": 0.002},
    ]


@pytest.mark.parametrize("tap", TAPS)
@pytest.mark.parametrize(
    "make",
    [
        lambda m: torch.optim.Adam(m.parameters(), lr=0.01),
        lambda m: torch.optim.AdamW(m.parameters(), lr=0.01, weight_decay=0.1),
        lambda m: torch.optim.Adam(m.parameters(), lr=0.01, amsgrad=True),
        lambda m: torch.optim.Adam(m.parameters(), lr=0.01, fused=True),
        lambda m: torch.optim.NAdam(m.parameters(), lr=0.01),
        lambda m: torch.optim.RAdam(m.parameters(), lr=0.01),
        lambda m: torch.optim.Adam(two_groups(m), lr=0.01),
        lambda m: torch.optim.Adagrad(m.parameters(), lr=0.05, eps=1e-3),
        lambda m: torch.optim.Adagrad(m.parameters(), initial_accumulator_value=0.1),
    ],
    ids=["adam", "adamw", "amsgrad", "fused", "nadam", "radam", "groups", "adagrad", "initial"],
)
def test_preconditioned_moments_divide_by_the_second_moment_of_the_step_before(make, tap):
    model = classifier(dtype=torch.float64)
    optimizer = make(model)
    control, seen = measuring_controller(
        model,
        optimizer,
        samples=class_data(dtype=torch.float64),
        micro=7,
        ask=("moments", "preconditioned_moments"),
        meter=Meter(model, tap=tap()),
    )
    for batch in control.steps(steps=7):
        before = adam_denominators(optimizer, model) if len(seen.steps) >= 5 else None
        micro_batches = []
        for x, y in batch:
            micro_batches.append((x, y))
            control.backward(class_loss(model, x, y))
        bare = twin_of(model, class_loss, micro_batches)
        divided = before and twin_of(model, class_loss, micro_batches, divide_by=before)
        control.step()
        agree(seen.steps[-1].moments, bare, rel=1e-11)
        if divided is None:
            assert seen.steps[-1].preconditioned_moments is None
        else:
            agree(seen.steps[-1].preconditioned_moments, divided, rel=1e-6)


def test_preconditioned_moments_follow_an_optimizer_state_loaded_in_mid_run():
    model = classifier(dtype=torch.float64)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.0)
    meter = Meter(model)
    meter.bind(optimizer)
    other = torch.optim.Adam(classifier(dtype=torch.float64).parameters(), lr=0.0, eps=0.5)
    for parameter in other.param_groups[0]["params"]:
        parameter.grad = torch.full_like(parameter, 0.3)
    for _ in range(6):
        other.step()
    meter.open(frozenset({"preconditioned_moments"}))
    optimizer.load_state_dict(other.state_dict())  # after the step was opened
    x, y = class_data(dtype=torch.float64)
    cuts = [(x[:5], y[:5]), (x[5:10], y[5:10])]
    for cut in cuts:
        loss = class_loss(model, *cut)
        meter.backward(loss, share=0.5, weight=5, samples=5, last=cut is cuts[-1])
    reading = meter.close(planned_weight=10)
    root = 0.3 * 1.001**0.5  # v is 0.3^2 in every element
    divide_by = [torch.full((), root + 0.5)] * 4  # eps is the loaded one
    agree(
        reading.preconditioned_moments,
        twin_of(model, class_loss, cuts, divide_by=divide_by),
        rel=1e-6,
    )


def test_optimizers_of_unknown_denominators_have_no_preconditioned_moments():
    model = classifier()
    meter = Meter(model)
    for known in (torch.optim.SGD, torch.optim.Adam, torch.optim.Adagrad):
        meter.bind(known(model.parameters(), lr=0.1))
        assert meter.provides == {"moments", "preconditioned_moments"}
    meter.bind(torch.optim.RMSprop(model.parameters()))
    assert meter.provides == {"moments"}
    with pytest.raises(ValueError, match="preconditioned_moments"):
        measuring_controller(
            model,
            torch.optim.RMSprop(model.parameters(), lr=0.1),
            ask=("preconditioned_moments",),
        )


def test_a_meter_of_no_statistics_provides_none_and_two_of_one_name_are_refused():
    model = classifier()
    meter = Meter(model, statistics=[])
    meter.bind(torch.optim.SGD(model.parameters(), lr=0.1))
    assert meter.provides == frozenset()
    with pytest.raises(ValueError, match="the same name"):
        Meter(model, statistics=[SquaredNorms(), TemporalMoments()])


def test_temporal_moments_equal_those_of_two_steps_as_two_parts_of_one_batch():
    model = classifier(dtype=torch.float64)
    control, seen = measuring_controller(
        model,
        torch.optim.SGD(model.parameters(), lr=0.1),
        samples=class_data(dtype=torch.float64),
        batch_size=8,
        micro=20,
        meter=Meter(model, statistics=[TemporalMoments()]),
    )
    last = None
    for sizes, batch in zip((8, 8, 14, 3), control.steps(steps=4), strict=True):
        ((x, _),) = [one for one in batch if control.backward(class_loss(model, *one)) is None]
        assert len(x) == sizes
        now = [p.grad.clone() for p in model.parameters()]
        control.step()
        control.resize({0: 8, 1: 14, 2: 3, 3: 8}[len(seen.steps) - 1])
        moments = seen.steps[-1].moments
        if last is None:
            assert moments is None
        else:
            before, n = last
            total = n + sizes
            both = sum(
                ((n * a + sizes * b) ** 2).sum().item() / total**2
                for a, b in zip(before, now, strict=True)
            )
            squares = [sum((g**2).sum().item() for g in one) for one in (before, now)]
            mean = (n * squares[0] + sizes * squares[1]) / total
            assert moments.source == "temporal"
            assert moments.batch_size == total
            assert moments.batch_sqnorm == pytest.approx(both, rel=1e-5)
            assert moments.variance == pytest.approx((mean - both) * total, rel=1e-4)
        last = (now, sizes)


def test_temporal_moments_by_hand():
    moments = temporal_moments(
        sqnorm=4.0, samples=3, last_sqnorm=1.0, last_samples=1, product=1.0
    )  # g = 2, h = .5 ... along one axis and another: |3/4 g + 1/4 h|^2 = 36/16 + 1/16 + 6/16
    assert moments.batch_sqnorm == pytest.approx(43 / 16)
    assert moments.variance == pytest.approx((3.25 - 43 / 16) * 4)


def test_temporal_moments_are_unbiased_while_the_weights_stand_still():
    generator = torch.Generator().manual_seed(3)
    weight = nn.Parameter(torch.zeros(4))
    model = nn.ParameterList([weight])
    meter = Meter(model, statistics=[TemporalMoments()])
    meter.bind(torch.optim.SGD([weight], lr=0.0))
    mean, samples, found = torch.tensor([0.5, 0.0, -0.5, 1.0]), 4, []
    for _ in range(4000):
        meter.open(frozenset({"moments"}))
        noise = torch.randn(samples, 4, generator=generator).mean(0)
        meter.backward(weight @ (mean + noise), share=1.0, weight=4, samples=4, last=True)
        reading = meter.close(planned_weight=4)
        weight.grad = None
        if reading.moments is not None:
            found.append((reading.moments.variance, reading.moments.sqnorm))
    variance, sqnorm = torch.tensor(found).mean(0).tolist()
    assert variance == pytest.approx(4.0, abs=0.25)  # tr Sigma of one sample
    assert sqnorm == pytest.approx(1.5, abs=0.1)  # |mean|^2


def test_a_step_that_is_not_finite_does_not_spoil_the_temporal_estimate_after_it():
    model = classifier()
    control, seen = measuring_controller(
        model,
        torch.optim.SGD(model.parameters(), lr=0.1),
        batch_size=8,
        micro=20,
        meter=Meter(model, statistics=[TemporalMoments()]),
    )
    for at, batch in enumerate(control.steps(steps=3)):
        for x, y in batch:
            loss = class_loss(model, x, y)
            control.backward(loss * math.nan if at == 1 else loss)
        control.step()
    assert [step.finite for step in seen.steps] == [True, False, True, True]
    assert seen.steps[2].moments is not None


def test_one_bad_micro_batch_makes_the_step_not_finite_and_changes_no_weight():
    model = classifier()
    control, seen = measuring_controller(model, torch.optim.SGD(model.parameters(), lr=0.1))
    for at, batch in enumerate(control.steps(steps=2)):
        before = copy.deepcopy(model.state_dict())
        for k, (x, y) in enumerate(batch):
            nothing = 0.0 * model[0].weight.sum() / (0.0 if (at, k) == (1, 2) else 1.0)
            control.backward(class_loss(model, x, y) + nothing)
        control.step()
        unchanged = all(torch.equal(before[k], v) for k, v in model.state_dict().items())
        assert unchanged == (at == 1)
    assert [step.finite for step in seen.steps] == [True, False, True]


@pytest.mark.parametrize("tap", TAPS)
def test_after_a_backward_that_failed_the_next_step_starts_clean(tap):
    model = classifier()
    control, seen = measuring_controller(
        model, torch.optim.SGD(model.parameters(), lr=0.1), meter=Meter(model, tap=tap())
    )

    calls = []

    def explode(gradient):
        raise FloatingPointError("in the backward")

    def loss_fn(model, x, y):
        hidden = model[1](model[0](x))
        calls.append(x)
        if len(calls) == 2:
            hidden.register_hook(explode)  # after the last layer's gradients
        return nn.functional.cross_entropy(model[2](hidden), y)

    with pytest.raises(FloatingPointError):
        train(control, loss=loss_fn, steps=1)
    for batch in control.steps(steps=1):
        micro_batches = []
        for x, y in batch:
            micro_batches.append((x, y))
            control.backward(class_loss(model, x, y))
        twin = twin_of(model, class_loss, micro_batches)
        control.step()
        agree(seen.steps[-1].moments, twin, rel=3e-5)


def test_a_step_that_is_not_measured_costs_no_hooks_and_still_reads_the_batch():
    model = classifier()
    meter = Meter(model)
    meter.bind(torch.optim.SGD(model.parameters(), lr=0.1))
    x, y = class_data()
    seen = []
    for wanted in (frozenset({"moments"}), frozenset(), frozenset({"moments"})):
        meter.open(wanted)
        for k in (0, 1):
            cut = slice(5 * k, 5 * k + 5)
            loss = class_loss(model, x[cut], y[cut])
            meter.backward(loss, share=0.5, weight=5, samples=5, last=k == 1)
        seen.append(meter.close(planned_weight=10))
        model.zero_grad()
    assert seen[0] == seen[2]
    assert seen[1].moments is None
    assert seen[1].batch_sqnorm == seen[0].batch_sqnorm


def test_several_parameter_groups_and_parameters_outside_the_model_are_measured_together():
    model, extra = classifier(), nn.Parameter(torch.tensor(0.5))
    optimizer = torch.optim.SGD([*two_groups_sgd(model), {"params": [extra]}], lr=0.1)
    control, seen = measuring_controller(model, optimizer)
    for batch in control.steps(steps=1):
        micro_batches = []
        for x, y in batch:
            micro_batches.append((x, y))
            control.backward(class_loss(model, x, y) * extra)
        both = nn.ModuleList([model, nn.ParameterList([extra])])
        twin = twin_of(both, lambda m, x, y: class_loss(m[0], x, y) * m[1][0], micro_batches)
        control.step()
    agree(seen.steps[0].moments, twin, rel=3e-5)


def two_groups_sgd(model: nn.Module) -> list[dict[str, object]]:
    return [
        {"params": list(model[0].parameters())},
        {"params": list(model[2].parameters()), "lr": 1.0},
    ]


def test_a_parameter_that_the_optimizer_lacks_is_refused_by_name():
    model = classifier()
    with pytest.raises(ValueError, match=r"'2\.weight'"):
        Meter(model).bind(torch.optim.SGD(model[0].parameters(), lr=0.1))
    with pytest.raises(ValueError, match="no parameter of this model"):
        Meter(model.requires_grad_(False)).bind(torch.optim.SGD(classifier().parameters(), lr=0.1))


def test_flat_refuses_a_second_zero_grad_and_mixed_types():
    model = classifier()
    control, _ = measuring_controller(
        model, torch.optim.SGD(model.parameters(), lr=0.1), meter=Meter(model, tap=Flat())
    )
    with pytest.raises(MicroBatchMissed, match=r"0\.weight is no longer"):
        for batch in control.steps(steps=2):
            for x, y in batch:
                control.backward(class_loss(model, x, y))
            control.step()
            model.zero_grad()  # set_to_none
    train(control, loss=class_loss, steps=2)  # on from there, with gradients back in the buffer
    mixed = classifier()
    mixed[2].double()
    with pytest.raises(ValueError, match="2 combinations"):
        Meter(mixed, tap=Flat()).bind(torch.optim.SGD(mixed.parameters(), lr=0.1))


def test_only_statistics_that_were_asked_for_are_computed():
    model = classifier()
    statistics = [SquaredNorms(), PreconditionedNorms()]
    control, seen = measuring_controller(
        model,
        torch.optim.Adam(model.parameters()),
        meter=Meter(model, statistics=statistics),
    )
    for batch in control.steps(steps=1):
        for x, y in batch:
            control.backward(class_loss(model, x, y))
        control.step()
    assert seen.steps[0].moments is not None
    assert seen.steps[0].preconditioned_moments is None
