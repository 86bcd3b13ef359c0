"""What the tests of rules that propose a batch share: published cases, and a rule asked once."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from largebatch.core.decision import Decision
from largebatch.core.measurement import GradientMoments, Measurement
from largebatch.core.rule import Chain, Rule, chain
from largebatch.rules import ClampBatch, LimitGrowth

CASES = json.loads((Path(__file__).parents[1] / "cases" / "normtest.json").read_text())["cases"]
TESTED = [case for case in CASES if "coord" in case["expected"]]
CHUNKED = [case for case in CASES if "num_chunks" in case["params"]]


def cases(found: list[dict[str, Any]]) -> Any:
    """Cases as parameters of a test."""
    return pytest.mark.parametrize("case", found, ids=[case["name"] for case in found])


def number(value: Any) -> float | None:
    """A number of a case: null is None, "inf" infinity."""
    return None if value is None else float(value)


def moments_of(
    variance: float, sqnorm: float, *, batch_size: float = 64, parts: int = 4
) -> GradientMoments:
    """Moments with the batch's own squared norm."""
    return GradientMoments(
        batch_size=batch_size, parts=parts, batch_sqnorm=sqnorm, variance=variance
    )


def moments_of_rows(rows: Any) -> GradientMoments:
    """The moments of single samples' gradients `[B, D]`, by the definition."""
    g = np.asarray(rows, dtype=np.float64)
    mean = g.mean(axis=0)
    variance = ((g - mean) ** 2).sum() / (len(g) - 1)
    return moments_of(float(variance), float(mean @ mean), batch_size=len(g), parts=len(g))


def see(
    moments: GradientMoments | None = None, *, batch_size: int = 64, step: int = 0, **more: Any
) -> Measurement:
    facts = {
        "samples": step * batch_size, "base_steps": float(step), "base_batch_size": 64,
    }  # fmt: skip
    return Measurement(step=step, batch_size=batch_size, moments=moments, **{**facts, **more})


def seen_in(case: dict[str, Any]) -> Measurement:
    """What a rule sees in a case: the batch in hand may be another than the one that was tested."""
    stats = case["stats"]
    moments = scale = None
    if stats["tr_sigma"] is not None:
        moments = moments_of(
            stats["tr_sigma"], stats["mean_grad_sq_norm"], batch_size=stats["b"], parts=stats["b"]
        )
        ratios = [number(r) for r in stats["coord_required_per_dim"]]
        known = [r for r in ratios if r is not None]
        scale = max(known) * case["params"]["eta"] ** 2 if known else None
    return see(
        moments,
        batch_size=case["params"]["current_batch_size"],
        inner_product_variance=stats["ip_var"],
        coordinate_noise_scale=scale,
    )


def never_shrinking(rule: Rule, *, most: int) -> Chain:
    """The papers' policy: the required batch, never smaller than the one in hand, capped."""
    return chain(rule, LimitGrowth(factor=1e9, shrink=1.0), ClampBatch(max=most))


def asked(rule: Rule, seen: Measurement, *, state: Any = None) -> Decision:
    """What a rule says in one step, before which nothing was proposed."""
    proposed = Decision(next_batch_size=seen.batch_size, base_steps=seen.scale)
    return rule.update(rule.init() if state is None else state, seen, proposed)[1]


def size_asked(rule: Rule, seen: Measurement) -> int:
    return asked(rule, seen).next_batch_size


ENOUGH = 4
"""Measurements after which the interval of the noise scale is known; equal ones have no width."""


def told(rule: Rule, seen: Measurement, *, times: int = ENOUGH) -> Decision:
    """What a rule with a memory says after so many equal steps."""
    proposed = Decision(next_batch_size=seen.batch_size, base_steps=seen.scale)
    state = rule.init()
    for at in range(times):
        step = replace(seen, step=seen.step + at, samples=seen.samples + at * seen.batch_size)
        state, decision = rule.update(state, step, proposed)
    return decision


def size_told(rule: Rule, seen: Measurement) -> int:
    return told(rule, seen).next_batch_size


def value_of(reason: str, name: str) -> float | None:
    """The number that a reason gives to a name."""
    for piece in reason.split("; "):
        if piece.startswith(name):
            found = piece.split()[1]
            return None if found == "unknown" else float(found)
    raise AssertionError(f"{name} is not in {reason!r}")


def check_case(rule: Rule, case: dict[str, Any], test: str) -> Decision:
    """The papers' next size of a case, and that the test passes where it should."""
    seen, expected = seen_in(case), case["expected"][test]
    decision = asked(never_shrinking(rule, most=case["params"]["max_batch_size"]), seen)
    assert decision.next_batch_size == expected["next_batch_size"]
    required = number(expected["required_real"])
    if required is None:
        assert asked(rule, seen).next_batch_size == seen.batch_size
    elif math.isfinite(required):
        assert asked(rule, seen).next_batch_size == max(math.ceil(required - 1e-9), 2)
    return decision
