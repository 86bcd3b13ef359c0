"""How long to fuzz: the same few examples in each test run, or many random ones on request.

    LARGEBATCH_FUZZ=100 python -m pytest -q tests/fuzz

tries a hundred times as many examples, other ones each time.
"""

from __future__ import annotations

import os

from hypothesis import HealthCheck, Phase, settings

TIMES = int(os.environ.get("LARGEBATCH_FUZZ", "1"))


def effort(examples: int, *, steps: int = 20) -> settings:
    """Settings for so many examples in a usual test run, of at most `steps` rules each."""
    return settings(
        max_examples=examples * TIMES,
        stateful_step_count=steps,
        derandomize=TIMES == 1,
        database=None,
        deadline=None,
        phases=(Phase.generate,),  # to explain takes minutes
        print_blob=True,
        suppress_health_check=list(HealthCheck),
    )
