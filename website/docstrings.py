"""Prepare the package's docstrings for the reference pages.

The docstrings are written for readers of the source. Two of their habits need a translation: one
entry of `Args` may describe several arguments, and examples stand between the paragraphs.
"""

from __future__ import annotations

import re
from typing import Any

import griffe

ENTRY = re.compile(r"^    (\*{0,2}\w+(?:, \*{0,2}\w+)+)(?:, \.\.\.)?: ")
"""Start of an entry that describes several arguments."""

NO_CONSTRUCTOR = {"NamedTuple", "Protocol"}
"""Bases of classes that write no `__init__`, so that their `Args` describe attributes."""


class Docstrings(griffe.Extension):
    """Rewrite each docstring before mkdocstrings reads its sections."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rewrite the docstring of one module, class, function or attribute."""
        if obj.docstring is None:
            return
        text = obj.docstring.value
        if isinstance(obj, griffe.Class) and {str(base) for base in obj.bases} & NO_CONSTRUCTOR:
            text = re.sub(r"^Args:$", "Attributes:", text, flags=re.MULTILINE)
        obj.docstring.value = with_fenced_examples(with_one_entry_each(text))

    def on_function(self, *, func: griffe.Function, **_: Any) -> None:
        """Give a function below `@with_arguments_of(f)` the parameters of f, as at run time."""
        for decorator in func.decorators:
            found = re.fullmatch(r"with_arguments_of\((\w+)\)", str(decorator.value))
            if found and func.parent is not None:
                func.parameters = func.parent.members[found[1]].parameters


def with_one_entry_each(text: str) -> str:
    """Return a docstring in which each entry of `Args` describes one argument.

    >>> print(with_one_entry_each("Args:\\n    low, high: Bounds, above 0."))
    Args:
        low: Bounds, above 0.
        high: See `low`.
    """
    lines: list[str] = []
    waiting: list[str] = []
    in_arguments = False
    for line in text.splitlines():
        continues = line.startswith("     ") or not line.strip()
        if not continues:
            lines += waiting
            waiting = []
        if line and not line.startswith(" "):
            in_arguments = line.strip() in ("Args:", "Attributes:")
        if in_arguments and (found := ENTRY.match(line)):
            first, *others = found[1].split(", ")
            waiting = [f"    {other}: See `{first}`." for other in others]
            line = f"    {first}: {line[found.end() :]}"
        if waiting and not line.strip():
            lines += waiting
            waiting = []
        lines.append(line)
    return "\n".join(lines + waiting)


def with_fenced_examples(text: str) -> str:
    """Return a docstring whose examples, with their output, are fenced as code."""
    lines: list[str] = []
    example = False
    for line in text.splitlines():
        if not example and line.lstrip().startswith(">>> "):
            lines.append(_indent(line) + "```pycon")
            example = True
        elif example and not line.strip():
            lines.append("```")
            example = False
        lines.append(line)
    return "\n".join(lines + ["```"] * example)


def _indent(line: str) -> str:
    """Return the spaces before a line's first letter."""
    return line[: len(line) - len(line.lstrip())]
