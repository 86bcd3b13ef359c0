"""Batches by strings of steps, and ramps."""

from __future__ import annotations

from typing import Any

import pytest
from growing import CASES, changes, run, walk
from hypothesis import given
from hypothesis import strategies as st

from largebatch import methods
from largebatch.core.measurement import Budget
from largebatch.rules import LinearScaling
from largebatch.rules.batch_steps import growth_by_ramp, growth_by_steps, parse_steps

LONG = Budget(samples=10**13)


def test_megatrons_string_has_its_batches_by_tokens() -> None:
    case = CASES["megatron_step_schedule"]
    length = case["config"]["seq_len"]
    rule = growth_by_steps("0:768 250B:1536 500B:3072 750B:6144", tokens_per_sample=length)
    points = [-(-row["tokens"] // length) for row in case["rows"]]
    points[1] -= 1  # 249,999,999,999 tokens are within the sample before
    found = walk(rule, points, first=768, budget=LONG)
    assert [size for _, size, _ in found] == [row["batch"] for row in case["rows"]]
    assert {lr for _, _, lr in found} == {1.0}


def test_megatrons_ramp_has_its_batches_by_samples() -> None:
    case = CASES["megatron_linear_rampup"]
    config = case["config"]
    rule = growth_by_ramp(
        start=config["start"], increment=config["increment"], samples=config["samples"],
        size=config["global_batch"],
    )  # fmt: skip
    for row in case["rows"]:
        (found,) = walk(rule, [row["consumed"]], first=16, budget=LONG)
        assert found[1] == row["batch"]


@given(
    start=st.integers(1, 20), increment=st.integers(1, 9), count=st.integers(1, 9),
    samples=st.integers(10, 5000), at=st.integers(0, 6000),
)  # fmt: skip
def test_a_ramp_is_the_formula(
    start: int, increment: int, count: int, samples: int, at: int
) -> None:
    size = start + increment * count
    rule = growth_by_ramp(start=start, increment=increment, samples=samples, size=size)
    ((_, found, _),) = walk(rule, [at], first=start, budget=LONG)
    assert found == start + increment * min(at * count // samples, count)


def test_a_step_string_changes_the_batch_at_its_numbers_of_samples() -> None:
    rule = methods.batch_steps("0:8, 80:16,  0.4K:32", scaling=LinearScaling())
    record = run(rule, budget=Budget(samples=1000))
    assert changes(record) == [(0, 8, 1.0), (80, 16, 2.0), (400, 32, 4.0)]


def test_a_step_string_of_one_step_is_a_constant_batch() -> None:
    rule = methods.batch_steps("0:8")
    assert changes(run(rule, budget=Budget(samples=100))) == [(0, 8, 1.0)]


@pytest.mark.parametrize(
    "text",
    ["", "768", "0:768 250B", "1:768", "0:768 2B:1536 1B:3072", "0:768 2B:1536 2B:3072", "0:0",
     "0:768 -5:2", "0:768 2x:4", "0:768 1.5:4", "0:x", "0:768;5:6", "0:768 5ep:4", "0:768 5:1.5",
     "0:768 5:6:7", "0:768 :5", "0:768 1e9999:5"],
)  # fmt: skip
def test_a_string_of_another_form_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="0:768 250B:1536 500B:3072"):
        parse_steps(text)


@pytest.mark.parametrize(
    "more",
    [{"start": 0}, {"increment": 0}, {"samples": 0}, {"size": 16}, {"size": 8}, {"size": 1025}],
)
def test_a_ramp_that_leads_nowhere_is_refused(more: Any) -> None:
    sound = {"start": 16, "increment": 8, "samples": 300_000, "size": 1024}
    with pytest.raises(ValueError, match="whole number of increments"):
        methods.batch_ramp(**{**sound, **more})


def test_steps_within_one_sample_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one sample"):
        growth_by_steps("0:8 10:16 12:32", tokens_per_sample=100)
    with pytest.raises(ValueError, match="tokens_per_sample=8192"):
        growth_by_steps("0:8", tokens_per_sample=0)


def test_a_run_that_ends_before_the_last_step_is_refused() -> None:
    with pytest.raises(ValueError, match="but the run ends"):
        run(methods.batch_steps("0:8 250B:16"), budget=Budget(samples=1000))


@pytest.mark.parametrize("text", ["0:64 1e400:128", "0:64 100:1e400", "0:64 1:999999999T"])
def test_an_amount_that_no_run_can_have_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="whole numbers from 0 to 1e\\+18"):
        parse_steps(text)
