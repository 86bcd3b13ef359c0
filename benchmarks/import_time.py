"""Measure the CPU time of imports and of the command line's help in new interpreters.

    python benchmarks/import_time.py [--rounds 15]

The import of the names that a training script uses is timed after torch and numpy, its two
dependencies, are imported. The row `null` is a second import of the same names. Commands are timed
as whole processes. An empty program (`python -c pass`) is timed for comparison.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile

from _timing import interval_of_median

USUAL = "from largebatch import attach, watch, Controller, BatchLoader, AdaScale, JsonlRecord"

PROGRAM = f"""
import json, time
def timed(statement):
    start = time.process_time()
    exec(statement)
    return (time.process_time() - start) * 1e3
names = ["import torch, numpy", {USUAL!r}, {USUAL!r}]
print(json.dumps([timed(name) for name in names]))
"""

COMMANDS = {
    "bare interpreter": ["-c", "pass"],
    "largebatch --help": ["-m", "largebatch", "--help"],
    "largebatch --version": ["-m", "largebatch", "--version"],
    "largebatch methods": ["-m", "largebatch", "methods"],
    "largebatch train --help": ["-m", "largebatch", "train", "--help"],
}


def environment(cache: str) -> dict[str, str]:
    """Return the environment variables of a process that finds compiled byte code in the cache."""
    settings = {**os.environ, "PYTHONPYCACHEPREFIX": cache}
    settings.pop("PYTHONDONTWRITEBYTECODE", None)
    return settings


def import_milliseconds(cache: str) -> list[float]:
    """Return the CPU milliseconds of three imports: torch and numpy, the names, the names again."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        capture_output=True,
        text=True,
        check=True,
        env=environment(cache),
    )
    times: list[float] = json.loads(done.stdout)
    return times


def command_milliseconds(arguments: list[str], cache: str) -> float:
    """Return the CPU milliseconds of a whole process."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(
        [sys.executable, *arguments], capture_output=True, check=True, env=environment(cache)
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return (after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime) * 1e3


def main() -> None:
    """Print the median of each time with its 95 % confidence interval."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as cache:
        import_milliseconds(cache)  # compiles the modules and fills the file caches
        imports = list(zip(*(import_milliseconds(cache) for _ in range(rounds)), strict=True))
        table = dict(zip(("torch and numpy", "usual names on top", "null"), imports, strict=True))
        for name, arguments in COMMANDS.items():
            command_milliseconds(arguments, cache)
            table[name] = tuple(command_milliseconds(arguments, cache) for _ in range(rounds))
    print(f"\nCPU milliseconds in {rounds} new interpreters, load {os.getloadavg()[0]:.1f}")
    for name, values in table.items():
        print(f"{name:26}{interval_of_median(list(values)).shown(1):>30}")


if __name__ == "__main__":
    main()
