from __future__ import annotations

import os
import platform
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from largebatch.workbench.workloads import DataMissing, load
from largebatch.workbench.workloads.stdlib_text import (
    CONTEXT,
    LEFT_OUT,
    load_stdlib_text,
    sequences,
    source_files,
    split_of,
)


@given(content=st.binary(min_size=1, max_size=60), context=st.integers(1, 7))
def test_sequences_are_the_text_and_the_text_one_byte_later(content: bytes, context: int) -> None:
    x, y = sequences(content, context=context)
    starts = [s for s in range(0, len(content), context) if s + context < len(content)]
    assert x.tolist() == [list(content[s : s + context]) for s in starts]
    assert y.tolist() == [list(content[s + 1 : s + context + 1]) for s in starts]


def test_files_are_found_in_order_and_without_what_is_left_out(tmp_path: Path) -> None:
    for name in ("b.py", "a/z.py", "a/tests/t.py", "test/x.py", "site-packages/p/q.py", "c.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x = 1\n")
    (tmp_path / "_sysconfigdata__linux.py").write_text("y = 1\n")
    found = [path.relative_to(tmp_path).as_posix() for path in source_files(tmp_path)]
    assert found == ["b.py", "a/z.py"]


def test_files_of_the_real_library_are_what_a_naive_search_finds() -> None:
    root = Path(os.__file__).parent
    naive = {
        path
        for path in root.rglob("*.py")
        if not LEFT_OUT & set(path.relative_to(root).parts[:-1])
        and not path.name.startswith("_sysconfigdata")
    }
    assert set(source_files(root)) == naive


def test_a_file_belongs_to_one_split_whatever_else_there_is(tmp_path: Path) -> None:
    contents = {}
    for number in range(60):
        name = f"module_{number}.py"
        contents[name] = f"# {number:04}\n".encode() * 40
        (tmp_path / name).write_bytes(contents[name])
    data = load_stdlib_text(tmp_path)
    for split in ("train", "validation", "test"):
        mine = b"".join(contents[name] for name in sorted(contents) if split_of(name) == split)
        x, y = getattr(data, split)
        assert torch.equal(x, sequences(mine, context=CONTEXT)[0])
        assert bytes(x.flatten().tolist()) == mine[: x.numel()]
        assert bytes(y.flatten().tolist()) == mine[1 : y.numel() + 1]


def test_the_real_corpus_is_large_the_same_every_time_and_described() -> None:
    first, second = load("stdlib-transformer").data(), load("stdlib-transformer-sgd").data()
    assert first.facts == second.facts
    assert first.facts["python"] == platform.python_version()
    for name in ("train", "validation", "test"):
        x, y = getattr(first, name)
        assert torch.equal(x, getattr(second, name)[0])
        assert torch.equal(x[:, 1:], y[:, :-1])
        assert x.dtype == torch.uint8
    sizes = [len(split[0]) for split in (first.train, first.validation, first.test)]
    assert sizes[0] > 50_000
    assert min(sizes) > 1_000
    assert sum(sizes) * CONTEXT <= first.facts["corpus_bytes"]


def test_an_interpreter_without_sources_is_missing_data(tmp_path: Path) -> None:
    with pytest.raises(DataMissing, match="too little Python source"):
        load_stdlib_text(tmp_path)
