"""How long `import largebatch` takes on top of its two dependencies, torch and numpy.

Each run is a fresh interpreter that imports torch and numpy first and then times the package; the
whole import of torch is shown beside it. The null is a second timing of modules that are loaded.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys

RUNS = 15
PROGRAM = """
import json, time
def timed(statement):
    start = time.perf_counter()
    exec(statement)
    return (time.perf_counter() - start) * 1e3
names = ["import torch, numpy", "import largebatch", "import torch, numpy, largebatch"]
print(json.dumps([timed(name) for name in names]))
"""


def run() -> list[float]:
    """Milliseconds of (torch and numpy, the package, all of them again) in one interpreter."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout)


def main() -> None:
    """Prints median and middle half of each."""
    run()  # fills the caches of files and of byte code
    columns = zip(*(run() for _ in range(RUNS)), strict=True)
    print(f"{RUNS} fresh interpreters; milliseconds, median [middle half]")
    for name, values in zip(("torch and numpy", "largebatch on top", "null"), columns, strict=True):
        low, middle, high = statistics.quantiles(values, n=4)
        print(f"{name:20}{middle:10.2f}   [{low:.2f}, {high:.2f}]")


if __name__ == "__main__":
    main()
