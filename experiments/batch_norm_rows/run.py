"""Compare two estimates of gradient noise with the true noise in models with batch normalization.

See `experiments/README.md`.
"""

from __future__ import annotations

from pathlib import Path

from experiments.batch_norm_rows import bias
from experiments.lab.part import main

PARTS = {"bias": bias.PART}

if __name__ == "__main__":
    main(PARTS, here=Path(__file__).parent)
