"""Test that a run with Lightning Fabric equals a plain loop, and that the examples run."""

from __future__ import annotations

import re
import runpy
import sys
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.fabric import Fabric
from lightning_runs import assert_same_bits, steps_of
from torch import nn
from torch.optim import Optimizer

import largebatch as lb
from distributed import run_program
from small_rules import Growing
from small_runs import Optimize, adamw, data, loss_of, sgd, small_model

ROOT = Path(__file__).parents[2]

Setup = tuple[nn.Module, Optimizer]


def in_fabric(optimize: Optimize, **options: Any) -> tuple[Fabric, Setup]:
    fabric = Fabric(accelerator="cpu", devices=1, **options)
    model = small_model()
    return fabric, fabric.setup(model, optimize(model))


def controlled(
    setup: Setup, autocast: Callable[[], AbstractContextManager[Any]] = nullcontext
) -> lb.Controller:
    """Train with a growing batch, on models that may be wrapped."""
    model, optimizer = setup
    batches = lb.BatchLoader(data(), batch_size=8, max_micro_batch_size=4)
    rule = lb.chain(Growing(first=8, after_samples=40), lb.AdaScale())
    control = lb.Controller(model, optimizer, rule, batches, base_batch_size=4)
    for batch in control.steps(samples=200):
        for x, y in batch:
            with autocast():
                loss = loss_of(model, x, y)
            control.backward(loss)
        control.step(clip_norm=0.5)
    return control


@pytest.mark.parametrize("optimize", [sgd, adamw])
def test_a_controller_on_what_fabric_sets_up_is_one_on_the_bare_model(optimize: Optimize) -> None:
    model = small_model()
    bare = controlled((model, optimize(model)))
    _, setup = in_fabric(optimize)
    ours = controlled(setup)
    assert_same_bits(setup[0], model)
    assert ours.state_dict() == bare.state_dict()
    assert ours.batch_size == 16


def half() -> AbstractContextManager[Any]:
    return torch.autocast("cpu", dtype=torch.bfloat16)


def test_mixed_precision_is_an_autocast_of_ones_own() -> None:
    model = small_model()
    controlled((model, sgd(model)), half)
    _, setup = in_fabric(sgd)
    controlled(setup, half)
    assert_same_bits(setup[0], model)
    assert all(p.dtype is torch.float32 for p in model.parameters())


def test_fabrics_own_mixed_precision_is_refused_by_fabric() -> None:
    _, setup = in_fabric(sgd, precision="bf16-mixed")
    with pytest.raises(RuntimeError, match=r"requires you to call `fabric\.backward"):
        controlled(setup)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_an_attached_rule_takes_fabrics_backward(precision: Any) -> None:
    fabric, (model, optimizer) = in_fabric(sgd, precision=precision)
    control = lb.attach(model, optimizer, lb.AdaScale(), batch_size=12, base_batch_size=4)
    twin = small_model()
    other = sgd(twin)
    plain = lb.attach(twin, other, lb.AdaScale(), batch_size=12, base_batch_size=4)
    for parts in steps_of():
        for x, y in parts:
            fabric.backward(loss_of(model, x, y) / len(parts))
            with half() if precision == "bf16-mixed" else nullcontext():
                output = twin(x)
            ((output.float() - y).square().mean() / len(parts)).backward()
        for one in (optimizer, other):
            one.step()
            one.zero_grad()
    assert control.lr_multiplier == plain.lr_multiplier != 1.0
    assert_same_bits(model, twin)


# The examples


@pytest.fixture
def run_example(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., list[str]]:
    """Run an example and return the lines that it prints."""

    def run(name: str, *, processes: int) -> list[str]:
        path = str(ROOT / "examples" / name)
        if processes == 1:
            monkeypatch.setattr(sys, "argv", [path])
            with warnings.catch_warnings(action="ignore"):  # its own and Lightning's
                runpy.run_path(path, run_name="__main__")
            return capsys.readouterr().out.splitlines()
        done = run_program(path, str(processes))
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout.splitlines()

    return run


@pytest.mark.distributed
def test_fabrics_example_says_the_same_on_one_process_and_on_two(
    run_example: Callable[..., list[str]],
) -> None:
    one, two = (run_example("fabric_loop.py", processes=count) for count in (1, 2))
    assert [line.split(",")[0] for line in two] == [line.split(",")[0] for line in one]
    assert [re.findall(r"next batch size (\d+)", line) for line in one] == [
        ["64"],
        ["128"],
        ["256"],
        [],
    ]
    for line in (one[-1], two[-1]):
        assert int(line.split()[0]) > 0.93 * 360


@pytest.mark.distributed
@pytest.mark.parametrize("processes", [1, 2])
def test_the_trainers_example_saves_steps_and_keeps_the_accuracy(
    processes: int, run_example: Callable[..., list[str]]
) -> None:
    line = run_example("lightning_adascale.py", processes=processes)[-1]
    steps, worth = int(line.split()[0]), int(re.findall(r"count as (\d+)", line)[0])
    assert steps < 350
    assert 900 <= worth < 908
    assert float(line.split()[-1]) > 0.93
