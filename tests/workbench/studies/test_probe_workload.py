"""Test that the report and the forecast of a workload's probe are true."""

from __future__ import annotations

import io
import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import largebatch as lb
from blobs import blobs, classifier, cross_entropy
from largebatch.core.codec import decode, encode
from largebatch.studies.probe import probe
from largebatch.studies.probe_result import ProbeResult
from largebatch.studies.signal_share import noise_scale_at
from largebatch.workbench.cli.study_tables import print_probe
from largebatch.workbench.studies.probe import probe_workload
from largebatch.workbench.workloads import Batch, Data, Workload, adamw, load

sys.path.insert(0, str(Path(__file__).parents[1] / "workloads"))
import known_noise as known


class NearPoint(known.Point):
    """Return the workload with weights nearer to the mean and a noise scale of 100 samples."""

    def __init__(self) -> None:
        super().__init__()
        with torch.no_grad():
            self.w.fill_(known.MEAN - 0.2)


def near(**changes: object) -> Workload:
    """Return the workload with known noise and constant weights."""
    return replace(known.known_noise(), base_lr=1e-9, model=NearPoint, **changes)


# The noise scale


def test_the_interval_covers_the_true_noise_scale_for_nearly_all_seeds() -> None:
    workload = near()
    data = workload.data()
    x = data.train[0]
    variance = float(x.var(0).sum())
    truth = variance / float((workload.model().w.detach() - x.mean(0)).square().sum())
    workload = replace(workload, data=lambda: data)
    covered, pooled, values = 0, 0, []
    for seed in range(40):
        found = probe_workload(workload, steps=64, seed=seed)
        whole, all_steps = found.noise.estimate, found.pooled.estimate
        assert whole is not None
        assert all_steps is not None
        covered += whole.low <= truth <= whole.high
        pooled += all_steps.low <= truth <= all_steps.high
        values.append(whole.noise_scale)
    print(f"true {truth:.1f}, median {np.median(values):.1f}, covered {covered}, {pooled} of 40")
    assert 34 <= covered <= 40
    assert 34 <= pooled <= 40
    assert np.median(values) == pytest.approx(truth, rel=0.25)
    assert np.std(values) > 0.02 * truth


def test_the_interval_covers_the_noise_scale_of_a_whole_run_while_the_noise_scale_changes() -> None:
    """Return the exact fraction of signal in the base batch for the weights of each step."""
    data = near().data()
    centre, variance = data.train[0].mean(0), float(data.train[0].var(0).sum())
    covered, moved = 0, []
    for seed in range(10):
        sqnorms: list[float] = []

        def loss(model: nn.Module, batch: Batch, seen: list[float] = sqnorms) -> Tensor:
            if model.training:
                seen.append(float((model.w.detach() - centre).square().sum()))
            return known.half_square(model, batch)

        workload = replace(
            known.known_noise(), data=lambda: data, loss=loss, base_lr=0.01, budget_epochs=0.107
        )
        found = probe_workload(workload, steps=100, seed=seed).noise.estimate
        assert found is not None
        assert len(sqnorms) == 400
        share = np.mean([q / (q + variance / 32) for q in sqnorms])
        covered += (
            found.low <= noise_scale_at(signal=float(share), base_batch_size=32) <= found.high
        )
        moved.append(sqnorms[0] / sqnorms[-1])
    assert covered >= 8
    assert min(moved) > 3


def test_too_few_steps_give_no_number_but_what_is_missing() -> None:
    found = probe_workload(near(), steps=5)
    assert found.noise.estimate is None
    assert found.outlook is None
    assert "not enough signal yet: 5 measured steps; needed: at least 16" in str(found)
    assert "AdaScale" not in str(found)
    assert "largebatch train" not in str(found)


def test_identical_micro_batches_are_detected_twice() -> None:
    same = torch.ones(4000, known.DIMENSIONS)
    model = NearPoint()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    found = probe(model, optimizer, known.half_square, (same,), base_batch_size=32, steps=20)
    assert "no variance between the gradients that were measured separately" in str(found.noise)
    assert found.outlook is None
    assert any("repeat the samples" in c.seen and c.level == "error" for c in found.checks)


def test_more_samples_a_step_narrow_the_interval() -> None:
    few, many = probe_workload(near(), steps=64), probe_workload(near(), steps=64, batch_size=256)
    assert few.noise.estimate is not None
    assert many.noise.estimate is not None
    assert many.batch_size == 256
    assert many.outlook is not None
    assert many.outlook.rows[0].batch_size == 32
    width = [e.high / e.low for e in (few.noise.estimate, many.noise.estimate)]
    assert width[1] < 0.8 * width[0]


def test_a_step_below_the_base_batch_is_refused() -> None:
    with pytest.raises(ValueError, match="batch_size=128 for a more precise estimate"):
        probe_workload(near(), steps=20, batch_size=16)


# The forecast


def test_the_forecast_on_digits_is_what_adascale_then_does() -> None:
    workload = load("digits")
    data = workload.data()
    workload = replace(workload, data=lambda: data, budget_epochs=10)
    found = probe_workload(workload, steps=669)
    assert found.outlook is not None
    (told,) = [row for row in found.outlook.forecasts if row.scale == 8]
    model, optimizer = workload.fresh(seed=1)
    batches = lb.BatchLoader(data.train, batch_size=128, max_micro_batch_size=32, seed=1)
    control = lb.Controller(model, optimizer, lb.AdaScale(), batches, base_batch_size=16)
    for batch in control.steps(base_steps=found.run_steps):
        for micro_batch in batch:
            control.backward(workload.loss(model, micro_batch))
        control.step()
    assert "largebatch train digits --method adascale --scale 4" in str(
        replace(found, outlook=replace(found.outlook, scale=4))
    )
    done = control.base_steps / control.optimizer_steps
    print(f"forecast {told.mean_gain}, realised {done:.3f} in {control.optimizer_steps} steps")
    assert told.mean_gain.value == pytest.approx(done, rel=0.25)
    assert told.mean_gain.low < done < told.mean_gain.high


def test_a_run_amid_its_schedule_is_probed_at_the_rate_it_has_now() -> None:
    model = NearPoint()
    optimizer = torch.optim.SGD(model.parameters(), lr=2.5)
    torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 4e-10)
    data = (known.load_points().train[0],)
    found = probe(model, optimizer, known.half_square, data, base_batch_size=32, steps=40)
    assert found.base_lr == pytest.approx(1e-9)
    first, last = found.along[0].loss, found.along[-1].loss
    assert first == pytest.approx(last, rel=0.05), "at a rate of 2.5 it diverges"


def test_a_probe_with_the_same_seed_gives_the_same_result() -> None:
    first, second = (
        replace(probe_workload(near(), steps=40, seed=2), seconds=0.0) for _ in range(2)
    )
    assert first == second
    assert first != replace(probe_workload(near(), steps=40, seed=3), seconds=0.0)


def with_adam() -> Workload:
    return replace(
        near(),
        data=lambda: Data(train=blobs(), validation=blobs(), test=blobs()),
        model=classifier,
        loss=cross_entropy,
        optimizer=adamw(),
        base_lr=1e-3,
        budget_epochs=20,
    )


def test_a_result_goes_through_json_unchanged() -> None:
    for found in (
        probe_workload(near(), steps=40),
        probe_workload(near(), steps=5),
        probe_workload(with_adam(), steps=40),
    ):
        assert decode(ProbeResult, json.loads(json.dumps(encode(found)))) == found


def test_with_adam_a_probe_reports_the_preconditioned_and_the_plain_gradient() -> None:
    found = probe_workload(with_adam(), steps=200, scale=4)
    assert found.adam
    assert found.bare_noise is not None
    assert found.bare_noise != found.noise
    assert "lb.methods.adascale_adam(), batch_size=128, base_batch_size=32" in str(found)
    assert "without proof" in str(found)
    assert [found.along[0].start, found.along[-1].stop] == [0, 195], "from the sixth step on"


def test_the_lines_to_paste_have_the_runs_own_numbers() -> None:
    text = str(probe_workload(near(), steps=100, scale=8))
    assert "largebatch train" not in text, "it is no registered workload"
    assert "lb.AdaScale(), batch_size=256, base_batch_size=32)" in text
    assert "control.base_steps >= 938" in text


def test_rich_shows_the_same_words_as_the_text() -> None:
    from rich.console import Console

    found = probe_workload(near(), steps=100)
    console = Console(width=120, record=True, file=io.StringIO())
    print_probe(found, console)
    words = set(console.export_text().split())
    assert {word for word in str(found).split() if word not in words} == set()


ASKED: list[float] = []


@dataclass(frozen=True)
class Noting:
    """Record the points at which this constant schedule is called."""

    def __call__(self, fraction: float) -> float:
        ASKED.append(fraction)
        return 1.0


def test_a_workloads_schedule_is_followed_over_the_whole_run() -> None:
    ASKED.clear()
    probe_workload(near(schedule=Noting()), steps=20)
    assert pytest.approx([step / 938 for step in range(20)]) == ASKED


def test_progress_is_reported_after_each_step() -> None:
    told: list[tuple[int, int]] = []
    probe_workload(near(), steps=20, progress=lambda done, total: told.append((done, total)))
    assert told == [(step, 20) for step in range(1, 21)]
