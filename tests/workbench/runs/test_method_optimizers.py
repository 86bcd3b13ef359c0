"""Test the methods that bring an optimizer: the optimizer, the record, and resumed runs."""

from __future__ import annotations

import io
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

import largebatch as lb
from largebatch.methods import METHODS
from largebatch.record import read_record
from largebatch.workbench.cli.list_tables import methods_table
from largebatch.workbench.reports.run import reported_run
from largebatch.workbench.runs.doctor import doctor
from largebatch.workbench.runs.method_optimizers import METHOD_OPTIMIZERS, with_method_optimizer
from largebatch.workbench.runs.train import train
from largebatch.workbench.studies.compare.compare import compare
from largebatch.workbench.workloads import Workload, load
from largebatch.workbench.workloads.optimizers import adamw, sgd
from largebatch.workbench.workloads.workload import OptimizerFactory
from programs import run_command_on_ranks

PAPERS = {
    "adasgd": torch.optim.SGD,
    "adadagrad-norm": lb.optim.AdaGradNorm,
    "adadagrad": torch.optim.Adagrad,
    "adadam": torch.optim.AdamW,
}
every_paper = pytest.mark.parametrize("paper", PAPERS)


def optimizer_of(workload: Workload) -> torch.optim.Optimizer:
    return workload.fresh(seed=0)[1]


@every_paper
def test_a_workload_gets_the_optimizer_of_the_paper(paper: str) -> None:
    workload, why = with_method_optimizer(load("digits"), METHODS[paper].optimizer)
    optimizer = optimizer_of(workload)
    assert type(optimizer) is PAPERS[paper]
    if paper == "adasgd":
        assert (workload, why) == (workload, "")
        assert optimizer.param_groups[0]["lr"] == load("digits").base_lr
    else:
        assert f"{type(optimizer).__name__} instead of SGD" in why
        assert (
            optimizer.param_groups[0]["lr"] == METHOD_OPTIMIZERS[str(METHODS[paper].optimizer)].lr
        )


def test_a_workload_with_such_an_optimizer_keeps_it_and_its_rate() -> None:
    mine = replace(load("digits"), optimizer=adamw(betas=(0.8, 0.9)), base_lr=0.005)
    assert with_method_optimizer(mine, "adam") == (mine, "")
    changed, _ = with_method_optimizer(mine, "adagrad")
    assert type(optimizer_of(changed)) is torch.optim.Adagrad


@pytest.mark.parametrize("name", ["seesaw", "smith"])
@pytest.mark.parametrize(("build", "kind"), [(sgd(), "SGD"), (adamw(), "AdamW")])
def test_a_method_that_is_named_after_none_leaves_the_workloads_optimizer_and_rate(
    name: str, build: OptimizerFactory, kind: str, tmp_path: Path
) -> None:
    told: list[Any] = []
    workload = replace(load("digits"), optimizer=build, base_lr=0.005)
    path = tmp_path / "run.jsonl"
    result = train(workload, method=name, budget="20steps", record=path, progress=told.append)
    assert read_record(path).header["optimizer"]["name"] == kind
    assert result.lr == 0.005
    assert not [line for line in told if isinstance(line, str)]


def test_pages_and_table_name_just_the_methods_that_bring_an_optimizer() -> None:
    bring = {name for name, method in METHODS.items() if method.optimizer is not None}
    page = (Path(__file__).parents[3] / "docs" / "explanation" / "rules.md").read_text()
    said = page.partition("**The optimizer.**")[2].partition("bring their own optimizer")[0]
    assert set(re.findall(r"`([a-z-]+)`", said)) == bring
    shown = Console(width=1000, file=io.StringIO(), record=True)
    shown.print(methods_table(METHODS.values()))
    note = shown.export_text().partition("is made for. ")[2].partition(" bring their own")[0]
    assert set(re.findall(r"'([a-z-]+)'", note)) == bring


@pytest.mark.parametrize(("name", "kind"), [("stdlib-transformer", "AdamW"), ("digits", "SGD")])
def test_the_workloads_that_the_page_names_have_the_optimizers_that_it_says(
    name: str, kind: str
) -> None:
    built = load(name).optimizer([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    assert type(built).__name__ == kind


def test_every_kind_that_a_method_names_is_known() -> None:
    kinds = {method.optimizer for method in METHODS.values()} - {None}
    assert kinds == set(METHOD_OPTIMIZERS)


@every_paper
def test_a_run_grows_and_its_report_shows_each_growth_with_its_reason(
    paper: str, tmp_path: Path
) -> None:
    told: list[Any] = []
    path = tmp_path / "run.jsonl"
    result = train("digits", method=paper, budget="2ep", record=path, progress=told.append)
    assert result.samples > 1.5 * result.steps * 16
    words = [line for line in told if isinstance(line, str)]
    assert bool(words) == (paper != "adasgd")
    page = reported_run(read_record(path), name="run")
    sizes = [seen.batch_size for seen, _ in read_record(path).steps]
    growths = [change for change in page.changes if change.what.startswith("batch")]
    assert len(growths) >= len(set(sizes)) - 1 >= 1
    assert 1.0 < result.mean_lr_multiplier < math.sqrt(max(sizes) / 16)
    for change in growths:
        before, after = map(int, re.findall(r"\d+", change.what))
        sign = ">" if after > before else "<"
        assert re.match(rf"theta_max [^;]*\] {sign} eta 1, batch too", change.reason)
    assert growths[0].what.startswith("batch size 16 to ")


@every_paper
def test_an_interrupted_run_resumes_with_the_same_bits(paper: str, tmp_path: Path) -> None:
    options: dict[str, Any] = {"method": paper, "budget": "2ep"}
    whole = train("digits", **options)

    def interrupted(report: Any) -> None:
        if not isinstance(report, str) and report.step == 25:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(
            "digits", checkpoint=tmp_path, checkpoint_every="7steps", progress=interrupted,
            **options,
        )  # fmt: skip
    again = train("digits", checkpoint=tmp_path, resume=True, checkpoint_every="7steps", **options)
    assert replace(again, seconds=0.0) == replace(whole, seconds=0.0)


def test_a_comparison_runs_each_method_on_its_own_optimizer(tmp_path: Path) -> None:
    result = compare(
        "digits", methods=["adasgd", "adadagrad"], scales=[1], seeds=1, budget="0.5ep",
        out=tmp_path,
    )  # fmt: skip
    rates = {run.method: run.lr for run in result.runs}
    assert rates == {"any": 0.01, "adasgd": 0.01, "adadagrad": METHOD_OPTIMIZERS["adagrad"].lr}
    steps = {run.method: run.steps for run in result.runs}
    assert max(steps["adasgd"], steps["adadagrad"]) < steps["any"]


@every_paper
def test_the_doctor_checks_the_run_that_would_be_made(paper: str) -> None:
    found = doctor("digits", method=paper, seconds=0.0)
    assert found.sound, found.check_up


@pytest.mark.distributed
def test_two_processes_train_as_one_while_their_parts_are_the_same(tmp_path: Path) -> None:
    done = run_command_on_ranks(
        "train", "digits", "--method", "adadam", "--budget", "16steps", "--record",
        "two.jsonl", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    train("digits", method="adadam", budget="16steps", record=tmp_path / "one.jsonl")
    records = [read_record(tmp_path / name).steps for name in ("one.jsonl", "two.jsonl")]
    sizes = [[step.seen.batch_size for step in steps] for steps in records]
    assert sizes[0] == sizes[1]
    assert sizes[0][0] == 16 < sizes[0][-1]
    first, second = (steps[10].decision for steps in records)
    assert first.next_batch_size == second.next_batch_size
    assert first.reason == second.reason
