"""Map the files of the repository to pages of the site, and the links between them."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"

RENAMED = {
    "README.md": "overview.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "benchmarks/README.md": "evidence/benchmarks.md",
    "experiments/README.md": "evidence/index.md",
    "docs/decisions": "decisions/index.md",
    "docs": "index.md",
    "experiments": "evidence/index.md",
    "benchmarks": "evidence/benchmarks.md",
}
"""File or folder of the repository -> page of the site."""

OUTSIDE = (
    *("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "benchmarks/README.md"),
    *("experiments/README.md", "experiments/*/*.md", "experiments/*/*.png", "examples/*.py"),
)
"""Patterns of the files outside of docs/ that the site shows."""

LINK = re.compile(r"(?<=\])\(([^)#\s]*)(#[^)\s]*)?\)")
"""Target of a Markdown link or picture: (path#anchor)."""


def site_path(path: str) -> str | None:
    """Return where the site has a file of the repository, or None if the site leaves it out.

    >>> site_path("experiments/growth/seesaw.md")
    'evidence/growth/seesaw.md'
    >>> site_path("examples/own_workload.py"), site_path("docs/stability.md")
    ('examples/own_workload.md', 'stability.md')
    >>> site_path("src/largebatch/errors.py") is None
    True

    Args:
        path: Path below the repository's root, with forward slashes.
    """
    if path in RENAMED:
        return RENAMED[path]
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    folder, _, rest = path.partition("/")
    if folder == "experiments" and path.endswith((".md", ".png")):
        return f"evidence/{rest}"
    if folder == "examples" and path.endswith(".py"):
        return f"examples/{rest.removesuffix('.py')}.md"
    return None


def outside_pages() -> dict[str, str]:
    """Return site path -> repository path of each page and picture from outside of docs/."""
    found = []
    for pattern in OUTSIDE:
        found += sorted(path.relative_to(ROOT).as_posix() for path in ROOT.glob(pattern))
    return {str(site_path(path)): path for path in found}


def with_site_links(text: str, *, path: str) -> str:
    """Return a page's Markdown with the links of the repository turned into links of the site.

    A link to a file that the site leaves out becomes plain text.

    Args:
        text: Markdown of the page.
        path: Path of the page's file below the repository's root.
    """
    here = posixpath.dirname(site_path(path) or path)
    parts = re.split(r"(^```.*?^```|`[^`\n]+`)", text, flags=re.DOTALL | re.MULTILINE)
    parts[::2] = [
        _with_links(part, folder=posixpath.dirname(path), here=here) for part in parts[::2]
    ]
    joined = "".join(parts)
    return re.sub(r"(?<!!)\[([^\[\]]*)\]\(\x00\)", r"\1", joined)


def _with_links(text: str, *, folder: str, here: str) -> str:
    def replaced(found: re.Match[str]) -> str:
        link, anchor = found[1], found[2] or ""
        if not link or re.match(r"\w+:", link):
            return found[0]
        place = site_path(posixpath.normpath(posixpath.join(folder, link)))
        if place is None:
            return "(\x00)"
        return f"({posixpath.relpath(place, here or '.')}{anchor})"

    return LINK.sub(replaced, text)


def plain_fences(text: str) -> str:
    """Return Markdown whose fences name the language alone.

    The tests read a second word, such as `continues`; the site shows the code without it.
    """
    return re.sub(r"^(```\w+) \w+$", r"\1", text, flags=re.MULTILINE)


def with_includes(text: str) -> str:
    """Return Markdown in which each comment `include: FILE` is replaced by docs/FILE."""

    def included(found: re.Match[str]) -> str:
        return (DOCS / found[1]).read_text().strip()

    return re.sub(r"<!-- include: (\S+) -->", included, text)
