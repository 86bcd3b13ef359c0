from __future__ import annotations

from pathlib import Path

import pytest

from distributed import ABORTED, run_program

PROGRAM = """
import pathlib, sys
pathlib.Path("written").touch(exist_ok=False)
before = pathlib.Path(sys.argv[1])
if not before.exists():
    before.touch()
    sys.exit(sys.argv[2])
print("done")
"""


@pytest.mark.parametrize("sign", ABORTED)
def test_an_aborted_program_finds_its_folder_as_it_was(tmp_path: Path, sign: str) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "given").touch()
    done = run_program("-c", PROGRAM, str(tmp_path / "before"), sign, cwd=folder)
    assert done.returncode == 0, done.stderr
    assert {path.name for path in folder.iterdir()} == {"given", "written"}
