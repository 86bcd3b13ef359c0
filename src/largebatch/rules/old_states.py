"""Resume runs that version 0.1 saved, with the rules of today.

Since version 0.2, running averages count base batches (`MovingMoments`), and rules that compare the
batch with the noise scale keep averages themselves. The chains that `lb.methods` builds therefore
contain other rules, and some states have another form:

    Averaged(NormTest(denominator="unbiased")), LimitGrowth(shrink=1.0)
            -> NormTest(denominator="unbiased"), LimitGrowth(shrink=0.5, over=k, to_base=True)
    Averaged(AdaptiveGrowth())      -> AdaptiveGrowth()
    Growth(), Averaged(ClampToNoiseScale())
                            -> Growth(), ClampToNoiseScale(statistic="preconditioned_moments")
    Every(rule, steps=k)            -> Every(rule, steps=k, first=k)

The default window of `Averaged` was 1000 gradients; today it is 100 base batches. When a run of
version 0.1 is resumed, the averages start again, and all other states are kept.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from largebatch.core.codec import encode
from largebatch.core.errors import RecordError
from largebatch.core.moving_moments import WINDOW, MovingMoments
from largebatch.core.revived import Revived
from largebatch.core.rule import Chain, Rule, name_of, within
from largebatch.rules.adaptive_growth import AdaptiveGrowthState
from largebatch.rules.adascale import AdaScale
from largebatch.rules.bounds import GrowthWindow
from largebatch.rules.cabs import CABSState
from largebatch.rules.covering_stages import covering_stages
from largebatch.rules.stages import growing_stages

AVERAGES = (MovingMoments, CABSState)
"""States that contain running averages and nothing else."""

OLD_WINDOW = 1000.0
"""Default window of `Averaged` in version 0.1, in gradients."""

STAGES = 21
"""Number of stages in version 0.1, for the methods in which a measurement ends each stage."""

Plain = dict[str, Any]


def revive(saved: Any, rule: Chain, state: Any) -> Revived | None:
    """Return the state of a run of version 0.1 in today's form, or None if the run had another
    rule.

    Args:
        saved: The saved chain as plain values, after `codec.renewed`.
        rule: The chain of today, built from the same rules as the saved chain, or by the same call
            of `lb.methods`.
        state: The saved state as plain values.

    Raises:
        RecordError: If the state does not belong to the saved chain.
    """
    here = encode(rule, kind=True)
    rules = saved.get("rules") if _kind(saved) == "Chain" else None
    if not isinstance(rules, list) or not same_method(rules, here["rules"]):
        return None
    if not isinstance(state, list) or len(state) != len(rule.rules):
        raise RecordError(
            f"The chain has {len(rule.rules)} rules, but the saved state is not a list of "
            f"{len(rule.rules)} states: {state!r:.80}. Load the checkpoint of this run."
        )
    states = []
    for old, today, new, one in zip(rules, here["rules"], rule.rules, state, strict=True):
        if _is_averaged(old) and not _is_averaged(today):
            one = one[1] if isinstance(one, list) and len(one) == 2 else None
        states.append(_begun(new.init(), one))
    return Revived(state=states, anew=averaging_names(rule))


def same_method(saved: Sequence[Any], here: Sequence[Any]) -> bool:
    """Return whether the same method built the rules `saved` in version 0.1 and builds the rules
    `here` today.

    Rules that do not come from a changed method must be equal.

    >>> same_method([{"kind": "SqrtScaling"}], [{"kind": "LinearScaling"}])
    False

    Args:
        saved: Rules of the saved chain, as plain values.
        here: Rules of today's chain, as plain values.
    """
    if len(saved) != len(here):
        return False
    at = 0
    while at < len(saved):
        today = [_windowed(saved[at])]
        if here[at] not in (saved[at], *today):
            today = _today(saved[at:], before=saved[at - 1] if at else None)
            if not today or list(here[at : at + len(today)]) != today:
                return False
        at += len(today)
    return True


def averages(rule: Rule) -> bool:
    """Return whether a rule, or a rule within it, decides by running averages.

    Since version 0.2 the averages count base batches, so a rule with running averages decides
    differently than in version 0.1.

    >>> averages(AdaScale()), averages(Chain())
    (True, False)
    """
    return any(_has_averages(one.init()) for one in within(rule))


def averaging_names(rule: Rule) -> tuple[str, ...]:
    """Return the names of the innermost rules within a rule that decide by running averages.

    >>> averaging_names(Chain((AdaScale(),)))
    ('AdaScale',)
    """
    found = [one for one in within(rule) if averages(one)]
    inner = [one for one in found if not any(averages(i) for i in list(within(one))[1:])]
    return tuple(dict.fromkeys(map(name_of, inner)))


def _has_averages(state: Any) -> bool:
    """Return whether a state contains running averages."""
    if isinstance(state, tuple):
        return any(map(_has_averages, state))
    return isinstance(state, (*AVERAGES, AdaptiveGrowthState))


def _begun(template: Any, state: Any) -> Any:
    """Return a saved state in the form of today's first state, with empty averages."""
    if isinstance(template, AVERAGES) or (isinstance(template, GrowthWindow) and state is None):
        return encode(template)
    if isinstance(template, tuple) and isinstance(state, list) and len(template) == len(state):
        return [_begun(t, s) for t, s in zip(template, state, strict=True)]
    return state


def _today(rules: Sequence[Any], *, before: Any) -> list[Any]:
    """Return the rules of today that replace the first one or two of the old `rules`, or [] if no
    rule replaces the old rules.

    Args:
        rules: Rules of a chain of version 0.1, from any rule of the chain to the last rule.
        before: The rule before the first of `rules`; None if the chain begins with `rules`.
    """
    first, steps = rules[0], 1
    if _kind(first) == "Every":
        steps = first.get("steps")
        if steps == 1 or first.get("first") != 0:
            return []
    test = _unspaced(first)
    try:
        today = _rule_today(test, spaced=test is not first, before=before)
    except (KeyError, TypeError):  # a user's own class of the same name has other fields
        return []
    if today is None:
        return []
    spaced = today if steps == 1 else {**first, "rule": today, "first": steps}
    if _kind(today) != "NormTest":
        return [spaced]
    limit = rules[1] if len(rules) > 1 else {}
    if _kind(limit) != "LimitGrowth" or (limit.get("shrink"), limit.get("over")) != (1.0, 1):
        return []
    return [spaced, {**limit, "shrink": 0.5, "over": steps, "to_base": True}]


def _rule_today(rule: Any, *, spaced: bool, before: Any) -> Plain | None:
    """Return the rule that a method uses today instead of an old rule, or None if no method
    replaced the old rule."""
    if _kind(rule) == "FullGradientGrowth" and not spaced:
        return {**rule, "stages": _covering(rule["stages"])}
    if spaced and rule == encode(AdaScale(), kind=True):
        return dict(rule)
    if _kind(rule) != "Averaged" or rule["window"] != OLD_WINDOW:
        return None
    inner: Plain = rule["rule"]
    if _kind(inner) == "NormTest":
        sound = (inner["denominator"], inner["finite_population"]) == ("unbiased", False)
        return inner if sound and inner["statistic"] == rule["statistic"] else None
    if rule["statistic"] != "moments" or inner.get("statistic") != "moments":
        return None
    if _kind(inner) == "AdaptiveGrowth":
        return {**inner, "stages": _covering(inner["stages"])}
    of_seesaw = _kind(inner) == "ClampToNoiseScale" and _kind(before) == "Growth"
    return {**inner, "statistic": "preconditioned_moments"} if of_seesaw else None


def _covering(stages: Plain) -> Plain:
    """Return the stages that today's method uses in place of the 21 stages of version 0.1."""
    batch, lr = stages["batch"], stages["lr"]
    if len(batch) != STAGES:
        return stages
    factors = {"delta": batch[1] / batch[0], "gamma": lr[1] / lr[0] if lr else 1.0}
    if encode(growing_stages(STAGES, **factors)) != stages:
        return stages
    try:
        today: Plain = encode(covering_stages(**factors))
    except ValueError:  # a growth so slow that today's method rejects it
        return stages
    return today


def _windowed(rule: Any) -> Any:
    """Return a rule in which each `Averaged` with the old default window has today's default."""
    if isinstance(rule, list):
        return [_windowed(one) for one in rule]
    if not isinstance(rule, Mapping):
        return rule
    items = {name: _windowed(one) for name, one in rule.items()}
    default = _kind(rule) == "Averaged" and rule.get("window") == OLD_WINDOW
    return {**items, "window": WINDOW} if default else items


def _is_averaged(rule: Any) -> bool:
    """Return whether a rule in plain values is `Averaged`, with or without `Every` around it."""
    return bool(_kind(_unspaced(rule)) == "Averaged")


def _unspaced(rule: Any) -> Any:
    """Return the rule inside `Every`, or the rule itself if `Every` does not wrap it."""
    return rule.get("rule") if _kind(rule) == "Every" else rule


def _kind(rule: Any) -> Any:
    """Return the class name in a rule of plain values, or None if the rule has no class name."""
    return rule.get("kind") if isinstance(rule, Mapping) else None
