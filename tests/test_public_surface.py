"""The public names are a promise: they change on purpose, in the same commit as their list."""

from __future__ import annotations

import importlib
import warnings
from pathlib import Path

import pytest

import largebatch
import public_names

FROZEN = Path(__file__).parent / "public_surface.txt"


def test_the_public_names_are_those_of_the_frozen_list() -> None:
    frozen, found = set(FROZEN.read_text().split()), set(public_names.surface().split())
    assert found == frozen, (
        f"added {sorted(found - frozen)}, removed {sorted(frozen - found)}. If that is meant, say "
        "it in CHANGELOG.md and run: make names"
    )


def test_the_package_itself_shows_about_fifty_names() -> None:
    assert 40 <= len(largebatch.__all__) <= 55
    assert len(largebatch.__all__) == len(set(largebatch.__all__))


def test_type_checkers_read_the_names_that_the_tables_have() -> None:
    assert [str(path) for path in public_names.FACES if public_names.is_stale(path)] == [], (
        "Run: make names"
    )


def test_each_public_name_exists_and_is_found_by_dir() -> None:
    for path in public_names.FACES:
        parts = path.relative_to(public_names.SOURCE).parts[:-1]
        package = importlib.import_module(".".join(("largebatch", *parts)))
        for name in package.__all__:
            assert getattr(package, name) is not None
        assert set(package.__all__) <= set(dir(package))


def test_no_public_name_is_that_of_a_module_in_the_same_package() -> None:
    """Else importing the module would put it in the place of the public function."""
    shadowed = [
        f"{path.parent.name}.{name}"
        for path in public_names.FACES
        for name in public_names.table_of(path.read_text(), "NAMES")
        if (path.parent / f"{name}.py").exists() or (path.parent / name).is_dir()
    ]
    assert shadowed == []


def test_a_public_name_is_looked_up_once() -> None:
    assert largebatch.AdaScale is largebatch.rules.AdaScale
    assert vars(largebatch)["AdaScale"] is largebatch.AdaScale


@pytest.mark.parametrize("name", sorted(largebatch.MOVED))
def test_a_name_of_version_0_1_works_and_warns_where_it_is_now(name: str) -> None:
    place = largebatch.MOVED[name]
    vars(largebatch).pop(name, None)  # it warns when it is first used
    with pytest.warns(DeprecationWarning, match=f"{name} has moved. Use {place}"):
        found = getattr(largebatch, name)
    now = largebatch
    for part in place.split(".")[1:]:
        now = getattr(now, part)
    assert found is now


def test_every_name_of_version_0_1_is_there_or_has_moved() -> None:
    """The 81 names that version 0.1.0 had at top level, and the call of each in a script."""
    old = (Path(__file__).parent / "old" / "public_surface.txt").read_text().split()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        assert [name for name in old if getattr(largebatch, name, None) is None] == []


def test_an_unknown_name_is_an_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'AdaScal'"):
        largebatch.AdaScal  # noqa: B018
    with pytest.raises(ImportError, match="cannot import name 'Nothing'"):
        from largebatch import Nothing  # noqa: F401


def test_the_old_commands_package_says_where_to_import_from() -> None:
    with pytest.raises(ImportError, match="from largebatch import workbench"):
        importlib.import_module("largebatch.commands.train")


@pytest.mark.parametrize(
    ("old", "name"), [("largebatch.workloads", "Workload"), ("largebatch.simulate", "quadratic")]
)
def test_an_old_package_works_and_warns_where_it_is_now(old: str, name: str) -> None:
    with pytest.warns(DeprecationWarning, match="has moved. Use largebatch.workbench"):
        package = importlib.reload(_quietly(old))
    assert getattr(package, name) is not None


@pytest.mark.parametrize(
    ("old", "now"),
    [
        ("largebatch.workloads.data", "largebatch.workbench.workloads.data"),
        ("largebatch.workloads.models", "largebatch.workbench.workloads.models"),
        ("largebatch.simulate.quadratic", "largebatch.workbench.quadratic"),
    ],
)
def test_a_module_of_an_old_package_is_the_module_of_today(old: str, now: str) -> None:
    assert _quietly(old) is importlib.import_module(now)


@pytest.mark.parametrize("name", sorted(largebatch.rules.MOVED))
def test_a_name_of_rules_that_moved_works_and_warns(name: str) -> None:
    vars(largebatch.rules).pop(name, None)
    with pytest.warns(DeprecationWarning, match=f"rules.{name} has moved"):
        assert getattr(largebatch.rules, name) is not None


def test_a_rule_pickled_by_0_1_is_found_in_its_old_module() -> None:
    old = importlib.import_module("largebatch.rules.auto_warm_up")
    assert old.AutoWarmUp is largebatch.AutoWarmUp


def _quietly(name: str):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return importlib.import_module(name)
