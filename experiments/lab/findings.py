"""What a part of an experiment found: text, numbers with tolerances, and their comparison with
those expected."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from largebatch.analysis.student import Mean, mean_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Number:
    """A number that a claim rests on.

    Args:
        value: as measured.
        tolerance: within which the same program gives it again elsewhere, where rounding takes
            each run another way: twice the half-width of its interval over seeds.
    """

    value: float
    tolerance: float


@dataclass(slots=True, kw_only=True)
class Findings:
    """Mutable: gathers text and numbers."""

    text: list[str] = field(default_factory=list)
    numbers: dict[str, Number] = field(default_factory=dict)

    def add(self, name: str, mean: Mean | float, *, least: float) -> None:
        """Adds a number; `least` is the smallest tolerance."""
        if isinstance(mean, Mean):
            half = 0.0 if mean.high is None else mean.high - mean.value
            self.numbers[name] = Number(value=mean.value, tolerance=max(2 * half, least))
        else:
            self.numbers[name] = Number(value=mean, tolerance=least)

    def table(self, header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
        """Adds a table."""
        lines = [header, ["---"] * len(header), *rows]
        self.text.append("\n".join(f"| {' | '.join(line)} |" for line in lines))

    def leave_out(self, cut: Mapping[str, str]) -> None:
        """Lists what is not measured -> why."""
        if cut:
            told = "; ".join(f"{what} ({why})" for what, why in cut.items())
            self.text.append(f"Not measured: {told}.")


def shown(mean: Mean, form: str = ".3f", *, sign: bool = False) -> str:
    """A mean with its interval: 0.312 [0.308, 0.316]."""
    plus = "+" if sign else ""
    if mean.low is None or mean.high is None:
        return f"{mean.value:{plus}{form}}"
    return f"{mean.value:{plus}{form}} [{mean.low:{plus}{form}}, {mean.high:{plus}{form}}]"


def mean(values: Sequence[float]) -> Mean:
    """The mean with its 95 % interval (Student)."""
    return mean_of(values)


def write_expected(path: Path, part: str, findings: Findings) -> None:
    """The numbers of a part, to be found again."""
    whole = json.loads(path.read_text()) if path.exists() else {}
    whole[part] = {
        name: {"value": float(f"{n.value:.6g}"), "tolerance": float(f"{n.tolerance:.3g}")}
        for name, n in sorted(findings.numbers.items())
    }
    path.write_text(json.dumps(dict(sorted(whole.items())), indent=1) + "\n")


def differing(path: Path, part: str, findings: Findings, *, exact: bool) -> list[str]:
    """A line for each number of a part that is not as expected.

    Args:
        path: of `expected.json`.
        part: by name.
        findings: what was found.
        exact: whether they are computed of the same runs, and so are the same but for rounding.
    """
    expected, found = json.loads(path.read_text())[part], findings.numbers
    wrong = [f"{name}: expected, not found" for name in sorted(set(expected) - set(found))]
    wrong += [f"{name}: found, not expected" for name in sorted(set(found) - set(expected))]
    for name in sorted(set(expected) & set(found)):
        value, there = found[name].value, expected[name]
        tolerance = 1e-5 * abs(there["value"]) + 1e-9 if exact else there["tolerance"]
        if not math.isclose(value, there["value"], rel_tol=0.0, abs_tol=tolerance):
            wrong.append(f"{name}: {value:.6g}, expected {there['value']:.6g} +- {tolerance:.3g}")
    return [f"{part}: {line}" for line in wrong]
