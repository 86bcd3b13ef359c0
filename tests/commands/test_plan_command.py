from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

import largebatch as lb
from largebatch.analysis.noise import NoiseEstimate, NotEnough, along
from largebatch.cli.main import cli
from largebatch.commands.plan import planned
from largebatch.commands.train import train
from largebatch.planner.plan import UNCHECKED
from largebatch.planner.recorded import NotEnoughSignal, noise_of
from largebatch.record import read_record

PLAN = ["plan", "--budget", "20K", "--base-batch", "16", "--noise-scale", "100", "--stages", "2"]


def test_a_plan_is_printed_drawn_written_and_trained(tmp_path: Path) -> None:
    out, picture = tmp_path / "a.json", tmp_path / "a.png"
    ended = CliRunner().invoke(
        cli,
        [
            *PLAN,
            "--memory-limit",
            "512",
            "--max-lr",
            "2",
            "--out",
            str(out),
            "--plot",
            str(picture),
        ],
    )
    assert ended.exit_code == 0, ended.output
    for word in ("constant", "cosine", "seesaw", "growth", UNCHECKED):
        assert word in ended.output
    assert picture.read_bytes().startswith(b"\x89PNG")
    result = train("digits", schedule=out, evaluations=0)
    assert f"{result.steps:,}" in ended.output


def test_json_has_the_schedule_and_the_rows() -> None:
    ended = CliRunner().invoke(cli, [*PLAN, "--json"])
    plain = json.loads(ended.output)
    assert plain["rows"][0]["schedule"] == plain["name"]
    assert plain["notes"][-1] == UNCHECKED


def test_a_dry_run_prints_its_stages() -> None:
    ended = CliRunner().invoke(
        cli, ["plan", "--dry-run", "0:768 250B:1536", "--budget", "300B", "--base-batch", "768"]
    )
    assert "358,072,917 steps" in ended.output
    assert "8.3% fewer" in ended.output


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["plan"], "needs its budget"),
        (["plan", "--budget", "1M"], "needs the noise scale"),
        (["plan", "--budget", "1M", "--noise-scale", "10"], "needs the base batch"),
        ([*PLAN, "--latency", "1"], "its latency and the throughput"),
        ([*PLAN, "--latency", "-1", "--throughput", "3"], "above 0"),
        ([*PLAN, "--minimise", "time"], "price of a step"),
        ([*PLAN, "--max-lr", "0.1"], "stability limit"),
        ([*PLAN, "--scale", "2"], "of a dry run alone"),
        ([*PLAN, "--plot", "a.txt"], "A picture is one of"),
        (["plan", "--dry-run", "growth", "--budget", "10", "--base-batch", "16"], "first batch"),
        (["plan", "--dry-run", "adascale", "--budget", "1M", "--base-batch", "16"], "measures"),
        (["plan", "--dry-run", "growth", "--plot", "a.png"], "no forecast"),
    ],
)
def test_bad_input_is_one_line(words: list[str], told: str) -> None:
    ended = CliRunner().invoke(cli, words)
    assert ended.exit_code == 2, ended.output
    assert told in " ".join(ended.stderr.split())


def made_up(
    path: Path,
    *,
    steps: int,
    sqnorm: float = 1.0,
    variance: float = 200.0,
    rises: float = 1.0,
    scatter: float = 0.0,
) -> Path:
    """A record whose variance rises by a share of itself, and whose squared norms scatter."""
    drawn = np.random.default_rng(0).normal(sqnorm, scatter, size=steps).tolist()
    record = lb.JsonlRecord(path)
    record.start({"base_batch_size": 16})
    for step in range(steps):
        size = variance * (1.0 + rises * step / steps) * (1.0 + 0.1 * (-1) ** step)
        moments = lb.GradientMoments(
            batch_size=16,
            parts=4,
            batch_sqnorm=drawn[step] + size / 16,
            variance=size,
        )
        seen = lb.Measurement(
            step=step, samples=16 * step, base_steps=step, batch_size=16, base_batch_size=16,
            loss=1.0, moments=moments,
        )  # fmt: skip
        record.write(seen, lb.Decision(next_batch_size=16, base_steps=1.0))
    record.close()
    return path


def test_a_record_tells_its_noise_scale_at_first_and_at_last(tmp_path: Path) -> None:
    seen = noise_of(made_up(tmp_path / "a.jsonl", steps=800))
    first, last = seen.noise_scales
    assert first == pytest.approx(200.0 * (1 + 1 / 16), rel=0.02)
    assert last == pytest.approx(200.0 * (2 - 1 / 16), rel=0.02)
    assert (seen.base_batch_size, seen.samples) == (16, 12_800)


def test_a_record_that_tells_too_little_gives_no_number(tmp_path: Path) -> None:
    with pytest.raises(NotEnoughSignal, match="20 of 20 steps measured"):
        noise_of(made_up(tmp_path / "a.jsonl", steps=20))
    with pytest.raises(NotEnoughSignal, match="measured steps 1 to 400: "):
        noise_of(made_up(tmp_path / "b.jsonl", steps=800, sqnorm=-5.0))


def test_a_record_and_a_number_are_not_both_taken(tmp_path: Path) -> None:
    path = made_up(tmp_path / "a.jsonl", steps=800)
    with pytest.raises(ValueError, match="one of the two"):
        planned(budget=10**5, noise_scales=[3.0], record=path)
    with pytest.raises(ValueError, match="leave --base-batch out"):
        planned(budget=10**5, base_batch_size=32, record=path)


def test_parts_without_signal_are_made_longer(tmp_path: Path) -> None:
    path = made_up(tmp_path / "a.jsonl", steps=800, scatter=5.0)
    moments = [step.seen.moments for step in read_record(path).steps]
    pieces = along([(m.variance, m.sqnorm) for m in moments if m is not None], 8)
    assert any(_unbounded(piece.noise) for piece in (pieces[0], pieces[-1]))
    first, last = noise_of(path).noise_scales
    assert first == pytest.approx(250.0, rel=0.5)
    assert last == pytest.approx(350.0, rel=0.5)


def _unbounded(noise: NoiseEstimate | NotEnough) -> bool:
    return isinstance(noise, NotEnough) or math.isinf(noise.high)


def test_a_record_is_planned_from(tmp_path: Path) -> None:
    record = str(made_up(tmp_path / "a.jsonl", steps=800, rises=4.0))
    words = [*PLAN[:5], "--record", record, "--stages", "2", "--max-lr", "2"]
    ended = CliRunner().invoke(cli, words)
    assert ended.exit_code == 0, ended.output
    assert "noise scale goes from 24" in ended.output
