"""Reads what version 0.1.0 wrote. Only this file names modules inside the package.

If a module moves, change the imports below and nothing else in this folder.
"""

from __future__ import annotations

import gzip
import json
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import largebatch as lb
from largebatch.core.codec import checksum, decode
from largebatch.core.decider import Decider
from largebatch.core.measurement import Reading
from largebatch.core.moving_moments import MovingMoments
from largebatch.core.run_state import Resumed, RunState, resume, state_of
from largebatch.core.scalars import averaged, noise_scale_of
from largebatch.rules.kinds import KINDS, KINDS_TO_RESUME
from largebatch.rules.old_states import averages, revive
from largebatch.workbench.runs.train import train as train_workload
from largebatch.workbench.workloads import Data, Workload

__all__ = [
    "Data",
    "Decider",
    "Reading",
    "Resumed",
    "Workload",
    "averaged",
    "averages",
    "noise_scale_of",
    "train_workload",
]

FOLDER = Path(__file__).parent / "0.1.0"

STATES: dict[str, dict[str, Any]] = {
    line["name"]: line
    for line in map(json.loads, (FOLDER / "states.jsonl").read_text().splitlines())
}
"""Name of a record -> the step `cut` at which a run was saved, and its saved `state`."""

RUNS: dict[str, Any] = json.loads((FOLDER / "runs.json").read_text())
"""Name of a real run -> what followed after its checkpoint."""

DECISIONS: Mapping[str, Any] = {
    line["name"]: line
    for line in map(json.loads, (FOLDER.parent / "decisions.jsonl").read_text().splitlines())
}
"""Name of a record whose averages have changed -> what was decided about it after that."""

METHODS: Mapping[str, Callable[[], lb.Rule]] = {
    **{name: method.rule for name, method in lb.methods.METHODS.items()},
    "adascale-every-5": lambda: lb.methods.adascale(every=5),
    "adaptive-growth-often": lambda: lb.methods.adaptive_growth(kappa=0.3, patience=1, every=3),
    "adasgd-every-step": lambda: lb.methods.adasgd(every=1, max=300, scaling=lb.LinearScaling()),
    "batch-ramp": lambda: lb.methods.batch_ramp(start=64, increment=32, samples=4000, size=256),
    "batch-steps": lambda: lb.methods.batch_steps("0:64 1K:96 2.5K:400"),
    "full-gradient-growth-often": lambda: lb.methods.full_gradient_growth(
        eps0=1.2, check=3, max=400
    ),
    "linear-growth": lambda: lb.methods.linear_growth(),
    "warmup-growth": lambda: lb.methods.warmup_growth(),
}
"""Name of a record in `methods` -> the call that built its rule in 0.1.0 and builds it today."""

SAID_ONCE = "saved by largebatch 0.1"
"""In the warning of a run that resumes from 0.1.0."""

AVERAGING = frozenset(
    {
        "AdaScale",
        "AdaptiveGrowth",
        "Averaged",
        "CABS",
        "ClampToNoiseScale",
        "CosineTest",
        "GradientDiversity",
        "NoiseScaleControl",
    }
)
"""The kinds of 0.1.0 that decide by running averages today. In version 0.2 these count base
batches, so their decisions differ from those of 0.1.0. All other kinds decide the same to the bit,
but for `NormTest(denominator="unbiased")`, which averages today."""

REWORDED: Mapping[str, str | None] = {
    "cosine": "noise",
    "diversity": "noise",
    "rate": "decay",
}
"""First word of a reason of 0.1.0 -> the first word of the same reason today, or None if the
reason is no longer given. Add a line here when a reason gets another first word."""


def key_of(reason: str, *, renamed: Mapping[str, str | None] | None = None) -> tuple[str, ...]:
    """Return the key of a decision's reason: the first word of each of its parts.

    The rules of a chain join their parts by "; ". The first word of a part says which formula
    spoke ("gain", "theta", "schedule", "batch"); the rest is numbers and explanation. So the words
    after the first one may change without changing the key.

    >>> key_of("gain 3.1 of 8; schedule x0.5; batch 64 bounded to 32")
    ('gain', 'schedule', 'batch')

    Args:
        reason: of a decision.
        renamed: first words to replace, as in `REWORDED`.
    """
    words = [match.group() for part in reason.split("; ") if (match := re.match(r"[\w-]+", part))]
    keys = [(renamed or {}).get(word, word) for word in words]
    return tuple(key for key in keys if key is not None)


def facts_of(decision: lb.Decision, *, old: bool = False) -> dict[str, Any]:
    """Return what is compared of a decision: its numbers, statistics and the key of its reason.

    Args:
        decision: to compare.
        old: whether 0.1.0 took it, so that its reason's words are those of 0.1.0.
    """
    return {
        "next_batch_size": decision.next_batch_size,
        "lr_multiplier": decision.lr_multiplier,
        "base_steps": decision.base_steps,
        "measure_next": sorted(decision.measure_next),
        "reason": key_of(decision.reason, renamed=REWORDED if old else None),
    }


def record_named(name: str, folder: Path) -> Any:
    """Return the record of this name, unpacked into `folder` and read."""
    path = folder / "record.jsonl"
    path.write_bytes(gzip.decompress((FOLDER / "records" / f"{name}.jsonl.gz").read_bytes()))
    return lb.read_record(path)


def rule_of(header: Mapping[str, Any]) -> lb.Rule:
    """Return the rule that a record's header names."""
    rule: lb.Rule = decode(lb.Rule, header["rule"], kinds=KINDS, where="the header's rule")
    return rule


def kinds_in(plain: Any) -> Iterator[str]:
    """Yield each kind that is named anywhere in plain values."""
    if isinstance(plain, Mapping):
        yield from ([plain["kind"]] if "kind" in plain else [])
        for value in plain.values():
            yield from kinds_in(value)
    elif isinstance(plain, list):
        for value in plain:
            yield from kinds_in(value)


def started(rule: lb.Rule, first: lb.Measurement) -> Decider:
    """Return a run built anew, as it was before the first step of a record."""
    return Decider.start(
        rule,
        base_batch_size=first.base_batch_size,
        batch_size=first.batch_size,
        ranks=first.ranks,
        dataset_size=first.dataset_size,
        budget=first.budget,
    )


def resumed(decider: Decider, state: Mapping[str, Any]) -> Decider:
    """Return the run at the step at which `state` was saved."""
    return resumed_by_hand(decider, state).decider


def resumed_by_hand(decider: Decider, state: Mapping[str, Any]) -> Resumed:
    """Return what a run resumes from whose rule has the fields that were saved."""
    return resume(decider, state, kinds=KINDS, revive=revive)


def resumed_run(decider: Decider, state: Mapping[str, Any]) -> Resumed:
    """Return what a control resumes from, whose rule was built by today's version."""
    return resume(decider, state, kinds=KINDS_TO_RESUME, revive=revive)


def saved_again(decider: Decider) -> dict[str, Any]:
    """Return the state of a run as this version saves it."""
    return state_of(decider, decision=None, lost_in_a_row=0)


def written(plain: Any) -> str:
    """Return plain values as a state has them."""
    return json.dumps(plain, separators=(",", ":"))


def averages_in(state: Mapping[str, Any]) -> MovingMoments:
    """Return the loggers' averages in a checkpoint of `largebatch train`."""
    plain = json.loads(state["log"])["moments"]
    moments: MovingMoments = decode(MovingMoments, plain)
    return moments


def signed(state: Mapping[str, Any]) -> dict[str, Any]:
    """Return a saved state that was edited, as if it had been saved so."""
    plain = {**state, "digest": checksum(decode(RunState, dict(state)))}
    return plain


def warned(run: Callable[[], Any]) -> tuple[Any, list[str]]:
    """Return what a function returns, and the warnings that it gave."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = run()
    return result, [str(one.message) for one in caught]


def one_warning(told: list[str]) -> str:
    """Return the only warning of a resumed run, whose averages begin anew."""
    (text,) = told
    for part in (SAID_ONCE, "count base batches now", "do not need to do anything"):
        assert part in text
    return text


def has_averages(plain: Any) -> bool:
    """Return whether a rule of 0.1.0 in plain values decides by running averages today."""
    if isinstance(plain, Mapping):
        kind = plain.get("kind")
        unbiased = kind == "NormTest" and plain["denominator"] == "unbiased"
        return unbiased or kind in AVERAGING or any(map(has_averages, plain.values()))
    return isinstance(plain, list) and any(map(has_averages, plain))


def columns(found: Iterable[lb.Decision]) -> dict[str, list[Any]]:
    """Return what is compared of decisions, each fact as the list of its values."""
    facts = [facts_of(decision) for decision in found]
    return {name: [fact[name] for fact in facts] for name in facts[0]}


def decided_anew(name: str, folder: Path) -> dict[str, Any]:
    """Return what is decided today about a record of 0.1.0.

    Args:
        name: of the record.
        folder: where it is unpacked.

    Returns:
        replayed: the whole record by the rule that its header names.
        resumed: the rest of it, from its saved state on.
        method: the same by the rule that today's method builds; only for records of methods.
    """
    record = record_named(name, folder)
    rule, cut = rule_of(record.header), STATES[name]["cut"]
    found = {"name": name, "replayed": columns(lb.replay(rule, record))}
    state, rest = STATES[name]["state"], record.steps[cut:]
    begun = {"resumed": resumed(started(rule, record.steps[0].seen), state)}
    if name.startswith("methods/"):
        method = METHODS[name.removeprefix("methods/")]()
        begun["method"] = resumed_run(started(method, record.steps[0].seen), state).decider
    for how, decider in begun.items():
        found[how] = columns(decision for _, decision in decisions(decider, rest))
    return json.loads(json.dumps(found))  # type: ignore[no-any-return]


def decisions(decider: Decider, steps: Iterable[Any]) -> Iterator[tuple[Decider, lb.Decision]]:
    """Yield the run before each step, and what it decides there."""
    for seen, _ in steps:
        after, decision = decider.decide(seen)
        yield decider, decision
        decider = after


def samples_of(loader: lb.BatchLoader, *, steps: int) -> list[list[list[int]]]:
    """Return the samples of each micro-batch of the coming steps, and take these steps."""
    taken = []
    for _ in range(steps):
        step = loader.next_step()
        assert step is not None
        micro_batches = list(step)
        loader.commit(sum(size for _, size in micro_batches))
        taken.append([[int(i) for i in samples.flatten()] for samples, _ in micro_batches])
    return taken


def bound(loader: lb.BatchLoader) -> lb.BatchLoader:
    """Return the loader, ready to give steps to one process."""
    loader.bind(rank=0, ranks=1, least_parts=1)
    return loader
