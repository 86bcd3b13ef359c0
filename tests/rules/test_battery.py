"""What must hold for every rule, whatever its paper; the rows are in `battery.py`."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
from battery import BASE, ROWS, Row, events, histories, reading, run, start, with_proposal
from hypothesis import given, settings
from hypothesis import strategies as st

from largebatch.core.codec import decode, decode_like, encode
from largebatch.core.decision import Decision
from largebatch.core.measurement import FACTS, OF_THE_STEP, STATISTICS, Measurement
from largebatch.core.rule import CHANGES, LR_RULES, Chain, Rule, Wrapper, chain, name_of
from largebatch.rules import ClampBatch, ClampLr, Schedule
from largebatch.rules.kinds import FACTORS, KINDS, RULES
from round_trips import through_json

quick = settings(max_examples=15, deadline=None)
every_row = pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)


def test_every_registered_rule_has_a_row() -> None:
    assert {name_of(row.rule) for row in ROWS} == set(RULES)


def test_every_registered_factor_has_a_row() -> None:
    used = {type(row.rule.factor).__name__ for row in ROWS if isinstance(row.rule, Schedule)}
    assert used == set(FACTORS)


def test_names_of_rows_are_unique() -> None:
    assert len({row.name for row in ROWS}) == len(ROWS)


@every_row
def test_a_rule_declares_known_facts(row: Row) -> None:
    assert isinstance(row.rule, Rule)
    assert row.rule.needs <= STATISTICS | FACTS
    assert row.rule.changes | row.rule.bounds <= CHANGES
    assert row.rule.forbids <= {*RULES, LR_RULES}


@every_row
@given(history=histories)
@quick
def test_decisions_are_sound_and_the_clock_goes_forward(row: Row, history: list) -> None:
    decider = start(row.rule)
    for event in history:
        seen = decider.see(reading(event, decider), base_lr=0.1)
        after, decision = decider.decide(seen)
        assert decision.next_batch_size >= 1
        assert 0.0 <= decision.lr_multiplier < math.inf
        assert 0.0 <= decision.base_steps < math.inf
        assert after.base_steps >= decider.base_steps
        assert after.samples == decider.samples + seen.batch_size
        assert after.step + after.skipped == decider.step + decider.skipped + 1
        decider = after


@every_row
@given(history=histories, cut=st.integers(0, 15))
@quick
def test_stopping_and_resuming_through_json_changes_no_decision(
    row: Row, history: list, cut: int
) -> None:
    _, whole = run(start(row.rule), history)
    stopped, first = run(start(row.rule), history[:cut])
    state = decode_like(stopped.rule.init(), through_json(encode(stopped.state)))
    assert state == stopped.state
    resumed = replace(start(row.rule), **{**clocks(stopped), "state": state})
    _, second = run(resumed, history[cut:])
    assert first + second == whole


def clocks(decider: Any) -> dict[str, Any]:
    names = ("batch_size", "measure", "step", "samples", "base_steps", "skipped")
    return {name: getattr(decider, name) for name in names}


@every_row
@given(history=histories)
@quick
def test_replaying_a_record_reproduces_every_decision(row: Row, history: list) -> None:
    _, record = run(start(row.rule), history)
    decider = start(row.rule)
    for seen, decision in record:
        read = decode(Measurement, through_json(encode(seen)))
        assert read == seen
        decider, again = decider.decide(read)
        assert again == decision
        assert decode(Decision, through_json(encode(decision))) == decision


@every_row
def test_a_rule_comes_back_from_json(row: Row) -> None:
    plain = through_json(encode(row.rule, kind=True))
    assert decode(Rule, plain, kinds=KINDS) == row.rule
    whole = chain(row.rule)
    assert decode(Rule, through_json(encode(whole, kind=True)), kinds=KINDS) == whole


@every_row
@given(history=histories, size=st.integers(1, 100_000))
@quick
def test_the_rate_does_not_depend_on_the_proposed_batch(row: Row, history: list, size: int) -> None:
    decider, _ = run(start(row.rule), history[:-1])
    seen = decider.see(reading(history[-1], decider), base_lr=0.1)
    if not row.any_batch:
        size = decider.batch_size
    proposed = Decision(next_batch_size=decider.batch_size, base_steps=seen.scale)
    _, decision = row.rule.update(decider.state[0], seen, proposed)
    _, other = row.rule.update(decider.state[0], seen, with_proposal(proposed, size))
    assert other.lr_multiplier == decision.lr_multiplier
    assert other.base_steps == decision.base_steps


@every_row
@given(history=histories)
@quick
def test_a_rule_changes_only_what_it_declares(row: Row, history: list) -> None:
    decider, _ = run(start(row.rule), history[:-1])
    seen = decider.see(reading(history[-1], decider), base_lr=0.1)
    size = 77 if row.any_batch else decider.batch_size
    proposed = Decision(next_batch_size=size, base_steps=1.25, lr_multiplier=0.75)
    _, decision = row.rule.update(decider.state[0], seen, proposed)
    may = row.rule.changes | row.rule.bounds
    assert "lr" in may or decision.lr_multiplier == proposed.lr_multiplier
    assert "batch" in may or decision.next_batch_size == proposed.next_batch_size
    assert "clock" in may or decision.base_steps == proposed.base_steps
    assert decision.measure_next <= row.rule.needs


@every_row
@given(history=histories)
@quick
def test_a_rule_is_pure_and_keeps_the_proposals_before_it(row: Row, history: list) -> None:
    decider, _ = run(start(row.rule), history[:-1])
    seen = decider.see(reading(history[-1], decider), base_lr=0.1)
    proposed = Decision(
        next_batch_size=64,
        base_steps=1.0,
        measure_next=frozenset({"inner_product_variance"}),
        reason="before",
    )
    first = row.rule.update(decider.state[0], seen, proposed)
    assert row.rule.update(decider.state[0], seen, proposed) == first
    assert first[1].measure_next >= proposed.measure_next
    assert first[1].reason.startswith("before")


@every_row
@given(history=histories)
@quick
def test_a_rule_never_needs_moments_in_a_step(row: Row, history: list) -> None:
    blind = [replace(event, measured=False, loss=None) for event in history]
    _, record = run(start(row.rule), blind)
    assert len(record) == len(history)


@pytest.mark.parametrize("row", [r for r in ROWS if r.scale_free], ids=lambda row: row.name)
@given(history=histories, power=st.integers(-20, 20))
@quick
def test_the_loss_times_a_constant_changes_no_decision(row: Row, history: list, power: int) -> None:
    _, record = run(start(row.rule), history)
    _, scaled = run(start(row.rule), history, loss_factor=2.0**power)
    assert [decision for _, decision in scaled] == [decision for _, decision in record]


@every_row
@given(history=histories)
@quick
def test_chaining_is_associative_and_the_empty_chain_changes_nothing(
    row: Row, history: list
) -> None:
    a, b, c = row.rule, ClampLr(max=2.5), ClampBatch(max=2048)
    flat = chain(a, b, c)
    assert chain(chain(a, b), c) == chain(a, chain(b, c)) == chain(chain(), flat, chain()) == flat
    _, expected = run(start(flat), history)
    nested = replace(start(flat), rule=Chain((Chain((a, b)), c)), state=((a.init(), None), None))
    _, found = run(nested, history)
    assert [decision for _, decision in found] == [decision for _, decision in expected]


@given(event=events)
@quick
def test_the_empty_chain_counts_samples_and_keeps_the_rate(event: Any) -> None:
    _, [(seen, decision)] = run(start(chain()), [replace(event, finite=True)])
    assert decision == Decision(next_batch_size=64, base_steps=seen.batch_size / BASE)


@every_row
def test_a_forbidden_neighbour_is_refused_with_both_names(row: Row) -> None:
    for other in ROWS:
        if name_of(other.rule) in row.rule.forbids:
            for pair in ((row.rule, other.rule), (other.rule, row.rule)):
                with pytest.raises(ValueError) as refused:
                    chain(*pair)
                assert name_of(row.rule) in str(refused.value)
                assert name_of(other.rule) in str(refused.value)


@every_row
def test_a_proposal_after_its_bound_is_refused_with_both_names(row: Row) -> None:
    for bound in (ClampLr(), ClampBatch()):
        if bound.bounds & row.rule.changes:
            with pytest.raises(ValueError, match="undo the bound") as refused:
                chain(bound, row.rule)
            assert name_of(row.rule) in str(refused.value)
            assert name_of(bound) in str(refused.value)
        else:
            chain(bound, row.rule)


@every_row
def test_the_first_step_measures_what_the_rule_needs_and_takes_no_pass(row: Row) -> None:
    assert start(row.rule).measure == row.rule.needs & OF_THE_STEP


def test_wrappers_pass_the_facts_of_their_rule_through() -> None:
    wrappers = [row.rule for row in ROWS if isinstance(row.rule, Wrapper)]
    assert {name_of(wrapper) for wrapper in wrappers} == {"AutoWarmUp", "Averaged", "Every"}
    for wrapper in wrappers:
        for fact in ("needs", "changes", "bounds", "forbids"):
            inner, outer = getattr(wrapper.rule, fact), getattr(wrapper, fact)
            assert inner <= outer
            assert inner == outer or name_of(wrapper) == "AutoWarmUp", "it has facts of its own"
