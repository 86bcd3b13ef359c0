"""Who may import whom, read from the source.

    core <- rules | record | analysis <- measure <- act <- methods | checks | integrations
    <- studies <- workbench

`theory` stands on analysis, `optim` on torch alone. A new package must be listed here.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "largebatch"
FILES = sorted(SOURCE.rglob("*.py"))

STDLIB = frozenset(sys.stdlib_module_names)

ACT = {"core", "rules", "record", "analysis", "measure", "act"}
INSIDE = {
    "core": {"core"},
    "rules": {"core", "rules"},
    "record": {"core", "record"},
    "analysis": {"core", "analysis"},
    "theory": {"analysis", "theory"},
    "measure": {"core", "measure"},
    "act": ACT,
    "methods": {"core", "rules", "methods"},
    "checks": ACT | {"checks"},
    "integrations": ACT | {"checks", "integrations"},
    "studies": ACT | {"methods", "checks", "studies"},
    "optim": {"optim"},
    "workbench": {
        *ACT, "theory", "methods", "checks", "integrations", "studies", "optim", "workbench",
    },
}  # fmt: skip
"""Package -> the packages of ours that it may import."""

OUTSIDE = {
    "core": set(),
    "rules": {"numpy"},
    "record": {"numpy", "torch"},
    "analysis": {"numpy"},
    "theory": {"numpy"},
    "measure": {"numpy", "torch"},
    "act": {"numpy", "torch"},
    "methods": set(),
    "checks": {"numpy", "torch"},
    "studies": {"numpy", "torch"},
    "optim": {"torch"},
}
"""Package -> what it may import besides the standard library; other packages are free."""

UPWARD = {"act/deprecated.py": "__init__"}
"""The one import against the arrows, gone in 0.3: `control.check` and `control.fit_micro_batch`,
which were methods in 0.1, call the functions `lb.check` and `lb.fit_micro_batch` by the public
names, inside the call."""

FACES = {"__init__", "__main__", "commands", "errors", "simulate", "workloads"}
"""The modules beside the packages: the public names, the command line's entry, and until 0.3 the
places of 0.1 that say where things are now."""


def imports(tree: ast.AST, *, package: tuple[str, ...]) -> Iterator[str]:
    """Yield the full name of each module that a file imports, also inside functions and for types.

    `from a import b` counts as a.b, since b may be a module.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            module = ".".join(part for part in (base, node.module) if part)
            yield from (f"{module}.{alias.name}" for alias in node.names)


def shown(path: Path) -> str:
    """Return the path of a source file below the package."""
    return str(path.relative_to(SOURCE))


def package_of(path: Path) -> str:
    """Return the first name below largebatch: a package, or the stem of a module beside them."""
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def imported_by(path: Path) -> tuple[set[str], set[str]]:
    """Return (our packages, others' packages) that a file imports."""
    package = ("largebatch", *path.relative_to(SOURCE).parts[:-1])
    names = [name.split(".") for name in imports(ast.parse(path.read_text()), package=package)]
    inner = [name[1:] for name in names if name[0] == "largebatch"]
    others = {name[0] for name in names if name[0] != "largebatch"} - STDLIB
    return {place_of(name) for name in inner}, others


def place_of(name: list[str]) -> str:
    """Return the package or module that holds a name; `__init__` for the package's own names."""
    held = name and ((SOURCE / name[0]).is_dir() or (SOURCE / f"{name[0]}.py").is_file())
    return name[0] if held else "__init__"


def allowed_in(path: Path) -> set[str]:
    """Return the packages and modules of ours that a file may import."""
    exception = {UPWARD[shown(path)]} if shown(path) in UPWARD else set()
    return INSIDE.get(package_of(path), set(INSIDE) | FACES) | exception


def test_the_source_is_found() -> None:
    assert SOURCE / "core" / "rule.py" in FILES
    assert SOURCE / "rules" / "adascale.py" in FILES


def test_each_file_belongs_to_a_known_package() -> None:
    assert [shown(path) for path in FILES if package_of(path) not in INSIDE.keys() | FACES] == []


def test_files_import_only_the_packages_below_their_own() -> None:
    offenders = {
        shown(path): sorted(above)
        for path in FILES
        if (above := imported_by(path)[0] - allowed_in(path))
    }
    assert offenders == {}


def test_the_one_upward_import_is_still_needed_and_comes_inside_a_function() -> None:
    for name, module in UPWARD.items():
        path = SOURCE / name
        assert module in imported_by(path)[0]
        top = ast.Module([node for node in ast.parse(path.read_text()).body
                          if not isinstance(node, ast.FunctionDef)], [])  # fmt: skip
        assert "largebatch" not in set(imports(top, package=("largebatch", "act")))


def test_files_import_only_the_libraries_of_their_layer() -> None:
    offenders = {
        shown(path): sorted(strange)
        for path in FILES
        if package_of(path) in OUTSIDE
        and (strange := imported_by(path)[1] - OUTSIDE[package_of(path)])
    }
    assert offenders == {}


def test_no_file_imports_itself_by_way_of_others() -> None:
    """A circle is found, too, if one of its imports is in a function or under TYPE_CHECKING."""
    below = {name_of(path): modules_below(path) for path in FILES}
    circles = {}
    for name in below:
        seen: set[str] = set()
        reach = list(below[name])
        while reach:
            other = reach.pop()
            if other not in seen:
                seen.add(other)
                reach.extend(below.get(other, ()))
        if name in seen:
            circles[name] = sorted(seen)
    assert circles == {}


def name_of(path: Path) -> str:
    """Return the full name of a file's module."""
    parts = ("largebatch", *path.relative_to(SOURCE).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def modules_below(path: Path) -> set[str]:
    """Return the full names of our modules that a file imports."""
    known = {name_of(other) for other in FILES} - {"largebatch", name_of(path)}
    package = ("largebatch", *path.relative_to(SOURCE).parts[:-1])
    found = set()
    for name in imports(ast.parse(path.read_text()), package=package):
        parts = name.split(".")
        longest = [".".join(parts[:n]) for n in range(len(parts), 0, -1)]
        found |= set([module for module in longest if module in known][:1])
    return found


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


def test_every_rule_is_registered() -> None:
    """A file in rules/ that defines a rule or a factor has its import line in rules/__init__."""
    from largebatch.rules.kinds import FACTORS, RULES

    found = set()
    for path in (SOURCE / "rules").rglob("*.py"):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ClassDef) and not any(
                isinstance(base, ast.Name) and base.id == "Protocol" for base in node.bases
            ):
                methods = {item.name for item in node.body if isinstance(item, ast.FunctionDef)}
                if methods & {"update", "__call__"}:
                    found.add(node.name)
    assert found == set(RULES) | set(FACTORS)
