from __future__ import annotations

from made_up_runs import made_up

from largebatch.workbench.cli.demo import DEMO_METHODS, sentences_about
from largebatch.workbench.runs.results import RunResult
from largebatch.workbench.studies.compare.compare import Comparison
from largebatch.workbench.studies.compare.summary import comparison_rows


def sentences(losses: dict[str, float | None], *, steps: int = 20) -> str:
    runs: list[RunResult] = []
    for seed, noise in enumerate((0.0, 0.01, -0.01)):
        for name, loss in losses.items():
            scale = 1 if name == "any" else 8
            # the noise of a seed is shared by the methods, and half of it differs
            own = noise * (1.5 if name == "adascale" else 1.0)
            shifted = None if loss is None else loss + own
            took = 100 if name == "any" else steps
            runs.append(made_up(method=name, scale=scale, seed=seed, loss=shifted, steps=took))
    comparison = Comparison(
        workload="digits", base_steps=100, at="equal-samples", margin=0.1, directory="a", found=0,
        rows=comparison_rows(runs, order=DEMO_METHODS, margin=0.1), runs=tuple(runs),
    )  # fmt: skip
    return "\n".join(sentences_about(comparison))


LOSSES: dict[str, float | None] = {
    "any": 1.0, "adascale": 1.1, "linear": 1.3, "none": 2.0, "linear+": 1.2, "none+": 1.6,
}  # fmt: skip


def test_the_sentences_are_three_and_hold_the_measured_numbers() -> None:
    text = sentences(LOSSES)
    assert len(text.splitlines()) == 3
    for part in ("5.0 times fewer steps", "1.6 times the samples", "+0.100 (95 % interval +0.0"):
        assert part in text
    assert "the validation loss is 1.000 at scale 1" in text
    assert "1.300 (quality: worse) with linear scaling and 2.000 (quality: worse)" in text
    assert "Quality: not shown." in text  # +.1 lies on the margin


def test_who_is_better_follows_from_the_interval_alone() -> None:
    assert "AdaScale is better" in sentences(LOSSES)
    assert "linear scaling is better" in sentences({**LOSSES, "linear+": 1.0})
    assert "neither method is shown to be better" in sentences({**LOSSES, "linear+": 1.101})


def test_diverged_runs_are_reported_and_not_averaged() -> None:
    text = sentences({**LOSSES, "linear": None, "linear+": None})
    assert "not finite (quality: worse) with linear scaling" in text
    assert "cannot be compared with linear scaling because runs diverged" in text
    assert "AdaScale cannot be compared with scale 1" in sentences({**LOSSES, "adascale": None})
