"""One name stands for one thing in the package, and each file says what it is."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from files import SOURCE, first_line
from offenders import assert_no_offenders

TREES = {
    str(path.relative_to(SOURCE)): ast.parse(path.read_text())
    for path in sorted(SOURCE.rglob("*.py"))
}
"""Path below the package -> what is written in the file."""

CLASS = (ast.ClassDef,)
FUNCTION = (ast.FunctionDef, ast.AsyncFunctionDef)


def named_twice(trees: dict[str, ast.Module], kinds: tuple[type, ...]) -> Iterator[str]:
    """Each definition at the top of a file whose public name stands in another place, too."""
    places: dict[str, list[str]] = {}
    for file, tree in trees.items():
        for node in tree.body:
            if isinstance(node, kinds) and not node.name.startswith("_"):
                places.setdefault(node.name, []).append(f"{file}:{node.lineno}")
    for name, found in sorted(places.items()):
        if len(found) > 1:
            yield from (f"{place} {name}" for place in found)


def test_no_two_classes_have_the_same_name() -> None:
    remedy = "Name each by what it is, so that a search for the name finds one thing."
    assert_no_offenders(named_twice(TREES, CLASS), remedy=remedy)


def test_no_two_public_functions_have_the_same_name() -> None:
    remedy = "Name each by what it returns, or let one call the other; a helper takes a leading _."
    assert_no_offenders(named_twice(TREES, FUNCTION), remedy=remedy)


def test_a_name_that_stands_twice_is_found_with_both_places() -> None:
    trees = {
        "a.py": ast.parse("class A: ...\ndef f(): ...\ndef _g(): ..."),
        "b.py": ast.parse("def _g(): ...\ndef f(): ...\nclass A:\n    def f(self): ..."),
    }
    assert list(named_twice(trees, CLASS)) == ["a.py:1 A", "b.py:3 A"]
    assert list(named_twice(trees, FUNCTION)) == ["a.py:2 f", "b.py:2 f"]


def without_first_line(files: list[Path]) -> Iterator[str]:
    """Each file with code whose docstring has no first line."""
    for path in files:
        if path.read_text().strip() and not first_line(path):
            yield f"{path.name}:1"


def test_each_source_file_has_a_first_line_for_the_list_of_files() -> None:
    remedy = "Open the file with a docstring: `make files` prints its first line."
    assert_no_offenders(without_first_line(sorted(SOURCE.rglob("*.py"))), remedy=remedy)


def test_a_file_without_a_docstring_is_found(tmp_path: Path) -> None:
    for name, text in (("good.py", "'What it is.'\n"), ("empty.py", ""), ("bad.py", "import x\n")):
        (tmp_path / name).write_text(text)
    assert list(without_first_line(sorted(tmp_path.iterdir()))) == ["bad.py:1"]
