"""Test that the pages and numbers of the experiments agree with the recorded runs."""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path

import pytest
from experiments.lab.findings import differing
from experiments.lab.ledger import Ledger
from experiments.lab.part import page_of

HERE = Path(__file__).parents[2] / "experiments"

MEASURED = [
    (path.parent.name, part)
    for path in sorted(HERE.glob("*/expected.json"))
    for part in json.loads(path.read_text())
]


def test_each_experiment_has_all_its_parts_measured() -> None:
    for name in {name for name, _ in MEASURED}:
        parts = import_module(f"experiments.{name}.run").PARTS
        assert set(parts) == {part for of, part in MEASURED if of == name}


@pytest.mark.parametrize(("name", "part"), MEASURED)
def test_the_page_and_the_expected_numbers_agree_with_the_record(name: str, part: str) -> None:
    what = import_module(f"experiments.{name}.run").PARTS[part]
    folder = HERE / name
    findings = what.find(Ledger(folder / "record" / f"{part}.jsonl", workers=0))
    assert differing(folder / "expected.json", part, findings, exact=True) == []
    assert (folder / f"{part}.md").read_text() == page_of(what, part, findings)
