from __future__ import annotations

from pathlib import Path

from distributed import ABORTED, run_program

PROGRAM = f"""
import pathlib, sys
pathlib.Path("written").touch(exist_ok=False)
before = pathlib.Path(sys.argv[1])
if not before.exists():
    before.touch()
    sys.exit({ABORTED!r})
print("done")
"""


def test_an_aborted_program_finds_its_folder_as_it_was(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "given").touch()
    done = run_program("-c", PROGRAM, str(tmp_path / "before"), cwd=folder)
    assert done.returncode == 0, done.stderr
    assert {path.name for path in folder.iterdir()} == {"given", "written"}
