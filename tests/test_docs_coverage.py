"""Every public class and function says what it is; every rule says where it comes from."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from offenders import assert_no_offenders

SOURCE = Path(__file__).parent.parent / "src" / "largebatch"
FROM_TORCH = {"forward"}
"""A method that torch documents."""

Documented = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True, slots=True, kw_only=True)
class File:
    """A source file: its path below the package, and what is written in it."""

    name: str
    tree: ast.Module


FILES = [
    File(name=str(path.relative_to(SOURCE)), tree=ast.parse(path.read_text()))
    for path in sorted(SOURCE.rglob("*.py"))
]


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


def contract(files: list[File]) -> set[str]:
    """Members that a protocol documents once for all that implement them: its methods by their
    docstrings, its attributes in its own."""
    protocols = [node for file in files for _, node in definitions(file.tree) if is_protocol(node)]
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


def rules_in(files: list[File]) -> Iterator[tuple[str, str, str]]:
    """(where, name, docstring) of each rule."""
    for file in files:
        if file.name.startswith("rules/"):
            for name, node in definitions(file.tree):
                if is_rule(node):
                    yield f"{file.name}:{node.lineno}", name, ast.get_docstring(node) or ""


def names_without_a_sentence(files: list[File]) -> Iterator[str]:
    """Each public name that neither opens with a sentence nor implements a protocol's member."""
    known = contract(files)
    for file in files:
        for name, node in definitions(file.tree):
            implements = "." in name and name.rpartition(".")[2] in known
            if not implements and not first_paragraph(node).endswith("."):
                yield f"{file.name}:{node.lineno} {name}"


def modules_without_a_sentence(files: list[File]) -> Iterator[str]:
    """Each file that has code and does not say what it is."""
    for file in files:
        if file.tree.body and not first_paragraph(file.tree).rstrip().endswith((".", ":")):
            yield f"{file.name}:1"


def rules_without_an_example(files: list[File]) -> Iterator[str]:
    """Each rule without a doctest."""
    for where, name, text in rules_in(files):
        if ">>> " not in text:
            yield f"{where} {name}"


def rules_without_a_paper(files: list[File]) -> Iterator[str]:
    """Each rule that neither names its paper nor says that there is none."""
    for where, name, text in rules_in(files):
        if not re.search(r"Reference:|\barXiv \d{4}\.\d{4,5}\b", text + "\n"):
            yield f"{where} {name}"


def test_every_public_name_opens_with_a_sentence() -> None:
    remedy = "Write a docstring whose first paragraph ends with a full stop."
    assert_no_offenders(names_without_a_sentence(FILES), remedy=remedy)


def test_every_module_with_code_says_what_it_is() -> None:
    remedy = "Open the file with a docstring whose first paragraph ends with a full stop or colon."
    assert_no_offenders(modules_without_a_sentence(FILES), remedy=remedy)


def test_every_rule_has_an_example() -> None:
    assert_no_offenders(rules_without_an_example(FILES), remedy="Show the rule in a doctest.")


def test_every_rule_names_its_paper_or_says_none() -> None:
    remedy = "Add 'Reference: ...' to the docstring, or 'Reference: none.'"
    assert_no_offenders(rules_without_a_paper(FILES), remedy=remedy)


def test_the_rules_are_found() -> None:
    assert {"AdaScale", "LinearScaling"} <= {name for _, name, _ in rules_in(FILES)}
    assert {"init", "update", "needs", "write"} <= contract(FILES)


RULE = """
class Bare:
    '''{docstring}'''
    def init(self): '''{docstring}'''
    def update(self): '''{docstring}'''
"""


@pytest.mark.parametrize(
    ("find", "text", "found"),
    [
        (names_without_a_sentence, "'Doc.'\n\ndef silent(): ...", ["rules/bare.py:3 silent"]),
        (names_without_a_sentence, "class Shown:\n    'A.'\n    def f(self): 'an open end'",
         ["rules/bare.py:3 Shown.f"]),
        (names_without_a_sentence, "def _private(): ...\ndef f(): 'A.'", []),
        (modules_without_a_sentence, "import torch", ["rules/bare.py:1"]),
        (modules_without_a_sentence, "'no full stop'", ["rules/bare.py:1"]),
        (modules_without_a_sentence, "", []),
        (rules_without_an_example, RULE.format(docstring="A."), ["rules/bare.py:2 Bare"]),
        (rules_without_an_example, RULE.format(docstring=">>> 1"), []),
        (rules_without_a_paper, RULE.format(docstring="arXiv none"), ["rules/bare.py:2 Bare"]),
        (rules_without_a_paper, RULE.format(docstring="Of arXiv 2007.05105."), []),
        (rules_without_a_paper, RULE.format(docstring="Reference: none."), []),
    ],
)  # fmt: skip
def test_an_offender_is_found_with_its_line(
    find: Callable[[list[File]], Iterator[str]], text: str, found: list[str]
) -> None:
    assert list(find([File(name="rules/bare.py", tree=ast.parse(text))])) == found


def test_all_offenders_are_in_one_message() -> None:
    with pytest.raises(pytest.fail.Exception, match=r"2 found. Fix them.\na:1\nb:2"):
        assert_no_offenders(["a:1", "b:2"], remedy="Fix them.")
