"""The site of the documentation builds without a warning and works in a browser."""

from __future__ import annotations

import doctest
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import check_links
import public_names
import public_objects
import reference
import repository
import source_files
import tables
from offenders import assert_no_offenders

ROOT = Path(__file__).parent.parent
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


def public_surface() -> set[str]:
    """Return every public name that is not a namespace."""
    rules = public_names.SOURCE / "rules" / "__init__.py"
    names = {*(ROOT / "tests" / "public_surface.txt").read_text().split()}
    names |= {f"lb.rules.{name}" for name in public_names.table_of(rules.read_text(), "NAMES")}
    return names - {space.name for space in public_objects.namespaces()}


def test_each_public_name_is_on_exactly_one_page_of_the_reference() -> None:
    spaces = public_objects.namespaces()
    counted = Counter(
        name for space in spaces for thing in space.objects for name in thing.names
    )  # fmt: skip
    assert {name: n for name, n in counted.items() if n > 1} == {}
    assert {name for name in counted if ".integrations." not in name} == public_surface()


def test_each_public_object_has_one_entry_and_each_name_a_row_in_its_namespace() -> None:
    pages = reference.pages()
    entries = Counter(re.findall(r"^::: (\S+)$", "".join(pages.values()), flags=re.MULTILINE))
    spaces = public_objects.namespaces()
    assert entries == Counter(thing.target for space in spaces for thing in space.objects)
    for space in spaces:
        for thing in [*space.objects, *space.elsewhere]:
            assert f"#{thing.name})" in pages[space.page]


def test_the_page_of_the_command_line_has_each_command_and_each_option() -> None:
    page = reference.command_line_page()
    for line in (ROOT / "tests" / "cli_surface.txt").read_text().splitlines():
        command, *words = line.split()
        section = page.partition(f"\n## {command} {{")[2].partition("\n## ")[0]
        assert section
        assert not words or not words[0].startswith("-") or words[0] in section


def test_the_page_of_source_files_has_each_file() -> None:
    page = source_files.page()
    files = [path for path in public_objects.SOURCE.rglob("*.py") if path.read_text().strip()]
    assert len(re.findall(r"^\| `", page, flags=re.MULTILINE)) == len(files)


@pytest.mark.parametrize(
    "module", [public_objects, reference, repository, tables], ids=lambda module: module.__name__
)
def test_the_examples_in_the_site_programs_are_right(module: ModuleType) -> None:
    assert doctest.testmod(module).failed == 0
    assert doctest.testmod(module).attempted > 0


def test_the_examples_in_the_program_for_docstrings_are_right() -> None:
    pytest.importorskip("griffe")
    import docstrings

    assert doctest.testmod(docstrings).failed == 0


@pytest.mark.parametrize(
    ("path", "text", "found"),
    [
        ("docs/a.md", "[t](../experiments/growth/rank.md#x)", "[t](evidence/growth/rank.md#x)"),
        ("docs/how-to/a.md", "[t](../../README.md)", "[t](../overview.md)"),
        ("docs/how-to/a.md", "[t](b.md)", "[t](b.md)"),
        ("docs/a.md", "the [code](../src/largebatch/errors.py) of it", "the code of it"),
        ("docs/a.md", "`[t](../README.md)`", "`[t](../README.md)`"),
        ("docs/a.md", "[u](https://x/y.md)", "[u](https://x/y.md)"),
        ("experiments/growth/rank.md", "![p](rank.png)", "![p](rank.png)"),
        ("experiments/README.md", "[t](a/b.md) [`a/`](a)", "[t](a/b.md) `a/`"),
        ("README.md", "[t](docs/decisions) [u](#x)", "[t](decisions/index.md) [u](#x)"),
    ],
)  # fmt: skip
def test_a_link_within_the_repository_becomes_a_link_within_the_site(
    path: str, text: str, found: str
) -> None:
    assert repository.with_site_links(text, path=path) == found


def test_a_fence_names_the_language_alone_on_the_site() -> None:
    text = "```python continues\nx\n```\n```sh\ny\n```\n"
    assert repository.plain_fences(text) == "```python\nx\n```\n```sh\ny\n```\n"


def test_a_table_of_texts_is_stacked_on_a_phone_and_an_interval_stays_on_one_line() -> None:
    head = "<table>\n<thead><tr><th>message</th><th>why</th><th>a &amp; b</th></tr></thead>"
    text = "<td>one rank has other weights</td>" * 3
    found = tables.adapted(f"{head}<tbody><tr>{text}</tr></tbody></table>")
    assert found.startswith("<table data-stacked>")
    labels = re.findall(r'<td data-label="([^"]*)">', found)
    assert labels == ["message", "why", "a &amp; b"]
    numbers = "<td>0.1 [-0.2, 0.3]</td><td>1</td><td>2</td>"
    assert tables.adapted(f"{head}<tbody><tr>{numbers}</tr></tbody></table>") == (
        f"{head}<tbody><tr>{numbers}</tr></tbody></table>".replace(
            "[-0.2, 0.3]", '<span class="one-line">[-0.2, 0.3]</span>'
        )
    )


def sources_of_pages() -> list[Path]:
    """Return each Markdown file that the site shows."""
    outside = [ROOT / path for path in repository.outside_pages().values()]
    pages = [*(ROOT / "docs").rglob("*.md"), *outside]
    return sorted(path for path in pages if path.suffix == ".md")


def differing_pages(paths: list[Path]) -> Iterator[str]:
    """Yield each page that has other lists, tables or code on the site than by CommonMark."""
    markdown = pytest.importorskip("markdown")
    superfences = pytest.importorskip("pymdownx.superfences")
    from markdown_it import MarkdownIt

    common = MarkdownIt("commonmark").enable("table")
    ours = ["tables", "attr_list", "def_list", "md_in_html", superfences.makeExtension()]
    for path in paths:
        text = repository.plain_fences(path.read_text())
        there, here = common.render(text), markdown.markdown(text, extensions=ours)
        for element in ("li", "ul", "ol", "pre", "tr", "h2", "h3", "blockquote"):
            wanted, found = (len(re.findall(f"<{element}[ >]", html)) for html in (there, here))
            if wanted != found:
                yield f"{path.relative_to(ROOT)}: <{element}> {wanted} times, on the site {found}"


def test_the_site_shows_the_lists_tables_and_code_that_a_markdown_viewer_shows() -> None:
    remedy = "Put a blank line before a list, indent by 4, and start no line with `40. `."
    assert_no_offenders(differing_pages(sources_of_pages()), remedy=remedy)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of the built site."""
    for package in ("mkdocs", "material", "mkdocstrings"):
        pytest.importorskip(package)
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", folder]
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1", "PATH": path}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_each_link_of_the_site_leads_somewhere_and_nothing_comes_from_another_server(
    site: Path,
) -> None:
    assert_no_offenders(check_links.offenders(site), remedy="Correct the link in its source.")


def test_a_dead_link_and_a_request_to_another_server_are_found(tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text(
        "<p id='x'></p><a href='#x'></a><a href='#y'></a><a href='b.html'></a>"
        "<script src='https://cdn.example/x.js'></script><a href='https://example.org'></a>"
    )
    assert list(check_links.offenders(tmp_path)) == [
        "a.html: #y leads to no anchor of the page",
        "a.html: b.html leads to no file",
        "a.html: https://cdn.example/x.js is requested from another server",
    ]


SHOWN = (
    "index.html",
    "tutorials/measure-your-noise.html",
    "reference/rules.html",
    "evidence/growth/seesaw.html",
)


SEARCHED = {
    "fit_micro_batch": "reference/largebatch.html",
    "cite": "how-to/index.html",
    "the gradient was cleared between two backward calls": "how-to/troubleshooting.html",
}
"""Query -> page that the search must list."""


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium; on Debian: apt-get install chromium")
def test_the_pages_fit_on_desk_and_phone_by_day_and_night_and_the_search_finds_a_name(
    site: Path,
) -> None:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        for width in (1400, 390):
            for scheme in ("light", "dark"):
                context = browser.new_context(
                    viewport={"width": width, "height": 900}, color_scheme=scheme, offline=True
                )
                window, complaints = opened(context)
                for name in SHOWN:
                    window.goto((site / name).as_uri())
                    assert window.evaluate("document.documentElement.scrollWidth") == width, name
                    shown = window.evaluate("document.body.dataset.mdColorScheme")
                    assert shown == {"light": "default", "dark": "slate"}[scheme]
                assert complaints == []
                context.close()
        window, complaints = opened(browser.new_context(viewport={"width": 1400, "height": 900}))
        for query, page in SEARCHED.items():
            window.goto((site / "index.html").as_uri())
            window.fill("input[name=query]", query)
            window.wait_for_selector(f"a.md-search-result__link[href*='{page}']")
        assert complaints == []
        browser.close()


def opened(context: Any) -> tuple[Any, list[str]]:
    """Return a window, and the list of what its pages complain about."""
    window, complaints = context.new_page(), []
    window.on("console", lambda message: complaints.append(message.text))
    window.on("pageerror", lambda error: complaints.append(str(error)))
    window.on("requestfailed", lambda request: complaints.extend(
        # Chromium aborts the request for an icon if the next page is opened too early.
        [] if request.failure == "net::ERR_ABORTED" else [request.url]))  # fmt: skip
    window.on("request", lambda request: complaints.extend(
        [] if request.url.startswith(("file:", "data:", "blob:")) else [request.url]))  # fmt: skip
    return window, complaints
