"""What experiments show is what their records say."""

from __future__ import annotations

from pathlib import Path

import pytest
from experiments.adascale.run import PARTS
from experiments.lab.findings import differing
from experiments.lab.ledger import Ledger
from experiments.lab.part import page_of

HERE = Path(__file__).parents[2] / "experiments" / "adascale"


@pytest.mark.parametrize("name", PARTS)
def test_the_page_and_the_numbers_are_those_of_the_record(name: str) -> None:
    part = PARTS[name]
    findings = part.find(Ledger(HERE / "record" / f"{name}.jsonl", workers=0))
    assert differing(HERE / "expected.json", name, findings, exact=True) == []
    assert (HERE / f"{name}.md").read_text() == page_of(part, name, findings)
