"""Build the package, check it, and use it as a user would in clean environments.

Usage: `python scripts/release.py`, from the root of a checkout. It needs network access to the
package index, and leaves the source distribution and the wheel in `dist/`. It publishes nothing.

Every interpreter of `PYTHONS` that is on the PATH gets a new environment, in which the wheel is
installed without extras. The first of them gets a second environment with the extra `cli`, in
which the commands of `COMMANDS` run.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DIST = ROOT / "dist"
PYTHONS = ("python3.11", "python3.12", "python3.13")

TRAINING = """
import torch
import largebatch as lb

torch.manual_seed(0)
model = torch.nn.Linear(4, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
control = lb.attach(model, optimizer, lb.AdaScale(), batch_size=64, base_batch_size=16)
while control.base_steps < 20:
    for part in torch.randn(4, 16, 4):
        (model(part).square().mean() / 4).backward()
    optimizer.step()
    optimizer.zero_grad()
    control.advance()
assert 1.0 <= control.gain <= 4.0, control.gain
print(f"trained {control.base_steps:.0f} base steps, gain {control.gain:.2f}")
"""
"""A script that needs the package without extras."""

COMMANDS = (
    ("demo",),
    ("train", "digits", "--method", "adascale", "--scale", "8", "--budget", "1ep",
     "--record", "a.jsonl"),
    ("report", "a.jsonl"),
)  # fmt: skip
"""What a user of the extra `cli` runs first."""


def interpreters() -> list[str]:
    """Return the interpreters of `PYTHONS` that are on the PATH and start."""
    return [
        python
        for python in PYTHONS
        if shutil.which(python)
        and not subprocess.run([python, "--version"], capture_output=True, check=False).returncode
    ]


def run(*command: str | Path, cwd: Path = ROOT) -> None:
    """Run a command with the versions of `constraints.txt`; end this program if it fails."""
    print("+", *(str(word) for word in command), flush=True)
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    environment["PIP_CONSTRAINT"] = str(ROOT / "constraints.txt")
    done = subprocess.run([str(word) for word in command], cwd=cwd, env=environment, check=False)
    if done.returncode:
        sys.exit(f"error: exit status {done.returncode} of: {' '.join(map(str, command))}")


def new_environment(python: str, folder: Path, *requirements: str | Path) -> Path:
    """Return the `bin` folder of a new virtual environment with these packages."""
    run(python, "-m", "venv", folder)
    quiet = ("--quiet", "--disable-pip-version-check")
    run(folder / "bin" / "python", "-m", "pip", "install", *quiet, *requirements)
    return folder / "bin"


def build(scratch: Path) -> Path:
    """Build both distributions, check them with twine, and return the wheel."""
    shutil.rmtree(DIST, ignore_errors=True)
    tools = new_environment(sys.executable, scratch / "tools", "build", "twine")
    run(tools / "python", "-m", "build", "--outdir", DIST, ROOT)
    files = sorted(DIST.iterdir())
    run(tools / "twine", "check", "--strict", *files)
    (wheel,) = (file for file in files if file.suffix == ".whl")
    for file in files:
        print(f"{file.name}: {file.stat().st_size / 1e6:.2f} MB")
    return wheel


def check(wheel: Path, scratch: Path, pythons: Sequence[str]) -> None:
    """Install the wheel in clean environments, and use it from an empty folder."""
    empty = scratch / "empty"
    empty.mkdir()
    for python in pythons:
        tools = new_environment(python, scratch / python, "torch", wheel)
        run(tools / "python", "-W", "error", "-c", TRAINING, cwd=empty)
    tools = new_environment(pythons[0], scratch / "cli", "torch", f"{wheel}[cli]")
    for command in COMMANDS:
        run(tools / "largebatch", *command, cwd=empty)


def main() -> None:
    """Build and check a release, and name the interpreters that were not found."""
    pythons = interpreters()
    if not pythons:
        sys.exit(f"error: none of {', '.join(PYTHONS)} is on the PATH. Install one of them.")
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        wheel = build(scratch)
        check(wheel, scratch, pythons)
    missing = [python for python in PYTHONS if python not in pythons]
    print(f"{wheel.name}: built, checked, installed and used with {', '.join(pythons)}.")
    if missing:
        print(f"Not checked, because not on the PATH: {', '.join(missing)}.")


if __name__ == "__main__":
    main()
