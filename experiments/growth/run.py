"""Compare batch sizes that grow by a schedule with constant ones. See `experiments/README.md`."""

from __future__ import annotations

from pathlib import Path

from experiments.growth import adaptive, critical, rank, rate, relation, seesaw
from experiments.lab.part import main

PARTS = {
    "relation": relation.PART,
    "rate": rate.PART,
    "adaptive": adaptive.PART,
    "seesaw": seesaw.PART,
    "critical": critical.PART,
    "rank": rank.PART,
}

if __name__ == "__main__":
    main(PARTS, here=Path(__file__).parent)
