"""The probe refuses wrong arguments before it trains, and forecasts nothing beyond the data set."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from blobs import Batch, blobs, classifier, cross_entropy
from largebatch.studies.probe import probe
from largebatch.studies.probe_result import ProbeResult

SAMPLES = 600


def probed(batches: Any = None, **arguments: Any) -> tuple[Callable[[], ProbeResult], list[int]]:
    """A probe that is not started, and the calls of its loss."""
    model, calls = classifier(), []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        calls.append(1)
        return cross_entropy(model, batch)

    data = blobs() if batches is None else batches
    given = {"base_batch_size": 32, "steps": 20} | arguments
    return lambda: probe(model, optimizer, loss, data, **given), calls


@pytest.mark.parametrize(
    "wrong",
    [
        {"scale": 2.5},
        {"scale": 0},
        {"scale": True},
        {"base_batch_size": 1},
        {"base_batch_size": 0},
        {"base_batch_size": 32.0},
        {"batch_size": 0},
        {"batch_size": 64.0},
        {"steps": 0},
        {"steps": 2.5},
        {"run_steps": 0},
        {"run_steps": 30.5},
    ],
    ids=str,
)
def test_a_number_that_is_not_whole_or_too_small_is_refused_before_training(
    wrong: dict[str, Any],
) -> None:
    ((name, value),) = wrong.items()
    run, calls = probed(**wrong)
    told = (
        rf"^{name}={re.escape(repr(value))} was given.* whole number .*lb\.probe\(\.\.\., {name}="
    )
    with pytest.raises(ValueError, match=told):
        run()
    assert not calls


def test_a_run_that_is_shorter_than_the_probe_is_refused() -> None:
    run, calls = probed(steps=20, run_steps=19)
    told = r"^run_steps=19 was given, but .*steps=20.*lb\.probe\(\.\.\., steps=19, run_steps=19\)"
    with pytest.raises(ValueError, match=told):
        run()
    assert not calls
    assert probed(steps=20, run_steps=20)[0]().run_steps == 20
    assert probed(steps=20)[0]().run_steps == 20


@pytest.mark.parametrize("loader", [False, True])
@pytest.mark.parametrize("name", ["base_batch_size", "batch_size"])
def test_a_step_with_more_samples_than_the_data_is_refused(name: str, loader: bool) -> None:
    data = DataLoader(TensorDataset(*blobs()), batch_size=50) if loader else None
    run, calls = probed(data, **{name: SAMPLES + 1})
    with pytest.raises(ValueError, match=rf"^{name}=601 was given, but .* has only 600 samples"):
        run()
    assert not calls
    assert probed(data, **{name: SAMPLES}, steps=1)[0]().steps == 1


@pytest.mark.parametrize("loader", [False, True])
def test_the_forecast_ends_where_the_data_set_ends_and_says_from_which_scale_on(
    loader: bool,
) -> None:
    data = DataLoader(TensorDataset(*blobs()), batch_size=50) if loader else None
    found = probed(data)[0]()
    assert found.outlook is not None
    assert [row.scale for row in found.outlook.forecasts] == [2, 4, 8]
    text = " ".join(str(found).split())
    assert "Scales of 32 or more are left out, because a batch of 1,024 samples is larger" in text
    wished = probed(data, scale=16)[0]()
    assert wished.outlook is not None
    assert [row.scale for row in wished.outlook.forecasts] == [2, 4, 8, 16]
    wished = probed(data, scale=64, base_batch_size=18)[0]()
    assert wished.outlook is not None
    assert [row.scale for row in wished.outlook.forecasts] == [2, 4, 8, 32]
    assert "Scales of 64 or more are left out, because a batch of 1,152" in " ".join(
        str(wished).split()
    )


def test_a_data_set_of_one_batch_has_no_forecast_and_still_a_report() -> None:
    found = probed(base_batch_size=500)[0]()
    assert found.outlook is not None
    assert found.outlook.forecasts == ()
    assert "Scales of 2 or more are left out, because a batch of 1,000" in " ".join(
        str(found).split()
    )


def test_an_iterator_of_unknown_length_has_all_scales() -> None:
    x, y = blobs()
    endless = ((x[i % 500 :][:32], y[i % 500 :][:32]) for i in range(10**6))
    found = probed(endless)[0]()
    assert found.outlook is not None
    assert {2, 4, 8, 32} <= {row.scale for row in found.outlook.forecasts}
    assert "left out" not in str(found)
