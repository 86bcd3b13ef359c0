"""Check a built site: each link leads to a file and an anchor, and nothing comes from elsewhere.

python website/check_links.py site
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

LOADED = {"link": "href", "script": "src", "img": "src", "iframe": "src", "source": "src"}
"""Element -> attribute with an address that a browser requests when it shows a page."""


class Addresses(HTMLParser):
    """Collect the anchors of a page and the addresses in it. Mutable: `feed` fills the lists."""

    def __init__(self) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.followed: list[str] = []
        self.loaded: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note the anchor and the address of one element."""
        values = {name: value for name, value in attrs if value}
        self.anchors |= {values[name] for name in ("id", "name") if name in values}
        if tag == "a" and "href" in values:
            self.followed.append(values["href"])
        if tag in LOADED and LOADED[tag] in values and values.get("rel") != "canonical":
            self.loaded.append(values[LOADED[tag]])


@cache
def addresses_of(page: Path) -> Addresses:
    """Return the anchors and addresses of one page."""
    found = Addresses()
    found.feed(page.read_text(encoding="utf-8"))
    return found


def offenders(site: Path) -> Iterator[str]:
    """Yield one line for each dead link and for each request to another server."""
    for page in sorted(site.rglob("*.html")):
        if page.name == "404.html":  # its addresses begin at the server's root
            continue
        found = addresses_of(page)
        for address in [*found.followed, *found.loaded]:
            if (problem := problem_of(address, page=page)) is not None:
                yield f"{page.relative_to(site)}: {address} {problem}"
        for address in found.loaded:
            if urlsplit(address).netloc:
                yield f"{page.relative_to(site)}: {address} is requested from another server"
    for sheet in sorted(site.rglob("*.css")):
        for address in re.findall(r"url\(['\"]?(https?:[^)'\"]+)", sheet.read_text()):
            yield f"{sheet.relative_to(site)}: {address} is requested from another server"


def problem_of(address: str, *, page: Path) -> str | None:
    """Return what is wrong with an address on a page, or None."""
    parts = urlsplit(address)
    if parts.scheme or parts.netloc:
        return None
    target = (page.parent / unquote(parts.path)).resolve() if parts.path else page
    if target.is_dir():
        target = target / "index.html"
    if not target.is_file():
        return "leads to no file"
    anchor = unquote(parts.fragment)
    if anchor and target.suffix == ".html" and anchor not in addresses_of(target).anchors:
        return "leads to no anchor of the page"
    return None


def main() -> None:
    """Print each offender, and exit with status 1 if there is one."""
    found = list(offenders(Path(sys.argv[1])))
    print("\n".join(found))
    if found:
        sys.exit(f"{len(found)} links are wrong. Correct them, and run: make docs")


if __name__ == "__main__":
    main()
