"""Hold the text and the numbers of one part of an experiment, and check them against
`expected.json`."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from largebatch.analysis.student import Mean, mean_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Number:
    """Hold a number that a claim rests on.

    Args:
        value: The measured value.
        tolerance: Largest difference that is accepted when the runs are made again on another
            machine, where rounding changes each run. It is twice the half-width of the confidence
            interval over seeds, or a given minimum if that is larger.
    """

    value: float
    tolerance: float


@dataclass(slots=True, kw_only=True)
class Findings:
    """Collect the text and the numbers of one part (mutable).

    Args:
        text: Paragraphs, headings and tables of the part's page, in Markdown.
        numbers: Name of a number -> its value and tolerance.
    """

    text: list[str] = field(default_factory=list)
    numbers: dict[str, Number] = field(default_factory=dict)

    def add(self, name: str, mean: Mean | float, *, least: float) -> None:
        """Add a number to those that `expected.json` holds.

        Args:
            name: Name of the number; it must be unique within the part.
            mean: A mean with its confidence interval, or a number without an interval.
            least: Smallest tolerance, in the unit of the number.
        """
        if isinstance(mean, Mean):
            half = 0.0 if mean.high is None else mean.high - mean.value
            self.numbers[name] = Number(value=mean.value, tolerance=max(2 * half, least))
        else:
            self.numbers[name] = Number(value=mean, tolerance=least)

    def table(self, header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
        """Add a Markdown table with this header and these rows."""
        lines = [header, ["---"] * len(header), *rows]
        self.text.append("\n".join(f"| {' | '.join(line)} |" for line in lines))

    def method(self, text: str) -> None:
        """Add the section that describes how the numbers of the page were measured."""
        self.text.append(f"## How it was measured\n\n{text.strip()}")

    def leave_out(self, cut: Mapping[str, str]) -> None:
        """Add the section that lists what was not measured.

        Args:
            cut: What was not measured -> the reason.
        """
        if cut:
            lines = "\n".join(f"- {what}: {why}" for what, why in cut.items())
            self.text.append(f"## What was not measured\n\n{lines}")


def shown(mean: Mean, form: str = ".3f", *, sign: bool = False) -> str:
    """Return a mean with its confidence interval as text, such as "0.312 [0.308, 0.316]".

    Args:
        mean: The mean; without an interval the mean alone is returned.
        form: Format of each number, as in an f-string.
        sign: If True, positive numbers get a plus sign.
    """
    plus = "+" if sign else ""
    if mean.low is None or mean.high is None:
        return f"{mean.value:{plus}{form}}"
    return f"{mean.value:{plus}{form}} [{mean.low:{plus}{form}}, {mean.high:{plus}{form}}]"


def mean(values: Sequence[float]) -> Mean:
    """Return the mean of the values with its 95 % confidence interval (Student's t)."""
    return mean_of(values)


def write_expected(path: Path, part: str, findings: Findings) -> None:
    """Write the numbers of one part to `expected.json`, and keep those of the other parts.

    Args:
        path: Path of `expected.json`.
        part: Name of the part.
        findings: Findings that hold the numbers.
    """
    whole = json.loads(path.read_text()) if path.exists() else {}
    whole[part] = {
        name: {"value": float(f"{n.value:.6g}"), "tolerance": float(f"{n.tolerance:.3g}")}
        for name, n in sorted(findings.numbers.items())
    }
    path.write_text(json.dumps(dict(sorted(whole.items())), indent=1) + "\n")


def differing(path: Path, part: str, findings: Findings, *, exact: bool) -> list[str]:
    """Return one line for each number of a part that differs from `expected.json`.

    Args:
        path: Path of `expected.json`.
        part: Name of the part.
        findings: Findings that hold the numbers to check.
        exact: If True, the numbers come from the recorded runs and may differ by rounding alone.
            If False, the runs were made again, and each number may differ by its tolerance.
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
