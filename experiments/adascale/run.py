"""Compare AdaScale with simpler methods on real data. See `experiments/README.md`."""

from __future__ import annotations

from pathlib import Path

from experiments.adascale import control, estimators, overfitting, path, peer, table, transfer
from experiments.lab.part import main

PARTS = {
    "transfer": transfer.PART,
    "table": table.PART,
    "control": control.PART,
    "estimators": estimators.PART,
    "overfitting": overfitting.PART,
    "path": path.PART,
    "fairscale": peer.PART,
}

if __name__ == "__main__":
    main(PARTS, here=Path(__file__).parent)
