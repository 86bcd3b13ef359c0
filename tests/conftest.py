"""What holds for every test: one thread, the same random numbers, no unnoticed skip in CI."""

from __future__ import annotations

import os
import random
from collections.abc import Generator
from typing import TypeVar

import hypothesis
import numpy
import pytest
import torch

CI = os.environ.get("CI") == "true"
HARDWARE = "needs CUDA"
"""A skip for this reason is right in CI, too; any other hides that something was not set up."""

torch.set_num_threads(1)
hypothesis.settings.register_profile("ours", deadline=None, derandomize=CI)
hypothesis.settings.load_profile("ours")


@pytest.fixture(autouse=True)
def _same_random_numbers() -> None:
    random.seed(0)
    numpy.random.seed(0)
    torch.manual_seed(0)


Report = TypeVar("Report", pytest.TestReport, pytest.CollectReport)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Turns a skip into a failure in CI."""
    return _not_skipped((yield))


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Turns the skip of a whole file into an error in CI."""
    return _not_skipped((yield))


def _not_skipped(report: Report) -> Report:
    if not CI or report.outcome != "skipped" or hasattr(report, "wasxfail"):
        return report
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    if HARDWARE not in reason:
        report.outcome = "failed"
        report.longrepr = (
            f"{reason}\nIn CI a skip is a failure: install what is missing in .ci/run, or say "
            f"{HARDWARE!r} in the reason if no machine without a GPU can run this."
        )
    return report
