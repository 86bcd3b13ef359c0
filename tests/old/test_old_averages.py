"""Checks that runs of version 0.1.0 resume under rules whose running averages have changed.

Since version 0.2 averages count base batches, where they counted small gradients, and rules that
compare the batch with the noise scale use its interval. So these rules decide otherwise than 0.1.0
did. What the first such version decides about the records of 0.1.0 is in `decisions.jsonl`, which
`write_decisions.py` wrote; later versions are compared with it.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import old_files
import pytest
from old_files import DECISIONS, METHODS, STATES, one_warning

import largebatch as lb

OWN = "own-rule"
CHANGED = [name for name in STATES if name in DECISIONS]
OF_METHODS = [name for name in STATES if name.startswith("methods/")]


def test_the_records_with_averages_are_those_of_these_kinds() -> None:
    for name, saved in STATES.items():
        plain = json.loads(saved["state"]["rule"])
        assert old_files.has_averages(plain) == (name in DECISIONS), name
        if name != OWN:
            rule = old_files.rule_of({"rule": plain})
            assert old_files.averages(rule) == (name in DECISIONS), name
    assert 20 < len(CHANGED) < len(STATES) - 20


@pytest.mark.parametrize("name", CHANGED)
def test_decisions_about_a_record_stay_those_of_0_2(name: str, tmp_path: Path) -> None:
    found = old_files.decided_anew(name, tmp_path)
    assert found.keys() == DECISIONS[name].keys()
    for how, facts in found.items():
        assert facts == DECISIONS[name][how], f"{name}, {how}, decides differently"


EMPTY = {
    "values": [0.0, 0.0],
    "weight": 0.0,
    "count": 0,
    "squares": 0.0,
    "covariance": [0.0, 0.0, 0.0],
    "degrees": 0.0,
    "last": 0.0,
}
NEW = {"average": EMPTY, "measured_at": 0, "temporal": False, "level": 0.0}
"""Averages of moments that begin anew, as they are saved."""


def twin(old: Any, today: Any, state: Any) -> Any:
    """Return the state that a rule resumes from, kind by kind.

    Args:
        old, today: the rule as it was saved and as it is now, in plain values.
        state: the saved one.
    """
    kind = old["kind"]
    if kind == "Chain":
        return [twin(*of) for of in zip(old["rules"], today["rules"], state, strict=True)]
    if kind == "Every":
        return twin(old["rule"], today["rule"], state)
    if kind == "Averaged" and today["kind"] != "Averaged":
        return twin(old["rule"], today, state[1])
    if kind == "Averaged":
        return [NEW, twin(old["rule"], today["rule"], state[1])]
    if kind == "AutoWarmUp":
        return [state[0], twin(old["after"], today["after"], state[1])]
    if kind == "CABS":
        return {"average": {**EMPTY, "values": [0.0, 1.0], "weight": 1.0}, "evidence": EMPTY}
    if kind == "AdaptiveGrowth":
        return {**state, "past": NEW}
    if kind == "LimitGrowth" and today["over"] > 1:
        return {"step": 0, "batch_size": 0, "last": 0}
    return NEW if old_files.has_averages(old) else state


def resumed_named(name: str, folder: Path, *, method: bool) -> tuple[Any, Any, Any]:
    """Return a run that is resumed, the step before it and the step that comes."""
    steps = old_files.record_named(name, folder).steps
    saved, cut = STATES[name]["state"], STATES[name]["cut"]
    if method:
        begun = old_files.started(METHODS[name.removeprefix("methods/")](), steps[0].seen)
        return old_files.resumed_run(begun, saved), steps[cut - 1], steps[cut]
    rule = old_files.rule_of({"rule": json.loads(saved["rule"])})
    begun = old_files.started(rule, steps[0].seen)
    return old_files.resumed_by_hand(begun, saved), steps[cut - 1], steps[cut]


@pytest.mark.parametrize(
    ("name", "method"),
    [(name, False) for name in CHANGED] + [(name, True) for name in OF_METHODS],
)
def test_a_resumed_run_keeps_all_but_its_averages(name: str, method: bool, tmp_path: Path) -> None:
    run, (_, last), (seen, _) = resumed_named(name, tmp_path, method=method)
    decider, saved = run.decider, STATES[name]["state"]
    for clock in ("step", "samples", "base_steps", "skipped", "budget"):
        assert getattr(decider, clock) == getattr(seen, clock), clock
    assert decider.batch_size == last.next_batch_size
    assert len(decider.measure) == len(last.measure_next)
    again = old_files.saved_again(decider)
    expected = twin(
        json.loads(saved["rule"]), json.loads(again["rule"]), json.loads(saved["state"])
    )
    found = json.loads(again["state"])
    if "AutoWarmUp" in saved["rule"]:  # its own state has more fields today
        found = [[{k: found[0][0][k] for k in expected[0][0]}, found[0][1]], *found[1:]]
    assert found == expected
    if name in CHANGED:
        one_warning([run.notice])
    else:
        assert run.notice == ""


@pytest.mark.parametrize("name", CHANGED)
def test_a_resumed_run_that_is_saved_again_resumes_without_a_word(
    name: str, tmp_path: Path
) -> None:
    run, _, (seen, _) = resumed_named(name, tmp_path, method=name in OF_METHODS)
    decider, _ = run.decider.decide(seen)
    state = json.loads(json.dumps(old_files.saved_again(decider)))
    again = old_files.resumed_run(old_files.started(decider.rule, seen), state)
    assert again.decider == replace(decider, budget=again.decider.budget)
    assert again.decider.budget == decider.budget
    assert again.notice == ""


def test_the_notice_names_the_rules_that_average(tmp_path: Path) -> None:
    for name, shown in {
        "methods/adasgd": "averages of NormTest count",
        "rules/averaged-chain": "averages of AdaScale count",
        "chains/growth-noise-bound": "averages of ClampToNoiseScale count",
    }.items():
        run, _, _ = resumed_named(name, tmp_path, method=False)
        assert shown in run.notice
        assert f"at step {run.decider.step}." in run.notice


# AdaScale measured in as many parts as there are base batches, as in its paper.


def gain_of_0_1(steps: list[tuple[float, float]], *, parts: int, paper: bool) -> float:
    """Return the gain after some (variance of a base batch, squared norm), as 0.1.0 had it."""
    keep, weight, variance, sqnorm = 1.0 - parts / 1000.0, 0.0, 0.0, 0.0
    for count, (new_variance, new_sqnorm) in enumerate(steps):
        weight = keep * weight + (1.0 - keep)
        step = max(1.0 / (count + 1), 1.0 - keep) if paper else (1.0 - keep) / weight
        variance += step * (new_variance - variance)
        sqnorm += step * (new_sqnorm - sqnorm)
    sqnorm = max(sqnorm, 0.0)
    return (variance + sqnorm) / (variance / parts + sqnorm)


@pytest.mark.parametrize("paper", [False, True])
@pytest.mark.parametrize("parts", [2, 4, 8, 64])
def test_adascale_with_a_part_per_base_batch_has_the_gains_of_0_1_0(
    parts: int, paper: bool
) -> None:
    draw = random.Random(parts)
    averaging: Any = "mean-then-ema" if paper else "ema"
    decider = old_files.Decider.start(
        lb.AdaScale(averaging=averaging), base_batch_size=16, batch_size=16 * parts
    )
    pairs: list[tuple[float, float]] = []
    for _ in range(3000 // parts):
        batch_sqnorm, variance = draw.expovariate(1.0), 160.0 * draw.expovariate(1.0)
        moments = lb.GradientMoments(
            batch_size=16 * parts, parts=parts, batch_sqnorm=batch_sqnorm, variance=variance
        )
        reading = old_files.Reading(samples=16 * parts, moments=moments)
        decider, decision = decider.decide(decider.see(reading, base_lr=0.1))
        pairs.append((variance / 16.0, moments.sqnorm))
        expected = gain_of_0_1(pairs, parts=parts, paper=paper)
        assert decision.lr_multiplier == pytest.approx(expected, rel=1e-9)


# Rules by hand, and methods with other arguments.

HAND = lb.chain(
    lb.Every(lb.Averaged(lb.NormTest(eta=1.0, denominator="unbiased")), steps=10),
    lb.LimitGrowth(factor=2.0, shrink=1.0),
    lb.SqrtScaling(),
)
"""What `lb.methods.adasgd()` built in 0.1.0."""

AVERAGED_LONGER = lb.Every(
    lb.Averaged(lb.NormTest(eta=1.0, denominator="unbiased"), window=500.0), steps=10
)
AVERAGED_AS_LONG = lb.Every(
    lb.Averaged(lb.NormTest(eta=1.0, denominator="unbiased"), window=1000.0), steps=10
)


def resume_as(name: str, rule: lb.Rule, folder: Path) -> Any:
    first = old_files.record_named(name, folder).steps[0].seen
    return old_files.resumed_run(old_files.started(rule, first), STATES[name]["state"])


def test_the_chain_of_adasgd_resumes_by_hand_and_by_the_method(tmp_path: Path) -> None:
    long = lb.chain(AVERAGED_AS_LONG, *HAND.rules[1:])
    for rule in (HAND, lb.methods.adasgd(), long):
        run = resume_as("methods/adasgd", rule, tmp_path)
        assert run.decider.rule == rule
        assert run.decider.batch_size == 128


@pytest.mark.parametrize(
    ("name", "rule"),
    [
        ("adasgd", lb.methods.adasgd(eta=0.9)),
        ("adasgd", lb.methods.adasgd(every=9)),
        ("adasgd", lb.methods.adasgd(every=1)),
        ("adasgd", lb.methods.adasgd(max=512)),
        ("adasgd", lb.methods.adasgd(growth=1.5)),
        ("adasgd", lb.methods.adasgd(scaling=None)),
        ("adasgd", lb.methods.adasgd(scaling=lb.LinearScaling())),
        ("adasgd", lb.methods.adadam()),
        (
            "adasgd",
            lb.chain(*HAND.rules[:1], lb.LimitGrowth(factor=2.0, shrink=0.5), HAND.rules[2]),
        ),
        ("adasgd", lb.chain(*HAND.rules[:1], *lb.methods.adasgd().rules[1:])),
        ("adasgd", lb.chain(*lb.methods.adasgd().rules[:1], *HAND.rules[1:])),
        ("adasgd-every-step", lb.methods.adasgd(every=1, max=301, scaling=lb.LinearScaling())),
        ("adadam", lb.methods.adasgd()),
        ("adaptive-growth", lb.methods.adaptive_growth(delta=3.0)),
        ("adaptive-growth", lb.methods.adaptive_growth(kappa=2.0)),
        ("adaptive-growth", lb.methods.adaptive_growth(statistic="preconditioned_moments")),
        ("adaptive-growth", lb.methods.adaptive_growth(patience=2)),
        ("adaptive-growth", lb.methods.adaptive_growth(every=5)),
        ("seesaw", lb.methods.seesaw(kappa=2.0)),
        ("seesaw", lb.methods.seesaw(kappa=None)),
        ("seesaw", lb.methods.seesaw(cut=1.2)),
        ("seesaw", lb.methods.smith(kappa=1.0)),
        ("smith", lb.methods.smith(kappa=1.0)),
        ("adascale-every-5", lb.methods.adascale(every=4)),
        ("adascale-every-5", lb.methods.adascale()),
        ("adascale", lb.methods.adascale(every=5)),
        ("adascale", lb.AdaScale(window=999.0)),
    ],
)
def test_another_rule_is_refused_by_name(name: str, rule: lb.Rule, tmp_path: Path) -> None:
    with pytest.raises(lb.errors.CheckpointError, match="was saved with rule"):
        resume_as(f"methods/{name}", rule, tmp_path)


def stored(
    name: str, folder: Path, edit: Callable[[str], str], *, state: Callable[[str], str] = str
) -> tuple[Any, dict[str, Any]]:
    """Return the first step of a record, and its saved state with another rule or state."""
    first = old_files.record_named(name, folder).steps[0].seen
    saved = STATES[name]["state"]
    return first, old_files.signed(
        {**saved, "rule": edit(saved["rule"]), "state": state(saved["state"])}
    )


@pytest.mark.parametrize(
    ("name", "was", "edited", "rule"),
    [
        ("adasgd", '"steps":10', '"steps":1', lb.methods.adasgd(every=1)),
        ("adasgd", '"window":1000.0', '"window":500.0', lb.methods.adasgd()),
        ("adasgd", '"shrink":1.0', '"shrink":0.9', lb.methods.adasgd()),
        ("adasgd", '"unbiased"', '"plug-in"', lb.methods.adasgd()),
        ("adasgd", '"finite_population":false', '"finite_population":true', lb.methods.adasgd()),
        ("adaptive-growth", '"window":1000.0', '"window":500.0', lb.methods.adaptive_growth()),
        ("adascale-every-5", '"window":1000.0', '"window":500.0', lb.methods.adascale(every=5)),
        ("adascale-every-5", '"steps":5', '"steps":1', lb.methods.adascale()),
    ],
)
def test_a_chain_by_hand_is_not_taken_for_a_methods(
    name: str, was: str, edited: str, rule: lb.Rule, tmp_path: Path
) -> None:
    def edit(text: str) -> str:
        assert was in text
        return text.replace(was, edited)

    first, state = stored(f"methods/{name}", tmp_path, edit)
    with pytest.raises(lb.errors.CheckpointError, match="was saved with rule"):
        old_files.resumed_run(old_files.started(rule, first), state)


def test_a_method_within_a_longer_chain_resumes(tmp_path: Path) -> None:
    more = ',{"kind":"ClampLr","min":0.0,"max":4.0}]}'
    first, state = stored(
        "methods/adasgd",
        tmp_path,
        lambda rule: rule.removesuffix("]}") + more,
        state=lambda text: text.removesuffix("]") + ",null]",
    )
    rule = lb.chain(lb.methods.adasgd(), lb.ClampLr(max=4.0))
    assert old_files.resumed_run(old_files.started(rule, first), state).decider.rule == rule
    with pytest.raises(lb.errors.CheckpointError, match="ClampLr"):
        other = lb.chain(lb.methods.adasgd(), lb.ClampLr(max=5.0))
        old_files.resumed_run(old_files.started(other, first), state)


def test_a_slowly_growing_method_resumes_with_its_longer_table(tmp_path: Path) -> None:
    old = json.dumps([2.0**m for m in range(21)]).replace(" ", "")
    slow = json.dumps([1.5**m for m in range(21)]).replace(" ", "")
    first, state = stored("methods/adaptive-growth", tmp_path, lambda rule: rule.replace(old, slow))
    rule = lb.methods.adaptive_growth(delta=1.5)
    assert old_files.resumed_run(old_files.started(rule, first), state).decider.rule == rule
    with pytest.raises(lb.errors.CheckpointError, match="was saved with rule"):
        faster = lb.methods.adaptive_growth(delta=1.6)
        old_files.resumed_run(old_files.started(faster, first), state)


def test_a_noise_bound_by_hand_is_not_taken_for_seesaws(tmp_path: Path) -> None:
    clamp = (
        '{"kind":"Chain","rules":[{"kind":"LinearScaling"},{"kind":"Every","rule":'
        '{"kind":"Averaged","rule":{"kind":"ClampToNoiseScale","kappa":1.0},"window":1000.0,'
        '"statistic":"moments"},"steps":10}]}'
    )
    averages = (
        '{"average":{"values":[1.0,1.0],"weight":1.0,"count":1},"measured_at":1,"temporal":false}'
    )
    first, state = stored(
        "rules/clamp-to-noise-scale",
        tmp_path,
        lambda _: clamp,
        state=lambda _: f'[null,[{averages},{{"noise_scale":2.0}}]]',
    )
    by_hand = lb.chain(
        lb.LinearScaling(), lb.Every(lb.Averaged(lb.rules.ClampToNoiseScale()), steps=10)
    )
    one_warning([old_files.resumed_run(old_files.started(by_hand, first), state).notice])
    clamped = lb.rules.ClampToNoiseScale(statistic="preconditioned_moments")
    other = lb.chain(lb.LinearScaling(), lb.Every(clamped, steps=10, first=10))
    with pytest.raises(lb.errors.CheckpointError, match="was saved with rule"):
        old_files.resumed_run(old_files.started(other, first), state)


@pytest.mark.parametrize("text", ["null", "[]", "[1,2,3]", "[null,null,null]", '{"a":1}', "[[1]]"])
def test_a_state_of_another_form_is_refused_as_damaged(text: str, tmp_path: Path) -> None:
    first, state = stored("methods/adaptive-growth", tmp_path, str, state=lambda _: text)
    with pytest.raises(lb.errors.CheckpointError, match="corrupted"):
        begun = old_files.started(lb.methods.adaptive_growth(), first)
        old_files.resumed_run(begun, state)


@pytest.mark.parametrize(
    "rules",
    [
        "1",
        "null",
        '[{"kind":"Every"}]',
        '[{"kind":"Every"},{"kind":"SqrtScaling"}]',
        '["x",{"kind":1}]',
        '[{"kind":"Averaged"},{"kind":"SqrtScaling"}]',
        '[{"kind":"Averaged","window":1000.0,"rule":{"kind":"NormTest"}},{"kind":"SqrtScaling"}]',
        '[{"kind":"FullGradientGrowth","stages":3},{"kind":"SqrtScaling"}]',
    ],
)
def test_a_rule_of_another_form_is_refused(rules: str, tmp_path: Path) -> None:
    first, state = stored(
        "methods/adaptive-growth", tmp_path, lambda _: f'{{"kind":"Chain","rules":{rules}}}'
    )
    with pytest.raises(lb.errors.CheckpointError, match="was saved with rule"):
        begun = old_files.started(lb.methods.adaptive_growth(), first)
        old_files.resumed_run(begun, state)


def test_a_state_from_before_the_first_step_warns_of_nothing(tmp_path: Path) -> None:
    first = old_files.record_named("methods/adascale", tmp_path).steps[0].seen
    begun = old_files.started(lb.methods.adascale(), first)
    state = old_files.signed({**old_files.saved_again(begun), "version": 1})
    assert old_files.resumed_run(begun, state).notice == ""
