"""What a report says of a record in words: the run's settings, what it came to, and notes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from largebatch.analysis.noise import estimate_noise
from largebatch.core.measurement import GradientMoments
from largebatch.record import Record, Step
from largebatch.workbench.reports.old_records import recorded_note

NOISE = "noise scale"
ADAM_NOISE = "noise scale as Adam sees it"
"""Of the gradient divided by Adam's sqrt(v) + eps, the one that adascale-adam measures."""


def facts_of(record: Record) -> dict[str, str]:
    """Label -> text, always the same labels; empty where the record does not say."""
    sound = [step for step in record.steps if step.seen.finite]
    header, last = record.header, sound[-1] if sound else None
    steps, samples, base_steps = places_of(last) if last else (0.0, 0.0, 0.0)
    tail = [step.seen.loss for step in sound[-max(len(sound) // 20, 1) :]]
    losses = [loss for loss in tail if loss is not None]
    settings = {
        "method": header.get("method", _rule(header.get("rule"))),
        "workload": header.get("workload"),
        "scale": header.get("scale"),
        "seed": header.get("seed"),
        "base rate": header.get("lr"),
        "clipping norm": header.get("clip_norm"),
        "base batch": header.get("base_batch_size"),
        "processes": header.get("ranks"),
    }
    return {
        **{name: "" if value is None else str(value) for name, value in settings.items()},
        "batch": _range([step.seen.batch_size for step in sound]),
        "steps": f"{steps:.0f}",
        "samples": f"{samples:.0f}",
        "base steps": f"{base_steps:.1f}",
        **_mean_worth(sound),
        "skipped": str(len(record.steps) - len(sound)),
        "loss, last 5 % of steps": f"{math.fsum(losses) / len(losses):.4g}" if losses else "",
        **_noises(sound),
    }


def places_of(step: Step) -> tuple[float, float, float]:
    """The clocks after a step: steps, samples, base steps."""
    seen, decision = step
    return (
        float(seen.step + 1),
        float(seen.samples + seen.batch_size),
        seen.base_steps + decision.base_steps,
    )


def moments_of(step: Step, name: str) -> GradientMoments | None:
    """What a step measured for the noise scale of this name."""
    return step.seen.preconditioned_moments if name == ADAM_NOISE else step.seen.moments


def series_of(steps: Sequence[Step], name: str) -> list[tuple[float, float]]:
    """(variance, sqnorm) for the noise scale of this name, of each step that measured them."""
    moments = [moments_of(step, name) for step in steps]
    return [(m.variance, m.sqnorm) for m in moments if m is not None]


def notes_of(record: Record) -> tuple[str, ...]:
    """Return what a reader should know about the file."""
    notes = []
    if record.damage:
        notes.append(f"Damaged: {record.damage} Only the steps before it are shown.")
    if record.truncated:
        notes.append("The last line was cut by a crash and is left out.")
    if record.redone:
        notes.append(f"A resumed run took {record.redone} steps again; the later ones are shown.")
    old = recorded_note(record)
    if old:
        notes.append(old)
    return tuple(notes)


def _mean_worth(steps: Sequence[Step]) -> dict[str, str]:
    """Return what a step is worth in base steps: a gain, or the scale if the clock is the scale."""
    if not steps:
        return {"mean gain": "", "mean scale": ""}
    mean = f"{places_of(steps[-1])[2] / len(steps):.2f}"
    own = any(
        not math.isclose(decision.base_steps, seen.scale, rel_tol=1e-9) for seen, decision in steps
    )
    return {"mean gain": mean if own else "", "mean scale": "" if own else mean}


def _noises(steps: Sequence[Step]) -> dict[str, str]:
    told = {}
    for name in (NOISE, ADAM_NOISE):
        series = series_of(steps, name)
        told[name] = str(estimate_noise(series)).removeprefix("noise scale ") if series else ""
    return told if any(told.values()) else {**told, NOISE: "not measured"}


def _range(sizes: Sequence[int]) -> str:
    if not sizes:
        return ""
    low, high = min(sizes), max(sizes)
    return str(low) if low == high else f"{low} to {high}"


def _rule(plain: object) -> str:
    """A rule's name from its plain form; a chain's are joined."""
    if not isinstance(plain, Mapping):
        return ""
    rules = plain.get("rules")
    if isinstance(rules, list):
        return ", ".join(_rule(rule) for rule in rules) or "no rule"
    return str(plain.get("kind", ""))
