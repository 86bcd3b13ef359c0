"""A record of a noisy quadratic is planned from as that quadratic; less than one is refused."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from quadratic_records import BATCH, LAW, LR, STEPS, cosine, quadratic_record
from torch import nn

import largebatch as lb
from largebatch.record import read_record
from largebatch.workbench.planner.recorded import (
    Entry,
    NotEnoughSignal,
    entries_of,
    fit_record,
    sgd_factor,
)
from largebatch.workbench.quadratic import Phase, forecast

OTHERS = {
    "constant": [(16.0, 1.0, 800.0)],
    "large batch": [(64.0, 1.0, 200.0)],
    "growth": [(16.0, 1.0, 400.0), (64.0, 1.0, 50.0), (128.0, 0.5, 25.0)],
    "slow": [(16.0, 0.25, 800.0)],
}


def true_loss(stages: list[tuple[float, float, float]]) -> float:
    return forecast(LAW, [Phase(batch_size=b, lr=LR * f, steps=k) for b, f, k in stages]).loss[-1]


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_other_schedules_are_forecast_as_they_would_run(tmp_path: Path, momentum: float) -> None:
    found = fit_record(quadratic_record(tmp_path / "a.jsonl", momentum=momentum))
    assert found.base_batch_size == BATCH
    assert found.model.seen == 1.0
    losses = {name: found.model.forecast(stages).loss[-1] for name, stages in OTHERS.items()}
    expected = {name: true_loss(stages) for name, stages in OTHERS.items()}
    assert losses == pytest.approx(expected, rel=0.04)


def test_without_the_optimizers_name_the_noise_is_fitted_from_the_noise_scales(
    tmp_path: Path,
) -> None:
    found = fit_record(quadratic_record(tmp_path / "a.jsonl", optimizer=None, scatter=0.0))
    for stages in OTHERS.values():
        assert found.model.forecast(stages).loss[-1] == pytest.approx(true_loss(stages), rel=0.1)


def test_the_variance_counts_for_sgd_alone(tmp_path: Path) -> None:
    records = {
        name: fit_record(quadratic_record(tmp_path / f"{name}.jsonl", optimizer=name))
        for name in ("SGD", "AdamW")
    }
    assert records["SGD"].model.spectrum.variance == pytest.approx(LAW.variance, rel=1e-6)
    assert records["AdamW"].model.spectrum.variance != pytest.approx(LAW.variance, rel=1e-3)


def test_the_factor_of_sgds_rate_follows_from_momentum_and_dampening() -> None:
    assert sgd_factor({"name": "SGD", "momentum": 0.0, "dampening": 0.5}) == 1.0
    assert sgd_factor({"name": "SGD", "momentum": 0.8, "dampening": 0.2}) == pytest.approx(4.0)
    assert sgd_factor({"name": "AdamW", "momentum": 0.0, "dampening": 0.0}) is None
    assert sgd_factor({"name": "SGD", "momentum": 1.0, "dampening": 0.0}) is None
    assert sgd_factor(None) is None
    assert sgd_factor("SGD") is None, "a header that a user wrote"


def test_entries_are_what_the_steps_say(tmp_path: Path) -> None:
    steps = list(read_record(quadratic_record(tmp_path / "a.jsonl")).steps)
    entries = entries_of(steps)
    assert 10 <= len(entries) <= 20
    before = 0
    for entry in entries:
        assert entry.samples == BATCH * entry.steps
        rates = [LR * cosine(step) for step in range(before, entry.steps)]
        assert entry.lr == pytest.approx(math.fsum(rates) / len(rates))
        assert entry.variance == pytest.approx(LAW.variance)
        near = [step.seen.loss or 0.0 for step in steps[entry.steps - 1 : entry.steps + 1]]
        assert entry.loss == pytest.approx(near[0], rel=0.15)
        before = entry.steps
    assert entries[-1].steps < STEPS
    assert entries[0].steps <= 0.02 * STEPS


def test_steps_at_rate_zero_wait_for_the_next_entry(tmp_path: Path) -> None:
    steps = list(read_record(quadratic_record(tmp_path / "a.jsonl", steps=100)).steps)
    still = [
        step._replace(decision=lb.Decision(next_batch_size=16, base_steps=1.0, lr_multiplier=0.0))
        for step in steps[:3]
    ]
    entries = entries_of([*still, *steps[3:]])
    assert all(isinstance(entry, Entry) and entry.lr > 0.0 for entry in entries)
    assert entries[0].steps > 3


def test_skipped_steps_and_missing_losses_change_only_their_own_entries(
    tmp_path: Path,
) -> None:
    whole = list(read_record(quadratic_record(tmp_path / "a.jsonl", scatter=0.0)).steps)
    silent = [
        step._replace(seen=replace(step.seen, loss=step.seen.loss if number % 3 == 0 else None))
        for number, step in enumerate(whole)
    ]
    for entry, other in zip(entries_of(whole), entries_of(silent), strict=False):
        assert (other.steps, other.samples, other.lr) == (entry.steps, entry.samples, entry.lr)
        assert other.loss == pytest.approx(entry.loss, rel=0.02)

    lost = quadratic_record(tmp_path / "b.jsonl", lost=6)
    found = fit_record(lost)
    assert found.model.forecast(OTHERS["large batch"]).loss[-1] == pytest.approx(
        true_loss(OTHERS["large batch"]), rel=0.05
    )


@pytest.mark.parametrize(
    ("wanting", "told"),
    [
        ({"losses": False}, "0 losses; needed"),
        ({"lower": 3.0}, "losses are not above 0"),
        ({"moments": False}, "0 measured noise scales"),
        ({"steps": 9}, "losses; needed: at least 10"),
        ({"falls": False, "scatter": 0.1}, "fall of the loss is not larger than its scatter"),
    ],
)
def test_less_than_a_run_gives_no_number(
    tmp_path: Path, wanting: dict[str, object], told: str
) -> None:
    with pytest.raises(NotEnoughSignal, match=told) as refused:
        fit_record(quadratic_record(tmp_path / "a.jsonl", **wanting))  # type: ignore[arg-type]
    assert "such as adascale" in str(refused.value)
    assert "pass noise_scales=[4000]" in str(refused.value)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_a_runs_record_names_its_optimizer(tmp_path: Path, momentum: float) -> None:
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=momentum)
    data = torch.utils.data.TensorDataset(torch.randn(8, 2), torch.randn(8, 1))
    path = tmp_path / "a.jsonl"
    control = lb.Controller(
        model,
        optimizer,
        lb.Observe(),
        lb.BatchLoader(data, batch_size=4, max_micro_batch_size=2),
        base_batch_size=4,
        meter=lb.Meter(model),
        record=lb.JsonlRecord(path),
    )
    for batch in control.steps(samples=8):
        for x, y in batch:
            control.backward(nn.functional.mse_loss(model(x), y))
        control.step()
    told = read_record(path).header["optimizer"]
    assert told == {"name": "SGD", "momentum": momentum, "dampening": 0.0}
    assert sgd_factor(told) == pytest.approx(1.0 / (1.0 - momentum))
