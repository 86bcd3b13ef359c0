"""Write the package's README and addresses from one setting, `tool.largebatch.site`.

A package index shows the README without the files around it. A link to a page of `docs/` therefore
becomes a link into the documentation site. While no address is set, the link becomes plain text and
a picture is left out.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path, PurePosixPath
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

PICTURE = re.compile(r"!\[([^\]]*)\]\(([^)\s]+)\)\n?")
ON_SITE = {
    "CHANGELOG.md": "changelog.html",
    "CONTRIBUTING.md": "contributing.html",
    "experiments/README.md": "evidence/index.html",
}
"""File outside of `docs/` -> page on which the documentation site shows it."""
LINK = re.compile(r"(?<!!)\[([^\]]+)\]\(([^)\s]+)\)")


def readme_for_index(text: str, *, site: str) -> str:
    """Return a README whose links work on a package index.

    Args:
        text: The README, in Markdown, with links relative to the root of the repository.
        site: Address of the documentation site, or an empty string.
    """
    blocks = re.split(r"(^```.*?^```$)", text, flags=re.MULTILINE | re.DOTALL)
    return "".join(
        block if block.startswith("```") else _with_absolute_links(block, site) for block in blocks
    )


def address_on_site(path: str, *, site: str) -> str | None:
    """Return the address at which the documentation site shows a file of the repository.

    Args:
        path: A path relative to the root of the repository, such as `docs/index.md#install`.
        site: Address of the documentation site.

    Returns:
        None for a file that the site does not show.
    """
    name, hash_sign, anchor = path.partition("#")
    if name in ON_SITE:
        return f"{site}/{ON_SITE[name]}{hash_sign}{anchor}"
    if not name.startswith("docs/"):
        return None
    page = PurePosixPath(name).relative_to("docs")
    shown = page.with_suffix(".html") if page.suffix == ".md" else page
    return f"{site}/{shown}{hash_sign}{anchor}"


def _with_absolute_links(text: str, site: str) -> str:
    def picture(found: re.Match[str]) -> str:
        alternative, path = found.groups()
        if "://" in path:
            return found.group()
        address = address_on_site(path, site=site) if site else None
        return f"![{alternative}]({address})\n" if address else ""

    def link(found: re.Match[str]) -> str:
        words, path = found.groups()
        if "://" in path or path.startswith("#"):
            return found.group()
        address = address_on_site(path, site=site) if site else None
        return f"[{words}]({address})" if address else words

    return LINK.sub(link, PICTURE.sub(picture, text))


class CustomMetadataHook(MetadataHookInterface):
    """Give the build backend the README and, if an address is set, the project's addresses."""

    def update(self, metadata: dict[str, Any]) -> None:
        """Add `readme` and `urls` to the metadata of the package."""
        root = Path(self.root)
        settings = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
        site = settings["tool"]["largebatch"]["site"].rstrip("/")
        text = (root / "README.md").read_text(encoding="utf-8")
        metadata["readme"] = {
            "content-type": "text/markdown",
            "text": readme_for_index(text, site=site),
        }
        metadata["urls"] = {"Documentation": site} if site else {}
