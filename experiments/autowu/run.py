"""Compare AutoWU with grids of learning rates on real data. See `experiments/README.md`."""

from __future__ import annotations

from pathlib import Path

from experiments.autowu import cells
from experiments.lab.part import main

PARTS = {"cells": cells.PART}

if __name__ == "__main__":
    main(PARTS, here=Path(__file__).parent)
