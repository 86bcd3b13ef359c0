"""Which two rules may not stand in one chain: the table was written by 0.1.0 and stays.

`refused_pairs.json` holds for each pair, in this order, why `chain` refuses it: "first" or "second"
is the rule that the message names first, "bound batch" and "bound lr" is what the second rule would
propose after the first one has bounded it. A pair that the table lacks is accepted.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from largebatch import rules
from largebatch.core.rule import Rule, chain, label_of
from largebatch.rules.kinds import RULES

ARGUMENTS = {
    "Accordion": {"epochs": 1},
    "AnyTimeGrowth": {"coefficient": 1.0},
    "Legw": {"warmup_epochs": 1.0},
}
REFUSED: dict[str, dict[str, str]] = json.loads(
    (Path(__file__).parent / "refused_pairs.json").read_text()
)
ACCEPTED = {"Observe"}
"""Rules of 0.1.0 that stand in a chain with every other one."""

EXAMPLES: dict[str, Rule] = {
    label_of(rule): rule
    for rule in (
        *[
            cls(**ARGUMENTS.get(name, {}))
            for name, cls in RULES.items()
            if name in REFUSED.keys() | ACCEPTED
        ],
        rules.Every(rules.AdaScale()),
        rules.Every(rules.NormTest()),
        rules.Every(rules.Hysteresis()),
        rules.Every(rules.Growth()),
        rules.Every(rules.StepClock()),
        rules.Every(chain(rules.LinearScaling(), rules.NormTest())),
        rules.Every(chain(rules.NormTest(), rules.Hysteresis())),
        rules.Every(rules.Averaged(rules.NormTest())),
        rules.Every(rules.AutoWarmUp()),
        rules.Averaged(rules.AdaScale()),
        rules.Averaged(rules.NormTest()),
        rules.Averaged(chain(rules.AdaScale(), rules.ClampLr())),
        rules.AutoWarmUp(after=rules.AdaScale()),
        rules.AutoWarmUp(after=rules.NormTest()),
        rules.AutoWarmUp(after=rules.Growth()),
        rules.AutoWarmUp(after=chain(rules.SqrtScaling(), rules.NormTest(), rules.ClampBatch())),
    )
}


def refusal(first: str, second: str) -> str:
    """Return why a chain of two examples is refused, as the table has it; "" if it is accepted."""
    try:
        chain(EXAMPLES[first], EXAMPLES[second])
    except ValueError as error:
        message = str(error)
    else:
        return ""
    for name, pair in {"first": (first, second), "second": (second, first)}.items():
        if message.startswith(
            f"{pair[0]} and {pair[1]} cannot be in one chain, because both would change the same "
            "value for the same reason. Keep only one of them: lb.chain("
        ):
            return name
    for what in ("batch", "lr"):
        if message.startswith(
            f"{second} comes after {first} in the chain and would undo the bound on {what!r}."
        ):
            return f"bound {what}"
    return message


@pytest.mark.parametrize("first", EXAMPLES)
def test_the_same_pairs_are_refused_with_the_same_messages_as_in_0_1_0(first: str) -> None:
    found = {second: why for second in EXAMPLES if (why := refusal(first, second))}
    assert found == REFUSED.get(first, {})


def test_every_row_of_the_table_is_compared() -> None:
    assert set(REFUSED) | ACCEPTED == set(EXAMPLES)
