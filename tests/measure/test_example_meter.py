"""Single examples as the parts of a step: in a Controller, under attach, and what is refused."""

from __future__ import annotations

import copy
import itertools
import math
import weakref

import pytest
import torch
from example_twin import naive
from gradient_twin import coordinate_noise_scale
from torch import Tensor, nn

import largebatch as lb
from largebatch.core.errors import LargeBatchError, MicroBatchMissed, NoVariance
from largebatch.rules import Observe
from small_runs import Seen, class_data, class_loss, classifier, measuring_controller, train

EVERYTHING = ("moments", "preconditioned_moments", "inner_product_variance")


def meter(model: nn.Module) -> lb.Meter:
    return lb.Meter(model, examples=lb.PerExample())


def rows_of(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Each example's whole gradient, in float64: [B, parameters]."""
    twin = copy.deepcopy(model).double()
    wide = x.double() if x.is_floating_point() else x
    return torch.cat([g.flatten(1) for g in naive(twin, class_loss, wide, y)], 1)


def agree(seen: lb.Measurement, rows: Tensor, *, rel: float, scale: float = 1.0) -> None:
    """Moments and products against their definition, for gradients that are `scale` times these."""
    rows = rows * scale
    mean, n = rows.mean(0), len(rows)
    variance = float((rows - mean).square().sum() / (n - 1))
    assert seen.moments.source == "examples"
    assert seen.moments.parts == n
    assert seen.moments.batch_size == pytest.approx(n)
    assert seen.moments.batch_sqnorm == pytest.approx(float(mean.square().sum()), rel=rel)
    assert seen.moments.variance == pytest.approx(variance, rel=rel)
    if seen.inner_product_variance is not None:
        products = float((rows @ mean).var())
        assert seen.inner_product_variance == pytest.approx(products, rel=rel)


@pytest.mark.parametrize("micro", [20, 5, 7], ids=["one backward", "equal parts", "unequal parts"])
@pytest.mark.parametrize(
    ("dtype", "rel"), [(torch.float32, 1e-4), (torch.float64, 1e-11)], ids=["float32", "float64"]
)
def test_a_controller_measures_single_examples(micro, dtype, rel):
    model = classifier(dtype=dtype)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    control, seen = measuring_controller(
        model,
        optimizer,
        samples=class_data(dtype=dtype),
        micro=micro,
        ask=EVERYTHING[::2],
        meter=meter(model),
    )
    assert control.meter.provides == set(EVERYTHING)
    for batch in control.steps(steps=4):
        micro_batches = []
        for x, y in batch:
            micro_batches.append((x, y))
            control.backward(class_loss(model, x, y))
        assert len(micro_batches) == math.ceil(20 / micro)
        x, y = (torch.cat(column) for column in zip(*micro_batches, strict=True))
        rows = rows_of(model, x, y)
        control.step()
        agree(seen.steps[-1], rows, rel=rel)


def test_the_gradient_as_adam_sees_it():
    model = classifier(dtype=torch.float64)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    control, seen = measuring_controller(
        model,
        optimizer,
        samples=class_data(dtype=torch.float64),
        ask=EVERYTHING,
        meter=meter(model),
    )
    for batch in control.steps(steps=8):
        divide_by = denominators(optimizer, model) if len(seen.steps) >= 5 else None
        x, y = batch_of(control, model, batch)
        rows = rows_of(model, x, y)
        control.step()
        found = seen.steps[-1].preconditioned_moments
        if divide_by is None:
            assert found is None
            continue
        rows = rows / divide_by
        variance = float((rows - rows.mean(0)).square().sum() / (len(rows) - 1))
        assert found.variance == pytest.approx(variance, rel=1e-6)
        assert found.batch_sqnorm == pytest.approx(float(rows.mean(0).square().sum()), rel=1e-6)
        assert found.source == "examples"


def batch_of(control: lb.Controller, model: nn.Module, batch: object) -> tuple[Tensor, Tensor]:
    micro_batches = []
    for x, y in batch:
        micro_batches.append((x, y))
        control.backward(class_loss(model, x, y))
    x, y = (torch.cat(column) for column in zip(*micro_batches, strict=True))
    return x, y


def denominators(optimizer: torch.optim.Optimizer, model: nn.Module) -> Tensor:
    found = []
    for parameter in model.parameters():
        state = optimizer.state[parameter]
        step = float(state["step"])
        second = state["exp_avg_sq"].double().flatten() / -math.expm1(step * math.log(0.999))
        found.append((second + second.mean() / 1000).sqrt() + 1e-8)
    return torch.cat(found)


@pytest.mark.parametrize("parts", [1, 4])
@pytest.mark.parametrize("divided", [True, False], ids=["", "losses that are not divided"])
def test_attach_measures_single_examples(parts, divided):
    model, (x, y) = classifier(), class_data()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    record = lb.MemoryRecord()
    control = lb.attach(
        model,
        optimizer,
        lb.chain(Observe(statistics=EVERYTHING[::2]), lb.AdaScale()),
        batch_size=20,
        base_batch_size=5,
        meter=meter(model),
        record=record,
    )
    for at in range(0, 60, 20):
        rows = rows_of(model, x[at : at + 20], y[at : at + 20])
        for few in torch.arange(at, at + 20).chunk(parts):
            loss = class_loss(model, x[few], y[few])
            (loss / parts if divided else loss).backward()
        optimizer.step()
        optimizer.zero_grad()
        control.advance()
        agree(record.steps[-1][0], rows, rel=1e-4, scale=1.0 if divided else parts)
    assert 1.0 <= control.lr_multiplier <= 4.0
    control.close()
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_micro_batches_of_unequal_sizes_under_attach():
    # the loop adds up their means with equal shares, so an example of the smaller one counts more
    model, (x, y) = classifier(dtype=torch.float64), class_data(dtype=torch.float64)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    noise = lb.watch(model, optimizer, batch_size=20, meter=meter(model))
    rows = rows_of(model, x[:20], y[:20])
    shares = torch.tensor([1 / 28] * 14 + [1 / 12] * 6, dtype=torch.float64)
    mean = shares @ rows
    expected = (shares @ rows.square().sum(1) - mean.square().sum()) / (1 - shares.square().sum())
    for few in (slice(0, 14), slice(14, 20)):
        (class_loss(model, x[few], y[few]) / 2).backward()
    with pytest.warns(RuntimeWarning, match="14, 6 samples, and no weight was passed"):
        optimizer.step()
    ((variance, _),) = noise.series
    assert variance == pytest.approx(float(expected), rel=1e-9)


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("door", ["controller", "attach"])
def test_groups_of_examples(door, parts):
    model = classifier(dtype=torch.float64)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    grouped = lb.Meter(model, examples=lb.PerExample(groups=5))
    ask, (x, y) = EVERYTHING[::2], class_data(dtype=torch.float64)
    rows = rows_of(model, x[:20], y[:20]).unflatten(0, (5 * parts, -1)).mean(1)
    if door == "controller":
        control, seen = measuring_controller(
            model, optimizer, samples=(x, y), micro=20 // parts, ask=ask, meter=grouped
        )
        train(control, loss=class_loss, steps=1)
    else:
        control = lb.attach(
            model, optimizer, Observe(statistics=ask),
            batch_size=20, base_batch_size=5, meter=grouped,
            record=(seen := Seen()),
        )  # fmt: skip
        for few in torch.arange(20).chunk(parts):
            (class_loss(model, x[few], y[few]) / parts).backward()
        optimizer.step()
    found, size = seen.steps[0], 20 / len(rows)
    variance = float((rows - rows.mean(0)).square().sum() / (len(rows) - 1))
    assert found.moments.parts == 5 * parts
    assert found.moments.batch_size == pytest.approx(20)
    assert found.moments.variance == pytest.approx(size * variance, rel=1e-9)
    products = float((rows @ rows.mean(0)).var())
    assert found.inner_product_variance == pytest.approx(size * products, rel=1e-9)


@pytest.mark.parametrize("quantile", [1.0, 0.8])
@pytest.mark.parametrize("groups", [None, 5])
@pytest.mark.parametrize("micro", [20, 10])
@pytest.mark.parametrize("door", ["controller", "attach"])
def test_single_coordinates_of_single_examples(door, micro, groups, quantile):
    model, (x, y) = classifier(dtype=torch.float64), class_data(dtype=torch.float64)
    optimizer = torch.optim.Adagrad(model.parameters(), lr=0.05)
    ask = ("moments", "preconditioned_moments", "coordinate_noise_scale")
    strict = lb.Meter(
        model,
        examples=lb.PerExample(groups=groups),
        statistics=[lb.measure.SquaredNorms(), lb.measure.CoordinateNoiseScale(quantile=quantile)],
    )
    assert strict.least_parts == 1
    if door == "controller":
        control, seen = measuring_controller(
            model, optimizer, samples=(x, y), micro=micro, ask=ask, meter=strict
        )
        steps = control.steps(steps=2)
    else:
        lb.attach(
            model, optimizer, Observe(statistics=ask),
            batch_size=20, base_batch_size=4, meter=strict,
            record=(seen := Seen()),
        )  # fmt: skip
    for at in (0, 20):
        rows = rows_of(model, x[at : at + 20], y[at : at + 20])
        if groups:
            rows = rows.unflatten(0, (groups * 20 // micro, -1)).mean(1)
        if door == "controller":
            batch_of(control, model, next(steps))
            control.step()
        else:
            for few in torch.arange(at, at + 20).split(micro):
                (class_loss(model, x[few], y[few]) * micro / 20).backward()
            optimizer.step()
            optimizer.zero_grad()
        found = seen.steps[-1]
        sizes = [20 // len(rows)] * len(rows)
        expected = coordinate_noise_scale(rows, sizes, quantile=quantile)
        assert found.coordinate_noise_scale == pytest.approx(expected, rel=1e-9)
        assert found.moments.parts == len(rows)


def test_the_strict_test_grows_a_batch_that_has_one_backward_a_step():
    model = classifier()
    strict = lb.rules.CoordinateNormTest(eta=1.0, statistic="coordinate_noise_scale")
    control = lb.Controller(
        model,
        torch.optim.SGD(model.parameters(), lr=0.05),
        lb.chain(strict, lb.LimitGrowth(factor=2.0, shrink=1.0)),
        lb.BatchLoader(class_data(), batch_size=4, max_micro_batch_size=60),
        base_batch_size=4,
        meter=lb.Meter(
            model,
            examples=lb.PerExample(),
            statistics=[lb.measure.CoordinateNoiseScale(quantile=0.9)],
        ),
    )
    for batch in control.steps(steps=6):
        assert batch.accumulation == 1
        batch_of(control, model, batch)
        control.step()
    assert control.batch_size == 60  # the data set


@pytest.mark.parametrize("paper", ["adadagrad", "adadam"])
def test_a_method_that_reads_what_the_optimizer_divides_has_one_backward_a_step(paper):
    model = classifier()
    optimize = torch.optim.Adagrad if paper == "adadagrad" else torch.optim.Adam
    control = lb.Controller(
        model,
        optimize(model.parameters(), lr=0.01),
        getattr(lb.methods, paper)(eta=0.5, every=2),
        lb.BatchLoader(class_data(), batch_size=4, max_micro_batch_size=60),
        base_batch_size=4,
        meter=meter(model),
    )
    sizes = []
    for batch in control.steps(steps=24):
        assert batch.accumulation == 1
        batch_of(control, model, batch)
        sizes.append(control.step().next_batch_size)
    assert max(sizes) == 60


def test_gradients_that_the_user_takes_by_hand_are_not_counted_as_examples():
    model, (x, y) = classifier(), class_data()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    noise = lb.watch(model, optimizer, batch_size=20, meter=meter(model))
    for at in (0, 20):
        rows = rows_of(model, x[at : at + 20], y[at : at + 20])
        torch.autograd.grad(class_loss(model, 3.0 * x[:20], y[:20]), list(model.parameters()))
        class_loss(model, x[at : at + 20], y[at : at + 20]).backward()
        torch.autograd.grad(class_loss(model, 3.0 * x[:20], y[:20]), list(model.parameters()))
        optimizer.step()
        optimizer.zero_grad()
        expected = float((rows - rows.mean(0)).square().sum() / 19)
        assert noise.series[-1][0] == pytest.approx(expected, rel=1e-4)


def test_every_second_step_leaves_no_hook_in_between():
    model = classifier()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    batches = lb.BatchLoader(class_data(), batch_size=20, max_micro_batch_size=20)
    control = lb.Controller(
        model, optimizer, lb.Every(Observe(), steps=2), batches, base_batch_size=20,
        meter=meter(model), record=(seen := Seen()),
    )  # fmt: skip
    hooks = []
    for batch in control.steps(steps=4):
        hooks.append(any(m._forward_hooks for m in model.modules()))
        for x, y in batch:
            control.backward(class_loss(model, x, y))
        control.step()
    assert hooks == [True, False, True, False]
    assert [s.moments is not None for s in seen.steps] == hooks


def test_the_estimates_are_unbiased():
    """Over all batches of 2 of 6 samples: their mean is the variance, and the squared norm, of
    samples that are drawn independently."""
    model, (x, y) = classifier(dtype=torch.float64), class_data(6, dtype=torch.float64)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    noise = lb.watch(model, optimizer, batch_size=2, meter=meter(model))
    rows = rows_of(model, x, y)
    for pair in itertools.product(range(6), repeat=2):
        class_loss(model, x[list(pair)], y[list(pair)]).backward()
        optimizer.step()
        optimizer.zero_grad()
    variances, sqnorms = zip(*noise.series, strict=True)
    truth = float((rows - rows.mean(0)).square().sum() / 6)
    assert len(variances) == 36
    assert math.fsum(variances) / 36 == pytest.approx(truth, rel=1e-9)
    assert math.fsum(sqnorms) / 36 == pytest.approx(float(rows.mean(0).square().sum()), rel=1e-9)


def test_the_variance_of_products_is_unbiased_for_a_direction_that_is_given():
    """The divisor is the number of examples less one."""
    rows = torch.randn(5, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    model = nn.Linear(3, 1, bias=False).double()
    nn.init.zeros_(model.weight)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    control = lb.attach(
        model, optimizer, Observe(statistics=("inner_product_variance",)),
        batch_size=5, base_batch_size=5,
        meter=meter(model), record=(seen := Seen()),
    )  # fmt: skip
    model(rows).mean().backward()  # each example's gradient is its row
    optimizer.step()
    control.close()
    expected = float((rows @ rows.mean(0)).var(correction=1))
    assert seen.steps[0].inner_product_variance == pytest.approx(expected, rel=1e-12)
    assert seen.steps[0].moments is None


def test_a_loss_scale_is_taken_out():
    model = classifier()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    control, seen = measuring_controller(
        model, optimizer, micro=7, ask=EVERYTHING[::2], meter=meter(model), scaler=scaler
    )
    for batch in control.steps(steps=2):
        few, labels = batch_of(control, model, batch)
        rows = rows_of(model, few, labels)
        control.step()
        agree(seen.steps[-1], rows, rel=1e-4)


def test_a_step_that_is_not_finite_is_skipped():
    model, (x, y) = classifier(), class_data()
    x = x.clone()
    x[25] = math.nan
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    control, seen = measuring_controller(
        model, optimizer, samples=(x, y), micro=20, meter=meter(model)
    )
    train(control, loss=class_loss, steps=3)
    assert [s.finite for s in seen.steps] == [True, False, True, True]
    assert all(p.isfinite().all() for p in model.parameters())


def observed(model, optimizer, *, batch_size, meter):
    return lb.attach(
        model,
        optimizer,
        lb.rules.Observe(),
        batch_size=batch_size,
        base_batch_size=batch_size,
        meter=meter,
    )


def test_a_step_of_one_example_has_no_variance():
    model, (x, y) = classifier(), class_data()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    observed(model, optimizer, batch_size=1, meter=meter(model))
    class_loss(model, x[:1], y[:1]).backward()
    with pytest.raises(NoVariance, match="The step has only one example"):
        optimizer.step()


def test_a_controllers_step_of_one_example_has_no_moments():
    model = classifier()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    control, seen = measuring_controller(
        model, optimizer, batch_size=1, micro=1, meter=meter(model)
    )
    train(control, loss=class_loss, steps=2)
    assert all(s.moments is None and s.batch_sqnorm > 0 for s in seen.steps)


def test_another_batch_size_than_the_model_gets_is_refused():
    model, (x, y) = classifier(), class_data()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    observed(model, optimizer, batch_size=64, meter=meter(model))
    class_loss(model, x[:20], y[:20]).backward()
    with pytest.raises(LargeBatchError, match=r"batch_size=20\)"):
        optimizer.step()


def test_an_epochs_last_batch_may_be_shorter():
    model, (x, y) = classifier(), class_data()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    noise = lb.watch(model, optimizer, batch_size=20, meter=meter(model))
    for few in (slice(0, 20), slice(20, 27)):
        rows = rows_of(model, x[few], y[few])
        class_loss(model, x[few], y[few]).backward()
        optimizer.step()
        optimizer.zero_grad()
    expected = float((rows - rows.mean(0)).square().sum() / 6)
    assert noise.series[-1][0] == pytest.approx(expected, rel=1e-4)


def test_a_micro_batch_that_the_model_gets_in_part_is_refused():
    model = classifier()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    control, _ = measuring_controller(model, optimizer, micro=10, meter=meter(model))
    for batch in control.steps(steps=1):
        for x, y in batch:
            with pytest.raises(
                LargeBatchError, match="10 samples, but the model received 5 examples"
            ):
                control.backward(class_loss(model, x[:5], y[:5]))
            break
        break


def test_sizes_that_differ_from_what_the_model_receives_are_refused():
    model, (x, y) = classifier(), class_data()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    control = lb.attach(
        model, optimizer, Observe(), batch_size=20, base_batch_size=20, meter=meter(model)
    )
    control.micro_batch(10)
    class_loss(model, x[:20], y[:20]).backward()
    with pytest.raises(
        LargeBatchError, match=r"called with \[10\] samples, but the model received \[20\]"
    ):
        optimizer.step()


@pytest.mark.parametrize(
    "options",
    [
        {"tap": lb.measure.Detached()},
        {"tap": lb.measure.Flat()},
        {"statistics": [lb.measure.TemporalMoments()]},
    ],
    ids=["Detached", "Flat", "statistics"],
)
def test_single_examples_refuse_another_tap_or_other_statistics(options):
    with pytest.raises(ValueError, match=r"its own statistics|the default tap"):
        lb.Meter(classifier(), examples=lb.PerExample(), **options)


@pytest.mark.parametrize("examples", [True, lb.PerExample, 4])
def test_the_meter_refuses_examples_of_an_unknown_kind(examples):
    with pytest.raises(ValueError, match=r"lb\.Meter\(model, examples=lb\.PerExample\(\)\)"):
        lb.Meter(classifier(), examples=examples)


class Compiled(nn.Module):
    """Holds a model as torch.compile does."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self._orig_mod = model


def test_a_compiled_model_is_refused():
    with pytest.raises(ValueError, match=r"do not call torch\.compile"):
        meter(Compiled(classifier()))


def test_the_error_for_one_backward_per_step_names_single_examples_as_a_remedy():
    model, (x, y) = classifier(), class_data()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    observed(model, optimizer, batch_size=20, meter=lb.Meter(model))
    class_loss(model, x[:20], y[:20]).backward()
    with pytest.raises(NoVariance, match=r"examples=lb\.PerExample\(\)"):
        optimizer.step()


def test_an_input_that_is_overwritten_before_the_products_are_formed_is_refused():
    model, (x, y) = classifier(), class_data()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    control, _ = measuring_controller(
        model, optimizer, micro=20, ask=("inner_product_variance",), meter=meter(model)
    )
    for batch in control.steps(steps=1):
        for x, y in batch:
            x = x.clone()
            control.backward(class_loss(model, x, y))
            x.zero_()
        with pytest.raises(LargeBatchError, match="overwritten"):
            control.step()
        break


def test_a_gradient_that_was_cleared_within_a_step_is_noticed_as_ever():
    model = classifier()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    control, _ = measuring_controller(model, optimizer, micro=5, meter=meter(model))
    with pytest.raises(MicroBatchMissed):
        for batch in control.steps(steps=1):
            for x, y in batch:
                control.backward(class_loss(model, x, y))
                optimizer.zero_grad()


def test_nothing_of_the_activations_is_held_after_a_step():
    model = classifier()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    control, _ = measuring_controller(
        model, optimizer, micro=10, ask=("inner_product_variance",), meter=meter(model)
    )
    for batch in control.steps(steps=2):
        inputs = []
        for x, y in batch:
            few = x.clone()
            inputs.append(weakref.ref(few.untyped_storage()))
            control.backward(class_loss(model, few, y))
            del few
        control.step()
        assert [held() for held in inputs] == [None, None]
