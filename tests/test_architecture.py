"""Who may import whom, read from the source.

core <- rules | measure | act | record | simulate | analysis <- integrations | workloads | methods |
api <- the command line. theory stands on analysis. A new package must be listed here.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "largebatch"

STDLIB = frozenset(sys.stdlib_module_names)
LAYERS = {"rules", "measure", "act", "record", "simulate", "analysis"}
INSIDE = {
    "core": {"core"},
    "rules": {"core", "rules"},
    "measure": {"core", "measure"},
    "act": {"core", "act"},
    "record": {"core", "record"},
    "simulate": {"core", "simulate"},
    "analysis": {"core", "analysis"},
    "theory": {"analysis", "theory"},
    "planner": {
        *("analysis", "core", "methods", "planner", "record", "rules", "simulate", "theory"),
    },
    "optim": {"optim"},
}
"""Package -> the packages of ours that it may import. Others compose, and may import any but optim,
which only the command line imports, in one file."""

OUTSIDE = {
    "core": set(),
    "rules": {"numpy"},
    "measure": {"numpy", "torch"},
    "act": {"numpy", "torch"},
    "record": {"numpy", "torch"},
    "simulate": {"numpy"},
    "analysis": {"numpy"},
    "theory": {"numpy"},
    "planner": {"numpy"},
    "optim": {"torch"},
}
"""Package -> what it may import besides the standard library."""

COMPOSERS = {
    "__init__",
    "__main__",
    "api",
    "checks",
    "cite",
    "cli",
    "commands",
    "integrations",
    "methods",
    "planner",
    "workloads",
}
"""Where several layers may meet."""


def imports(tree: ast.AST, *, package: tuple[str, ...]) -> Iterator[str]:
    """Full names of all modules that a file imports, also inside functions and for type checks.

    `from a import b` counts as a.b, since b may be a module.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            module = ".".join(part for part in (base, node.module) if part)
            yield from (f"{module}.{alias.name}" for alias in node.names)


def package_of(path: Path) -> str:
    """The first name below largebatch: a package, or the stem of a module beside them."""
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def imported_by(path: Path) -> tuple[set[str], set[str]]:
    """(our packages, others' packages) that a file imports."""
    package = ("largebatch", *path.relative_to(SOURCE).parts[:-1])
    names = [name.split(".") for name in imports(ast.parse(path.read_text()), package=package)]
    inner = [name[1:] for name in names if name[0] == "largebatch"]
    others = {name[0] for name in names if name[0] != "largebatch"} - STDLIB
    return {place_of(name) for name in inner}, others


def place_of(name: list[str]) -> str:
    """The package or module that holds a name below largebatch; `__init__` for its own names."""
    held = name and ((SOURCE / name[0]).is_dir() or (SOURCE / f"{name[0]}.py").is_file())
    return name[0] if held else "__init__"


FILES = sorted(SOURCE.rglob("*.py"))
every_file = pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))


def test_the_source_is_found() -> None:
    assert SOURCE / "core" / "rule.py" in FILES
    assert SOURCE / "rules" / "adascale.py" in FILES


@every_file
def test_a_file_belongs_to_a_known_place(path: Path) -> None:
    assert package_of(path) in set(INSIDE) | COMPOSERS


@every_file
def test_a_file_imports_only_the_packages_of_ours_below_it(path: Path) -> None:
    ours, _ = imported_by(path)
    allowed = INSIDE.get(package_of(path))
    if allowed is not None:
        assert ours <= allowed
        return
    above = {"cli": {"__main__"}, "commands": {"cli", "__main__"}, "__main__": {"commands"}}
    assert not ours & above.get(package_of(path), {"cli", "commands", "__main__"})


@every_file
def test_a_file_imports_only_the_libraries_of_its_layer(path: Path) -> None:
    _, others = imported_by(path)
    allowed = OUTSIDE.get(package_of(path))
    if allowed is not None:
        assert others <= allowed


@every_file
def test_layers_meet_only_where_they_are_composed(path: Path) -> None:
    ours, _ = imported_by(path)
    if len(ours & LAYERS) > 1:
        assert package_of(path) in COMPOSERS


@every_file
def test_optimizers_are_imported_by_nobody_inside_but_one_file(path: Path) -> None:
    ours, _ = imported_by(path)
    builds_runs = path == SOURCE / "commands" / "suited.py"
    if package_of(path) not in {"optim", "__init__"} and not builds_runs:
        assert "optim" not in ours


@pytest.mark.parametrize(
    ("source", "package", "expected"),
    [
        ("import torch.nn as nn", ("largebatch", "core"), {"torch.nn"}),
        ("from largebatch import act", ("largebatch", "rules"), {"largebatch.act"}),
        ("from ..act import loader", ("largebatch", "rules"), {"largebatch.act.loader"}),
        ("from . import rule", ("largebatch", "core"), {"largebatch.core.rule"}),
        ("def f():\n    import numpy", ("largebatch",), {"numpy"}),
    ],
)
def test_every_form_of_import_is_seen(
    source: str, package: tuple[str, ...], expected: set[str]
) -> None:
    assert set(imports(ast.parse(source), package=package)) == expected


def test_every_rule_file_is_registered() -> None:
    """A file in rules/ that defines a rule or a factor has its import line in rules/__init__."""
    from largebatch.rules import FACTORS, RULES

    found = set()
    for path in (SOURCE / "rules").glob("*.py"):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ClassDef) and not any(
                isinstance(base, ast.Name) and base.id == "Protocol" for base in node.bases
            ):
                methods = {item.name for item in node.body if isinstance(item, ast.FunctionDef)}
                if methods & {"update", "__call__"}:
                    found.add(node.name)
    assert found == set(RULES) | set(FACTORS)
