"""Add the generated pages to the site, and adapt the pages that are written by hand.

MkDocs calls these functions while it builds the site; `mkdocs.yml` names this file.
"""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "src")]

import generated  # noqa: E402
import reference  # noqa: E402
import repository  # noqa: E402
import tables  # noqa: E402

MARK = "<!-- generated -->"
TABLES = {"reference/index.md": reference.overview, "stability.md": reference.moved_names}
"""Page -> function whose table replaces the comment `MARK` on the page."""

WEIGHTS = {
    "how-to/troubleshooting.md": 6.0,
    "how-to/": 3.0,
    "tutorials/": 3.0,
    "explanation/theory.md": 1.0,
    "explanation/": 3.0,
    "reference/theory.md": 0.5,
    "reference/rules.md": 2.0,
    "reference/workbench": 0.5,
    "evidence/": 0.3,
    "decisions/": 0.2,
    "architecture.md": 0.3,
    "contributing.md": 0.3,
    "files.md": 0.1,
    "changelog.md": 0.1,
}
"""Beginning of a page's path -> weight in the search. The first match counts; the default is 1."""


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Read the public address of the site from `pyproject.toml`, the one place that holds it."""
    settings = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))
    site = settings["tool"]["largebatch"]["site"]
    config.site_url = f"{site}/" if site else ""
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages, and put the pages of a folder in the place of `FOLDER/*`."""
    for place, text in generated.pages().items():
        files.append(File.generated(config, place, content=text))
    for place, picture in generated.pictures().items():
        files.append(File.generated(config, place, abs_src_path=str(picture)))
    config.nav = expanded(config.nav, files)
    return files


def on_page_markdown(markdown: str, *, page: Page, **_: Any) -> str:
    """Adapt the Markdown of a page: its tables, includes, links and fences."""
    place = page.file.src_uri
    weight = next((value for start, value in WEIGHTS.items() if place.startswith(start)), 1.0)
    page.meta.setdefault("search", {"boost": weight})
    if page.file.generated_by is None:
        markdown = with_table(markdown, place=place)
        markdown = repository.with_includes(markdown)
        markdown = repository.with_site_links(markdown, path=f"docs/{place}")
    return repository.plain_fences(markdown)


def on_page_content(html: str, **_: Any) -> str:
    """Adapt the tables of a page to narrow screens."""
    return tables.adapted(html)


def with_table(markdown: str, *, place: str) -> str:
    """Return a page's Markdown with the table that the page asks for."""
    return markdown.replace(MARK, TABLES[place]()) if MARK in markdown else markdown


def expanded(nav: Any, files: Files) -> Any:
    """Return the navigation with the pages of a folder in the place of each `FOLDER/*`.

    Pages come in the order in which `index.md` of the folder links to them, then by name. A page
    that the navigation names elsewhere is left out.
    """
    named = set(_named(nav))

    def walk(item: Any) -> list[Any]:
        if isinstance(item, list):
            return [inner for entry in item for inner in walk(entry)]
        if isinstance(item, dict):
            return [
                {title: walk(inner) if isinstance(inner, list) else inner}
                for title, inner in item.items()
            ]
        return pages_of(item.removesuffix("*"), files, named) if item.endswith("/*") else [item]

    return walk(nav)


def pages_of(folder: str, files: Files, named: set[str]) -> list[str]:
    """Return the pages of a folder that the navigation does not name, in their order."""
    pages = {uri for uri in files.src_uris if uri.startswith(folder) and uri.endswith(".md")}
    pages -= named
    index = files.get_file_from_path(f"{folder}index.md")
    text = with_table(index.content_string, place=index.src_uri) if index is not None else ""
    links = [folder + link for link in re.findall(r"\]\(([^)#\s]+\.md)", text)]
    first = [link for link in dict.fromkeys(links) if link in pages]
    return [*first, *sorted(pages - set(first))]


def _named(nav: Any) -> list[str]:
    """Return the pages that a navigation names."""
    if isinstance(nav, list):
        return [name for item in nav for name in _named(item)]
    if isinstance(nav, dict):
        return [name for item in nav.values() for name in _named(item)]
    return [nav]
