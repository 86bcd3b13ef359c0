"""Compare batch sizes that grow by a norm test with constant ones. See `experiments/README.md`."""

from __future__ import annotations

from pathlib import Path

from experiments.adadagrad import choice, frontier
from experiments.lab.part import main

PARTS = {"choice": choice.PART, "frontier": frontier.PART}

if __name__ == "__main__":
    main(PARTS, here=Path(__file__).parent)
