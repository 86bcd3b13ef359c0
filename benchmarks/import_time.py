"""How long `import largebatch` takes on top of its two dependencies, torch and numpy.

    python benchmarks/import_time.py [--rounds 15]

Each run is a fresh interpreter that imports torch and numpy first and then times the package; the
whole import of torch is shown beside it. The null is a second timing of modules that are loaded.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile

from _timing import interval_of_median

PROGRAM = """
import json, time
def timed(statement):
    start = time.perf_counter()
    exec(statement)
    return (time.perf_counter() - start) * 1e3
names = ["import torch, numpy", "import largebatch", "import torch, numpy, largebatch"]
print(json.dumps([timed(name) for name in names]))
"""


def run(cache: str) -> list[float]:
    """Milliseconds of (torch and numpy, the package, all of them again) in one interpreter."""
    settings = {**os.environ, "PYTHONPYCACHEPREFIX": cache}
    settings.pop("PYTHONDONTWRITEBYTECODE", None)  # an installed package has its byte code
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True, env=settings
    )
    times: list[float] = json.loads(done.stdout)
    return times


def main() -> None:
    """Prints the median of each with its 95 % interval."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as cache:
        run(cache)  # compiles, and fills the caches of files
        columns = zip(*(run(cache) for _ in range(rounds)), strict=True)
    print(f"\n{rounds} fresh interpreters: milliseconds, load {os.getloadavg()[0]:.1f}")
    for name, values in zip(("torch and numpy", "largebatch on top", "null"), columns, strict=True):
        print(f"{name:26}{interval_of_median(list(values)).shown(1):>30}")


if __name__ == "__main__":
    main()
