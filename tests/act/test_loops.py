"""Each loop is measured right, or refused before a weight moves with a remedy that works."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
import torch._functorch.config as config
from loops import LOOPS, NO_BLOCK, PARTS, SIZE, Net, batches, moments

import largebatch as lb

MODES = ("eager", "compiled", "compiled before", "compiled in place", "compiled in place before")
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")


@pytest.fixture(autouse=True)
def _several_backward_calls():
    """What torch asks of everybody who calls backward twice on one compiled forward."""
    with config.patch(donated_buffer=False):
        yield


def models(mode):
    """The model to call and to attach to, and the bare one; "before": it has run already."""
    torch.manual_seed(0)
    torch.compiler.reset()
    bare = Net()
    called = bare
    if mode.startswith("compiled in place"):
        bare.compile(backend="aot_eager", fullgraph=True)
    elif mode.startswith("compiled"):
        called = torch.compile(bare, backend="aot_eager", fullgraph=True)
    if mode.endswith("before"):
        for _ in range(2):
            called(torch.randn(SIZE, 6)).sum().backward()
        bare.zero_grad()
    return called, bare


def train(name, mode, *, block, steps=4):
    """(measured, true) of each step, or (the error in its place, whether a weight moved)."""
    loop = LOOPS[name]
    called, bare = models(mode)
    optimizer = torch.optim.SGD(bare.parameters(), lr=0.1)
    control = lb.attach(
        called, optimizer, lb.AdaScale(), batch_size=PARTS * SIZE, base_batch_size=SIZE
    )
    twin = Net()
    seen = []
    for batch in batches(steps):
        before = copy.deepcopy(bare.state_dict())
        twin.load_state_dict(before)
        around = (lambda: control.part(samples=SIZE)) if block else NO_BLOCK
        loop.run(called, bare, batch, around)
        try:
            optimizer.step()
        except lb.errors.LargeBatchError as error:
            moved = any(
                not torch.equal(a, b)
                for a, b in zip(before.values(), bare.state_dict().values(), strict=True)
            )
            seen.append((str(error), moved))
        else:
            found = control._seen.moments
            seen.append(((found.variance, found.sqnorm, found.parts), moments(twin, loop, batch)))
        optimizer.zero_grad()
    return seen


def right(one) -> bool:
    found, true = one
    if isinstance(found, str):
        return False
    return found[2] == PARTS and found[:2] == pytest.approx(true, rel=1e-4)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", LOOPS)
def test_a_loop_is_right_or_refused_before_a_weight_moves(name, mode) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        seen = train(name, mode, block=False)
    said = [str(one.message) for one in caught]
    if LOOPS[name].warned and not mode.startswith("compiled in place"):
        assert any("control.part(" in text for text in said), said
        return
    if isinstance(seen[0][0], str):
        text, moved = seen[0]
        assert not moved
        assert "control.part(" in text
        assert LOOPS[name].remedy or LOOPS[name].warned
        if mode.startswith("compiled in place") and "calls belong to one micro-batch" in text:
            return  # its forward passes do not show what they belong to
        assert all(map(right, seen[1:])), seen
    else:
        assert all(map(right, seen)), seen


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", LOOPS)
def test_in_blocks_each_loop_is_right_from_the_first_step_on(name, mode) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="batch_size=32 was given")
        seen = train(name, mode, block=True)
    assert all(map(right, seen)), seen
