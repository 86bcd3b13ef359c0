"""`import largebatch` brings what every use needs: torch and numpy, nothing heavy besides."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import cache

OPTIONAL = (
    *("sklearn", "matplotlib", "click", "rich", "fairscale", "pytest", "hypothesis"),
    *("jinja2", "lightning", "mlflow", "pytorch_optimizer", "tensorboard", "wandb"),
)


@cache
def modules_after(program: str) -> frozenset[str]:
    """The modules that a fresh interpreter holds after `program`, by their full names."""
    shown = f"{program}; import json, sys; print(json.dumps([*sys.modules]))"
    done = subprocess.run([sys.executable, "-c", shown], capture_output=True, text=True, check=True)
    return frozenset(json.loads(done.stdout))


def imported_by(program: str) -> set[str]:
    """The top-level modules that a fresh interpreter holds after `program`."""
    return {name.partition(".")[0] for name in modules_after(program)}


def more_of_torch(program: str) -> set[str]:
    """The modules of torch that `program` loads besides those that torch loads by itself."""
    added = modules_after(f"import torch; {program}") - modules_after("import torch")
    return {name for name in added if name.startswith("torch.")}


def test_importing_the_package_brings_no_optional_dependency() -> None:
    imported = imported_by("import largebatch")
    assert "largebatch" in imported
    assert imported.isdisjoint(OPTIONAL)


def test_the_core_the_rules_and_the_theory_bring_no_torch_of_their_own() -> None:
    alone = (
        "import sys, types; package = types.ModuleType('largebatch'); "
        "import importlib.util as u; "
        "package.__path__ = list(u.find_spec('largebatch').submodule_search_locations); "
        "sys.modules['largebatch'] = package; "
        "import largebatch.core.decider, largebatch.core.codec, largebatch.core.plan, "
        "largebatch.rules, largebatch.rules.adascale, largebatch.record, "
        "largebatch.record.replay, largebatch.theory"
    )
    imported = imported_by(alone)
    assert "largebatch" in imported
    assert "torch" not in imported


def test_an_optional_dependency_would_be_noticed() -> None:
    assert not imported_by("import largebatch, click").isdisjoint(OPTIONAL)


def test_importing_the_package_loads_no_module_that_torch_does_not_load_by_itself() -> None:
    assert more_of_torch("import largebatch") == set()


def test_a_slow_module_of_torch_would_be_noticed() -> None:
    slow = "torch.distributed.tensor"
    assert slow in more_of_torch(f"import largebatch, {slow}")
