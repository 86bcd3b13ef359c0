"""Test that a record holds what was written, even if writing was interrupted."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_up import run

from largebatch.core.decision import Decision
from largebatch.core.errors import RecordError
from largebatch.core.measurement import Measurement
from largebatch.core.version import __version__
from largebatch.record import JsonlRecord, Record, read_record

FACTS = {"rule": {"kind": "AdaScale"}, "base_batch_size": 64}


def written(path: Path, steps: list, *, append: bool = False) -> Path:
    record = JsonlRecord(path, append=append)
    record.start(FACTS)
    for seen, decision in steps:
        record.write(seen, decision)
    record.close()
    return path


def plain(record: Record) -> list[str]:
    """Return steps as text, because nan in a step differs from itself."""
    return [repr(step) for step in record.steps]


def test_a_record_comes_back_equal_and_its_folder_is_made(tmp_path: Path) -> None:
    steps = run(5)
    record = read_record(written(tmp_path / "new" / "folder" / "run.jsonl", steps))
    assert list(record.steps) == steps
    assert record.header == {**FACTS, "version": __version__}
    assert (record.redone, record.truncated) == (0, False)


def test_a_lost_step_is_recorded_with_its_nan_loss(tmp_path: Path) -> None:
    record = read_record(written(tmp_path / "run.jsonl", run(3, lost=frozenset({1}))))
    assert [step.seen.finite for step in record.steps] == [True, False, True]
    assert record.steps[1].seen.loss != record.steps[1].seen.loss


def test_the_file_is_one_header_line_and_one_line_a_step(tmp_path: Path) -> None:
    lines = written(tmp_path / "run.jsonl", run(3)).read_text().splitlines()
    assert [sorted(json.loads(line)) for line in lines] == [["header"]] + 3 * [["decision", "seen"]]


def test_an_existing_file_is_refused_with_the_line_to_paste_and_left_alone(tmp_path: Path) -> None:
    path = written(tmp_path / "run.jsonl", run(2))
    before = path.read_bytes()
    with pytest.raises(RecordError, match=r"lb\.JsonlRecord\(.*, append=True\)"):
        JsonlRecord(path).start(FACTS)
    assert path.read_bytes() == before


def test_nothing_is_appended_to_a_file_that_is_not_a_record(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("my notes\nwithout an end")
    with pytest.raises(RecordError, match="is not a record"):
        JsonlRecord(path, append=True).start(FACTS)
    assert path.read_text() == "my notes\nwithout an end"


def test_nothing_is_appended_to_the_record_of_another_run(tmp_path: Path) -> None:
    path = written(tmp_path / "run.jsonl", run(3))
    before = path.read_bytes()
    with pytest.raises(
        RecordError, match="of another run: its base_batch_size is 64, but this run has 8"
    ):
        JsonlRecord(path, append=True).start({**FACTS, "base_batch_size": 8})
    assert path.read_bytes() == before
    resumed = {**FACTS, "ranks": 2, "batch_size": 512}  # may change along a run
    record = JsonlRecord(path, append=True)
    record.start(resumed)
    record.close()
    assert list(read_record(path).steps) == run(3)


@pytest.mark.parametrize("content", [b"", None])
def test_appending_to_nothing_starts_a_record(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "run.jsonl"
    if content is not None:
        path.write_bytes(content)
    assert list(read_record(written(path, run(2), append=True)).steps) == run(2)


@given(data=st.data())
def test_a_file_cut_at_any_byte_gives_its_whole_lines(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("cut")
    content = written(folder / "whole.jsonl", run(3)).read_bytes()
    ends = [at + 1 for at, byte in enumerate(content) if byte == ord("\n")]
    cut = data.draw(st.integers(0, len(content)) | st.sampled_from(ends))
    path = folder / "cut.jsonl"
    path.write_bytes(content[:cut])
    whole_lines = sum(end <= cut for end in ends)
    if not whole_lines:
        with pytest.raises(RecordError, match="has no header"):
            read_record(path)
    else:
        record = read_record(path)
        assert list(record.steps) == run(3)[: whole_lines - 1]
        assert record.truncated == (cut not in ends)


@given(cut=st.integers(0, 400), kept=st.integers(0, 3))
def test_a_run_resumed_after_a_crash_has_the_record_of_an_uninterrupted_one(
    cut: int, kept: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = written(tmp_path_factory.mktemp("resumed") / "run.jsonl", run(4))
    path.write_bytes(path.read_bytes()[:-cut] if cut else path.read_bytes())
    before = len(read_record(path).steps)
    written(path, run(6)[kept:], append=True)  # from a checkpoint after `kept` steps
    record = read_record(path)
    assert list(record.steps) == run(6)
    assert record.redone == before - kept
    assert not record.truncated


def test_what_a_killed_writer_wrote_can_be_read(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    endless = (
        "import sys; sys.path.append(sys.argv[2])\n"
        "from dataclasses import replace; from made_up import run\n"
        "from largebatch.record import JsonlRecord\n"
        "record = JsonlRecord(sys.argv[1]); record.start({})\n"
        "(seen, decision), samples = run(1)[0], 0\n"
        "while True:\n"
        "    record.write(replace(seen, samples=samples), decision); samples += 1\n"
        "    if samples == 1000: print('running', flush=True)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", endless, str(path), str(Path(__file__).parent)],
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    with process.stdout:
        process.stdout.readline()
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert len(read_record(path).steps) >= 1000


def test_a_full_disk_raises_an_error_and_leaves_only_whole_lines(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    path = tmp_path / "run.jsonl"
    record = JsonlRecord(path)
    record.start(FACTS)
    (seen, decision), limits = run(1)[0], resource.getrlimit(resource.RLIMIT_FSIZE)
    record.write(seen, decision)
    size = path.stat().st_size
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 50, limits[1]))
    try:
        with pytest.raises(RecordError, match="whether the disk is full"):
            record.write(seen, decision)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.stat().st_size == size
    record.write(*run(2)[1])
    record.close()
    assert list(read_record(path).steps) == run(2)


def test_a_record_that_was_not_started_or_is_closed_takes_no_step(tmp_path: Path) -> None:
    record = JsonlRecord(tmp_path / "run.jsonl")
    with pytest.raises(RecordError, match=r"record\.start"):
        record.write(*run(1)[0])
    record.start(FACTS)
    record.close()
    record.close()
    with pytest.raises(RecordError, match="is not open"):
        record.write(*run(1)[0])


@pytest.mark.parametrize(
    ("at", "bad", "message"),
    [
        (0, b'{"seen":{}}', "line 1 should be the header of a record"),
        (0, b'{"header":3}', "line 1 should be the header of a record"),
        (2, b"\x00\x00", "line 3 is not JSON"),
        (2, b'"\xff"', "line 3 is not JSON"),
        (2, b"[]", "line 3 should be a header or a training step"),
        (2, b'{"seen":{}}', "line 3 should have the keys 'decision' and 'seen'"),
        (2, b'{"seen":{},"decision":{}}', "line 3: seen cannot be read as Measurement"),
        (3, b'{"seen":NaN,"decision":{}}', "line 4 is not JSON: NaN is not allowed"),
    ],
)
def test_a_damaged_line_is_named(tmp_path: Path, at: int, bad: bytes, message: str) -> None:
    path = written(tmp_path / "run.jsonl", run(3))
    lines = path.read_bytes().splitlines()
    lines[at] = bad
    path.write_bytes(b"\n".join(lines) + b"\n")
    with pytest.raises(RecordError, match=message):
        read_record(path)


def test_steps_out_of_order_are_an_error_unless_a_run_was_resumed(tmp_path: Path) -> None:
    first, second = run(2)
    with pytest.raises(RecordError, match="line 3: the number of samples decreases"):
        read_record(written(tmp_path / "run.jsonl", [second, first]))


def test_a_damaged_record_is_read_up_to_the_damage_where_that_is_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "record.jsonl"
    record = JsonlRecord(path)
    record.start({})
    for step in range(4):
        seen = Measurement(
            step=step, samples=8 * step, base_steps=step, batch_size=8, base_batch_size=8
        )
        record.write(seen, Decision(next_batch_size=8, base_steps=1.0))
    record.close()
    lines = path.read_bytes().splitlines(keepends=True)
    for damage in (b"{}\n", b"\xff\n", b"[" * 100_000 + b"\n", b"\n"):
        path.write_bytes(b"".join([*lines[:3], damage, *lines[4:]]))
        with pytest.raises(RecordError, match="line 4"):
            read_record(path)
        read = read_record(path, up_to_damage=True)
        assert [step.seen.samples for step in read.steps] == [0, 8]
        assert "line 4" in read.damage
    path.write_bytes(b"{}\n")
    with pytest.raises(RecordError, match="line 1"):
        read_record(path, up_to_damage=True)
