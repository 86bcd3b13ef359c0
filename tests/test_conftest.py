"""In CI a skip is a failure, unless it names the hardware that is missing."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = """
import pytest

@pytest.mark.skip(reason="no data here")
def test_without_data(): ...

@pytest.mark.skip(reason="needs CUDA")
def test_without_gpu(): ...

@pytest.mark.xfail(reason="known", strict=True)
def test_expected_to_fail(): assert False
"""


@pytest.mark.parametrize(
    ("ci", "summary"),
    [("true", "1 skipped, 1 xfailed, 1 error"), ("", "2 skipped, 1 xfailed")],
)
def test_in_ci_alone_a_skip_without_a_reason_in_hardware_fails(
    ci: str, summary: str, tmp_path: Path
) -> None:
    shutil.copy(Path(__file__).parent / "conftest.py", tmp_path)
    (tmp_path / "test_skips.py").write_text(TESTS)
    done = _pytest(tmp_path, ci=ci)
    assert summary in done.stdout
    assert ("In CI a skip is a failure" in done.stdout) == (ci == "true")


def test_in_ci_a_file_that_skips_itself_is_an_error(tmp_path: Path) -> None:
    shutil.copy(Path(__file__).parent / "conftest.py", tmp_path)
    (tmp_path / "test_file.py").write_text("import pytest\npytest.importorskip('no_such_module')\n")
    done = _pytest(tmp_path, ci="true")
    assert done.returncode != 0
    assert "could not import 'no_such_module'" in done.stdout


def _pytest(folder: Path, *, ci: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(folder)],
        cwd=folder,
        env={**os.environ, "CI": ci, "PYTEST_ADDOPTS": ""},
        capture_output=True,
        text=True,
        check=False,
    )
