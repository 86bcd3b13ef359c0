"""The self-test of torch's hooks finds a torch that differs, and changes nothing for the user."""

from __future__ import annotations

import random
import threading
import tomllib
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

import largebatch as lb
from largebatch.core.errors import LargeBatchError
from largebatch.core.version import TESTED_TORCH
from largebatch.measure import hook_check
from largebatch.measure.hook_check import check_hooks


@pytest.fixture(autouse=True)
def checked_anew():
    check_hooks.cache_clear()
    yield
    check_hooks.cache_clear()


class LeafNode:
    """Stands for the node that accumulates a parameter's gradient, with other hooks."""

    def __init__(self, node, *, calls):
        self._node, self._calls = node, calls

    def register_prehook(self, hook):
        def changed(gradients):
            for factor in self._calls:
                hook(tuple(None if g is None else factor * g for g in gradients))

        return self._node.register_prehook(changed)


def breaks(monkeypatch, *, calls):
    real = torch.autograd.graph.get_gradient_edge

    class Edge:
        def __init__(self, tensor):
            self.node = LeafNode(real(tensor).node, calls=calls)

    monkeypatch.setattr(hook_check, "get_gradient_edge", Edge)


def queue_callback(monkeypatch, function):
    engine = SimpleNamespace(queue_callback=function)
    monkeypatch.setattr(hook_check, "Variable", SimpleNamespace(_execution_engine=engine))


def no_callbacks(monkeypatch):
    queue_callback(monkeypatch, lambda callback: None)


def early_callbacks(monkeypatch):
    queue_callback(monkeypatch, lambda callback: callback())


def no_task(monkeypatch):
    monkeypatch.setattr(torch._C, "_current_graph_task_id", lambda: -1)


def other_norms(monkeypatch):
    real = torch._foreach_norm
    monkeypatch.setattr(torch, "_foreach_norm", lambda *a, dtype: real(*a))


def lost_name(monkeypatch):
    monkeypatch.delattr(torch._C, "_current_graph_task_id")


def no_compiled_mark(monkeypatch):
    monkeypatch.delattr(nn.Module, "_compiled_call_impl")


BROKEN = {
    "a hook that never runs": (lambda m: breaks(m, calls=[]), r"in this order: output\)"),
    "a hook that runs twice": (lambda m: breaks(m, calls=[1, 1]), "parameter, parameter, callback"),
    "a wrong gradient": (lambda m: breaks(m, calls=[2]), r"in place of the gradient \[3, 4\]"),
    "no callback": (no_callbacks, r"in this order: output, parameter\)"),
    "a callback before .grad": (early_callbacks, "callback before .grad"),
    "no number of the backward": (no_task, "number of the running backward call"),
    "a renamed function": (lost_name, "AttributeError: .*_current_graph_task_id"),
    "norms of another type": (other_norms, "operations on lists of tensors"),
    "no mark of compiled modules": (no_compiled_mark, "compiled modules are not marked"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_torch_that_differs_is_named_with_the_versions_that_work(monkeypatch, case):
    break_it, finding = BROKEN[case]
    break_it(monkeypatch)
    with pytest.raises(LargeBatchError, match=finding) as error:
        check_hooks()
    text = str(error.value)
    assert text.startswith(f"torch {torch.__version__} was found")
    assert "tested with torch 2.9.1 to 2.14" in text
    assert "pip install 'torch>=2.9.1,<2.15'" in text


def test_this_torch_behaves_and_is_checked_once_per_process(monkeypatch):
    check_hooks()
    no_task(monkeypatch)
    check_hooks()


def test_a_failure_is_raised_each_time(monkeypatch):
    no_task(monkeypatch)
    for _ in range(2):
        with pytest.raises(LargeBatchError):
            check_hooks()


def test_the_check_leaves_the_users_settings_alone():
    torch.manual_seed(3)
    random.seed(3)
    np.random.seed(3)
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    threads, count = torch.get_num_threads(), threading.active_count()
    with torch.device("meta"), torch.no_grad(), torch.inference_mode():
        check_hooks()
        assert torch.empty(1).device.type == "meta"
        assert not torch.is_grad_enabled()
        assert torch.is_inference_mode_enabled()
    assert torch.equal(states[0], torch.get_rng_state())
    assert states[1] == random.getstate()
    assert np.array_equal(states[2], np.random.get_state()[1])
    assert (threads, count) == (torch.get_num_threads(), threading.active_count())


def test_a_default_type_does_not_disturb_the_check():
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        check_hooks()
    finally:
        torch.set_default_dtype(before)


def model_and_optimizer():
    model = nn.Linear(2, 1)
    return model, torch.optim.SGD(model.parameters(), lr=0.1)


def data():
    return torch.utils.data.TensorDataset(torch.ones(8, 2), torch.ones(8, 1))


BUILDERS = {
    "Meter": lambda model, optimizer: lb.Meter(model),
    "attach": lambda model, optimizer: lb.attach(
        model, optimizer, lb.AdaScale(), batch_size=8, base_batch_size=4
    ),
    "Controller": lambda model, optimizer: lb.Controller(
        model,
        optimizer,
        lb.AdaScale(),
        lb.BatchLoader(data(), batch_size=8, max_micro_batch_size=4),
        base_batch_size=4,
    ),
}


@pytest.mark.parametrize("name", BUILDERS)
def test_everything_that_measures_is_refused_before_a_hook_is_placed(monkeypatch, name):
    model, optimizer = model_and_optimizer()
    BUILDERS[name](*model_and_optimizer())  # it can be built on this torch
    check_hooks.cache_clear()
    no_callbacks(monkeypatch)
    with pytest.raises(LargeBatchError, match="autograd hooks do not behave"):
        BUILDERS[name](model, optimizer)
    assert not model._forward_pre_hooks
    assert not optimizer._optimizer_step_pre_hooks


def test_a_watch_warns_once_and_leaves_the_training_alone(monkeypatch):
    model, optimizer = model_and_optimizer()
    no_callbacks(monkeypatch)
    with pytest.warns(RuntimeWarning, match="lb.watch measures nothing in this run") as warned:
        noise = lb.watch(model, optimizer, batch_size=8)
    assert len(warned) == 1
    before = model.weight.detach().clone()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(2):
            with noise.part(samples=8):
                model(torch.ones(8, 2)).mean().backward()
            noise.micro_batch(8)
            noise.drop()
            optimizer.step()
            optimizer.zero_grad()
        assert noise.series == []
        assert "nothing is measured: torch" in str(noise)
        noise.close()
    assert not torch.equal(before, model.weight)
    assert not model._forward_pre_hooks
    assert not optimizer._optimizer_step_pre_hooks


def test_the_tested_versions_begin_with_the_oldest_one_that_can_be_installed():
    project = tomllib.loads(Path(__file__).parents[2].joinpath("pyproject.toml").read_text())
    dependencies = project["project"]["dependencies"]
    assert f"torch>={TESTED_TORCH[0]}" in dependencies
