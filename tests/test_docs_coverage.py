"""Every public class and function says what it is; every rule says where it comes from."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent.parent / "src" / "largebatch"
FILES = sorted(SOURCE.rglob("*.py"))
FROM_TORCH = {"forward"}
"""A method that torch documents."""

Documented = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def definitions(tree: ast.Module | ast.ClassDef) -> Iterator[tuple[str, Documented]]:
    """(dotted name, node) of each public class, function and method; not of inner functions."""
    for node in tree.body:
        if isinstance(node, Documented) and not node.name.startswith("_"):
            yield node.name, node
            if isinstance(node, ast.ClassDef):
                yield from ((f"{node.name}.{name}", inner) for name, inner in definitions(node))


def is_protocol(node: ast.AST) -> bool:
    """Whether a class is a protocol."""
    return isinstance(node, ast.ClassDef) and "Protocol" in {ast.unparse(b) for b in node.bases}


def contract() -> set[str]:
    """Members that a protocol documents once for all that implement them: its methods by their
    docstrings, its attributes in its own."""
    trees = [ast.parse(path.read_text()) for path in FILES]
    protocols = [node for tree in trees for _, node in definitions(tree) if is_protocol(node)]
    members = [(p, name, node) for p in protocols for name, node in definitions(p)]
    return FROM_TORCH | {
        name
        for protocol, name, node in members
        if first_paragraph(node).endswith(".") or name in (ast.get_docstring(protocol) or "")
    }


def first_paragraph(node: ast.Module | Documented) -> str:
    """The opening of a docstring, "" without one."""
    return (ast.get_docstring(node) or "").split("\n\n")[0]


def is_rule(node: Documented) -> bool:
    """Whether a class has a rule's two functions, and is not their protocol."""
    methods = {name for name, _ in definitions(node)} if isinstance(node, ast.ClassDef) else set()
    return {"init", "update"} <= methods and not is_protocol(node)


RULES = [
    (path.name, name, node)
    for path in sorted((SOURCE / "rules").rglob("*.py"))
    for name, node in definitions(ast.parse(path.read_text()))
    if is_rule(node)
]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_every_public_name_opens_with_a_sentence(path: Path) -> None:
    tree = ast.parse(path.read_text())
    known = contract()
    silent = []
    for name, node in definitions(tree):
        implements = "." in name and name.rpartition(".")[2] in known
        if not implements and not first_paragraph(node).endswith("."):
            silent.append(f"{path.relative_to(SOURCE)}:{node.lineno} {name}")
    assert not silent, "no docstring, or its first paragraph does not end with a full stop"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_every_module_with_code_says_what_it_is(path: Path) -> None:
    tree = ast.parse(path.read_text())
    assert not tree.body or first_paragraph(tree).rstrip().endswith((".", ":"))


@pytest.mark.parametrize(("file", "name", "node"), RULES, ids=[name for _, name, _ in RULES])
def test_every_rule_has_an_example(file: str, name: str, node: ast.ClassDef) -> None:
    assert ">>> " in (ast.get_docstring(node) or ""), f"rules/{file}: {name} has no doctest"


@pytest.mark.parametrize(("file", "name", "node"), RULES, ids=[name for _, name, _ in RULES])
def test_every_rule_names_its_paper_or_says_none(file: str, name: str, node: ast.ClassDef) -> None:
    text = (ast.get_docstring(node) or "") + "\n"
    cited = re.search(r"Reference:|\barXiv \d{4}\.\d{4,5}\b", text)
    assert cited, f"rules/{file}: {name} has neither 'Reference: ...' nor 'Reference: none.'"


def test_the_rules_are_found() -> None:
    assert {"AdaScale", "LinearScaling"} <= {name for _, name, _ in RULES}
    assert {"init", "update", "needs", "write"} <= contract()
