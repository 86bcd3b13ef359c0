"""Write every page of the site that is made from other files of the repository."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import reference
import repository
import source_files


@cache
def pages() -> dict[str, str]:
    """Return site path -> Markdown of each generated page."""
    outside = repository.outside_pages()
    return {
        **reference.pages(),
        "files.md": source_files.page(),
        "decisions/index.md": decisions_page(),
        **{place: _outside_page(path) for place, path in outside.items() if ".png" not in place},
    }


def pictures() -> dict[str, Path]:
    """Return site path -> file of each picture from outside of docs/."""
    outside = repository.outside_pages()
    return {place: repository.ROOT / path for place, path in outside.items() if ".png" in place}


def _outside_page(path: str) -> str:
    """Return the Markdown of a page that is made from one file outside of docs/."""
    text = (repository.ROOT / path).read_text()
    if path.endswith(".py"):
        return _example_page(path, text)
    return repository.with_site_links(text, path=path)


def _example_page(path: str, text: str) -> str:
    """Return a page that shows a program."""
    title = Path(path).stem.replace("_", " ").capitalize()
    opening = (ast.get_docstring(ast.parse(text)) or "").split("\n\n")[0]
    return f"# {title}\n\n{opening}\n\nFile: `{path}`\n\n```python\n{text.rstrip()}\n```\n"


def decisions_page() -> str:
    """Return the list of the decision records, from their titles."""
    lines = [
        "# Decisions",
        "",
        "Each record explains one decision: the problem, the choice, what was rejected, the cost.",
        "",
    ]
    for path in sorted((repository.DOCS / "decisions").glob("0*.md")):
        number, _, title = path.read_text().partition("\n")[0].removeprefix("# ").partition(". ")
        lines.append(f"{number}. [{title}]({path.name})")
    return "\n".join(lines) + "\n"
