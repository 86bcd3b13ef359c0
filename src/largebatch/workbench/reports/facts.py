"""Collect the facts of a record for the summary of a report: settings, totals and notes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from largebatch.analysis.noise import estimate_noise
from largebatch.core.measurement import GradientMoments
from largebatch.record import Record, Step
from largebatch.workbench.reports.old_records import recorded_note

NOISE = "noise scale"
ADAM_NOISE = "noise scale, preconditioned gradient"
"""Noise scale of the gradient divided by Adam's sqrt(v) + eps, which adascale-adam measures."""


TAIL_LOSS = "training loss, mean of the last 5 % of steps"
TRUNCATED = "The last line of the record is incomplete, probably after a crash, and is left out."


def facts_of(record: Record) -> dict[str, str]:
    """Return the facts of a record by label; the labels are the same for all records.

    An unknown fact is an empty text.

    Args:
        record: Record of a run.
    """
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
        "base learning rate": header.get("lr"),
        "clipping norm": header.get("clip_norm"),
        "base batch size": header.get("base_batch_size"),
        "processes": header.get("ranks"),
        "recorded by": f"largebatch {header['version']}" if "version" in header else None,
    }
    return {
        **{name: "" if value is None else str(value) for name, value in settings.items()},
        "batch size": _range([step.seen.batch_size for step in sound]),
        "steps": f"{steps:,.0f}",
        "samples": f"{samples:,.0f}",
        "base steps": f"{base_steps:,.1f}" if measures_gain(sound) else "",
        **_mean_gain_or_scale(sound),
        "skipped steps": str(len(record.steps) - len(sound)),
        TAIL_LOSS: f"{math.fsum(losses) / len(losses):.4g}" if losses else "",
        **_noises(sound),
    }


def places_of(step: Step) -> tuple[float, float, float]:
    """Return the numbers of steps, samples and base steps up to and including a step."""
    seen, decision = step
    return (
        float(seen.step + 1),
        float(seen.samples + seen.batch_size),
        seen.base_steps + decision.base_steps,
    )


def moments_of(step: Step, name: str) -> GradientMoments | None:
    """Return the gradient moments that a step measured for `NOISE` or `ADAM_NOISE`, or None."""
    return step.seen.preconditioned_moments if name == ADAM_NOISE else step.seen.moments


def series_of(steps: Sequence[Step], name: str) -> list[tuple[float, float]]:
    """Return (variance, squared norm) for each step in which the noise scale was measured."""
    moments = [moments_of(step, name) for step in steps]
    return [(m.variance, m.sqnorm) for m in moments if m is not None]


def notes_of(record: Record) -> tuple[str, ...]:
    """Return remarks about the record file, as sentences."""
    notes = []
    if record.damage:
        notes.append(
            f"The record is corrupted: {record.damage} Only the steps before the corrupted line "
            "are shown."
        )
    if record.truncated:
        notes.append(TRUNCATED)
    if record.redone:
        notes.append(
            f"After the run was resumed, {record.redone} steps were repeated. The page shows the "
            "repeated steps, not the original ones."
        )
    old = recorded_note(record)
    if old:
        notes.append(old)
    return tuple(notes)


def measures_gain(steps: Sequence[Step]) -> bool:
    """Return whether each step counted as the measured gain in base steps, not as the scale."""
    return any(
        not math.isclose(decision.base_steps, seen.scale, rel_tol=1e-9) for seen, decision in steps
    )


def _mean_gain_or_scale(steps: Sequence[Step]) -> dict[str, str]:
    """Return the mean gain, or the mean scale if the method does not measure a gain."""
    if not steps:
        return {"mean gain": "", "mean scale": ""}
    mean = f"{places_of(steps[-1])[2] / len(steps):.2f}"
    own = measures_gain(steps)
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
    """Return the name of a rule from its JSON form; the names in a chain are joined by commas."""
    if not isinstance(plain, Mapping):
        return ""
    rules = plain.get("rules")
    if isinstance(rules, list):
        return ", ".join(_rule(rule) for rule in rules) or "no rule"
    return str(plain.get("kind", ""))
