"""Test every built-in workload on synthetic samples, so that no data are needed."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from largebatch.workbench.workloads import Batch, Workload, load, names

PARAMETERS = {
    "digits": 64 * 128 + 128 + 128 * 128 + 128 + 128 * 10 + 10,
    "fashion-cnn": 9 * 16 + 16 + 9 * 16 * 32 + 32 + 32 * 7 * 7 * 10 + 10,
    "fashion-logistic": 784 * 10 + 10,
    "fashion-resnet8": 77_754,
    "stdlib-transformer": 470_528,
    "stdlib-transformer-sgd": 470_528,
}


def made_up(name: str, *, samples: int, seed: int = 0) -> Batch:
    """Return a random batch with the shapes and types of the workload's data."""
    draw = torch.Generator().manual_seed(seed)
    if name.startswith("stdlib"):
        text = torch.randint(256, (samples, 65), generator=draw, dtype=torch.uint8)
        return text[:, :-1], text[:, 1:]
    shape = (64,) if name == "digits" else (1, 28, 28)
    x = torch.randn(samples, *shape, generator=draw)
    return x, torch.randint(10, (samples,), generator=draw)


def gradient(workload: Workload, *batches: Batch) -> Tensor:
    """Return the gradient of the batches' losses, each weighted by its fraction of the samples."""
    model, _ = workload.fresh(seed=0)
    total = sum(len(batch[0]) for batch in batches)
    for batch in batches:
        (workload.loss(model, batch) * len(batch[0]) / total).backward()
    return torch.cat([parameter.grad.flatten() for parameter in model.parameters()])


@pytest.mark.parametrize("name", names())
def test_a_model_has_the_number_of_parameters_that_is_said(name: str) -> None:
    model, _ = load(name).fresh(seed=0)
    assert sum(parameter.numel() for parameter in model.parameters()) == PARAMETERS[name]


@pytest.mark.parametrize("name", names())
def test_the_loss_is_a_mean_over_samples(name: str) -> None:
    workload = load(name)
    model, _ = workload.fresh(seed=0)
    batch = made_up(name, samples=5)
    twice = tuple(torch.cat([tensor, tensor]) for tensor in batch)
    once = workload.loss(model, batch)
    torch.testing.assert_close(workload.loss(model, twice), once)
    alone = [workload.loss(model, tuple(t[i : i + 1] for t in batch)) for i in range(5)]
    torch.testing.assert_close(torch.stack(alone).mean(), once)


@pytest.mark.parametrize("name", names())
def test_any_cut_into_micro_batches_gives_the_same_gradient(name: str) -> None:
    workload = load(name)
    batch = made_up(name, samples=9)
    parts = [tuple(t[start:end] for t in batch) for start, end in ((0, 2), (2, 3), (3, 9))]
    whole = gradient(workload, batch)
    assert whole.abs().max() > 1e-4
    torch.testing.assert_close(gradient(workload, *parts), whole, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("name", names())
def test_the_metrics_hold_the_training_loss_and_a_readable_number(name: str) -> None:
    workload = load(name)
    model, _ = workload.fresh(seed=0)
    batch = made_up(name, samples=6)
    metrics = {name: mean.detach() for name, mean in workload.metrics(model, batch).items()}
    torch.testing.assert_close(metrics["loss"], workload.loss(model, batch).detach())
    readable = "bits_per_byte" if name.startswith("stdlib") else "accuracy"
    assert set(metrics) == {"loss", readable}
    if readable == "accuracy":
        right = sum(int(model(x[None]).argmax()) == int(y) for x, y in zip(*batch, strict=True))
        assert float(metrics["accuracy"]) == pytest.approx(right / 6)
    else:
        assert float(metrics["bits_per_byte"]) == pytest.approx(float(metrics["loss"]) / 0.693147)


def test_an_untrained_transformer_knows_about_nothing_of_the_next_byte() -> None:
    workload = load("stdlib-transformer")
    model, _ = workload.fresh(seed=0)
    metrics = workload.metrics(model, made_up("stdlib-transformer", samples=8))
    assert 8.0 < metrics["bits_per_byte"].item() < 8.6


def test_the_transformer_sees_no_later_byte() -> None:
    model, _ = load("stdlib-transformer").fresh(seed=0)
    x, _ = made_up("stdlib-transformer", samples=2)
    changed = x.clone()
    changed[:, 40:] = 7
    before, after = model(x), model(changed)
    torch.testing.assert_close(before[:, :40], after[:, :40])
    assert not torch.allclose(before[:, 40:], after[:, 40:])
    torch.testing.assert_close(model(x[:, :10]), before[:, :10])


@pytest.mark.parametrize("name", names())
def test_every_run_starts_from_a_model_and_an_optimizer_of_its_own(name: str) -> None:
    workload = load(name)
    (model, optimizer), (again, _), (other, _) = (workload.fresh(seed=s) for s in (3, 3, 4))
    for a, b in zip(model.parameters(), again.parameters(), strict=True):
        assert a is not b
        assert torch.equal(a, b)
    assert any(
        not torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True)
    )
    assert not optimizer.state
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for p in model.parameters()}


def test_the_optimizer_has_the_base_rate_unless_another_is_given() -> None:
    workload = load("digits")
    assert workload.fresh(seed=0)[1].param_groups[0]["lr"] == workload.base_lr
    assert workload.fresh(seed=0, lr=0.5)[1].param_groups[0]["lr"] == 0.5
    assert workload.fresh(seed=0, lr=0.0)[1].param_groups[0]["lr"] == 0.0
    with pytest.raises(TypeError, match="lr"):
        workload.optimizer(workload.model().parameters())  # type: ignore[call-arg]


def test_a_fresh_model_leaves_the_users_random_numbers_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    load("digits").fresh(seed=0)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("field", ["base_batch_size", "micro_batch_size", "base_lr"])
def test_settings_that_are_not_positive_are_refused(field: str) -> None:
    with pytest.raises(ValueError, match=f"'digits' was given .*{field} must be above 0"):
        dataclasses.replace(load("digits"), **{field: 0})
