"""The noise scale of single coordinates against its definition, on every tap."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gradient_twin import coordinate_noise_scale, coordinate_ratios, rows_of_parts
from torch import nn

import largebatch as lb
from largebatch.act.loader import BatchLoader
from largebatch.core.rule import chain
from largebatch.measure.coordinates import CoordinateNoiseScale, ratio_at
from largebatch.measure.meter import Meter
from largebatch.measure.squared_norms import SquaredNorms
from largebatch.measure.taps import Detached, Flat, LeafHooks
from largebatch.record import MemoryRecord
from largebatch.rules import CoordinateNormTest, LimitGrowth, Observe
from small_runs import class_data, class_loss, classifier, measuring_controller, train

CASES = json.loads((Path(__file__).parents[1] / "cases" / "normtest.json").read_text())["cases"]
ROWS = [case for case in CASES if "coord" in case["expected"]]
CHUNKS = [case for case in CASES if "num_chunks" in case["params"]]
ASK = ("moments", "coordinate_noise_scale")


def measured(rows: Any, sizes: Any, *, quantile: float = 1.0, tap: Any = LeafHooks) -> Any:
    """What a meter reads where the gradient of part i is row i: of <weight, row>."""
    weight = nn.Parameter(torch.zeros(len(rows[0]), dtype=torch.float64))
    strict = CoordinateNoiseScale(quantile=quantile)
    meter = Meter(nn.ParameterList([weight]), statistics=[SquaredNorms(), strict], tap=tap())
    meter.bind(torch.optim.SGD([weight], lr=0.0))
    meter.open(frozenset(ASK))
    total = sum(sizes)
    for at, (row, size) in enumerate(zip(rows, sizes, strict=True)):
        loss = weight @ torch.tensor(row, dtype=torch.float64)
        last = at == len(sizes) - 1
        meter.backward(loss, share=size / total, weight=size, samples=size, last=last)
    return meter.close(planned_weight=total)


@pytest.mark.parametrize("case", ROWS, ids=[case["name"] for case in ROWS])
def test_the_rows_of_a_case_ask_for_its_batch(case: dict[str, Any]) -> None:
    reading = measured(case["G"], [1] * len(case["G"]))
    required, eta = case["expected"]["coord"]["required_real"], case["params"]["eta"]
    scale = reading.coordinate_noise_scale
    if required is None:
        assert scale is None
    else:
        assert scale / eta**2 == pytest.approx(float(required), rel=1e-9)
    if reading.moments is not None:
        assert reading.moments.variance == pytest.approx(case["stats"]["tr_sigma"], abs=1e-9)


@pytest.mark.parametrize("case", CHUNKS, ids=[case["name"] for case in CHUNKS])
def test_the_chunks_of_a_case_have_its_variances(case: dict[str, Any]) -> None:
    stats, size = case["stats"], case["params"]["chunk_size"]
    chunks = stats["chunk_means"]
    reading = measured(chunks, [size] * len(chunks))
    variances = np.asarray(stats["var_coord_chunks"])
    expected = (variances / np.asarray(stats["mean_grad"]) ** 2).max()
    assert reading.coordinate_noise_scale == pytest.approx(expected, rel=1e-9)
    assert reading.moments.variance == pytest.approx(stats["tr_sigma_chunks"], rel=1e-9)
    assert reading.moments.sqnorm == pytest.approx(stats["unbiased_grad_sq"], rel=1e-9)


@pytest.mark.parametrize("tap", [LeafHooks, Detached, Flat])
@pytest.mark.parametrize("quantile", [1.0, 0.9, 0.5, 0.01])
@pytest.mark.parametrize(
    ("dtype", "rel"), [(torch.float32, 1e-3), (torch.float64, 1e-9)], ids=["float32", "float64"]
)
@pytest.mark.parametrize("weigh", [None, lambda x: 3.0 + 2.0 * len(x)], ids=["samples", "tokens"])
def test_the_coordinate_noise_scale_is_the_ratio_by_its_definition_on_unequal_micro_batches(
    tap: Any, quantile: float, dtype: torch.dtype, rel: float, weigh: Any
) -> None:
    model = classifier(dtype=dtype)
    strict = CoordinateNoiseScale(quantile=quantile)
    control, seen = measuring_controller(
        model,
        torch.optim.SGD(model.parameters(), lr=0.05),
        samples=class_data(dtype=dtype),
        micro=7,
        ask=ASK,
        meter=Meter(model, statistics=[SquaredNorms(), strict], tap=tap()),
    )
    for batch in control.steps(steps=3):
        micro_batches = []
        for x, y in batch:
            micro_batches.append((x, y))
            weight = weigh(x) if weigh else None
            control.backward(class_loss(model, x, y), weight=weight)
        rows = rows_of_parts(model, class_loss, micro_batches)
        control.step()
        samples = [len(x) for x, _ in micro_batches]
        weights = [weigh(x) for x, _ in micro_batches] if weigh else samples
        expected = coordinate_noise_scale(rows, weights, quantile=quantile)
        assert expected is not None
        # a variance of one unit of weight, in samples
        expected *= sum(samples) / sum(weights)
        assert seen.steps[-1].coordinate_noise_scale == pytest.approx(expected, rel=rel)


@pytest.mark.parametrize("quantile", [1.0, 0.75, 0.3])
def test_coordinates_without_gradient_and_noise_are_left_out(quantile: float) -> None:
    rows = [[1.0, 0.0, 2.0, 5.0, 0.0], [3.0, 0.0, -2.0, 5.0, 0.0]]
    assert coordinate_ratios(rows, [2, 2]) == [0.0, 1.0, math.inf]
    reading = measured(rows, [2, 2], quantile=quantile)
    assert reading.coordinate_noise_scale == coordinate_noise_scale(rows, [2, 2], quantile=quantile)
    assert reading.finite


def test_one_part_or_a_zero_gradient_has_no_coordinate_noise_scale() -> None:
    assert measured([[1.0, 2.0]], [4]).coordinate_noise_scale is None
    assert measured([[0.0, 0.0]] * 2, [4, 4]).coordinate_noise_scale is None
    assert measured([[1.0, 2.0]] * 2, [4, 4]).coordinate_noise_scale == pytest.approx(0.0, abs=1e-9)


def test_an_unused_parameter_is_left_out() -> None:
    model = nn.ModuleDict({"used": nn.Linear(2, 1), "unused": nn.Linear(2, 1)})
    meter = Meter(model, statistics=[CoordinateNoiseScale()])
    meter.bind(torch.optim.SGD(model.parameters(), lr=0.1))
    meter.open(frozenset({"coordinate_noise_scale"}))
    x = torch.tensor([[1.0, 2.0], [3.0, 2.5]])
    for at in range(2):
        loss = model["used"](x[at]).sum()
        meter.backward(loss, share=0.5, weight=1, samples=1, last=at == 1)
    reading = meter.close(planned_weight=2)
    assert reading.coordinate_noise_scale == pytest.approx(2.0 / 4.0)  # 1 and 3
    assert reading.finite


def test_the_variance_of_a_coordinate_is_unbiased() -> None:
    """Of the one coordinate there is: mean of variance and of g^2, each over many steps."""
    generator = torch.Generator().manual_seed(1)
    variances = []
    for _ in range(1500):
        rows = 2.0 + torch.randn(3, 1, generator=generator, dtype=torch.float64)
        reading = measured(rows.tolist(), [1, 1, 1])
        mean = rows.mean().item()
        variances.append(reading.coordinate_noise_scale * mean**2)
    assert np.mean(variances) == pytest.approx(1.0, abs=4 * np.std(variances) / math.sqrt(1500))


def test_the_rank_of_a_quantile_is_that_of_the_sorted_list() -> None:
    generator = torch.Generator().manual_seed(2)
    for count in (1, 2, 7, 100, 1000):
        ratio = torch.rand(count, generator=generator)
        ratio[::5], ratio[1::7] = math.nan, 0.0
        known = sorted(one for one in ratio.tolist() if not math.isnan(one))[::-1]
        for quantile in (0.01, 0.1, 0.5, 0.9, 0.999, 1.0):
            found = ratio_at(ratio.clone(), quantile=quantile).item()
            rank = math.ceil(quantile * len(known) - 1e-9)
            assert found == (known[rank - 1] if known else -1.0)
    least = torch.tensor([0.5, 0.25, 0.75])
    assert ratio_at(least.clone(), quantile=1e-12) == 0.75
    assert ratio_at(least.double(), quantile=1e-12) == 0.75


def test_a_gradient_in_half_precision_is_squared_in_float32() -> None:
    model = nn.Linear(2, 1, bias=False).to(torch.float16)
    meter = Meter(model, statistics=[CoordinateNoiseScale()])
    meter.bind(torch.optim.SGD(model.parameters(), lr=0.1))
    meter.open(frozenset({"coordinate_noise_scale"}))
    for at, row in enumerate(([1e-4, 2e-4], [3e-4, 2e-4])):  # whose squares are 0 in float16
        loss = model(torch.tensor(row, dtype=torch.float16)).sum()
        meter.backward(loss, share=0.5, weight=1, samples=1, last=at == 1)
    found = meter.close(planned_weight=2).coordinate_noise_scale
    assert found == pytest.approx(0.5, rel=0.02)


def test_a_step_that_is_not_finite_does_not_stop_coordinate_measurements() -> None:
    model = classifier()
    meter = Meter(model, statistics=[SquaredNorms(), CoordinateNoiseScale()])
    control, seen = measuring_controller(
        model, torch.optim.SGD(model.parameters(), lr=0.1), ask=ASK, meter=meter
    )
    for at, batch in enumerate(control.steps(steps=2)):
        for x, y in batch:
            loss = class_loss(model, x, y)
            control.backward(loss * math.nan if at == 1 else loss)
        control.step()
    assert [step.finite for step in seen.steps] == [True, False, True]
    assert seen.steps[2].coordinate_noise_scale is not None


def test_only_asked_steps_measure_and_only_a_meter_that_has_it_serves_the_strict_test() -> None:
    model = classifier()
    meter = Meter(model, statistics=[SquaredNorms(), CoordinateNoiseScale()])
    control, seen = measuring_controller(
        model, torch.optim.SGD(model.parameters(), lr=0.1), meter=meter
    )
    train(control, loss=class_loss, steps=2)
    assert [step.coordinate_noise_scale for step in seen.steps] == [None, None]
    with pytest.raises(ValueError, match="Add the statistic to the meter: meter="):
        measuring_controller(
            model, torch.optim.SGD(model.parameters(), lr=0.1), ask=("coordinate_noise_scale",)
        )


@pytest.mark.parametrize("told", [None, 2])
def test_attach_measures_the_coordinate_noise_scale_on_one_process(told: int | None) -> None:
    model, (x, y) = classifier(dtype=torch.float64), class_data(dtype=torch.float64)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    record = MemoryRecord()
    lb.attach(
        model,
        optimizer,
        Observe(statistics=ASK),
        batch_size=10,
        base_batch_size=10,
        micro_batches=told,
        meter=Meter(model, statistics=[SquaredNorms(), CoordinateNoiseScale(quantile=0.9)]),
        record=record,
    )
    for _ in range(2):
        cuts = [(x[:5], y[:5]), (x[5:10], y[5:10])]
        rows = rows_of_parts(model, class_loss, cuts)
        for cut in cuts:
            (class_loss(model, *cut) / 2).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1e-3)
        optimizer.step()
        optimizer.zero_grad()
        seen, _ = record.steps[-1]
        expected = coordinate_noise_scale(rows, [5, 5], quantile=0.9)
        assert seen.coordinate_noise_scale == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("quantile", [0.0, 1.1, -0.5, math.nan])
def test_an_impossible_quantile_is_refused(quantile: float) -> None:
    with pytest.raises(ValueError, match=r"lb.measure.CoordinateNoiseScale\(quantile=0.9\)"):
        CoordinateNoiseScale(quantile=quantile)


def test_a_controller_grows_its_batch_by_the_strict_test() -> None:
    model = classifier()
    strict = CoordinateNormTest(eta=1.0, statistic="coordinate_noise_scale")
    control = lb.Controller(
        model,
        torch.optim.SGD(model.parameters(), lr=0.05),
        chain(strict, LimitGrowth(factor=2.0, shrink=1.0)),
        BatchLoader(class_data(), batch_size=4, max_micro_batch_size=4, shuffle=False),
        base_batch_size=4,
        meter=Meter(model, statistics=[CoordinateNoiseScale()]),
    )
    train(control, loss=class_loss, steps=6)
    assert control.batch_size == 60  # the data set
