"""Test a run's state as plain values, and states that an earlier version saved."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from largebatch.core.codec import checksum, decode
from largebatch.core.decider import Decider
from largebatch.core.errors import CheckpointError, RecordError
from largebatch.core.measurement import GradientMoments, Reading
from largebatch.core.revived import Revived
from largebatch.core.rule import Chain, Rule
from largebatch.core.run_state import RunState, resume, state_of
from largebatch.rules.adascale import AdaScale
from largebatch.rules.scaling import SqrtScaling


def decider_of(rule: Rule, *, steps: int = 3) -> Decider:
    decider = Decider.start(rule, base_batch_size=16, batch_size=64)
    for step in range(steps):
        moments = GradientMoments(
            batch_size=64, parts=4, batch_sqnorm=2.0 + step, variance=9.0 * step
        )
        reading = Reading(samples=64, moments=moments, preconditioned_moments=moments)
        decider, _ = decider.decide(decider.see(reading, base_lr=0.1))
    return decider


def saved(decider: Decider, **changes: Any) -> dict[str, Any]:
    """Return the state of a run with other fields, as if they had been saved."""
    plain = {**state_of(decider, decision=None, lost_in_a_row=0), **changes}
    return {**plain, "digest": checksum(decode(RunState, plain))}


def new(rule: Rule) -> Decider:
    return decider_of(rule, steps=0)


def test_a_state_comes_back_equal_and_without_a_notice() -> None:
    decider = decider_of(AdaScale())
    plain = json.loads(json.dumps(saved(decider)))
    assert plain["version"] == 2
    resumed = resume(new(AdaScale()), plain)
    assert (resumed.decider, resumed.notice) == (decider, "")


def test_a_state_of_this_version_is_never_revived() -> None:
    def revive(there: Any, rule: Chain, state: Any) -> Revived | None:
        raise AssertionError("a state of this version needs no reviving")

    decider = decider_of(AdaScale())
    assert resume(new(AdaScale()), saved(decider), revive=revive).decider == decider


def test_a_state_of_version_1_is_what_is_made_of_it() -> None:
    given: list[Any] = []

    def revive(there: Any, rule: Chain, state: Any) -> Revived | None:
        given.append((there["rules"][0]["kind"], rule, state))
        return Revived(state=[None], anew=("One", "Two"))

    old, decider = saved(decider_of(AdaScale()), version=1), new(SqrtScaling())
    resumed = resume(decider, old, revive=revive)
    assert given == [("AdaScale", decider.rule, json.loads(old["state"]))]
    assert resumed.decider.state == (None,)
    assert (resumed.decider.step, resumed.decider.samples) == (3, 192)
    assert "averages of One and Two count" in resumed.notice
    assert "at step 3." in resumed.notice


def test_a_rule_that_is_not_revived_is_another_one() -> None:
    old = saved(decider_of(AdaScale()), version=1)
    with pytest.raises(CheckpointError, match="was saved with rule"):
        resume(new(AdaScale()), old, revive=lambda *_: None)


def test_a_state_that_cannot_be_revived_is_damaged() -> None:
    def revive(there: Any, rule: Chain, state: Any) -> Revived | None:
        raise RecordError("the state is of another form")

    with pytest.raises(CheckpointError, match=r"corrupted or truncated.*another form"):
        resume(new(AdaScale()), saved(decider_of(AdaScale()), version=1), revive=revive)


def test_without_a_reviver_a_state_of_version_1_is_read_as_it_is() -> None:
    decider = decider_of(AdaScale())
    assert resume(new(AdaScale()), saved(decider, version=1)).decider == decider
    with pytest.raises(CheckpointError, match="was saved with rule"):
        resume(new(SqrtScaling()), saved(decider, version=1))


@pytest.mark.parametrize(
    ("measure", "wanted"),
    [
        ('["moments"]', {"preconditioned_moments"}),
        ('["preconditioned_moments"]', {"preconditioned_moments"}),
        ("[]", set()),
    ],
)
def test_todays_rule_gets_its_own_statistic_in_the_place_of_an_old_one(
    measure: str, wanted: set[str]
) -> None:
    rule = AdaScale(statistic="preconditioned_moments")
    old = saved(decider_of(rule), version=1, measure=measure)
    assert resume(new(rule), old).decider.measure == wanted
    now = replace(decider_of(rule), measure=frozenset({"moments"}))
    assert resume(new(rule), saved(now)).decider.measure == {"moments"}
