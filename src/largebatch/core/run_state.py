"""A run's control as plain values: what a checkpoint keeps beside model and optimizer."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from largebatch.core.codec import Kinds, checksum, decode, decode_like, encode, renewed
from largebatch.core.decider import Decider
from largebatch.core.decision import Decision
from largebatch.core.errors import CheckpointError, RecordError
from largebatch.core.measurement import Budget
from largebatch.core.revived import COUNTED_GRADIENTS, Revive, Revived, notice_of, wanted
from largebatch.core.rule import name_of, within

VERSION = 2
"""Of the stored form; one with another version means other things."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunState:
    """Rule, state and clocks before the coming step.

    What has no fixed shape (a rule, its state, a budget, a decision) is JSON text: every state then
    has the same keys, which torch.distributed.checkpoint asks of what it loads into.

    Args:
        version: of this form.
        rule, base_batch_size, dataset_size, budget: what the run was started with.
        step, samples, base_steps, skipped: the clocks.
        lost_in_a_row: steps lost to non-finite values since the last sound one.
        batch_size: the wish for the coming step.
        measure: the statistics wanted in it.
        state: the rules' states.
        decision: the last one.
        digest: of all the others.
    """

    version: int
    rule: str
    base_batch_size: int
    dataset_size: int | None
    budget: str
    step: int
    samples: int
    base_steps: float
    skipped: int
    lost_in_a_row: int
    batch_size: int
    measure: str
    state: str
    decision: str
    digest: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Resumed:
    """What a run goes on from.

    Args:
        decider, decision, lost_in_a_row: as saved.
        notice: what the user is to know of a state that an earlier version saved; "" for nothing.
    """

    decider: Decider
    decision: Decision | None
    lost_in_a_row: int
    notice: str = ""


def state_of(decider: Decider, *, decision: Decision | None, lost_in_a_row: int) -> dict[str, Any]:
    """Plain values that `resume` reads: numbers, None and text, the same keys for every run.

    Args:
        decider: before the coming step.
        decision: the last one, None before the first.
        lost_in_a_row: steps lost to non-finite values since the last sound one.
    """
    state = RunState(
        version=VERSION,
        rule=_text(encode(decider.rule, kind=True)),
        base_batch_size=decider.base_batch_size,
        dataset_size=decider.dataset_size,
        budget=_text(encode(decider.budget)),
        step=decider.step,
        samples=decider.samples,
        base_steps=decider.base_steps,
        skipped=decider.skipped,
        lost_in_a_row=lost_in_a_row,
        batch_size=decider.batch_size,
        measure=_text(encode(decider.measure)),
        state=_text(encode(decider.state)),
        decision=_text(encode(decision)),
        digest=0,
    )
    plain: dict[str, Any] = encode(replace(state, digest=checksum(state)))
    return plain


def resume(
    decider: Decider,
    plain: Mapping[str, Any],
    *,
    kinds: Kinds | None = None,
    revive: Revive | None = None,
) -> Resumed:
    """Where a run goes on that was built anew as it was.

    Args:
        decider: of the run built anew; its ranks are kept, its budget must be the saved one if it
            has any.
        plain: what `state_of` gave.
        kinds: as in `decode`, for a state that names rules as an earlier version did.
        revive: for a state of version 1, whose rules had other states. None reads the states as
            they are.

    Raises:
        CheckpointError: a state of another rule, version, data set, base batch or budget, or one
            that is damaged or cut.
    """
    saved = _read(plain)
    own = {name_of(rule): type(rule) for rule in within(decider.rule)}  # a user's among them
    _check_same_run(decider, saved)
    try:
        revived = _revived(decider, saved, kinds={**own, **(kinds or {})}, revive=revive)
        state = decode_like(decider.rule.init(), revived.state, where="the rule's state")
        decision = decode(Decision | None, json.loads(saved.decision), where="the last decision")
        budget = decode(Budget | None, json.loads(saved.budget), where="the budget")
        measure = decode(frozenset[str], json.loads(saved.measure), where="the statistics")
    except (ValueError, RecursionError, RecordError) as error:
        raise _damaged(str(error)) from None
    if decider.budget not in (None, budget):
        raise _of_another_run("budget", there=saved.budget, here=_text(encode(decider.budget)))
    resumed = replace(
        decider,
        state=state,
        batch_size=saved.batch_size,
        measure=wanted(measure, version=saved.version, needs=decider.rule.needs),
        step=saved.step,
        samples=saved.samples,
        base_steps=saved.base_steps,
        skipped=saved.skipped,
        budget=budget,
    )
    return Resumed(
        decider=resumed,
        decision=decision,
        lost_in_a_row=saved.lost_in_a_row,
        notice=notice_of(revived.anew, step=saved.step),
    )


def _read(plain: Any) -> RunState:
    version = plain.get("version") if isinstance(plain, Mapping) else None
    if isinstance(version, int) and version not in (COUNTED_GRADIENTS, VERSION):
        raise CheckpointError(
            f"The control's state has version {version}, and this largebatch reads "
            f"{COUNTED_GRADIENTS} and {VERSION}: go on with the version that saved it, or start a "
            "new run from the model's weights."
        )
    _check_kind(plain)
    try:
        saved: RunState = decode(RunState, plain, where="the control's state")
        sound = saved.digest == checksum(saved)
    except (RecordError, OverflowError, RecursionError) as error:
        raise _damaged(str(error)) from None
    sound = sound and min(saved.step, saved.samples, saved.skipped, saved.lost_in_a_row) >= 0
    if not (sound and saved.batch_size >= 1 and 0.0 <= saved.base_steps < math.inf):
        raise _damaged("its values are not those that were written")
    return saved


def _check_kind(plain: Any) -> None:
    """Tells what was never a run's state from one that is cut."""
    names = RunState.__dataclass_fields__.keys()
    if isinstance(plain, Mapping) and 2 * len(names & plain.keys()) >= len(names):
        return
    what = type(plain).__name__
    if isinstance(plain, Mapping):
        what += f" with {', '.join(map(str, list(plain)[:3])) or 'nothing in it'}"
    raise CheckpointError(
        f"This is no state of a run's control but a {what}. Load what control.state_dict() gave, "
        'as in control.load_state_dict(saved["control"]).'
    )


def _check_same_run(decider: Decider, saved: RunState) -> None:
    here = {"base_batch_size": decider.base_batch_size, "dataset_size": decider.dataset_size}
    for name, value in here.items():
        there = getattr(saved, name)
        if there != value:
            raise _of_another_run(name, there=there, here=value)


def _revived(decider: Decider, saved: RunState, *, kinds: Kinds, revive: Revive | None) -> Revived:
    """Return the saved state in today's form, if the saved rule means that of the decider."""
    here = encode(decider.rule, kind=True)
    there = here if saved.rule == _text(here) else _renewed(saved.rule, kinds=kinds)
    if revive is not None and saved.version == COUNTED_GRADIENTS:
        revived = revive(there, decider.rule, json.loads(saved.state))
        if revived is not None:
            return revived
    elif there == here:
        return Revived(state=json.loads(saved.state), anew=())
    raise _of_another_run("rule", there=saved.rule, here=_text(here))


def _renewed(there: str, *, kinds: Kinds) -> Any:
    """Return the plain values of an earlier version's rule as this one writes them; None if they
    cannot be read."""
    try:
        return renewed(json.loads(there), kinds=kinds)
    except (ValueError, RecursionError, RecordError):
        return None


def _of_another_run(name: str, *, there: Any, here: Any) -> CheckpointError:
    return CheckpointError(
        f"The control's state was saved with {name} {there}, but this run has {here}: its "
        "decisions would mean something else. Build it as it was, or start a new run."
    )


def _text(plain: Any) -> str:
    return json.dumps(plain, separators=(",", ":"), allow_nan=False)


def _damaged(cause: str) -> CheckpointError:
    return CheckpointError(
        f"The control's state cannot be read: {cause.rstrip('.'):.300}. It is damaged or cut; take "
        "the checkpoint before it."
    )
