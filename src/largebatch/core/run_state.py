"""Save and restore a run's control as plain values, which a checkpoint stores next to the model."""

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
"""Version of the saved form. A change in the meaning of a field needs a new version."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunState:
    """Hold a run's rule, the rule's state and the run's counters before the next training step.

    Values of no fixed shape (rule, state, budget, decision) are stored as JSON text. So every state
    has the same keys, which torch.distributed.checkpoint requires.

    Args:
        version: Version of the saved form.
        rule: Rule of the run.
        base_batch_size: Base batch size in samples.
        dataset_size: Number of samples in one epoch, or None if it is unknown.
        budget: Length of the run.
        step: Number of optimizer steps taken.
        samples: Number of training samples used over all ranks.
        base_steps: Number of base steps that the run counts as so far.
        skipped: Number of training steps skipped because loss or gradient was not finite.
        lost_in_a_row: Number of training steps skipped since the last training step with a finite
            loss and gradient.
        batch_size: Batch size of the next training step, in samples over all ranks.
        measure: Names of the statistics to measure in the next training step.
        state: States of the rules.
        decision: Last decision.
        digest: Checksum of all other fields.
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
    """Hold what a resumed run starts from.

    Args:
        decider: Decider with the saved rule, state and counters.
        decision: Last decision before the run was saved, or None if the run was saved before its
            first decision.
        lost_in_a_row: Number of training steps skipped since the last training step with a finite
            loss and gradient.
        notice: Warning for the user about a state that an earlier version saved, or "".
    """

    decider: Decider
    decision: Decision | None
    lost_in_a_row: int
    notice: str = ""


def state_of(decider: Decider, *, decision: Decision | None, lost_in_a_row: int) -> dict[str, Any]:
    """Return the plain values that `resume` reads, under the same keys for all runs.

    The values are numbers, None and text.

    Args:
        decider: Decider before the next training step.
        decision: Last decision, or None before the first training step.
        lost_in_a_row: Number of training steps skipped since the last training step with a finite
            loss and gradient.
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
    """Return the decider that continues a saved run.

    Args:
        decider: Decider of the new run, built with the same arguments as the saved run. The new run
            may have another number of ranks than the saved run, and the new run's budget may be
            None.
        plain: Plain values that `state_of` returned.
        kinds: Class names, each with its dataclass or function, as in `decode`. The class names are
            needed for a state that an earlier version saved.
        revive: Function that converts the rules' states of version 1, or None to read the states
            unchanged.

    Raises:
        CheckpointError: The saved state and the new run differ in rule, version, data set, base
            batch size or budget, or the saved state is corrupted or truncated.
    """
    saved = _read(plain)
    own = {name_of(rule): type(rule) for rule in within(decider.rule)}  # includes a user's rules
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
            f"The control's state has the format version {version}, but this version of largebatch "
            f"reads only the format versions {COUNTED_GRADIENTS} and {VERSION}. Resume with the "
            "version of largebatch that saved the state, or start a new run from the model's "
            "weights."
        )
    _check_kind(plain)
    try:
        saved: RunState = decode(RunState, plain, where="the control's state")
        sound = saved.digest == checksum(saved)
    except (RecordError, OverflowError, RecursionError) as error:
        raise _damaged(str(error)) from None
    sound = sound and min(saved.step, saved.samples, saved.skipped, saved.lost_in_a_row) >= 0
    if not (sound and saved.batch_size >= 1 and 0.0 <= saved.base_steps < math.inf):
        raise _damaged("its checksum does not match its values")
    return saved


def _check_kind(plain: Any) -> None:
    """Raise an error if a value is neither a control's state nor a truncated control's state."""
    names = RunState.__dataclass_fields__.keys()
    if isinstance(plain, Mapping) and 2 * len(names & plain.keys()) >= len(names):
        return
    what = type(plain).__name__
    if isinstance(plain, Mapping):
        what += f" with the keys {list(plain)[:3]}" if plain else " without keys"
    raise CheckpointError(
        f"Expected the result of control.state_dict(), but got a {what}. Load the state that "
        'control.state_dict() returned: control.load_state_dict(saved["control"]).'
    )


def _check_same_run(decider: Decider, saved: RunState) -> None:
    here = {"base_batch_size": decider.base_batch_size, "dataset_size": decider.dataset_size}
    for name, value in here.items():
        there = getattr(saved, name)
        if there != value:
            raise _of_another_run(name, there=there, here=value)


def _revived(decider: Decider, saved: RunState, *, kinds: Kinds, revive: Revive | None) -> Revived:
    """Return the saved state in today's form. Raise an error if the saved rule is not the run's
    rule.
    """
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
    """Return an earlier version's rule as this version writes it, or None if it is unreadable."""
    try:
        return renewed(json.loads(there), kinds=kinds)
    except (ValueError, RecursionError, RecordError):
        return None


def _of_another_run(name: str, *, there: Any, here: Any) -> CheckpointError:
    return CheckpointError(
        f"The control's state was saved with {name}={there}, but this run has {name}={here}. A "
        "resumed run must have the same settings. Build the run with the saved value, or start a "
        "new run."
    )


def _text(plain: Any) -> str:
    return json.dumps(plain, separators=(",", ":"), allow_nan=False)


def _damaged(cause: str) -> CheckpointError:
    return CheckpointError(
        f"The control's state is corrupted or truncated: {cause.rstrip('.'):.300}. Load the "
        "previous checkpoint."
    )
