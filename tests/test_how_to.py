"""The lines that the how-to pages offer for pasting run."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch

import largebatch as lb
from test_docs import PRELUDE, ROOT

TEXT = (ROOT / "docs" / "how-to" / "which-method.md").read_text()
LINES = re.findall(r"^\|.*`(control = [^`]+)` \|", TEXT, flags=re.MULTILINE)
MAKERS = {
    "adagrad_norm": lb.optim.AdaGradNorm,
    "adadagrad": torch.optim.Adagrad,
    "adadam": torch.optim.AdamW,
    "adascale_adam": torch.optim.AdamW,
    "seesaw": torch.optim.AdamW,
    "methods.sqrt": lb.optim.Lamb,
}
"""Method -> the optimizer of its row, where it is not SGD."""


@pytest.mark.parametrize("line", LINES)
def test_each_line_of_the_page_on_methods_builds_a_control(line: str) -> None:
    names: dict[str, Any] = {}
    exec(PRELUDE, names)
    kind = next((kind for method, kind in MAKERS.items() if method in line), None)
    if kind is not None:
        names["optimizer"] = kind(names["model"].parameters(), lr=0.01)
    names["batches"] = lb.BatchLoader(names["dataset"], batch_size=64, max_micro_batch_size=16)
    exec(line, names)
    names["control"].close()


def test_the_page_on_methods_has_a_line_in_each_row() -> None:
    assert len(LINES) == 12
