"""The command line under any arguments: a result or one line, and never a traceback.

Options and arguments are read from the commands themselves, so a new one is fuzzed, too. What comes
before the first training step is real; the training itself is cut off.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import click
import pytest
from click.testing import CliRunner
from effort import effort
from hypothesis import given
from hypothesis import strategies as st

import largebatch as lb
from largebatch.workbench.cli.main import cli
from largebatch.workbench.planner import plan
from largebatch.workbench.runs import doctor, train
from largebatch.workbench.studies import probe
from largebatch.workbench.studies.compare import compare
from largebatch.workbench.studies.critical import noise, study

NAMES = sorted(set(cli.commands) - {"demo"})  # demo takes no arguments

GOOD = {
    "workload": "digits", "record": "sound.jsonl", "records": "sound.jsonl", "out": "new",
    "method": "linear", "methods": "adascale,linear+", "scales": "1,8", "scale": "8", "seeds": "2",
    "seed": "1", "budget": "3steps", "lr": "0.1", "clip_norm": "1", "keep": "2", "steps": "5",
    "checkpoint": "saved", "checkpoint_every": "1k", "log": "csv=x.csv", "at": "equal-steps",
    "plot": "a.png", "max_micro_batch_size": "16", "by": "noise,sweep", "points": "2",
    "doublings": "2", "tolerance": "0.1", "target": "0.3",
    "schedule": "growth", "base_batch_size": "16", "max_batch_size": "64",
    "noise_scale": "300", "noise_scales": "300", "latency": "0.1", "throughput": "100",
    "workers": "2", "memory_limit": "512", "minimise": "time", "max_lr": "4", "within": "1",
    "stages": "2", "exponent": "0.5",
}  # fmt: skip
"""A value that each parameter takes."""

BAD = st.one_of(
    st.sampled_from(
        [
            "",
            " ",
            "-",
            "--",
            "-1",
            "0",
            "1.5",
            "nan",
            "-inf",
            "1e400",
            "9" * 400,
            "1_",
            "0x10",
            "٣",
            "5 ep",
            "a:b",
            ":",
            "os:system",
            "../..",
            "/proc/nope/x",
            "x\x00y",
            "=",
            ",",
            "tensorboard=",
            "cut.jsonl",
            "bytes.bin",
            "folder",
            "missing",
            "digit",
            "legw+",
            "adascale+",
        ]
    ),
    st.text(max_size=12),
    st.integers().map(str),
)


@st.composite
def calls(draw: st.DrawFn) -> list[str]:
    """A command with some of its options, most of whose values make sense."""
    name = draw(st.sampled_from(NAMES))
    hostile = draw(st.sampled_from([0, 0, 1, 5]))  # of ten values

    def value(of: click.Parameter) -> str:
        sound = draw(st.integers(0, 9)) >= hostile
        return GOOD[str(of.name)] if sound else draw(BAD)

    options, arguments = [], []
    for parameter in cli.commands[name].params:
        if isinstance(parameter, click.Argument):
            count = draw(st.sampled_from([1, 1, 1, 0, 2])) if hostile else 1
            arguments += [value(parameter) for _ in range(count)]
        elif draw(st.booleans()):
            flag = getattr(parameter, "is_flag", False)
            options.append([parameter.opts[0], *([] if flag else [value(parameter)])])
    return [
        name,
        *arguments,
        *(word for option in draw(st.permutations(options)) for word in option),
    ]


def cut_off(*args: Any, **options: Any) -> NoReturn:
    raise lb.LargeBatchError("Nothing is trained here.")


@pytest.fixture
def _untrained(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(train, "run", cut_off)
    monkeypatch.setattr(compare, "run", cut_off)
    monkeypatch.setattr(probe, "probe_target", cut_off)
    monkeypatch.setattr(doctor, "controller_of", cut_off)
    monkeypatch.setattr(noise, "_measured", cut_off)
    monkeypatch.setattr(study.Study, "run", cut_off)
    monkeypatch.setattr(plan, "plan", cut_off)
    here = os.getcwd()
    yield
    os.chdir(here)


def filled(folder: Path) -> None:
    """Records whole and cut, a file that is none, a folder."""
    record = lb.JsonlRecord(folder / "sound.jsonl")
    record.start({"rule": {"kind": "AdaScale"}, "base_batch_size": 16})
    for step in range(3):
        seen = lb.Measurement(
            step=step, samples=32 * step, base_steps=step, batch_size=32, base_batch_size=16,
            loss=1.0,
        )  # fmt: skip
        record.write(seen, lb.Decision(next_batch_size=32, base_steps=1.0))
    record.close()
    content = (folder / "sound.jsonl").read_bytes()
    (folder / "cut.jsonl").write_bytes(content[:-20])
    (folder / "bytes.bin").write_bytes(bytes(range(256)))
    (folder / "folder").mkdir()


@pytest.mark.usefixtures("_untrained")
@effort(400)
@given(words=calls())
def test_any_call_ends_in_a_result_or_in_one_line(words: list[str]) -> None:
    with tempfile.TemporaryDirectory() as name:
        filled(Path(name))
        os.chdir(name)
        ended = CliRunner().invoke(cli, words)
        os.chdir("/")
    ran_into = ended.exception
    assert ran_into is None or isinstance(ran_into, SystemExit), (words, ended.exc_info)
    assert ended.exit_code in (0, 1, 2), (words, ended.output)
    assert "Traceback" not in ended.output, words
    if ended.exit_code:
        assert ended.stderr.strip() or words[0] == "doctor", words  # whose findings are a table
        assert len(ended.stderr.strip().splitlines()) < 12, (words, ended.stderr)
