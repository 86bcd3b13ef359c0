"""Measure the time of a forecast and of a plan for 10^12 samples, 40 stages and 2000 eigenvalues.

python benchmarks/planner.py
"""

from __future__ import annotations

import time
from collections.abc import Callable

from largebatch.workbench.planner.model import model_of
from largebatch.workbench.planner.plan import plan
from largebatch.workbench.planner.request import PlanRequest, Price
from largebatch.workbench.planner.schedule_names import schedule_named
from largebatch.workbench.planner.table import table_of

BUDGET, BASE = 10**12, 768


def main() -> None:
    """Print the shortest of several times, in milliseconds."""
    model = model_of([1e5], budget=BUDGET, base_batch_size=BASE)
    stages = [(BASE * 1.2**m, 1.0, BUDGET / 40 / (BASE * 1.2**m)) for m in range(40)]
    _show("forecast of 40 stages", 20, lambda: model.forecast(stages))
    seesaw = schedule_named("seesaw", base_batch_size=BASE, noise_scale=1e5)
    _show("table of seesaw", 5, lambda: table_of(seesaw, budget=BUDGET, base_batch_size=BASE))
    request = PlanRequest(budget=BUDGET, base_batch_size=BASE, noise_scales=[1e5])
    _show("plan, fewest steps", 1, lambda: plan(request))
    price = Price(latency=0.1, throughput=1000.0, workers=64)
    timed = PlanRequest(
        budget=BUDGET,
        base_batch_size=BASE,
        noise_scales=[1e5],
        minimise="time",
        price=price,
        workers=64,
        memory_limit=512,
    )
    _show("plan, shortest time, 6 worker counts", 1, lambda: plan(timed))


def _show(name: str, count: int, call: Callable[[], object]) -> None:
    best = min(_timed(call) for _ in range(count))
    print(f"{name:40} {1000.0 * best:10.1f} ms")


def _timed(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
