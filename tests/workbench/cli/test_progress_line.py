"""The line about a run in hand: what it says, how long it is, and when it tells the time left."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
from rich.console import Console

from largebatch.workbench.cli.pace import Pace, Rate
from largebatch.workbench.cli.progress import ProgressLine, line_of
from largebatch.workbench.runs.results import Progress

FULL = Progress(
    label="digits: adascale, scale 8",
    step=12_345,
    samples=1_580_160,
    batch_size=128,
    lr=0.0374,
    lr_multiplier=3.74,
    gain=3.74,
    noise_scale=83.4,
    loss=0.5,
    fraction=0.5,
)


class Clock:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def paced(*, steps: int, seconds: float, start: float = 0.0, end: float = 1.0) -> Pace:
    """The pace after some reports of a run that goes evenly from one fraction to another."""
    clock = Clock()
    pace = Pace(clock)
    for step in range(steps + 1):
        clock.now = step * seconds
        pace.see(samples=100 * step, fraction=start + (end - start) * step / steps)
    return pace


def test_a_wide_line_says_everything() -> None:
    pace = paced(steps=10, seconds=0.5, end=0.5)
    assert line_of(FULL, pace=pace, width=200) == (
        "digits: adascale, scale 8   50 %  ETA 5s  step 12345  samples 1580160  batch 128  "
        "loss 0.500  lr 0.0374 x3.74  gain 3.74  noise 83.4  200/s"
    )


def test_a_line_of_120_columns_keeps_what_is_decided_and_how_long_it_takes() -> None:
    line = line_of(FULL, pace=paced(steps=10, seconds=200.0, end=0.5))
    assert len(line) <= 120
    for part in ("ETA 33m20s", "batch 128", "lr 0.0374 x3.74", "gain 3.74", "noise 83.4", "0.5/s"):
        assert part in line
    assert "samples" not in line
    assert "step" not in line


def test_a_progress_line_leaves_out_the_same_parts_once_the_speed_is_known() -> None:
    for width in range(60, 180):
        without = line_of(FULL, width=width)
        with_speed = line_of(FULL, pace=paced(steps=10, seconds=200.0, end=0.5), width=width)
        assert ("step" in without, "gain" in without) == (
            "step" in with_speed,
            "gain" in with_speed,
        )
        if "gain" in with_speed:
            assert len(with_speed) <= width


def test_the_progress_line_shows_skipped_steps_only_if_there_are_any() -> None:
    assert "skipped" not in line_of(FULL)
    assert "skipped 3" in line_of(replace(FULL, skipped=3))


def test_a_progress_line_leaves_out_what_is_not_known() -> None:
    bare = replace(FULL, lr=None, gain=None, noise_scale=None, loss=None)
    assert line_of(bare, pace=Pace(), width=200) == (
        "digits: adascale, scale 8   50 %  step 12345  samples 1580160  batch 128  lr x3.74"
    )


def test_a_noise_scale_as_adam_sees_it_is_called_that() -> None:
    adam = replace(FULL, noise_scale=None, adam_noise_scale=1234.5)
    assert "noise (Adam) 1230" in line_of(adam, width=200)
    both = replace(FULL, adam_noise_scale=1234.5)
    assert "noise 83.4  noise (Adam) 1230" in line_of(both, width=200)


@pytest.mark.parametrize("steps", [1, 2])
def test_the_progress_line_shows_no_speed_in_the_first_steps(steps: int) -> None:
    pace = paced(steps=steps, seconds=10.0, end=0.1)
    assert (pace.samples_per_second, pace.seconds_left) == (None, None)


def test_the_progress_line_shows_no_time_left_after_only_milliseconds() -> None:
    pace = paced(steps=10, seconds=0.01, end=0.1)
    assert pace.samples_per_second == pytest.approx(10_000.0)
    assert pace.seconds_left is None


def test_the_first_steps_warm_up_counts_for_nothing() -> None:
    clock = Clock()
    pace = Pace(clock)
    clock.now = 1000.0  # loading, compiling and the first step
    for step in range(11):
        pace.see(samples=100 * step, fraction=0.01 * (step + 1))
        clock.now += 1.0
    assert pace.seconds_left == pytest.approx(89.0)
    assert pace.samples_per_second == pytest.approx(100.0)


def test_a_run_resumed_at_half_counts_what_this_session_did() -> None:
    pace = paced(steps=10, seconds=1.0, start=0.5, end=0.6)
    assert pace.seconds_left == pytest.approx(40.0)
    assert pace.samples_per_second == pytest.approx(100.0)


def test_the_end_and_a_budget_that_does_not_move_have_no_time_left() -> None:
    assert paced(steps=10, seconds=1.0, end=1.0).seconds_left is None
    assert paced(steps=10, seconds=1.0, start=0.3, end=0.3).seconds_left is None


def test_the_speed_follows_the_recent_steps() -> None:
    clock = Clock()
    pace = Pace(clock)
    samples = 0
    for step in range(200):
        samples += 10 if step < 100 else 1000
        clock.now += 1.0
        pace.see(samples=samples, fraction=step / 1000)
    assert pace.samples_per_second == pytest.approx(1000.0, rel=1e-3)


def test_a_rate_over_no_time_is_none() -> None:
    rate = Rate(memory=1.0)
    rate.add(5.0, seconds=0.0)
    assert rate.value == 0.0
    clock = Clock()
    pace = Pace(clock)
    for step in range(10):
        pace.see(samples=step, fraction=0.0)  # a clock that does not advance
    assert pace.samples_per_second is None


def test_the_pace_of_a_progress_line_starts_anew_with_another_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = Clock()
    monkeypatch.setattr("largebatch.workbench.cli.progress.Pace", lambda: Pace(clock))
    console = Console(file=io.StringIO(), width=200)
    with ProgressLine(console, parts=10) as line:
        for label, seconds in (("slow", 100.0), ("fast", 1.0)):
            for step in range(1, 11):
                clock.now += seconds
                report = replace(FULL, label=label, samples=100 * step, fraction=step / 10)
                line(report)
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert "ETA 1m40s" in lines[8]
    assert "ETA" not in lines[10]
    assert "ETA 1s" in lines[18]
    assert lines[18].endswith("100/s")
