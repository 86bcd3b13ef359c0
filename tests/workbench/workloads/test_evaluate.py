from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import TensorDataset

from largebatch.workbench.workloads import evaluate, load

WORKLOAD = load("digits")


def split(samples: int) -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(1)
    x = torch.randn(samples, 64, generator=draw)
    return x, torch.randint(10, (samples,), generator=draw)


@pytest.mark.parametrize("samples", [1, 256, 300, 513])
def test_a_split_in_batches_gives_what_the_whole_gives(samples: int) -> None:
    model, _ = WORKLOAD.fresh(seed=0)
    x, y = split(samples)
    logits = model(x).detach().double()
    found = evaluate(model, WORKLOAD, (x, y))
    assert found["loss"] == pytest.approx(float(cross_entropy(logits, y)), rel=1e-5)
    assert found["accuracy"] == pytest.approx(float((logits.argmax(1) == y).sum()) / samples)
    assert set(found) == {"loss", "accuracy"}


def test_a_data_set_gives_what_its_tensors_give() -> None:
    model, _ = WORKLOAD.fresh(seed=0)
    tensors = split(300)
    assert evaluate(model, WORKLOAD, TensorDataset(*tensors)) == evaluate(model, WORKLOAD, tensors)


def test_without_metrics_there_is_the_loss() -> None:
    model, _ = WORKLOAD.fresh(seed=0)
    bare = dataclasses.replace(WORKLOAD, metrics=None)
    whole = evaluate(model, WORKLOAD, split(300))
    assert evaluate(model, bare, split(300)) == {"loss": whole["loss"]}


def test_evaluation_runs_in_eval_mode_and_restores_each_modules_mode() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Dropout(0.5), nn.BatchNorm1d(64), nn.Linear(64, 10))
    model.train()
    model[1].eval()  # a part that the user froze
    first = evaluate(model, WORKLOAD, split(50))
    assert evaluate(model, WORKLOAD, split(50)) == first  # no dropout
    assert [module.training for module in model] == [True, False, True]
    assert model.training
    assert int(model[1].num_batches_tracked) == 0
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_mode_comes_back_after_an_error_too() -> None:
    model, _ = WORKLOAD.fresh(seed=0)
    with pytest.raises(RuntimeError):
        evaluate(model, WORKLOAD, (torch.zeros(3, 5), torch.zeros(3, dtype=torch.long)))
    assert model.training


def test_an_empty_split_is_refused() -> None:
    model, _ = WORKLOAD.fresh(seed=0)
    with pytest.raises(ValueError, match="has no samples"):
        evaluate(model, WORKLOAD, split(0))
