"""The `Decider` under random chains of rules and measurements of any magnitude, saved and resumed
at any moment, beside the same run without an interruption."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from tests.fuzz.effort import effort
from tests.rules.battery import ROWS

from largebatch.core.codec import decode, encode
from largebatch.core.decider import Decider
from largebatch.core.decision import Decision
from largebatch.core.errors import CheckpointError
from largebatch.core.measurement import STATISTICS, Budget, GradientMoments, Measurement, Reading
from largebatch.core.rule import Chain, Rule, chain, name_of
from largebatch.core.run_state import resume, state_of
from largebatch.record import MemoryRecord
from largebatch.record.replay_rule import replay
from largebatch.rules import (
    CABS,
    WSD,
    Accordion,
    AdaptiveGrowth,
    AdaScale,
    AnyTimeGrowth,
    AugmentedInnerProductTest,
    Averaged,
    ClampBatch,
    ClampLr,
    ClampToNoiseScale,
    Constant,
    CoordinateNormTest,
    Cosine,
    Every,
    Exponential,
    FullGradientGrowth,
    Growth,
    HoldThenDecay,
    Hysteresis,
    InnerProductTest,
    Legw,
    LimitGrowth,
    Linear,
    LinearScaling,
    Milestones,
    NoiseScaleControl,
    NormTest,
    Observe,
    Polynomial,
    Schedule,
    SqrtScaling,
    StepClock,
    StepDecay,
    WarmUp,
)
from largebatch.rules.kinds import FACTORS, KINDS, RULES
from largebatch.rules.stages import Stages
from round_trips import through_json

fractions = st.floats(0.0, 1.0)
parts_of_one = st.floats(1e-9, 1.0)
ends = st.just(0.0) | st.floats(1e-6, 10.0)
windows = st.sampled_from([1e-3, 1.0, 5.0, 1000.0, 1e300]) | st.floats(0.1, 1e4)
budgets = st.one_of(
    st.builds(Budget, samples=st.integers(1, 10**6)),
    st.builds(Budget, steps=st.integers(1, 50)),
    st.builds(Budget, base_steps=st.floats(1e-3, 1e4) | st.integers(1, 1000)),
)
factors = st.one_of(
    st.just(Constant()),
    st.builds(HoldThenDecay, start=st.floats(0.0, 0.999), height=st.floats(1e-3, 1e3)),
    st.builds(Cosine, end=ends),
    st.builds(Exponential, end=st.floats(1e-6, 10.0)),
    st.builds(Linear, end=ends),
    st.builds(Polynomial, power=st.floats(1e-3, 50.0), end=ends),
    st.builds(
        StepDecay,
        at=st.lists(fractions, unique=True, max_size=4).map(sorted).map(tuple),
        factor=st.floats(1e-3, 10.0),
    ),
    st.builds(WSD, decay=parts_of_one, end=ends),
)
levels = st.floats(1e-3, 1e3) | st.sampled_from([1e-300, 0.5, 1e300])


@st.composite
def tables(draw: st.DrawFn) -> Stages:
    """Stages that rise or fall, of the first batch or of a number of samples."""
    count = draw(st.integers(1, 5))
    lists = st.lists(st.floats(1e-3, 1e3), min_size=count, max_size=count).map(tuple)
    return Stages(batch=draw(lists), lr=draw(st.just(()) | lists))


@st.composite
def growths(draw: st.DrawFn) -> Growth:
    """Growth over the run; a horizon of its own may end too late, which is refused."""
    stages = draw(tables())
    points = st.lists(
        st.floats(1e-6, 1.0), unique=True, min_size=len(stages) - 1, max_size=len(stages) - 1
    )
    return Growth(stages=stages, at=tuple(sorted(draw(points))), over=draw(st.none() | budgets))


batch_tests = st.one_of(
    st.builds(
        Accordion,
        growth=st.floats(1.001, 1e300),
        threshold=levels,
        epochs=st.integers(1, 5),
    ),
    st.builds(AdaptiveGrowth, stages=tables(), kappa=levels, patience=st.integers(1, 4)),
    st.builds(AnyTimeGrowth, coefficient=levels),
    growths(),
    st.builds(AugmentedInnerProductTest, theta=levels, nu=levels),
    st.just(CABS()),
    st.builds(
        CoordinateNormTest,
        eta=levels,
        statistic=st.sampled_from(["preconditioned_moments", "coordinate_noise_scale"]),
    ),
    st.builds(
        FullGradientGrowth,
        eps0=levels,
        stages=tables(),
        max=st.none() | st.integers(1, 5000),
        check=st.integers(1, 4),
        consistent=st.booleans(),
    ),
    st.builds(InnerProductTest, theta=levels),
    st.builds(
        Milestones,
        at=st.lists(st.floats(1e-6, 0.999), unique=True, max_size=4).map(sorted).map(tuple),
        factor=levels,
        over=st.none() | budgets,
    ),
    st.builds(NoiseScaleControl, kappa=levels, offset=st.just(0.0) | levels),
    st.builds(
        NormTest,
        eta=levels,
        denominator=st.sampled_from(["plug-in", "unbiased"]),
        finite_population=st.booleans(),
        statistic=st.sampled_from(["moments", "preconditioned_moments"]),
    ),
)
BY_THEIR_ROW = [row.rule for row in ROWS if name_of(row.rule) not in {"AutoWarmUp", *globals()}]
"""Rules that are drawn with the arguments of the generic tests alone."""

single = st.one_of(
    *map(st.just, BY_THEIR_ROW),
    st.builds(
        AdaScale,
        window=windows,
        exponent=st.floats(0.1, 2.0),
        statistic=st.sampled_from(["moments", "preconditioned_moments"]),
        averaging=st.sampled_from(["ema", "mean-then-ema"]),
        clip=st.sampled_from(["on-read", "first"]),
    ),
    st.builds(
        lambda least, more, multiple: ClampBatch(
            min=least, max=None if more is None else least + multiple + more, multiple_of=multiple
        ),
        st.integers(1, 50),
        st.none() | st.integers(0, 5000),
        st.integers(1, 16),
    ),
    st.builds(
        lambda least, more: ClampLr(min=least, max=least + more),
        st.floats(0.0, 2.0),
        st.just(math.inf) | st.floats(0.0, 5.0),
    ),
    st.builds(ClampToNoiseScale, kappa=levels),
    st.builds(Legw, warmup_epochs=st.floats(1e-3, 10.0)),
    st.builds(LimitGrowth, factor=st.floats(1.0, 1e300), shrink=st.none() | st.floats(1e-3, 1.0)),
    st.just(LinearScaling()),
    st.builds(
        Observe,
        statistics=st.lists(st.sampled_from(sorted(STATISTICS)), unique=True).map(tuple),
    ),
    batch_tests,
    st.builds(
        lambda asked, more: Hysteresis(asked=asked, of=asked + more),
        st.integers(1, 4),
        st.integers(0, 4),
    ),
    st.builds(Schedule, factor=factors, over=st.none() | budgets),
    st.just(SqrtScaling()),
    st.just(StepClock()),
    st.builds(WarmUp, fraction=parts_of_one, start=st.none() | fractions, over=st.none() | budgets),
)


@st.composite
def wrapped(draw: st.DrawFn) -> Rule:
    """A rule, or one around another."""
    inner: Rule = draw(single)
    if draw(st.booleans()):
        return inner
    for statistic in ("moments", "preconditioned_moments"):
        if statistic in inner.needs and draw(st.booleans()):
            window: Any = draw(windows.filter(math.isfinite))
            inner = Averaged(inner, window=window, statistic=statistic)
    return Every(inner, steps=draw(st.integers(1, 5))) if draw(st.booleans()) else inner


@st.composite
def chains(draw: st.DrawFn) -> Chain:
    """A chain of rules that fit; what does not is left out."""
    whole = chain()
    for one in draw(st.lists(wrapped(), max_size=5)):
        try:
            whole = chain(whole, one)
        except ValueError:
            continue
    return whole


sizes = st.one_of(
    st.just(0.0),
    st.floats(1e-300, 1e300),
    st.sampled_from([1e-300, 1e-30, 1.0, 1e30, 1e300]),
)
"""Of what squared gradients may have; and beyond."""


@st.composite
def moments_of(draw: st.DrawFn, batch_size: int) -> GradientMoments:
    """The squared norm may be below variance / B: its unbiased estimate is negative then. The
    variance may be, by rounding or by a temporal estimate."""
    return GradientMoments(
        batch_size=draw(st.just(float(batch_size)) | st.floats(1.0, 1e4)),
        parts=draw(st.integers(2, 64)),
        batch_sqnorm=draw(sizes),
        variance=draw(sizes) * draw(st.sampled_from([1.0, 1.0, 1.0, -1.0])),
        source=draw(st.sampled_from(["micro-batches", "ranks", "temporal"])),
    )


@st.composite
def readings(draw: st.DrawFn, decider: Decider) -> Reading:
    """What a meter may read in the coming step, also of another batch than was wished."""
    samples = draw(st.just(decider.batch_size) | st.integers(decider.ranks, 5000))
    finite = draw(st.sampled_from([True] * 6 + [False]))
    statistics: dict[str, Any] = {}
    for name in sorted(decider.measure):
        if draw(st.integers(0, 4)):
            one = moments_of(samples)
            scalar = name in STATISTICS and not name.endswith("moments")
            statistics[name] = draw(sizes | st.just(math.inf) if scalar else one)
    unsound = [None, math.nan, math.inf, -math.inf]
    loss = draw(st.floats(-1e300, 1e300) if finite else st.sampled_from(unsound))
    return Reading(
        samples=samples,
        finite=finite,
        loss=loss,
        batch_sqnorm=draw(sizes) if finite else draw(st.sampled_from(unsound)),
        weight=float(samples),
        **statistics,
    )


def fits(fresh: Decider) -> bool:
    """Whether the run's length suits its rules, or is refused in the first step."""
    try:
        fresh.decide(fresh.see(Reading(samples=fresh.batch_size), base_lr=0.1))
    except ValueError as refused:
        told = str(refused)
        assert "but the run ends" in told or "but its first batch has" in told
        return False
    return True


def same(a: Any, b: Any) -> bool:
    """Equal bit for bit, where NaN is NaN and 0 is not -0."""
    return json.dumps(encode(a, kind=True)) == json.dumps(encode(b, kind=True))


class Deciders(RuleBasedStateMachine):
    """A run that is stopped and resumed now and then, beside one that never is."""

    @initialize(
        rule=chains(),
        base_batch_size=st.integers(1, 300),
        batch_size=st.integers(1, 5000),
        ranks=st.integers(1, 4),
        dataset_size=st.none() | st.integers(1, 10**6),
        budget=budgets,
    )
    def start(self, *, rule: Chain, ranks: int, batch_size: int, **facts: Any) -> None:
        if "dataset_size" in rule.needs and facts["dataset_size"] is None:
            with pytest.raises(ValueError, match="dataset_size"):
                Decider.start(rule, batch_size=batch_size, ranks=ranks, **facts)
            facts["dataset_size"] = 500
        self.again = lambda: Decider.start(
            rule, batch_size=max(batch_size, ranks), ranks=ranks, **facts
        )
        if not fits(self.again()):
            rule = chain()
        self.whole = self.resumed = self.again()
        self.decision: Decision | None = None
        self.lost = 0
        self.record = MemoryRecord()

    @rule(data=st.data())
    def step(self, data: st.DataObject) -> None:
        before = self.whole
        reading = data.draw(readings(before))
        seen = before.see(reading, base_lr=0.1)
        self.whole, decision = before.decide(seen)
        self.resumed, also = self.resumed.decide(self.resumed.see(reading, base_lr=0.1))
        assert same(also, decision)
        self.check(before, seen, decision)
        self.decision = decision
        self.lost = 0 if seen.finite else self.lost + 1
        self.record.write(seen, decision)

    def check(self, before: Decider, seen: Measurement, decision: Decision) -> None:
        """What holds for each decision."""
        after = self.whole
        assert math.isfinite(decision.lr_multiplier)
        assert decision.lr_multiplier >= 0.0
        if not (can_stop(before.rule) or decision.lr_multiplier > 0.0):
            raise AssertionError(f"no rule asked for a rate of 0: {decision}")
        assert decision.next_batch_size >= 1
        assert isinstance(decision.next_batch_size, int)
        assert after.samples == before.samples + seen.batch_size
        assert (after.step, after.skipped) == (
            before.step + seen.finite,
            before.skipped + (not seen.finite),
        )
        assert math.isfinite(after.base_steps)
        assert after.base_steps >= before.base_steps
        if seen.finite:
            assert decision.base_steps > 0.0
        else:
            assert (after.state, after.batch_size) == (before.state, before.batch_size)
            assert (after.measure, decision.base_steps) == (before.measure, 0.0)
        budget = before.budget
        assert budget is not None
        used = {"samples": after.samples, "steps": after.step, "base_steps": after.base_steps}
        over = used[budget.unit] >= budget.amount
        close = math.isclose(used[budget.unit], budget.amount, rel_tol=1e-8)
        assert after.finished == over or (budget.unit == "base_steps" and close)

    @rule()
    def stop_and_resume(self) -> None:
        self.resumed = self.through_a_state(self.again())

    @rule(ranks=st.integers(1, 4))
    def a_run_without_its_budget_takes_it_from_the_state(self, ranks: int) -> None:
        bare = replace(self.again(), budget=None, ranks=ranks)
        assert replace(self.through_a_state(bare), ranks=self.whole.ranks) == self.whole

    def through_a_state(self, fresh: Decider) -> Decider:
        plain = state_of(self.resumed, decision=self.decision, lost_in_a_row=self.lost)
        found = resume(fresh, through_json(plain))
        assert same(found.decision, self.decision)
        assert found.lost_in_a_row == self.lost
        return found.decider

    @rule(data=st.data())
    def a_wrong_state_is_refused(self, data: st.DataObject) -> None:
        plain = state_of(self.resumed, decision=self.decision, lost_in_a_row=self.lost)
        key = data.draw(st.sampled_from([*plain, "unknown", 7]))
        junk = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.lists(
            st.integers(), max_size=2
        )  # fmt: skip
        value = data.draw(junk | st.just(KeyError))
        if value is KeyError:
            if key not in plain:
                return
        elif key in plain and same(value, plain[key]):
            return
        wrong: dict[Any, Any] = {**plain, key: value}
        if value is KeyError:
            del wrong[key]
        if key == "base_steps" and value == plain[key]:
            return  # 0 for 0.0
        with pytest.raises(CheckpointError):
            resume(self.again(), wrong)

    @precondition(lambda self: self.record.steps)
    @rule()
    def replaying_the_record_reproduces_every_decision(self) -> None:
        first, _ = self.record.steps[0]
        if first.batch_size != self.again().batch_size:
            return  # a first step that the data cut: replay takes its batch for the wish
        steps = self.record.steps
        for name in sorted(self.whole.rule.needs & STATISTICS):
            if all(getattr(seen, name) is None for seen, _ in steps):
                with pytest.raises(ValueError, match="no training step of the record has it"):
                    replay(self.whole.rule, self.record)
                return
        assert same(replay(self.whole.rule, self.record), [decision for _, decision in steps])

    @invariant()
    def both_runs_are_the_same(self) -> None:
        assert same(replace(self.whole, budget=None), replace(self.resumed, budget=None))
        assert self.whole.budget == self.resumed.budget  # 100 may have become 100.0

    @invariant()
    def what_is_written_comes_back(self) -> None:
        for seen, decision in list(self.record.steps)[-1:]:
            read = decode(Measurement, through_json(encode(seen)))
            assert same(replace(read, budget=None), replace(seen, budget=None))
            assert read.budget == seen.budget  # 100 is written for 100.0
            assert same(decode(Decision, through_json(encode(decision))), decision)
        plain = through_json(encode(self.whole.rule, kind=True))
        assert decode(Rule, plain, kinds=KINDS) == self.whole.rule


def can_stop(rules: Rule) -> bool:
    """Whether a rate of 0 is what some rule was asked for: at the start of a warm-up, at a
    schedule's end, or at a bound."""
    inside = repr(rules)
    return any(name in inside for name in ("Legw", "WarmUp", "Schedule", "ClampLr"))


Deciders.TestCase.settings = effort(120, steps=15)
TestDeciders = Deciders.TestCase


def test_every_rule_and_factor_may_be_drawn() -> None:
    # AutoWarmUp refuses most of these runs in their first steps: short ones, and other batches
    drawn = {name_of(rule) for rule in BY_THEIR_ROW}
    assert (set(RULES) | set(FACTORS)) - {"AutoWarmUp"} <= set(globals()) | drawn


@given(rules=st.lists(wrapped(), max_size=4))
@effort(150)
def test_a_chain_is_built_or_refused_in_words(rules: list[Rule]) -> None:
    try:
        built = chain(*rules).rules
    except ValueError as refused:
        built, told = tuple(rules), str(refused)
    else:
        told = "built"
    assert built == tuple(rules)
    assert told
