"""Test the three methods for the critical batch size: branches are exact copies, fits are right."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from torch import Tensor, nn

from largebatch.analysis.efficiency import Range
from largebatch.analysis.noise import NotEnough
from largebatch.analysis.student import Mean
from largebatch.core.codec import decode, encode
from largebatch.rules import Cosine
from largebatch.theory import StepsFit, fit_steps
from largebatch.workbench.cli.main import cli
from largebatch.workbench.cli.pictures.critical import draw_critical, draw_on
from largebatch.workbench.runs.distributed import Process
from largebatch.workbench.studies.critical.branches import (
    branch_rule,
    scaling_of,
    smoothed_loss,
    window_of,
)
from largebatch.workbench.studies.critical.grid import critical_on_grid, mean_excess
from largebatch.workbench.studies.critical.learning_rate_search import (
    MOST_RATES,
    search_learning_rate,
)
from largebatch.workbench.studies.critical.result import Critical
from largebatch.workbench.studies.critical.run_methods import critical
from largebatch.workbench.studies.critical.settings import Settings, methods_of
from largebatch.workbench.studies.critical.study import Study, StudyRun, TrainingCost, part_of
from largebatch.workbench.studies.critical.values import CriticalBatch, StepsToTarget, Trial
from largebatch.workbench.workloads import Batch, Data, Workload, adamw, sgd

CURVATURE = torch.tensor([1.0] * 40 + [0.02] * 40)
START = torch.tensor([3.0] * 40 + [15.0] * 40)
SPREAD = 2.0
DOUBLINGS = 3
SEEDS = 3


class Point(nn.Module):
    """Hold weights w that are pulled to the samples, with fifty times the curvature in half of
    them."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(START.clone())


def half_square(model: nn.Module, batch: Batch) -> Tensor:
    (x,) = batch
    w = model.get_parameter("w")
    return ((w - x).square() * CURVATURE).sum(1).mean() / 2


def points(spread: float) -> Callable[[], Data]:
    def build() -> Data:
        draw = torch.Generator().manual_seed(0)
        x = spread * torch.randn(8_000, 80, generator=draw)
        return Data(train=(x[:6_000],), validation=(x[6_000:7_000],), test=(x[7_000:],))

    return build


def quadratic(*, spread: float = SPREAD, **changes: object) -> Workload:
    return replace(
        Workload(
            name="quadratic",
            summary="exact moments",
            model=Point,
            data=points(spread),
            loss=half_square,
            optimizer=sgd(momentum=0.0),
            base_batch_size=8,
            base_lr=0.125,
            micro_batch_size=256,
            budget_epochs=0.25,
        ),
        **changes,  # type: ignore[arg-type]
    )


def noisy() -> Workload:
    """Return a workload with dropout, momentum and a schedule, which a branch must copy."""

    def data() -> Data:
        draw = torch.Generator().manual_seed(1)
        y = torch.randint(0, 3, (400,), generator=draw)
        x = 2.0 * nn.functional.one_hot(y, 6) + torch.randn(400, 6, generator=draw)
        return Data(train=(x, y), validation=(x[:50], y[:50]), test=(x[:50], y[:50]))

    return quadratic(
        model=lambda: nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.3), nn.Linear(8, 3)),
        data=data,
        loss=lambda model, batch: nn.functional.cross_entropy(model(batch[0]), batch[1]),
        optimizer=sgd(momentum=0.9),
        schedule=Cosine(),
        budget_epochs=4,
    )


def study_of(workload: Workload, *, budget: int = 1600) -> Study:
    return Study(
        workload=workload,
        data=workload.data(),
        process=Process(device=torch.device("cpu")),
        budget=budget,
        spent=TrainingCost(),
    )


def weights(run: StudyRun) -> Tensor:
    return nn.utils.parameters_to_vector(run.model.parameters()).detach().clone()


def begun(study: Study) -> StudyRun:
    return study.run(rule=branch_rule(study.workload), batch_size=study.base, seed=3)


# Branches


@pytest.mark.parametrize("optimizer", [sgd(momentum=0.9), adamw()])
def test_a_branch_with_the_base_batch_is_the_uninterrupted_run_bit_for_bit(
    optimizer: object,
) -> None:
    study = study_of(replace(noisy(), optimizer=optimizer))  # type: ignore[arg-type]
    straight, forked = begun(study), begun(study)
    straight.go(800)
    forked.go(320)
    before = weights(forked)
    twin = forked.branch(study.base)
    twin.go(800)
    assert torch.equal(weights(twin), weights(straight))
    assert torch.equal(weights(forked), before)
    assert not torch.equal(weights(twin), before)


def test_a_run_is_unchanged_by_its_branches() -> None:
    study = study_of(noisy())
    straight, forked = begun(study), begun(study)
    straight.go(960)
    forked.go(320)
    for batch_size in (16, 32):
        forked.branch(batch_size).go(640)
    forked.go(960)
    assert torch.equal(weights(forked), weights(straight))


def test_branches_see_the_samples_of_the_base_branch_and_end_with_it() -> None:
    study = study_of(noisy())
    run = begun(study)
    run.go(320)
    twin = run.branch(32)
    (x, _), (same, _) = (each.control.batches.coming(64) for each in (run, twin))
    assert torch.equal(x, same)
    twin.go(640)
    run.go(640)
    assert (twin.control.samples, run.control.samples) == (640, 640)
    assert twin.control.optimizer_steps - 320 // 8 == (640 - 320) // 32


@pytest.mark.parametrize(("optimizer", "factor"), [(sgd(momentum=0.9), 4.0), (adamw(), 2.0)])
def test_the_rate_follows_the_batch_as_the_optimizer_asks(optimizer: object, factor: float) -> None:
    study = study_of(quadratic(optimizer=optimizer))
    twin = begun(study).branch(4 * study.base)
    twin.go(4 * study.base)
    assert twin.control.decision is not None
    assert twin.control.decision.lr_multiplier == factor
    assert ("sqrt" in scaling_of(study.workload)[1]) == (factor == 2.0)


def test_a_window_is_whole_steps_of_the_largest_batch_within_a_part_of_the_run() -> None:
    for budget in (5_000, 21_424, 100_001):
        for points_ in (1, 3, 5):
            window, doublings = window_of(base=16, budget=budget, points=points_, doublings=None)
            largest = 16 * 2**doublings
            assert window % largest == 0
            assert 8 * largest <= window <= budget // points_


def mean(value: float, half: float = 0.01) -> Mean:
    return Mean(value=value, low=value - half, high=value + half, count=5)


@pytest.mark.parametrize(
    ("excess", "found"),
    [
        ([0.0, 0.0, 0.5], Range(value=32.0, low=32.0, high=64.0)),
        ([0.0, 0.045, 0.5], Range(value=32.0, low=16.0, high=64.0)),
        ([0.045, 0.0, 0.5], Range(value=32.0, low=32.0, high=64.0)),  # loses less: it held, too
        ([0.0, 0.055, 0.5], Range(value=16.0, low=16.0, high=64.0)),
        ([0.5, 0.9, 0.0], Range(value=8.0, low=0.0, high=16.0)),  # what recovers is too late
        ([0.0, 0.0, 0.0], Range(value=64.0, low=64.0, high=math.inf)),
    ],
)
def test_the_answer_is_in_units_of_the_grid(excess: list[float], found: Range) -> None:
    means = [mean(value) for value in excess]
    assert critical_on_grid(8, [16, 32, 64], means, tolerance=0.05) == found


def test_losses_that_scatter_too_much_give_no_number() -> None:
    wide = [mean(0.0, half=0.3)] * 3
    found = critical_on_grid(8, [16, 32, 64], wide, tolerance=0.05)
    assert isinstance(found, NotEnough)
    assert "more seeds" in found.needed


def test_one_seed_that_diverges_makes_a_batch_worse() -> None:
    trial = Trial(start=0, batch_size=16, base_losses=(1.0, 2.0), losses=(1.0, math.inf))
    means = [mean_excess(trial.excess), mean(0.0)]
    assert critical_on_grid(8, [16, 32], means, tolerance=0.05).high == 16.0  # type: ignore[union-attr]


def test_a_branch_that_diverges_has_no_finite_loss() -> None:
    study = study_of(quadratic(base_lr=50.0))
    assert math.isinf(smoothed_loss(begun(study).branch(16 * study.base), 0, 1280))


# The sweep


def exact_steps(batch_size: int, lr: float, target: float) -> int | None:
    """Return the steps until the mean excess loss is below the target, by the recurrence
    e' = (1 - lr h)^2 e + lr^2 h^2 s^2 / B."""
    e, h = START.double() ** 2, CURVATURE.double()
    for step in range(1, 5000):
        e = (1 - lr * h) ** 2 * e + (lr * h * SPREAD) ** 2 / batch_size
        if float((h * e).sum()) / 2 <= target:
            return step
    return None


def test_the_sweep_finds_the_critical_batch_of_a_quadratic() -> None:
    workload, excess = quadratic(base_lr=0.5), 4.0
    validation = workload.data().validation
    assert isinstance(validation, tuple)
    (x,) = validation
    floor = half_square(_at_the_mean(x), (part_of((x,), 1024)[0],)).item()
    settings = Settings(seeds=SEEDS, doublings=DOUBLINGS, target=floor + excess)
    (answer,) = critical(workload, by=["sweep"], budget="800steps", settings=settings).answers
    batches = [8 * 2**i for i in range(DOUBLINGS + 1)]
    rates = [2.0**i / 64 for i in range(8)]
    exact = []
    for batch_size in batches:
        taken = [exact_steps(batch_size, lr, excess) for lr in rates]
        exact.append(min(steps for steps in taken if steps is not None))
    known = fit_steps(batches, exact).mccandlish
    assert isinstance(known, StepsFit)
    found = answer.findings[0].batch
    assert found is not None, answer.findings[0].missing
    assert 0.6 < found.value / known.critical_batch_size < 1.6
    for run in answer.runs:
        if run.best:
            assert run.known


def _at_the_mean(x: Tensor) -> nn.Module:
    point = Point()
    with torch.no_grad():
        point.w.copy_(x.mean(0))
    return point


def test_a_climb_ends_between_two_worse_rates_wherever_it_begins() -> None:
    for start in (0.25, 1.0, 2.0, 4.0):
        found = search_learning_rate(
            lambda lr: reached(lr, 10 + 5 * abs(math.log2(lr / 2.0))), start
        )
        (best,) = [run for run in found if run.best]
        assert best.lr == 2.0
        assert len(found) <= MOST_RATES
    assert not any(run.best for run in search_learning_rate(lambda lr: reached(lr, None), 1.0))


def reached(lr: float, steps: float | None) -> StepsToTarget:
    taken = None if steps is None else round(steps)
    return StepsToTarget(batch_size=8, lr=lr, steps=(taken,), lowest=1.0)


def test_a_target_that_no_run_reaches_is_reported() -> None:
    settings = Settings(seeds=2, doublings=2, target=0.001)
    (answer,) = critical(quadratic(), by=["sweep"], budget="50steps", settings=settings).answers
    (finding,) = answer.findings
    assert finding.batch is None
    assert "no run reached the target loss 0.001; the lowest loss was" in str(finding)
    assert "the batch sizes 8, 16, 32 are left out" in answer.notes[0]


# All of them


def test_without_noise_no_method_invents_a_number() -> None:
    """If all samples are equal, there is no variance, and no larger batch helps."""
    workload = quadratic(spread=0.0, base_lr=0.01)
    settings = Settings(seeds=2, doublings=2, points=2)
    found = critical(workload, budget="400steps", settings=settings)
    noise, branches, sweep = found.answers
    assert all("no variance" in str(finding) for finding in noise.findings)
    for finding in branches.findings:
        assert finding.batch is None or finding.batch.value in (8.0, 16.0, 32.0)
    assert [finding.batch for finding in sweep.findings] == [None] * len(sweep.findings)


@pytest.fixture(scope="module")
def small() -> Critical:
    settings = Settings(seeds=2, doublings=2, points=2)
    return critical(noisy(), by=["all"], budget="200steps", settings=settings)


def test_the_same_sweep_gives_the_same_numbers(small: Critical) -> None:
    settings = Settings(seeds=2, doublings=2, points=2)
    again = critical(noisy(), by=["branches"], budget="200steps", settings=settings)
    assert again.answers[0].trials == small.answers[1].trials


def test_the_table_has_a_row_for_each_finding_and_the_costs(small: Critical) -> None:
    text = str(small)
    noise, branches, _ = small.answers
    assert noise.samples == 200 * 8
    assert branches.samples == 2 * (1600 + 2 * 2 * 800) - 0
    for answer in small.answers:
        assert f"{answer.samples:,}" in text
        assert f"{answer.method}: {answer.assumes}."[:40] in text
        for finding in answer.findings:
            assert str(finding) in text


def test_the_result_goes_to_json_and_back(small: Critical) -> None:
    plain = json.loads(json.dumps(encode(small), allow_nan=False))
    assert decode(Critical, plain, where="here") == small


def test_the_picture_is_written(small: Critical, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    draw_critical(small, tmp_path / "new" / "critical.png")
    assert (tmp_path / "new" / "critical.png").stat().st_size > 10_000


def test_a_bound_is_drawn_as_an_arrow_and_not_as_a_point(small: Critical) -> None:
    figures = pytest.importorskip("matplotlib.figure")
    bounds = [Range(value=64.0, low=32.0, high=128.0), Range(value=9e5, low=48.0, high=math.inf)]
    findings = tuple(
        CriticalBatch(where="here", start=at / 2, stop=(at + 1) / 2, batch=batch)
        for at, batch in enumerate(bounds)
    )
    panel = figures.Figure().subplots()
    draw_on(panel, replace(small, answers=(replace(small.answers[0], findings=findings),)))
    (line,) = (line for line in panel.get_lines() if str(line.get_label()).startswith("noise ("))
    assert line.get_ydata()[0] == 64.0
    assert math.isnan(line.get_ydata()[1])
    assert panel.get_ylim()[1] == 256.0, "no room is made for it"


# What is refused, before any training


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("--by nois", "Did you mean 'noise'?"),
        ("--by ,", "No method was given"),
        ("--by noise --budget 5", "but one batch of digits has 16 samples"),
        ("--by branches --budget 100", "A branch needs at least 8 steps of the largest batch size"),
        ("--by branches --doublings 9", "fewer doublings"),
        ("--by branches --tolerance 0", "tolerance must be finite and above 0"),
        ("--by branches --tolerance nan", "tolerance must be finite and above 0"),
        ("--by branches --seeds 1", "2 or more"),
        ("--by noise --points 0", "1 to 100"),
        ("--by sweep --target 99", "before the first step"),
        ("--by sweep --tolerance 0.1", "--tolerance was given, but only branches can use it"),
        ("--by noise --steps 5", "No such option '--steps'"),
        ("--by noise --plot picture.txt", "a picture file must end with"),
        ("--by noise --budget 5parsecs", "is not the length of a run"),
    ],
)
def test_options_that_make_no_sense_are_refused_before_training(
    monkeypatch: pytest.MonkeyPatch, words: str, told: str
) -> None:
    def trained(*args: object, **options: object) -> None:
        raise AssertionError("nothing is trained")

    monkeypatch.setattr(StudyRun, "go", trained)
    monkeypatch.setattr("largebatch.workbench.studies.critical.noise.measure_steps", trained)
    ended = CliRunner().invoke(cli, ["critical", "digits", *words.split()])
    assert ended.exit_code == 2, ended.output
    assert told in " ".join(ended.stderr.split())


def test_methods_come_in_any_form_and_once() -> None:
    assert methods_of(["branches", "noise,branches"]) == ("noise", "branches")
    assert methods_of([" all "]) == ("noise", "branches", "sweep")


def test_the_command_prints_the_answers_side_by_side(tmp_path: Path) -> None:
    words = "critical digits --by noise,branches --budget 2ep --seeds 2 --points 1 --doublings 1"
    ended = CliRunner().invoke(cli, [*words.split(), "--plot", str(tmp_path / "c.png")])
    assert ended.exit_code == 0, ended.output
    assert "noise: the noise scale is the batch size at which the noise of the" in ended.stdout
    assert "branches: the critical batch size is the largest tested" in ended.stdout
    assert "samples to train digits on: noise 2,142" in ended.stderr
    assert (tmp_path / "c.png").exists()
