"""A complex parameter is measured as the same model with two real parameters is."""

from __future__ import annotations

from dataclasses import fields

import pytest
import torch
from complex_twin import ComplexModel, RealModel, true_norm, twins
from torch import nn

import largebatch as lb
from largebatch.measure.blocks import BlockNorms
from largebatch.measure.complex_gradients import add_each, as_real, copy_real, multiply_each
from largebatch.measure.coordinates import CoordinateNoiseScale
from largebatch.measure.parameters import Parameters
from largebatch.measure.preconditioned import PreconditionedNorms
from largebatch.measure.squared_norms import SquaredNorms
from largebatch.measure.squares import _fused, squared_norm, squared_norms, squarer
from largebatch.measure.taps import Detached, Flat, LeafHooks
from largebatch.measure.temporal import TemporalMoments

STEPS = 8  # beyond the first ones, in which Adam's moments are not divided


def data() -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(2)
    return torch.randn(64 * STEPS, 4, generator=draw), torch.randn(64 * STEPS, 3, generator=draw)


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.5)


def steps_of(model, rule, *, optimizer=sgd, clip_norm=None, **options):
    """Each step's measurement and decision, and the norms of the optimizer's gradients."""
    norms, record, moved = [], lb.MemoryRecord(), optimizer(model)
    moved.register_step_pre_hook(lambda *_: norms.append(true_norm(model)))
    control = lb.Controller(
        model,
        moved,
        rule,
        lb.BatchLoader(data(), batch_size=64, max_micro_batch_size=16, shuffle=False),
        base_batch_size=16,
        record=record,
        meter=lb.Meter(model, **options),
    )
    for batch in control.steps(steps=STEPS):
        for x, y in batch:
            control.backward(nn.functional.mse_loss(model(x), y))
        control.step(clip_norm=clip_norm)
    return record.steps, norms


def assert_alike(found, expected, *, rel=1e-6):
    for (seen, decision), (twin, as_decided) in zip(found, expected, strict=True):
        assert decision.lr_multiplier == pytest.approx(as_decided.lr_multiplier, rel=rel)
        for field in fields(seen):
            value, other = getattr(seen, field.name), getattr(twin, field.name)
            if isinstance(value, lb.GradientMoments):
                assert value.batch_sqnorm == pytest.approx(other.batch_sqnorm, rel=rel)
                assert value.variance == pytest.approx(other.variance, rel=rel)
            elif isinstance(value, float):
                assert value == pytest.approx(other, rel=rel)


TAPS = [(LeafHooks, True), (Detached, True), (LeafHooks, False), (Detached, False), (Flat, False)]


@pytest.mark.parametrize(("tap", "mixed"), TAPS)
def test_gain_and_variance_are_those_of_two_real_parameters(tap, mixed):
    of_complex, of_real = twins(mixed=mixed)
    found, _ = steps_of(of_complex, lb.AdaScale(), tap=tap())
    expected, _ = steps_of(of_real, lb.AdaScale(), tap=tap())
    assert_alike(found, expected)
    assert found[-1].seen.moments.variance > 0.0


@pytest.mark.parametrize(("tap", "mixed"), TAPS)
def test_a_complex_gradient_is_clipped_to_its_true_norm(tap, mixed):
    of_complex, of_real = twins(mixed=mixed)
    _, free = steps_of(of_complex, lb.AdaScale(), tap=tap())
    found, norms = steps_of(twins(mixed=mixed)[0], lb.AdaScale(), tap=tap(), clip_norm=0.5)
    expected, _ = steps_of(of_real, lb.AdaScale(), tap=tap(), clip_norm=0.5)
    assert max(free) > 0.6
    assert max(norms) == pytest.approx(0.5, rel=1e-5)
    assert_alike(found, expected)


OPTIMIZERS = [torch.optim.Adam, torch.optim.AdamW, torch.optim.Adagrad]


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("mixed", [True, False])
def test_preconditioned_moments_are_those_of_two_real_parameters(optimizer, mixed):
    def make(model):
        return optimizer(model.parameters(), lr=1e-3, foreach=False)

    rule = lb.AdaScale(statistic="preconditioned_moments")
    of_complex, of_real = twins(mixed=mixed, lazy=False)
    found, _ = steps_of(of_complex, rule, optimizer=make, statistics=[PreconditionedNorms()])
    expected, _ = steps_of(of_real, rule, optimizer=make, statistics=[PreconditionedNorms()])
    assert_alike(found, expected, rel=3e-6)  # of eight steps of the optimizer, in float32
    bare, _ = steps_of(twins(mixed=mixed, lazy=False)[0], lb.AdaScale(), optimizer=make)
    measured = found[-1].seen.preconditioned_moments
    assert measured.variance != pytest.approx(bare[-1].seen.moments.variance, rel=0.1)


@pytest.mark.parametrize("quantile", [1.0, 0.5])
@pytest.mark.parametrize(("tap", "mixed"), TAPS)
def test_each_complex_element_is_two_coordinates(quantile, tap, mixed):
    rule = lb.rules.CoordinateNormTest(eta=10.0, statistic="coordinate_noise_scale")
    found, expected = (
        steps_of(
            model,
            rule,
            tap=tap(),
            statistics=[SquaredNorms(), CoordinateNoiseScale(quantile=quantile)],
        )[0]
        for model in twins(mixed=mixed)
    )
    assert found[0].seen.coordinate_noise_scale is not None
    assert_alike(found[:2], expected[:2], rel=1e-4)  # a ratio of small numbers


def test_moments_of_blocks_count_both_parts():
    found, expected = [], []
    for model, into in zip(twins(mixed=True), (found, expected), strict=True):
        blocks = BlockNorms()
        steps_of(model, lb.AdaScale(), statistics=[blocks])
        into.append(blocks.last)
    of_first = sum(m.variance for name, m in expected[0].items() if name != "scale")
    found_first = sum(m.variance for name, m in found[0].items() if name != "scale")
    assert found_first == pytest.approx(of_first, rel=1e-6)


def test_temporal_moments_count_both_parts():
    found, expected = (
        steps_of(model, lb.AdaScale(), statistics=[TemporalMoments()])[0]
        for model in twins(mixed=True)
    )
    assert found[1].seen.moments is not None
    assert_alike(found, expected, rel=1e-5)


def test_an_attached_run_measures_both_parts():
    x, y = data()
    found = []
    for model in twins(mixed=True):
        optimizer, record = sgd(model), lb.MemoryRecord()
        lb.attach(model, optimizer, lb.AdaScale(), batch_size=64, base_batch_size=16, record=record)
        for at in range(0, len(x), 16):
            loss = nn.functional.mse_loss(model(x[at : at + 16]), y[at : at + 16])
            (loss / 4).backward()
            if at % 64 == 48:
                optimizer.step()
                optimizer.zero_grad()
        found.append(record.steps)
    assert_alike(*found)


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
def test_the_full_gradient_counts_both_parts(dtype):
    x, y = data()

    def loss(model, batch):
        return nn.functional.mse_loss(model(batch[0]), batch[1].to(model(batch[0]).dtype))

    found = []
    for model in (ComplexModel(dtype), RealModel(dtype.to_real())):
        full = lb.FullGradient((x, y), loss, micro_batch_size=100)
        ranks = lb.Meter(model).ranks
        found.append(full.sqnorm(model, Parameters.of(model, sgd(model)), ranks))
    loss(model := ComplexModel(dtype), (x, y)).backward()
    assert found[0] == pytest.approx(found[1], rel=1e-6)
    assert found[0] == pytest.approx(true_norm(model) ** 2, rel=1e-5)


def test_single_examples_refuse_a_complex_parameter_by_name_with_a_remedy():
    model = ComplexModel()
    with pytest.raises(ValueError, match=r"weight is complex.*complex64.*meter=lb\.Meter\(model\)"):
        lb.attach(
            model,
            sgd(model),
            lb.AdaScale(),
            batch_size=64,
            base_batch_size=16,
            meter=lb.Meter(model, examples=lb.PerExample()),
        )


@pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental")
@pytest.mark.parametrize("dtype", [torch.complex32, torch.complex64, torch.complex128])
def test_the_square_of_a_complex_number_is_that_of_its_absolute_value(dtype):
    values = torch.complex(*torch.randn(2, 7, 5).double()).to(dtype)
    tensors = [
        values,
        values.conj(),
        values.t(),
        values[:, ::2],
        values[0, 0],
        torch.empty(0, dtype=dtype),
        values.imag,
    ]
    for tensor in tensors:
        exact = tensor.to(torch.complex128).abs().square().sum().item()
        assert squared_norm(tensor).item() == pytest.approx(exact, rel=1e-6)
        assert squarer(tensor)(tensor).item() == pytest.approx(exact, rel=1e-6)
        assert not squared_norm(tensor).is_complex()
    exact = sum(tensor.to(torch.complex128).abs().square().sum().item() for tensor in tensors)
    assert sum(s.item() for s in squared_norms(tensors)) == pytest.approx(exact, rel=1e-6)
    assert _fused(tensors).sum().item() == pytest.approx(exact, rel=1e-6)
    assert squared_norm(values.to_sparse()).item() == pytest.approx(
        squared_norm(values).item(), rel=1e-6
    )


def lazy_tensors() -> list[torch.Tensor]:
    """Gradients as autograd leaves them: plain, conjugated lazily, negated lazily."""
    plain = torch.tensor([1.0, -2.0], requires_grad=True)
    conjugated = torch.tensor([1.0 - 2.0j, 0.5j], requires_grad=True)
    negated = torch.tensor([0.3], requires_grad=True)
    (conjugated.conj() * 1.0j).imag.sin().sum().backward()
    (torch.complex(torch.ones(1), negated).conj() * (1.0 + 2.0j)).imag.sin().sum().backward()
    plain.square().sum().backward()
    assert conjugated.grad.is_conj()
    assert negated.grad.is_neg()
    return [plain.grad, conjugated.grad, negated.grad]


def test_gradients_that_torch_conjugates_or_negates_late_are_changed_in_place():
    held, before = lazy_tensors(), [tensor.clone() for tensor in lazy_tensors()]
    multiply_each(held, -0.5)
    torch.testing.assert_close(held, [-0.5 * tensor for tensor in before])
    add_each(held, lazy_tensors())
    torch.testing.assert_close(held, [0.5 * tensor for tensor in before])
    for tensor, same in zip(held, lazy_tensors(), strict=True):
        copy_real(tensor, as_real(same))
        torch.testing.assert_close(tensor, same)
    multiply_each([], 2.0)
    add_each([], [])
