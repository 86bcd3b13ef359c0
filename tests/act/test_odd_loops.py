"""Inputs, calls and errors that are rare in a loop do not stop it or change what is measured."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import largebatch as lb
from largebatch.measure.forwards import tensor_leaves
from largebatch.measure.part_buffer import PartBuffer

PARTS, SIZE = 4, 8


class Run:
    """A model under attach, and what was recorded of it."""

    def __init__(self, model: nn.Module) -> None:
        torch.manual_seed(0)
        self.model, self.record = model, lb.MemoryRecord()
        self.optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        self.control = lb.attach(
            model,
            self.optimizer,
            lb.AdaScale(),
            batch_size=PARTS * SIZE,
            base_batch_size=SIZE,
            record=self.record,
        )

    def backward(self, *inputs: Any) -> None:
        (self.model(*inputs).square().mean() / PARTS).backward()

    def step(self) -> None:
        self.optimizer.step()
        self.optimizer.zero_grad()

    @property
    def parts(self) -> list[int | None]:
        found = [one.seen.moments for one in self.record.steps]
        return [None if one is None else one.parts for one in found]


def small() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 2))


def x() -> Tensor:
    return torch.randn(SIZE, 5)


class Graph(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(5, 2)

    def forward(self, edges: Tensor, nodes: Tensor) -> Tensor:
        return torch.sparse.mm(edges, self.layer(nodes))


class Ragged(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(5, 2)

    def forward(self, rows: Tensor) -> Tensor:
        return torch.cat(list(self.layer(rows).unbind()))


@dataclass
class Tree:
    parent: Any
    x: Tensor


class OfTree(Ragged):
    def forward(self, tree: Tree) -> Tensor:
        return self.layer(tree.x)


def cycle() -> Tree:
    tree = Tree(None, x())
    tree.parent = tree
    return tree


INPUTS = {
    "COO": (Graph, lambda: (torch.eye(SIZE).to_sparse(), x())),
    "nested": (
        Ragged,
        lambda: (torch.nested.nested_tensor([torch.randn(3, 5), torch.randn(5, 5)]),),
    ),
    "cyclic": (OfTree, lambda: (cycle(),)),
}


@pytest.mark.parametrize("name", INPUTS)
@pytest.mark.filterwarnings("ignore:batch_size=32 was given", "ignore:The PyTorch API of nested")
def test_inputs_without_a_size_are_no_reason_to_refuse(name) -> None:
    model, inputs = INPUTS[name]
    run = Run(model())
    for _ in range(3):
        for _ in range(PARTS):
            run.backward(*inputs())
        run.step()
    assert run.parts == [PARTS] * 3


def test_tensors_in_a_cyclic_dataclass_are_found_once() -> None:
    assert len(list(tensor_leaves((cycle(),)))) == 1


def test_a_forward_pass_in_a_transform_is_no_forward_pass_of_the_step() -> None:
    run = Run(small())
    weights = {name: one.detach() for name, one in run.model.named_parameters()}

    def loss(weights: Any, one: Tensor) -> Tensor:
        return torch.func.functional_call(run.model, weights, (one[None],)).sum()

    for _ in range(3):
        torch.func.vmap(torch.func.grad(loss), (None, 0))(weights, x())
        for _ in range(PARTS):
            run.backward(x())
        assert run.control.observer._step.forwards.in_step == PARTS
        run.step()
    assert run.parts == [PARTS] * 3


class Experts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList([nn.Linear(5, 2) for _ in range(PARTS)])

    def forward(self, x: Tensor, expert: int) -> Tensor:
        return self.experts[expert](x)


def test_a_step_that_shows_too_little_gives_no_estimate_and_the_next_one_does() -> None:
    run = Run(Experts())
    for step in range(5):
        for at in range(PARTS):
            run.backward(x(), at if step else 0)
        if step > 1:
            run.model(x(), 0)  # a line of a log, without no_grad
        run.step()
    assert run.parts == [PARTS, PARTS, None, PARTS, PARTS]
    assert [one.seen.batch_size for one in run.record.steps] == [PARTS * SIZE] * 5


def test_a_drop_inside_of_a_block_takes_what_the_block_told() -> None:
    run = Run(small())
    for step in range(3):
        if step == 1:
            with run.control.part(samples=SIZE, weight=3):
                run.backward(x())
                run.control.drop()
                run.optimizer.zero_grad()
        for _ in range(PARTS):
            with run.control.part(samples=SIZE, weight=2):
                run.backward(x())
        run.step()
    assert run.parts == [PARTS] * 3


def test_a_generator_that_is_left_inside_of_a_block() -> None:
    run = Run(small())

    def parts():
        while True:
            with run.control.part(samples=SIZE):
                yield x()

    for late in (False, True, False):
        some = parts()
        for _ in range(PARTS):
            run.backward(next(some))
        if not late:
            some.close()  # the end of the block, before the step
        run.step()
        some.close()
    assert run.parts == [PARTS] * 3
    assert run.control.samples == 3 * PARTS * SIZE


def test_backward_calls_in_two_threads_are_not_inside_of_each_other() -> None:
    run = Run(small())
    first, second = threading.Event(), threading.Event()

    class Wait(torch.autograd.Function):
        """Holds the outer backward until another thread's has ended."""

        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, gradient: Tensor) -> Tensor:
            first.set()
            assert second.wait(10)
            return gradient

    def waiting() -> None:
        hidden = run.model[1](run.model[0](x()))
        (run.model[2](Wait.apply(hidden)).square().mean() / PARTS).backward()

    def other() -> None:
        assert first.wait(10)
        for _ in range(PARTS - 1):
            (run.model[2](run.model[1](run.model[0](x()))).square().mean() / PARTS).backward()
        second.set()

    threads = [threading.Thread(target=one) for one in (waiting, other)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert len(run.control.observer._step.roots) == PARTS


def breaks_backward(module: nn.Module, args: Any, output: Tensor) -> None:
    output.register_hook(lambda gradient: 1 / 0)


def test_a_gradient_of_the_inputs_that_fails_half_way_spoils_no_step() -> None:
    run = Run(small())
    for step in range(3):
        if step != 1:
            hook = run.model[0].register_forward_hook(breaks_backward)
            inputs = x().requires_grad_()
            output = run.model(inputs).sum()
            with pytest.raises(ZeroDivisionError):
                torch.autograd.grad(output, inputs)
            hook.remove()
        for _ in range(PARTS):
            run.backward(x())
        run.step()
    assert run.parts == [PARTS] * 3


@pytest.mark.parametrize("order", [("sparse", "dense"), ("dense", "sparse"), ("sparse", "sparse")])
def test_sparse_and_dense_gradients_of_one_parameter_add_up(order) -> None:
    dense = torch.tensor([[1.0, 2.0], [0.0, 0.0], [3.0, 4.0]])
    kinds = {"sparse": dense.to_sparse(1), "dense": dense}
    buffer, seen = PartBuffer(), {}
    for kind in order:
        buffer.add(0, kinds[kind])
    buffer.empty_into(lambda index, gradient: seen.update({index: gradient}))
    total = seen[0].to_dense() if seen[0].is_sparse else seen[0]
    assert torch.equal(total, 2 * dense)
    assert torch.equal(dense, kinds["sparse"].to_dense())


def test_a_loss_for_each_sample_is_refused_at_once() -> None:
    run = Run(small())
    with pytest.raises(ValueError, match=r"shape \[8\] was given.*control\.loss\(loss\.mean\(\)\)"):
        run.control.loss(torch.zeros(SIZE))
    run.control.drop()
    for _ in range(PARTS):
        run.control.loss(torch.ones(1))
        run.backward(x())
    run.step()
    assert run.record.steps[0].seen.loss == 1.0


@pytest.mark.parametrize("options", [{}, {"weight": 2}, {"samples": PARTS * SIZE}])
def test_a_block_around_the_only_backward_of_a_step_serves_single_examples(options) -> None:
    plain, run = Run(small()), Run(small())
    run.model.load_state_dict(plain.model.state_dict())
    for _ in range(10):
        inputs = torch.randn(PARTS * SIZE, 5)
        plain.model(inputs).square().mean().backward()
        plain.step()
        with run.control.part(**options):
            run.model(inputs).square().mean().backward()
        run.step()
    seen = [
        [moments for one in each.record.steps if (moments := one.seen.moments)]
        for each in (plain, run)
    ]
    assert len(seen[0]) == len(seen[1]) == 2
    for one, other in zip(*seen, strict=True):
        assert one.parts == other.parts == PARTS * SIZE
        assert other.variance == pytest.approx(one.variance)
