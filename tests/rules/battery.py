"""The table of rules for the generic tests: every registered rule has at least one row, and every
row passes all of `test_battery.py`.

A rule that is not listed has a row with its default arguments. List it if an argument has no
default, if other arguments take other paths, or if a row needs an excuse."""

from __future__ import annotations

from dataclasses import MISSING, dataclass, fields, replace

from hypothesis import strategies as st

from largebatch.core.decider import Decider
from largebatch.core.decision import Decision
from largebatch.core.measurement import (
    Budget,
    GradientMoments,
    Measurement,
    Reading,
    noise_scale,
)
from largebatch.core.rule import Rule, chain, name_of
from largebatch.rules import (
    CABS,
    WSD,
    Accordion,
    AdaptiveGrowth,
    AdaScale,
    AnyTimeGrowth,
    AugmentedInnerProductTest,
    AutoWarmUp,
    Averaged,
    ClampBatch,
    ClampLr,
    ClampToNoiseScale,
    Constant,
    CoordinateNormTest,
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
from largebatch.rules.batch_steps import growth_by_steps
from largebatch.rules.growth_from_decay import growth_from_decay
from largebatch.rules.kinds import RULES
from largebatch.rules.stages import Stages

BASE = 32
BUDGET = Budget(samples=4000)
DATASET_SIZE = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One instance of a rule.

    Args:
        name, rule: of it.
        scale_free: the loss times a constant changes no decision; an absolute floor is the only
            excuse.
        any_batch: it takes any proposal for the next batch.
    """

    name: str
    rule: Rule
    scale_free: bool = True
    any_batch: bool = True


ROWS = [
    Row(name="accordion", rule=Accordion(epochs=1)),
    Row(name="adascale", rule=AdaScale()),
    Row(name="adascale-short-window", rule=AdaScale(window=20.0, averaging="mean-then-ema")),
    Row(name="adascale-paper", rule=AdaScale(clip="first"), scale_free=False),
    Row(name="adascale-adam", rule=AdaScale(statistic="preconditioned_moments", exponent=0.5)),
    Row(
        name="adaptive-growth",
        rule=AdaptiveGrowth(stages=Stages(batch=(1, 1.5, 4), lr=(1, 1.4, 2)), patience=1),
    ),
    Row(
        name="adaptive-growth-adam",
        rule=AdaptiveGrowth(patience=2, statistic="preconditioned_moments"),
    ),
    Row(name="adaptive-growth-averaged", rule=Averaged(AdaptiveGrowth(kappa=0.5), window=50.0)),
    Row(name="any-time-growth", rule=AnyTimeGrowth(coefficient=2000.0)),
    Row(name="auto-warm-up", rule=AutoWarmUp(fraction=0.7), any_batch=False),
    Row(
        name="auto-warm-up-adascale",
        rule=AutoWarmUp(fraction=0.7, growth="linear", after=AdaScale(), cooldown=0.2),
        any_batch=False,
    ),
    Row(name="auto-warm-up-paper", rule=AutoWarmUp(fraction=0.1, paper=True), any_batch=False),
    Row(name="averaged", rule=Averaged(AdaScale(window=1.0), window=50.0)),
    Row(name="averaged-chain", rule=Averaged(chain(AdaScale(), ClampLr(max=3.0)), window=50.0)),
    Row(
        name="averaged-adam",
        rule=Averaged(
            NormTest(statistic="preconditioned_moments"),
            window=50.0,
            statistic="preconditioned_moments",
        ),
    ),
    Row(name="cabs", rule=CABS(), scale_free=False),  # lr x variance / loss is in units of the loss
    Row(name="clamp-batch", rule=ClampBatch(min=8, max=4096, multiple_of=8)),
    Row(name="clamp-lr", rule=ClampLr(min=0.5, max=2.0)),
    Row(name="clamp-to-noise-scale", rule=ClampToNoiseScale(kappa=0.5)),
    Row(
        name="clamp-to-noise-scale-adam",
        rule=ClampToNoiseScale(statistic="preconditioned_moments"),
    ),
    Row(
        name="every-first",
        rule=Every(NormTest(eta=1.0, denominator="unbiased"), steps=4, first=4),
    ),
    Row(name="coordinate-norm-test", rule=CoordinateNormTest()),
    Row(
        name="coordinate-norm-test-strict",
        rule=CoordinateNormTest(statistic="coordinate_noise_scale"),
    ),
    Row(name="every", rule=Every(AdaScale(), steps=3)),
    Row(name="every-averaged", rule=Every(Averaged(AdaScale()), steps=2)),
    Row(name="every-norm-test", rule=Every(chain(NormTest(), Hysteresis()), steps=2)),
    Row(
        name="full-gradient-growth",  # its threshold is in units of the gradient
        rule=FullGradientGrowth(
            stages=Stages(batch=(1, 1.5, 4, 2), lr=(1, 1.4, 2, 1)), check=2, consistent=True
        ),
        scale_free=False,
    ),
    Row(
        name="full-gradient-growth-capped",
        rule=FullGradientGrowth(eps0=50.0, max=300, check=1),
        scale_free=False,
    ),
    Row(
        name="every-full-gradient",
        rule=Every(FullGradientGrowth(check=1), steps=2),
        scale_free=False,
    ),
    Row(name="growth", rule=Growth(), any_batch=False),  # a budget below it is refused
    Row(
        name="growth-both",
        rule=Growth(
            stages=Stages(batch=(1, 2.5, 2), lr=(1, 1.4, 0.5)),
            at=(0.1, 0.7),
            over=Budget(base_steps=60.0),
        ),
        any_batch=False,
    ),
    Row(
        name="growth-by-steps",
        rule=growth_by_steps("0:64 1K:96 2.5K:1000"),
        any_batch=False,  # it begins with its own first batch
    ),
    Row(
        name="growth-from-decay",
        rule=growth_from_decay(Exponential(end=0.05), cut=1.5),
        any_batch=False,
    ),
    Row(name="hysteresis", rule=Hysteresis()),
    Row(name="inner-product-test", rule=InnerProductTest()),
    Row(name="inner-product-test-augmented", rule=AugmentedInnerProductTest(theta=0.5, nu=1.0)),
    Row(name="legw", rule=Legw(warmup_epochs=0.5)),
    Row(name="limit-growth", rule=LimitGrowth(factor=1.5, shrink=0.5)),
    Row(name="linear-scaling", rule=LinearScaling()),
    Row(name="milestones", rule=Milestones()),
    Row(name="milestones-own", rule=Milestones(at=(0.5,), factor=1.5, over=Budget(steps=4))),
    Row(name="noise-scale-control", rule=NoiseScaleControl(kappa=2.0)),
    Row(name="noise-scale-control-offset", rule=NoiseScaleControl(kappa=0.1, offset=1.0)),
    Row(name="norm-test", rule=NormTest()),
    Row(name="norm-test-unbiased", rule=Averaged(NormTest(denominator="unbiased"), window=50.0)),
    Row(name="norm-test-finite", rule=NormTest(eta=0.1, finite_population=True)),
    Row(
        name="norm-test-unbiased-finite",
        rule=NormTest(eta=0.5, denominator="unbiased", finite_population=True),
    ),
    Row(
        name="norm-test-unbiased-adam",
        rule=NormTest(denominator="unbiased", statistic="preconditioned_moments"),
    ),
    Row(name="observe", rule=Observe(statistics=("moments", "inner_product_variance"))),
    Row(name="schedule-cosine", rule=Schedule()),
    Row(
        name="schedule-hold-then-decay",
        rule=Schedule(factor=HoldThenDecay(start=0.3, factor=Linear(), height=2.0)),
    ),
    Row(name="schedule-constant", rule=Schedule(factor=Constant())),
    Row(name="schedule-step", rule=Schedule(factor=StepDecay(at=(0.25, 0.5)))),
    Row(name="schedule-exponential", rule=Schedule(factor=Exponential(end=0.01))),
    Row(name="schedule-linear", rule=Schedule(factor=Linear(end=0.1))),
    Row(name="schedule-polynomial", rule=Schedule(factor=Polynomial(power=0.5))),
    Row(name="schedule-wsd", rule=Schedule(factor=WSD(), over=Budget(steps=20))),
    Row(name="sqrt-scaling", rule=SqrtScaling()),
    Row(name="step-clock", rule=StepClock()),
    Row(name="warm-up", rule=WarmUp()),
    Row(name="warm-up-own", rule=WarmUp(fraction=1.0, start=0.1, over=Budget(base_steps=50.0))),
]


def unlisted() -> list[Row]:
    """Return a row with the default arguments for each rule that has no row, if it can be built."""
    listed = {name_of(row.rule) for row in ROWS}
    return [
        Row(name=name, rule=cls())
        for name, cls in RULES.items()
        if name not in listed and not needs_arguments(cls)
    ]


def needs_arguments(cls: type) -> bool:
    """Return whether an argument has no default."""
    given = [f.default is not MISSING or f.default_factory is not MISSING for f in fields(cls)]
    return not all(given)


ROWS += unlisted()


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """What happens in one step: the batch that really came (None: as decided) and its readings."""

    batch_size: int | None = None
    finite: bool = True
    measured: bool = True
    loss: float | None = 1.0
    variance: float = 1.0
    batch_sqnorm: float = 1.0
    parts: int = 4
    temporal: bool = False


def sizes(most: float) -> st.SearchStrategy[float]:
    """Zero, or a magnitude that squared gradients may have."""
    return st.just(0.0) | st.floats(1e-12, most)


events = st.builds(
    Event,
    batch_size=st.none() | st.integers(1, 5000),
    finite=st.sampled_from([True] * 9 + [False]),
    measured=st.sampled_from([True, True, True, False]),
    loss=st.none() | st.floats(-1e3, 1e3),
    variance=sizes(1e9),
    batch_sqnorm=sizes(1e6),  # below variance / B where the unbiased squared norm is negative
    parts=st.integers(2, 64),
    temporal=st.booleans(),
)
histories = st.lists(events, min_size=1, max_size=15)


def start(rule: Rule) -> Decider:
    """A decider for the battery's run."""
    return Decider.start(
        rule, base_batch_size=BASE, batch_size=64, budget=BUDGET, dataset_size=DATASET_SIZE
    )


def reading(event: Event, decider: Decider, *, loss_factor: float = 1.0) -> Reading:
    """The reading of one step; `loss_factor` multiplies the loss, and thus gradients."""
    samples = event.batch_size or decider.batch_size
    square = loss_factor**2
    moments = GradientMoments(
        batch_size=samples,
        parts=event.parts,
        batch_sqnorm=event.batch_sqnorm * square,
        variance=event.variance * square,
        source="temporal" if event.temporal else "micro-batches",
    )
    wanted = decider.measure if event.measured else frozenset()
    return Reading(
        samples=samples,
        finite=event.finite,
        loss=None if event.loss is None else event.loss * loss_factor,
        batch_sqnorm=event.batch_sqnorm * square,
        moments=moments if "moments" in wanted else None,
        preconditioned_moments=moments if "preconditioned_moments" in wanted else None,
        inner_product_variance=(
            event.variance * event.batch_sqnorm * square**2
            if "inner_product_variance" in wanted
            else None
        ),
        coordinate_noise_scale=(
            noise_scale(variance=event.variance, sqnorm=event.batch_sqnorm)
            if "coordinate_noise_scale" in wanted
            else None
        ),
        full_sqnorm=event.batch_sqnorm * square if "full_sqnorm" in wanted else None,
        extra_samples=DATASET_SIZE if "full_sqnorm" in wanted else 0,
    )


def run(
    decider: Decider, history: list[Event], *, loss_factor: float = 1.0
) -> tuple[Decider, list[tuple[Measurement, Decision]]]:
    """The decider after a history, and each step's measurement and decision."""
    record = []
    for event in history:
        seen = decider.see(reading(event, decider, loss_factor=loss_factor), base_lr=0.1)
        decider, decision = decider.decide(seen)
        record.append((seen, decision))
    return decider, record


def with_proposal(decision: Decision, next_batch_size: int) -> Decision:
    """The same proposal with another size of the next batch."""
    return replace(decision, next_batch_size=next_batch_size)
