"""What importing the package loads: each name what it needs, and nothing heavy besides."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import cache

import pytest

OPTIONAL = (
    *("sklearn", "matplotlib", "click", "rich", "fairscale", "pytest", "hypothesis"),
    *("jinja2", "lightning", "mlflow", "pytorch_optimizer", "tensorboard", "wandb"),
)

USUAL = "from largebatch import AdaScale, BatchLoader, Controller, JsonlRecord, attach, watch"
"""What a training script imports."""


@cache
def modules_after(program: str) -> frozenset[str]:
    """Return the full names of the modules that a fresh interpreter holds after `program`."""
    shown = f"{program}; import json, sys; print(json.dumps([*sys.modules]))"
    done = subprocess.run([sys.executable, "-c", shown], capture_output=True, text=True, check=True)
    return frozenset(json.loads(done.stdout))


def imported_by(program: str) -> set[str]:
    """Return the top-level modules that a fresh interpreter holds after `program`."""
    return {name.partition(".")[0] for name in modules_after(program)}


def test_importing_the_package_alone_brings_neither_torch_nor_numpy() -> None:
    imported = imported_by("import largebatch")
    assert "largebatch" in imported
    assert imported.isdisjoint({"torch", "numpy", *OPTIONAL})


def test_core_and_theory_and_records_bring_no_torch() -> None:
    imported = imported_by(
        "import largebatch as lb; lb.Budget, lb.chain, lb.read_record, lb.replay, lb.BatchPlan, "
        "lb.theory.fit_steps"
    )
    assert "largebatch" in imported
    assert "torch" not in imported


def test_names_of_0_1_are_found_by_a_script_that_imports_nothing_else() -> None:
    program = (
        "import warnings; warnings.simplefilter('ignore'); "
        "from largebatch.rules import After, CosineTest, FACTORS, KINDS, RULES; "
        "from largebatch import CABS, GradientDiversity, SquaredNorms, simulate; "
        "assert simulate.quadratic.Averaged and 'AdaScale' in RULES"
    )
    assert "largebatch" in imported_by(program)


def test_all_rules_and_methods_bring_no_torch() -> None:
    imported = imported_by(
        "import largebatch.methods, largebatch.rules.kinds as kinds; assert kinds.RULES"
    )
    assert "numpy" in imported
    assert "torch" not in imported


def test_what_a_training_script_imports_brings_only_what_it_uses() -> None:
    names = modules_after(USUAL)
    assert "torch" in names
    assert names.isdisjoint(OPTIONAL)
    ours = {name for name in names if name.startswith("largebatch.")}
    unused = (
        *("workbench", "studies", "checks", "theory", "optim", "methods", "integrations"),
        *("rules.auto_warm_up", "rules.growth", "rules.kinds"),
    )
    assert not {name for name in ours if name.startswith(tuple(f"largebatch.{u}" for u in unused))}


def test_what_a_training_script_imports_loads_no_module_that_torch_does_not_load_by_itself() -> (
    None
):
    added = modules_after(f"import torch; {USUAL}") - modules_after("import torch")
    assert not {name for name in added if name.startswith("torch.")}


def test_an_optional_dependency_would_be_noticed() -> None:
    assert not imported_by("import largebatch, click").isdisjoint(OPTIONAL)


def test_completion_of_the_command_line_needs_no_torch() -> None:
    asked = {"COMP_WORDS": "largebatch train --me", "COMP_CWORD": "2"}
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "largebatch"],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, **asked, "_LARGEBATCH_COMPLETE": "bash_complete"},
    )
    assert "--method" in done.stdout
    loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert loaded.isdisjoint({"torch", "numpy", "rich.console"})


@pytest.mark.parametrize("arguments", ["--help", "--version", "methods", "train --help", ""])
def test_the_command_line_shows_its_help_without_torch(arguments: str) -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "largebatch", *arguments.split()],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout
    loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "largebatch.core.lazy" in loaded
    assert loaded.isdisjoint({"torch", "sklearn", "matplotlib"})
