"""Test workloads of a user: the example, and a workload with a known noise scale."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from largebatch.workbench.workloads import Workload, evaluate, load

HERE = Path(__file__).parent
ROOT = HERE.parent.parent


@pytest.fixture
def own(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.syspath_prepend(HERE)
    monkeypatch.syspath_prepend(ROOT)
    return monkeypatch


def train(workload: Workload, *, steps: int) -> tuple[torch.nn.Module, dict[str, float]]:
    data = workload.data()
    model, optimizer = workload.fresh(seed=0)
    draw = torch.Generator().manual_seed(0)
    for _ in range(steps):
        chosen = torch.randint(len(data.train[0]), (workload.base_batch_size,), generator=draw)
        optimizer.zero_grad()
        workload.loss(model, tuple(tensor[chosen] for tensor in data.train)).backward()
        optimizer.step()
    return model, evaluate(model, workload, data.validation)


@pytest.mark.usefixtures("own")
def test_the_example_of_a_workload_of_ones_own_trains() -> None:
    workload = load("examples.own_workload:breast_cancer")
    data = workload.data()
    assert [len(split[0]) for split in (data.train, data.validation, data.test)] == [341, 114, 114]
    _, found = train(workload, steps=200)
    assert found["accuracy"] > 0.93
    assert found["loss"] < 0.2


@pytest.mark.usefixtures("own")
def test_the_known_noise_is_that_of_the_samples_gradients() -> None:
    workload = load("known_noise:known_noise")
    import known_noise

    model, _ = workload.fresh(seed=0)
    points = workload.data().train[0]
    gradients = model(points).detach()  # of each sample, [N, D]
    variance = float(gradients.var(dim=0, unbiased=True).sum())
    sqnorm = float(gradients.mean(dim=0).square().sum())
    assert known_noise.noise_scale(model.w.detach()) == 4.0  # 10 x 2^2 / (10 x 1^2)
    assert variance == pytest.approx(known_noise.variance(), rel=0.02)
    assert sqnorm == pytest.approx(known_noise.sqnorm(model.w.detach()), rel=0.05)
    workload.loss(model, (points[:7],)).backward()
    torch.testing.assert_close(model.w.grad, gradients[:7].mean(0))


@pytest.mark.usefixtures("own")
def test_the_point_of_known_noise_is_drawn_to_the_mean() -> None:
    workload = load("known_noise:known_noise")
    model, found = train(workload, steps=100)
    assert set(found) == {"loss"}
    assert found["loss"] == pytest.approx(10 * 2.0**2 / 2, rel=0.1)  # the spread is what is left
    assert (model.w.detach() - 1.0).abs().max() < 1.0
