"""Test that the loops of the how-to pages are measured, and fail, as the pages state.

A loop fails if a line that its page explains is left out. The page on troubleshooting has every
message of the files that read a loop.
"""

from __future__ import annotations

import ast
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from distributed import run_program
from largebatch.core.errors import LargeBatchError, MicroBatchMissed
from offenders import assert_no_offenders
from test_docs import ROOT, SOURCE, Block, blocks_in, run

HOW_TO = ROOT / "docs" / "how-to"
TEXT = (HOW_TO / "your-loop.md").read_text()
LOOPS = {
    1: ("your-loop.md", "### Accumulation, clipping and a scheduler"),
    2: ("your-loop.md", "### Weights by tokens"),
    3: ("your-loop.md", "### Two losses on one batch"),
    4: ("your-loop.md", "### The discriminator of a GAN"),
    5: ("your-loop.md", "### SAM"),
    6: ("your-loop.md", "### One backward call\n"),
    7: ("accelerate.md", "## The loop"),
    8: ("your-loop.md", "### Two optimizers"),
    9: ("ddp.md", ""),  # the whole page
    10: ("your-loop.md", "### A batch that runs out of memory"),
}
"""Number of each loop, with the loop's page and the heading of its section."""
IN_PARTS = "with control.part(samples=len(part)):"
IN_PART_X = "with control.part(samples=len(part_x)):"
DROP = "        control.drop()\n        optimizer.zero_grad()\n"


def blocks(loop: int, *, kind: str = "") -> list[Block]:
    """Return the code blocks of one of the ten loops."""
    name, heading = LOOPS[loop]
    text = (HOW_TO / name).read_text()
    if heading:
        (text,) = [one for one in re.split(r"\n(?=##+ \S)", text) if one.startswith(heading)]
    return [block for block in blocks_in(text, page=HOW_TO / name) if block.kind == kind]


def edited(block: Block, old: str, new: str = "") -> Block:
    """Return the block with one text replaced."""
    assert old in block.text
    return Block(block.page, block.line, block.language, block.kind, block.text.replace(old, new))


def fails_once(*args: Any) -> Any:
    """Return the loss, but run out of memory in the second micro-batch of the third step."""
    fails_once.calls += 1  # type: ignore[attr-defined]
    if fails_once.calls == 10:  # type: ignore[attr-defined]
        raise torch.OutOfMemoryError("out of memory")
    return torch.nn.functional.cross_entropy(*args)


def with_a_failing_loss(block: Block) -> Block:
    """Return the block with a loss function that fails once."""
    fails_once.calls = 0  # type: ignore[attr-defined]
    head = "from test_your_loop import fails_once as loss_fn\n"
    return Block(block.page, block.line, block.language, block.kind, head + block.text)


@pytest.mark.parametrize(
    ("loop", "steps"), [(1, 16), (2, 4), (3, 16), (4, 16), (5, 16), (8, 16), (10, 16)]
)
def test_each_step_has_four_micro_batches_of_sixteen_samples(loop: int, steps: int) -> None:
    control = run(blocks(loop)[:1])["control"]
    moments = control._seen.moments
    assert (moments.parts, moments.source, moments.batch_size) == (4, "micro-batches", 64)
    assert (control.optimizer_steps, control.samples) == (steps, 64 * steps)


def test_accelerate_gives_four_micro_batches() -> None:
    pytest.importorskip("accelerate")
    from accelerate.state import AcceleratorState, GradientState, PartialState

    block = blocks(7)[0]
    careless = edited(
        block,
        "    if accelerator.sync_gradients:\n        control.advance(scheduler)",
        "    control.advance(scheduler)",
    )
    try:
        control = run([block])["control"]
        assert (control._seen.moments.parts, control.optimizer_steps) == (4, 16)
        message = r"control.advance\(\) dropped the earlier backward calls"
        with pytest.raises(MicroBatchMissed, match=message):
            run([careless])
    finally:
        for state in (AcceleratorState, GradientState, PartialState):
            state._reset_state()


def test_one_backward_per_step_is_measured_by_its_examples() -> None:
    names = run(blocks(6)[:1])
    control = names["control"]
    assert control.observer.schedule.every == 160
    assert control.optimizer_steps == 16
    assert control.gain > 1.0


def test_under_batch_normalization_attach_raises_and_watch_compares_pairs_of_steps() -> None:
    attached, watched = blocks(6)
    head = "model.insert(1, nn.BatchNorm1d(4))\n"
    head += "optimizer = torch.optim.SGD(model.parameters(), lr=0.05)\n"
    with pytest.raises(LargeBatchError, match="Single examples cannot be measured"):
        run([edited(attached, "control = lb", head + "control = lb")])
    noise = run([edited(watched, "noise = lb", head + "noise = lb")])["noise"]
    assert noise.label.startswith("measured from pairs of consecutive steps")


def test_a_dropped_batch_counts_neither_as_a_step_nor_as_samples() -> None:
    control = run([with_a_failing_loss(blocks(10)[0])])["control"]
    assert (control.optimizer_steps, control.samples) == (15, 15 * 64)


@pytest.mark.parametrize(
    ("loop", "old", "new", "message"),
    [
        (1, "    optimizer.zero_grad()\n", "", "A parameter had a gradient before the first"),
        (3, IN_PART_X, "if True:", "got 2 gradients from one forward pass of the model"),
        (5, "    control.drop()", "    pass", "The gradient was cleared between two backward call"),
        (8, "    adam.step()\n", "", "stepped twice"),
    ],
)
def test_without_the_line_the_error_comes_that_the_page_names(
    loop: int, old: str, new: str, message: str
) -> None:
    assert message[:40] in " ".join(TEXT.split())
    with pytest.raises(LargeBatchError, match=message):
        run([edited(blocks(loop)[0], old, new)])


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (DROP, "        optimizer.zero_grad()\n", "The gradient was cleared between two backward"),
        (DROP, "        control.drop()\n", r"control.drop\(\) dropped the earlier backward call"),
    ],
)
def test_a_batch_that_is_only_partly_dropped_raises_an_error(
    old: str, new: str, message: str
) -> None:
    block = edited(blocks(10)[0], old, new)
    with pytest.raises(MicroBatchMissed, match=message):
        run([with_a_failing_loss(block)])


def test_a_discriminator_without_drop_raises_and_without_blocks_warns() -> None:
    block = blocks(4)[0]
    drop = block.text[block.text.index("    control.drop()") :]
    with pytest.raises(MicroBatchMissed, match="8 backward calls of this step ran inside"):
        run([edited(block, drop)])
    with pytest.warns(RuntimeWarning, match="64 was given, but the model received 128 rows"):
        run([edited(block, IN_PARTS, "if True:")])


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("program", "old", "new", "message"),
    [
        (0, "batch_size=64, base_batch_size=32", "batch_size=32, base_batch_size=32",
         "and 2 is the number of ranks"),
        (1, "replicated=True", "", "ValueError: 2 processes run"),
        (1, "dist.all_reduce(parameter.grad)", "pass",
         "The gradients of the 2 ranks differ at optimizer.step()"),
    ],
)  # fmt: skip
def test_several_processes_fail_as_the_page_says(
    program: int, old: str, new: str, message: str, tmp_path: Path
) -> None:
    block = edited(blocks(9, kind="torchrun")[program], old, new)
    (tmp_path / "train.py").write_text(block.text)
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    done = run_program(*launcher, "train.py", cwd=tmp_path)
    assert done.returncode != 0
    assert message in done.stderr


def test_unweighted_tokens_raise_nothing() -> None:
    block = blocks(2)[0]
    line = "        control.micro_batch(len(part_x), weight=int((part_y != -100).sum()))\n"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run([edited(block, line)])


MEASURE = (
    "backwards", "observer", "step_reader", "step_parts", "step_recorder", "first_step",
    "shares", "accumulated", "hand_reduced", "one_backward", "part_counts", "forwards",
    "examples_trial", "model_copy", "examples/check", "first_sizes",
)  # fmt: skip
FILES = [SOURCE / "measure" / f"{name}.py" for name in MEASURE] + [
    SOURCE / "act" / f"{name}.py" for name in ("step_hooks", "joint_optimizers")
]
ENDINGS = {
    "but other parameters got fewer gradients, so micro-batches cannot be separated",
    "or split the batch into two or more micro-batches",
    "If the first dimension of the model's input is not the samples, pass a function that counts",
    "so all micro-batches get the same share of the loss.",
    "If several forward and backward calls belong to one micro-batch, put the calls into one block",
    "with control.part(samples=len(x)): loss_fn(model(x), y).backward()",
}
"""First words of sentences that follow the first sentence of a message."""


def messages(text: str, *, least: int) -> Iterator[str]:
    """Yield each text of a program that has at least `least` characters, with … for values.

    Docstrings are left out.
    """
    tree = ast.parse(text)
    skipped = {n.value for n in ast.walk(tree) if isinstance(n, ast.Expr)}
    joined = [n for n in ast.walk(tree) if isinstance(n, ast.JoinedStr)]
    skipped |= {inner for n in joined for inner in ast.walk(n) if inner is not n}  # type: ignore[misc]
    for node in ast.walk(tree):
        if node in skipped or not isinstance(node, (ast.Constant, ast.JoinedStr)):
            continue
        parts = node.values if isinstance(node, ast.JoinedStr) else [node]
        texts = [str(part.value) if isinstance(part, ast.Constant) else "…" for part in parts]
        if len("".join(texts)) >= least:
            yield re.sub(r"\{\w+\}", "…", "".join(texts))


def rows() -> list[str]:
    """Return the first column of the tables of messages."""
    _, _, tables = (HOW_TO / "troubleshooting.md").read_text().partition("\n## Messages\n")
    return re.findall(r"^\| `(.+?)` \| .+ \| .+ \| .*\|$", tables, flags=re.MULTILINE)


def unsaid(heads: list[str]) -> list[str]:
    """Return the heads of messages that no program of the package has."""
    said = [one for file in SOURCE.rglob("*.py") for one in messages(file.read_text(), least=8)]
    patterns = {head: ".*".join(map(re.escape, head.strip("… ").split("…"))) for head in heads}
    return [
        head
        for head, pattern in patterns.items()
        if not any(re.search(pattern, one, flags=re.DOTALL) for one in said)
    ]


def test_every_message_of_a_loop_is_in_the_table() -> None:
    shown = rows()
    said = [one for file in FILES for one in messages(file.read_text(), least=61)]
    missing = [one for one in said if not one.startswith((*shown, *ENDINGS))]
    assert not missing


def test_every_row_of_the_table_is_a_message_of_the_package() -> None:
    shown = rows()
    assert len(shown) > 100
    assert len(set(shown)) == len(shown)
    assert_no_offenders(unsaid(shown), remedy="Quote the first words that the message has now.")


def test_a_message_that_no_program_has_is_found() -> None:
    heads = ["… needs the loss, but no loss", "The gradient was cleared", "The gradient was eaten"]
    assert unsaid(heads) == ["The gradient was eaten"]


def test_a_message_is_found_among_the_texts_of_a_program() -> None:
    program = (
        '"""A docstring."""\nX = "{name} got a text"\nraise E(f"it has {len(x)} of " "them")\n'
    )
    assert list(messages(program, least=8)) == ["… got a text", "it has … of them"]
