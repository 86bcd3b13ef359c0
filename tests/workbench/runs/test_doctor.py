"""Test `largebatch doctor`: no false alarm on a sound workload, exit codes, tables and JSON."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from torch import Tensor, nn

from largebatch.core.codec import decode
from largebatch.workbench.cli.main import cli
from largebatch.workbench.runs.doctor import Diagnosis, doctor
from largebatch.workbench.workloads import Batch, load
from programs import run_command, torchrun

OWN = """
from dataclasses import replace
from torch.nn.functional import cross_entropy
from largebatch.workbench.workloads import load

def summed():
    def loss(model, batch):
        return cross_entropy(model(batch[0]), batch[1], reduction="sum")
    return replace(load("digits"), name="summed", loss=loss)
"""


def total(model: nn.Module, batch: Batch) -> Tensor:
    return nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="sum")


def test_digits_are_sound_and_the_generators_are_left_alone() -> None:
    before = torch.get_rng_state()
    found = doctor("digits", scale=8, seconds=0.0)
    assert found.sound
    assert (found.workload, found.method, found.batch_size, found.ranks) == (
        "digits", "adascale", 128, 1,
    )  # fmt: skip
    assert {finding.level for finding in found.check_up.findings} == {"ok"}
    assert torch.equal(torch.get_rng_state(), before)


def test_a_workload_that_cannot_be_built_is_a_finding() -> None:
    def lbfgs(parameters: object, *, lr: float) -> torch.optim.Optimizer:
        return torch.optim.LBFGS(parameters, lr=lr)  # type: ignore[arg-type]

    found = doctor(replace(load("digits"), optimizer=lbfgs))
    (finding,) = found.check_up.findings
    assert (finding.name, finding.level) == ("set-up", "error")
    assert "L-BFGS is not supported" in finding.seen
    assert not found.sound


def test_an_unknown_workload_is_an_error_with_exit_code_2() -> None:
    assert CliRunner().invoke(cli, ["doctor", "digit"]).exit_code == 2


def test_the_exit_code_is_1_where_a_finding_is_an_error_and_the_table_has_its_remedy(
    tmp_path: Path,
) -> None:
    (tmp_path / "own.py").write_text(OWN)
    done = run_command("doctor", "own:summed", cwd=tmp_path)
    assert done.returncode == 1, done.stderr
    assert "error" in done.stdout
    assert "-> Return the mean, with reduction='mean'" in done.stdout
    assert "1 error" in done.stdout
    assert done.stderr == ""


def test_a_sound_workload_ends_with_0_and_json_is_read_back(tmp_path: Path) -> None:
    done = run_command("doctor", "digits", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = decode(Diagnosis, json.loads(done.stdout))
    assert found.sound
    assert [f.name for f in found.check_up.findings] == [
        "samples", "unused parameters", "mean loss", "cost of measuring",
    ]  # fmt: skip


@pytest.mark.distributed
def test_under_torchrun_the_first_rank_reports_for_all_ranks(tmp_path: Path) -> None:
    done = torchrun("doctor", "digits", "--scale", "8", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = decode(Diagnosis, json.loads(done.stdout))
    assert found.ranks == 2
    assert found.sound
    assert "all 2 ranks" in found.check_up.findings[0].seen
