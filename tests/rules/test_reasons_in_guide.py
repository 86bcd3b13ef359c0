"""The guide's table of reasons has the words that rules write."""

from __future__ import annotations

import math
import re
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from largebatch.core.decision import Decision
from largebatch.core.measurement import GradientMoments, Measurement
from largebatch.core.range import Range
from largebatch.core.rule import Rule, chain
from largebatch.rules.bounds import ClampBatch, ClampToNoiseScale, LimitGrowth
from largebatch.rules.norm_test import NormTest
from largebatch.rules.observe import Observe
from largebatch.rules.sizes import by_evidence, evidence

GUIDE = Path(__file__).parents[2] / "docs" / "how-to" / "growing-batch.md"
TABLE = GUIDE.read_text().partition("### How to read a reason")[2].partition("\n### ")[0]
SPANS = re.findall(r"^\| `([^`]+)` \|", TABLE, flags=re.MULTILINE)


def seen_in(step: int, *, batch_size: int = 16, sqnorm: float = 1.0) -> Measurement:
    moments = GradientMoments(
        batch_size=batch_size, parts=4, batch_sqnorm=sqnorm, variance=16.0 * (step % 2 + 1)
    )
    return Measurement(
        step=step, samples=16 * step, base_steps=step, batch_size=batch_size, base_batch_size=16,
        dataset_size=96, moments=moments,
    )  # fmt: skip


def after(rule: Rule, *wanted: int, **options: float) -> list[str]:
    """The reasons of a rule that is asked for these batches one after the other."""
    state, reasons = rule.init(), []
    for step, size in enumerate(wanted):
        seen = seen_in(step, **options)  # type: ignore[arg-type]
        proposed = Decision(next_batch_size=size, base_steps=1.0)
        state, decision = rule.update(state, seen, proposed)
        reasons.append(decision.reason)
    return reasons


def judged(value: float, low: float, high: float, *, batch: int = 16) -> str:
    """The reason of a test with eta = 1 that found this theta_max."""
    theta = Range(value=value, low=low, high=high)
    required = Range(value=batch * value**2, low=batch * low**2, high=batch * high**2)
    hand = Decision(next_batch_size=batch, base_steps=1.0)
    because = evidence(theta, level=1.0)
    seen = seen_in(0, batch_size=batch)
    return by_evidence(hand, seen, required=required, because=because).reason


def written() -> list[str]:
    """Reasons of rules in all kinds of steps."""
    return [
        *(judged(v, lo, hi) for v, lo, hi in ((1.4, 1.05, 2.1), (5.0, 1.1, math.inf), (9, 8, 99))),
        *(judged(v, lo, hi) for v, lo, hi in ((0.5, 0.4, 0.6), (0.1, 0.05, 0.9), (1, 0.5, 2))),
        *after(NormTest(denominator="unbiased"), 16),
        *after(NormTest(), 16),
        *after(NormTest(), 16, sqnorm=0.0),
        *after(LimitGrowth(), 99),
        *after(LimitGrowth(shrink=0.5), 1, batch_size=64),
        *after(LimitGrowth(over=10), 32, 99, batch_size=16),
        *after(LimitGrowth(shrink=1.0), 2),
        *after(ClampBatch(max=256), 435),
        *after(chain(Observe(), ClampToNoiseScale()), 64, 64, 64, 64, 4096),
    ]


def test_each_row_of_the_guide_is_written_by_a_rule() -> None:
    assert len(SPANS) >= 15
    reasons = written()
    for span in SPANS:
        pattern = re.sub(r"\d+(\\\.\d+)?", r"(\\d[\\d.]*|inf)", re.escape(span))
        assert any(re.search(pattern, reason) for reason in reasons), (span, reasons)


@given(
    value=st.floats(0.01, 50.0), below=st.floats(0.1, 1.0), above=st.floats(1.0, 10.0),
    batch=st.integers(2, 96),
)  # fmt: skip
def test_the_words_of_a_test_say_what_it_does(
    value: float, below: float, above: float, batch: int
) -> None:
    reason = judged(value, value * below, value * above, batch=batch)
    found = re.findall(r"batch size (\d+)", reason)
    assert len(found) == 1
    size = int(found[0])
    if "interval contains" in reason:
        assert f"batch size {batch} stays" in reason
    elif "] >" in reason:
        assert size >= min(batch, 96)
    else:
        assert size <= batch
