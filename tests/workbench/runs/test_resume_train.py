"""Test that `largebatch train --resume` continues a run that was stopped, killed or truncated."""

from __future__ import annotations

import signal
import subprocess
import threading
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

import largebatch as lb
from largebatch.record import read_record
from largebatch.workbench.cli.main import cli
from largebatch.workbench.runs.results import Progress
from largebatch.workbench.runs.train import train
from largebatch.workbench.workloads import adamw, load
from programs import Command, run_command_on_ranks, torchrun

LENGTH = ["--scale", "4", "--budget", "60ep"]


def start(
    folder: Path, *more: str, workload: str = "digits", ctrl_c: Any = signal.default_int_handler
) -> Command:
    files = ["--checkpoint", str(folder / "ck"), "--record", str(folder / "run.jsonl")]
    return Command("train", workload, *LENGTH, *files, *more, cwd=folder, ctrl_c=ctrl_c)


def wait_for_checkpoint(folder: Path) -> None:
    deadline = time.monotonic() + 60
    while not list((folder / "ck").glob("*.pt")):
        assert time.monotonic() < deadline, "no checkpoint in a minute"
        time.sleep(0.02)


def outcome(folder: Path) -> tuple[dict[str, Any], Any]:
    return saved(folder / "ck"), read_record(folder / "run.jsonl").steps


def saved(folder: Path) -> dict[str, Any]:
    """Return the state of the newest checkpoint without the duration of the run."""
    state = lb.Checkpoints(folder).load().state
    assert state.pop("seconds") > 0.0
    return state


def same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Any]:
    folder = tmp_path_factory.mktemp("whole")
    train(
        "digits", scale=4, budget="60ep", checkpoint=folder / "ck", record=folder / "run.jsonl"
    )  # fmt: skip
    return outcome(folder)


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGKILL, -9)]
)
def test_a_run_ended_by_a_signal_resumes_to_the_same_bits(
    number: signal.Signals, code: int, tmp_path: Path, whole: tuple[dict[str, Any], Any]
) -> None:
    run = start(tmp_path)
    wait_for_checkpoint(tmp_path)
    run.send_signal(number)
    _, told = run.communicate(timeout=60)
    assert run.returncode == code
    if number != signal.SIGKILL:
        assert "To resume the run, repeat the call with --resume" in told
        assert told.count("the current training step is finished") == 1
        assert "Traceback" not in told
        steps = saved(tmp_path / "ck")["control"]["step"]
        assert f"stopped after {steps} steps" in told
        assert len(read_record(tmp_path / "run.jsonl").steps) == steps
    again = start(tmp_path, "--resume")
    _, told = again.communicate(timeout=120)
    assert again.returncode == 0, told
    assert "The run resumes from" in told
    assert same(outcome(tmp_path), whole)


SLOW = (
    "import time\n"
    "from dataclasses import replace\n"
    "from largebatch.workbench.workloads import load\n"
    "def workload():\n"
    "    digits = load('digits')\n"
    "    def loss(model, batch):\n"
    "        time.sleep(0.3)\n"
    "        return digits.loss(model, batch)\n"
    "    return replace(digits, loss=loss)\n"
)


def started_slow(folder: Path, *more: str, ctrl_c: Any = signal.default_int_handler) -> Command:
    """Start a run whose first step has 20 slow backward calls."""
    (folder / "slow.py").write_text(SLOW)
    run = start(folder, "--scale", "20", *more, workload="slow:workload", ctrl_c=ctrl_c)
    deadline = time.monotonic() + 60
    while not (folder / "run.jsonl").exists():
        assert time.monotonic() < deadline, "no record in a minute"
        time.sleep(0.02)
    time.sleep(0.5)
    return run


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_answered_before_the_step_in_hand_is_done(
    number: signal.Signals, tmp_path: Path
) -> None:
    run = started_slow(tmp_path)
    run.send_signal(number)
    line = run.stderr.readline()
    assert "the current training step is finished" in line
    assert "A second Ctrl-C stops the run" in line
    assert not list((tmp_path / "ck").glob("*.pt"))
    run.send_signal(signal.SIGINT)
    _, told = run.communicate(timeout=60)
    assert run.returncode == 130
    assert "interrupted" in told
    assert "the current training step" not in told


def test_ctrl_c_stays_ignored_where_the_caller_ignores_it(tmp_path: Path) -> None:
    run = started_slow(tmp_path, ctrl_c=signal.SIG_IGN)
    run.send_signal(signal.SIGINT)
    with pytest.raises(subprocess.TimeoutExpired):
        run.wait(timeout=1)
    run.send_signal(signal.SIGTERM)
    _, told = run.communicate(timeout=60)
    assert run.returncode == 143
    assert told.count("the current training step is finished") == 1


@pytest.mark.distributed
def test_a_run_restarted_by_torchrun_resumes_by_itself(tmp_path: Path) -> None:
    module = tmp_path / "dying.py"
    module.write_text(
        "import os, signal\n"
        "from dataclasses import replace\n"
        "from pathlib import Path\n"
        "from largebatch.workbench.workloads import load\n"
        f"flag = Path({str(tmp_path)!r}) / 'died'\n"
        f"saved = Path({str(tmp_path)!r}) / 'ck'\n"
        "def workload():\n"
        "    digits = load('digits')\n"
        "    def loss(model, batch):\n"
        "        ready = len(list(saved.glob('*.pt'))) > 1\n"
        "        if ready and os.environ.get('RANK') == '1' and not flag.exists():\n"
        "            flag.touch()\n"
        "            os.kill(os.getpid(), signal.SIGKILL)\n"
        "        return digits.loss(model, batch)\n"
        "    return replace(digits, loss=loss)\n"
    )

    def command(folder: Path) -> list[str]:
        budget = ["--scale", "4", "--budget", "8ep"]
        files = ["--checkpoint", str(folder), "--resume", "--record", f"{folder}.jsonl"]
        return ["train", "dying:workload", *budget, *files]

    done = torchrun(*command(tmp_path / "ck"), cwd=tmp_path, restarts=2)
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / "died").exists()
    assert read_record(f"{tmp_path / 'ck'}.jsonl").redone >= 0
    done = run_command_on_ranks(*command(tmp_path / "whole"), cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]  # the flag is there: nobody dies
    assert same(saved(tmp_path / "ck"), saved(tmp_path / "whole"))


def test_a_resumed_run_continues_with_the_same_random_numbers(tmp_path: Path) -> None:
    digits = load("digits")

    def noisy(model: torch.nn.Module, batch: Any) -> torch.Tensor:
        x, *rest = batch
        return digits.loss(model, (torch.nn.functional.dropout(x, 0.2), *rest))

    class Interruption(Exception):
        pass

    def interrupted(report: Any) -> None:
        if not isinstance(report, str) and report.step == 30:
            raise Interruption

    workload = replace(digits, loss=noisy)
    options: dict[str, Any] = {"scale": 4, "budget": "4ep", "checkpoint_every": "640"}
    train(workload, checkpoint=tmp_path / "whole", **options)
    with pytest.raises(Interruption):
        train(workload, checkpoint=tmp_path / "cut", progress=interrupted, **options)
    assert lb.Checkpoints(tmp_path / "cut").load().state["control"]["step"] == 20
    result = train(workload, checkpoint=tmp_path / "cut", resume=True, **options)
    assert same(saved(tmp_path / "whole"), saved(tmp_path / "cut"))
    assert len(result.curve) == 8


@pytest.mark.parametrize("more", [[], ["--resume"]])
def test_a_second_run_in_a_directory_is_refused_while_the_first_one_lives(
    more: list[str], tmp_path: Path
) -> None:
    first = started_slow(tmp_path)
    directory = str(tmp_path / "ck")
    result = CliRunner().invoke(cli, ["train", "digits", "--checkpoint", directory, *more])
    assert result.exit_code == 1
    assert "Another run is saving its checkpoints in" in result.stderr
    assert "--checkpoint other" in result.stderr
    first.kill()
    first.communicate(timeout=60)
    train("digits", budget="3steps", evaluations=0, checkpoint=directory, resume=bool(more))


def test_a_damaged_checkpoint_is_passed_over_and_said(tmp_path: Path) -> None:
    whole = train("digits", budget="1ep", checkpoint=tmp_path)
    newest = lb.Checkpoints(tmp_path).paths[-1]
    newest.write_bytes(newest.read_bytes()[:-100])
    told: list[Any] = []
    result = train("digits", budget="1ep", checkpoint=tmp_path, resume=True, progress=told.append)
    assert any(isinstance(line, str) and newest.name in line for line in told)
    assert replace(result, seconds=0.0) == replace(whole, seconds=0.0)


def test_the_seconds_of_a_resumed_run_are_those_of_all_its_parts(tmp_path: Path) -> None:
    digits = load("digits")
    going_on = threading.Event()

    def slow(model: torch.nn.Module, batch: Any) -> torch.Tensor:
        if not going_on.is_set():
            time.sleep(0.2)
        return digits.loss(model, batch)

    def interrupted(report: Any) -> None:
        if report.step == 5:
            raise KeyboardInterrupt

    workload = replace(digits, loss=slow)
    options: dict[str, Any] = {"budget": "10steps", "checkpoint_every": "1steps"}
    with pytest.raises(KeyboardInterrupt):
        train(workload, checkpoint=tmp_path, progress=interrupted, **options)
    before = lb.Checkpoints(tmp_path).load().state["seconds"]
    assert before > 0.8
    going_on.set()
    time.sleep(1.0)  # what lies between is not counted
    began = time.perf_counter()
    result = train(workload, checkpoint=tmp_path, resume=True, **options)
    assert before < result.seconds < before + time.perf_counter() - began


def test_a_noise_scale_as_adam_sees_it_is_reported_and_goes_on_with_its_average(
    tmp_path: Path,
) -> None:
    workload = replace(load("digits"), optimizer=adamw())
    options: dict[str, Any] = {"method": "adascale-adam", "scale": 4, "budget": "12steps"}

    def reports(folder: Path, *, until: int, resume: bool = False) -> list[Progress]:
        told: list[Progress] = []

        def follow(report: Progress | str) -> None:
            if isinstance(report, Progress):
                told.append(report)
                if report.step > until:
                    raise KeyboardInterrupt

        with suppress(KeyboardInterrupt):
            train(
                workload, checkpoint=folder, checkpoint_every="1steps", resume=resume,
                progress=follow, **options,
            )  # fmt: skip
        return told

    whole = reports(tmp_path / "whole", until=12)
    assert {report.noise_scale for report in whole} == {None}
    assert any(report.adam_noise_scale for report in whole)
    reports(tmp_path / "cut", until=8)
    assert reports(tmp_path / "cut", until=12, resume=True) == whole[8:]


def test_a_finished_run_is_not_run_again(tmp_path: Path) -> None:
    whole = train("digits", budget="1ep", checkpoint=tmp_path)
    steps: list[Any] = []
    again = train("digits", budget="1ep", checkpoint=tmp_path, resume=True, progress=steps.append)
    assert all(isinstance(line, str) for line in steps)
    assert replace(again, seconds=0.0) == replace(whole, seconds=0.0)


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (["--resume"], 2, "Pass the directory: --checkpoint"),
        (["--checkpoint-every", "10k"], 2, "Pass the directory: --checkpoint"),
        (["--checkpoint", "there"], 1, "already holds a run. Resume this run: --resume"),
        (["--checkpoint", "there", "--resume", "--scale", "2"], 1, "scale is 1 in the"),
        (["--checkpoint", "there", "--resume", "--seed", "2"], 1, "seed is 0 in the"),
        (["--checkpoint", "there", "--resume", "--lr", "1"], 1, "lr is"),
        (["--checkpoint", "there", "--resume", "--method", "sqrt"], 1, "method is"),
        (["--checkpoint", "there", "--resume", "--budget", "2ep"], 1, "budget is"),
        (
            ["--checkpoint", "new", "--resume", "--record", "other.jsonl"],
            1,
            "its scale is 2, but this run has 1",
        ),
        (["--checkpoint", "file"], 1, "cannot be written"),
        (["--checkpoint", "new", "--keep", "0"], 2, "at least 1 checkpoint must be kept"),
        (
            ["--checkpoint", "new", "--checkpoint-every", "soon"],
            2,
            "--checkpoint-every soon is",
        ),
        (["--checkpoint", "foreign", "--resume"], 1, "was written by another program"),
        (["--checkpoint", "broken", "--resume"], 1, "All checkpoints in broken are corrupted"),
    ],
)
def test_bad_use_is_one_line_before_any_step(
    arguments: list[str], code: int, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    if "there" in arguments:
        train("digits", budget="3steps", checkpoint="there", evaluations=0)
    if "other.jsonl" in arguments:
        train("digits", budget="3steps", scale=2, record="other.jsonl", evaluations=0)
    (tmp_path / "file").touch()
    lb.Checkpoints("foreign").save({"weights": 1}, step=1)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "step-000000001.pt").write_bytes(b"PK")
    budget = [] if "--budget" in arguments else ["--budget", "3steps"]
    result = CliRunner().invoke(cli, ["train", "digits", *budget, *arguments])
    assert result.exit_code == code, result.stderr
    assert told in result.stderr
    assert "Traceback" not in result.stderr
