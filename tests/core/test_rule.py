"""Test how rules are chained, and which chains are rejected."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import pytest

import largebatch as lb
from largebatch.core.decision import Decision
from largebatch.core.measurement import Measurement
from largebatch.core.rule import Chain, Rule, Wrapper, chain, label_of, names_within, require

NONE: frozenset[str] = frozenset()
SEEN = Measurement(step=0, samples=0, base_steps=0.0, batch_size=64, base_batch_size=64)
PROPOSED = Decision(next_batch_size=64, base_steps=1.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Times:
    """Multiply the learning rate and count the updates."""

    factor: float = 2.0
    needs: frozenset[str] = NONE
    changes: frozenset[str] = frozenset({"lr"})
    bounds: frozenset[str] = NONE
    forbids: frozenset[str] = NONE

    def init(self) -> int:
        return 0

    def update(self, state: int, seen: Measurement, proposed: Decision) -> tuple[int, Decision]:
        return state + 1, proposed.scaled(self.factor, because=f"x{self.factor:g}")


class Plus(Times):
    """Add to the learning rate, under another class name."""

    def update(self, state: int, seen: Measurement, proposed: Decision) -> tuple[int, Decision]:
        return state + 1, replace(proposed, lr_multiplier=proposed.lr_multiplier + self.factor)


@dataclass(frozen=True, slots=True)
class Around:
    """Wrap a rule without changing it."""

    rule: Rule
    needs: frozenset[str] = field(default=NONE, kw_only=True)
    changes: frozenset[str] = field(default=NONE, kw_only=True)
    bounds: frozenset[str] = field(default=NONE, kw_only=True)
    forbids: frozenset[str] = field(default=NONE, kw_only=True)

    def init(self) -> Any:
        return self.rule.init()

    def update(self, state: Any, seen: Measurement, proposed: Decision) -> tuple[Any, Decision]:
        return self.rule.update(state, seen, proposed)


def test_a_chain_refines_in_order_and_keeps_each_state() -> None:
    whole = chain(Times(factor=3.0), Plus(factor=1.0))
    state, decision = whole.update(whole.init(), SEEN, PROPOSED)
    assert (state, decision.lr_multiplier) == ((1, 1), 4.0)
    other = chain(Plus(factor=1.0), Times(factor=3.0))
    assert other.update(other.init(), SEEN, PROPOSED)[1].lr_multiplier == 6.0


def test_the_empty_chain_is_the_identity() -> None:
    assert chain().init() == ()
    assert chain().update((), SEEN, PROPOSED) == ((), PROPOSED)
    for facts in (chain().needs, chain().changes, chain().bounds, chain().forbids):
        assert facts == frozenset()


def test_chains_inside_a_chain_are_flattened() -> None:
    a, b, c = Times(factor=1.0), Times(factor=2.0), Plus()
    assert chain(a, chain(b, c)) == chain(chain(a, b), c) == chain(a, b, c) == Chain((a, b, c))


def test_the_facts_of_a_chain_are_the_union_of_its_rules() -> None:
    whole = chain(
        Times(needs=frozenset({"moments"}), forbids=frozenset({"X"})),
        Plus(needs=frozenset({"loss"}), changes=frozenset({"batch"}), bounds=frozenset({"clock"})),
    )
    assert whole.needs == {"moments", "loss"}
    assert whole.changes == {"lr", "batch"}
    assert whole.bounds == {"clock"}
    assert whole.forbids == {"X"}


def test_a_state_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match=r"shorter|longer"):
        chain(Times()).update((0, 0), SEEN, PROPOSED)


@pytest.mark.parametrize("first", [True, False])
def test_a_forbidden_neighbour_is_refused_in_either_order(first: bool) -> None:
    pair = [Times(forbids=frozenset({"Plus"})), Plus()]
    with pytest.raises(ValueError, match="Times and Plus cannot be in one chain"):
        chain(*(pair if first else pair[::-1]))


def test_a_rule_that_forbids_its_own_kind_may_stand_alone() -> None:
    alone = Times(forbids=frozenset({"Times"}))
    assert chain(alone).rules == (alone,)
    with pytest.raises(ValueError, match="Times and Times"):
        chain(alone, alone)


def test_a_forbidden_rule_is_seen_inside_wrappers_and_chains() -> None:
    hidden = Around(chain(Around(Plus()), Times()))
    assert names_within(hidden) == {"Around", "Chain", "Plus", "Times"}
    with pytest.raises(ValueError, match=r"Times and Around\(Chain\(Around\(Plus\), Times\)\)"):
        chain(Times(forbids=frozenset({"Plus"})), hidden)


def test_labels_show_what_is_wrapped() -> None:
    assert label_of(Around(Plus())) == "Around(Plus)"
    assert label_of(Around(chain())) == "Around"
    assert label_of(Plus()) == "Plus"
    assert isinstance(Around(Plus()), Wrapper)
    assert not isinstance(Plus(), Wrapper)


def test_a_proposal_after_its_bound_is_refused_and_before_it_is_not() -> None:
    bound = Plus(changes=NONE, bounds=frozenset({"lr"}))
    chain(Times(), bound, bound)
    with pytest.raises(ValueError, match=r"Times comes after Plus.*on 'lr'\. Put the bound last"):
        chain(bound, Times())


def test_a_bound_on_the_batch_does_not_stop_the_rate() -> None:
    chain(Plus(changes=NONE, bounds=frozenset({"batch"})), Times())


@pytest.mark.parametrize(
    "wrong", [{"needs": {"momentum"}}, {"changes": {"speed"}}, {"bounds": {"loss"}}]
)
def test_unknown_facts_are_refused_with_the_known_ones(wrong: dict[str, set[str]]) -> None:
    facts = {name: frozenset(value) for name, value in wrong.items()}
    with pytest.raises(ValueError, match=r"Times has needs=.*unknown.*'moments'.*'batch'"):
        chain(Times(**facts))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (Times, r"class Times was given.*: Times\(...\)\."),
        (3.0, r"3.0 was given.*Pass a rule.*lb.chain\(lb.AdaScale\(\)"),
        (None, "None was given"),
    ],
)
def test_chaining_something_that_is_not_a_rule_is_refused_with_an_example(
    wrong: Any, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        chain(wrong)


def test_a_missing_need_names_the_rule_and_what_it_needs() -> None:
    whole = chain(Plus(), Around(Times(), needs=frozenset({"moments", "loss"})))
    require(whole, frozenset({"moments", "loss"}), by="this meter", remedy="")
    with pytest.raises(ValueError) as refused:
        require(whole, frozenset({"loss"}), by="this meter", remedy="Use lb.Meter(model).")
    assert str(refused.value) == (
        "Around(Times) needs 'moments', which this meter does not provide. Use lb.Meter(model)."
    )


class RoundBatch:
    """Round another rule's batch size, with the four attributes that a user's rule has."""

    needs: frozenset[str] = frozenset()
    changes = frozenset({"batch"})
    bounds: frozenset[str] = frozenset()
    forbids: frozenset[str] = frozenset()

    def init(self) -> None:
        return None

    def update(self, state: None, seen: Measurement, proposed: Decision) -> tuple[None, Decision]:
        return state, replace(proposed, next_batch_size=-(-proposed.next_batch_size // 8) * 8)


@pytest.mark.parametrize(
    "rule", [lb.NormTest(), lb.Growth(), lb.Averaged(lb.rules.NoiseScaleControl())]
)
def test_a_users_rule_may_refine_the_batch_that_a_rule_of_ours_proposes(rule: Rule) -> None:
    rounds = RoundBatch()
    assert chain(rule, rounds).rules == (rule, rounds)
    with pytest.raises(ValueError, match="cannot be in one chain"):
        chain(rule, rounds, lb.NormTest())
