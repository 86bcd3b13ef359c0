"""The package: its README on an index, its extras, and the versions it names."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from package_metadata import CustomMetadataHook, address_on_site, readme_for_index
from release import PYTHONS

ROOT = Path(__file__).parents[1]
SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = SETTINGS["project"]
RELATIVE = re.compile(r"\]\((?!https?://|#)[^)]+\)")

PAGE = """# Title
![A picture](docs/images/a.png)
See [how to](docs/how-to/x.md#one), [code](src/a.py), [there](https://b.c/d) and [below](#title).
```text
[kept](docs/index.md)
```
"""


def test_a_link_into_the_docs_leads_to_the_site() -> None:
    text = readme_for_index(PAGE, site="https://a.b")
    assert "![A picture](https://a.b/images/a.png)" in text
    assert "[how to](https://a.b/how-to/x.html#one), code, [there](https://b.c/d)" in text
    assert "[below](#title)" in text
    assert "[kept](docs/index.md)" in text


def test_without_an_address_a_link_becomes_text_and_a_picture_is_left_out() -> None:
    text = readme_for_index(PAGE, site="")
    assert "picture" not in text
    assert "See how to, code, [there](https://b.c/d)" in text


@pytest.mark.parametrize(
    ("path", "address"),
    [
        ("docs/index.md", "s/index.html"),
        ("docs/how-to/index.md", "s/how-to/index.html"),
        ("docs/how-to/ddp.md", "s/how-to/ddp.html"),
        ("docs/images/a.png", "s/images/a.png"),
        ("CHANGELOG.md", "s/changelog.html"),
        ("experiments/README.md", "s/evidence/index.html"),
        ("LICENSE", None),
    ],
)
def test_a_page_has_its_address_on_the_site(path: str, address: str | None) -> None:
    assert address_on_site(path, site="s") == address


def test_the_readme_on_an_index_has_no_relative_link() -> None:
    metadata: dict[str, dict[str, str]] = {}
    CustomMetadataHook(str(ROOT), {}).update(metadata)
    text = re.sub(r"^```.*?^```$", "", metadata["readme"]["text"], flags=re.MULTILINE | re.DOTALL)
    assert not RELATIVE.findall(text)
    assert text.startswith("# largebatch")


def test_no_address_is_named_while_the_setting_is_empty() -> None:
    assert SETTINGS["tool"]["largebatch"]["site"] == ""
    metadata: dict[str, dict[str, str]] = {}
    CustomMetadataHook(str(ROOT), {}).update(metadata)
    assert metadata["urls"] == {}


def test_the_extra_all_has_every_package_that_a_user_may_need() -> None:
    extras = PROJECT["optional-dependencies"]

    def packages(extra: str) -> set[str]:
        found = set()
        for requirement in extras[extra]:
            inner = re.fullmatch(r"largebatch\[(.*)\]", requirement)
            found |= (
                set().union(*(packages(name) for name in inner[1].split(",")))
                if inner
                else {requirement}
            )
        return found

    everything = set().union(
        *(packages(extra) for extra in extras if extra not in {"dev", "bench", "docs"})
    )
    assert packages("all") == everything
    assert everything < packages("dev")


def test_each_python_that_is_named_is_one_that_a_release_is_tried_with() -> None:
    named = {
        f"python{line.rsplit(' ', 1)[1]}"
        for line in PROJECT["classifiers"]
        if re.search(r":: 3\.\d+$", line)
    }
    assert named == set(PYTHONS)


def test_the_readme_is_short_and_its_first_import_comes_early() -> None:
    text = (ROOT / "README.md").read_text()
    words = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL).split()
    assert len(words) <= 700
    first = next(i for i, line in enumerate(text.splitlines(), 1) if "import largebatch" in line)
    assert first <= 25
