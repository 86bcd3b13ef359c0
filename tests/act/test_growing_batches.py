"""Runs whose batch grows by a test: on one process and on two, interrupted and not, and refused."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import largebatch as lb
from distributed import run_on_ranks
from largebatch.record import MemoryRecord
from small_runs import adamw, data, loss_of, sgd, small_model, train, weights

Build = Callable[[nn.Module], torch.optim.Optimizer]
DATA = data(96)


def adagrad(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adagrad(model.parameters(), lr=0.05)


def adagrad_norm(model: nn.Module) -> torch.optim.Optimizer:
    return lb.optim.AdaGradNorm(model.parameters(), lr=0.5)


PAPERS: dict[str, tuple[Callable[..., Any], Build]] = {
    "adasgd": (lb.methods.adasgd, sgd),
    "adadagrad_norm": (lb.methods.adadagrad_norm, adagrad_norm),
    "adadagrad": (lb.methods.adadagrad, adagrad),
    "adadam": (lb.methods.adadam, adamw),
}
every_paper = pytest.mark.parametrize("paper", PAPERS)


def build(
    rule: Any, optimize: Build = sgd, *, batch_size: int = 8, most: int | None = 4, **options: Any
) -> tuple[nn.Module, torch.optim.Optimizer, lb.Controller, MemoryRecord]:
    model: nn.Module = small_model()
    if dist.is_initialized():
        model = DistributedDataParallel(model)
    optimizer, record = optimize(model), MemoryRecord()
    batches = lb.BatchLoader(DATA, batch_size=batch_size, max_micro_batch_size=most, seed=0)
    control = lb.Controller(
        model, optimizer, rule, batches, base_batch_size=8, record=record, **options
    )
    return model, optimizer, control, record


@every_paper
def test_the_batch_of_a_paper_grows_in_tested_steps_and_says_why(paper: str) -> None:
    rule, optimize = PAPERS[paper]
    _, optimizer, control, record = build(rule(eta=0.5, every=3), optimize)
    rate = optimizer.param_groups[0]["lr"]
    train(control, samples=1500)
    sizes = [seen.batch_size for seen, _ in record.steps[:-1]]  # the budget cuts the last one
    assert sizes == sorted(sizes)
    assert sizes[0] == 8
    assert 16 < sizes[-1] <= 96
    for seen, decision in record.steps[:-1]:
        grown = decision.next_batch_size > seen.batch_size
        assert decision.next_batch_size <= 2 * seen.batch_size
        assert decision.lr_multiplier == pytest.approx(math.sqrt(seen.batch_size / 8))
        assert ("theta_max" in decision.reason) == (seen.step % 3 == 0)
        if grown:
            assert " > 0.5" in decision.reason
        measured = seen.moments is not None or seen.preconditioned_moments is not None
        assert measured == (seen.step % 3 == 0)
    assert optimizer.param_groups[0]["lr"] == rate


@every_paper
def test_a_cap_is_kept(paper: str) -> None:
    rule, optimize = PAPERS[paper]
    _, _, control, record = build(rule(eta=0.2, every=1, max=40, growth=3.0), optimize)
    train(control, samples=1000)
    assert [seen.batch_size for seen, _ in record.steps[:4]] == [8, 24, 40, 40]
    assert max(seen.batch_size for seen, _ in record.steps) == 40


def test_the_data_set_is_the_cap_where_none_is_given() -> None:
    _, _, control, record = build(lb.methods.adasgd(eta=0.01, every=1, growth=4.0))
    train(control, samples=2000)
    assert max(seen.batch_size for seen, _ in record.steps) == 96
    assert "batch 96, the data set" in record.steps[3][1].reason


def test_the_rate_stays_where_nothing_scales_it() -> None:
    _, _, control, record = build(lb.methods.adasgd(eta=0.2, every=2, scaling=None))
    train(control, samples=1000)
    assert record.steps[-2][0].batch_size > 16
    assert {decision.lr_multiplier for _, decision in record.steps} == {1.0}


@every_paper
@pytest.mark.parametrize("cut", [1, 5, 12])
def test_at_any_cut_the_bits_are_those_of_the_uninterrupted_run(paper: str, cut: int) -> None:
    method, optimize = PAPERS[paper]
    rule = method(eta=0.5, every=3, scaling=lb.LinearScaling())
    whole, _, control, record = build(rule, optimize)
    train(control, samples=1200)
    first, optimizer, control, before = build(rule, optimize)
    go_until(control, step=cut)
    file = io.BytesIO()
    torch.save(
        {"m": first.state_dict(), "o": optimizer.state_dict(), "c": control.state_dict()}, file
    )
    file.seek(0)
    state = torch.load(file, weights_only=True)
    second, optimizer, control, after = build(rule, optimize)
    control.load_state_dict(state["c"])
    second.load_state_dict(state["m"])
    optimizer.load_state_dict(state["o"])
    train(control, samples=1200)
    assert before.steps + after.steps == record.steps
    assert all(map(torch.equal, weights(whole), weights(second)))


def go_until(control: lb.Controller, *, step: int) -> None:
    for batch in control.steps(samples=1200):
        for x, y in batch:
            control.backward(loss_of(control.model, x, y))
        if control.optimizer_steps + 1 == step:
            control.stop()
        control.step()


def a_run(paper: str, most: int | None) -> list[Any]:
    """The sizes, rates and reasons of a run whose tests decide, and the weights at its end."""
    method, optimize = PAPERS[paper]
    rule = method(eta=1.2, every=3, growth=8.0)
    model, _, control, _ = build(rule, optimize, most=most)
    decisions = train(control, steps=25)
    return [
        [(d.next_batch_size, d.lr_multiplier, d.reason) for d in decisions],
        [w.tolist() for w in weights(model)],
    ]


def both_ranks() -> list[list[Any]]:
    return [a_run(paper, most) for paper in PAPERS for most in (3, None)]


@pytest.mark.distributed
def test_two_processes_decide_as_one_does_whatever_the_batch() -> None:
    """The sizes are equal, every one, though the estimates are so only up to rounding."""
    first, second = run_on_ranks(both_ranks, 2)
    assert first == second
    alone = both_ranks()
    for (decisions, moved), (there, also) in zip(alone, first, strict=True):
        sizes = [size for size, _, _ in decisions]
        assert len({size for size in sizes if size not in (8, 64, 96)}) >= 1
        assert [d[:2] for d in there] == [d[:2] for d in decisions]
        for a, b in zip(moved, also, strict=True):
            torch.testing.assert_close(torch.tensor(a), torch.tensor(b), rtol=1e-3, atol=1e-5)


def test_a_step_that_is_not_finite_does_not_change_the_batch() -> None:
    _, _, control, record = build(lb.methods.adasgd(eta=0.05, every=1))
    for at, batch in enumerate(control.steps(steps=4)):
        for x, y in batch:
            loss = loss_of(control.model, x, y)
            control.backward(loss * math.nan if at == 2 else loss)
        control.step()
    assert [seen.batch_size for seen, _ in record.steps] == [8, 16, 32, 32, 64]


def test_a_cap_below_the_start_is_refused_with_both_sizes() -> None:
    for rule in (lb.ClampBatch(max=4), lb.methods.adasgd(max=4)):
        with pytest.raises(ValueError, match=r"starts at 8 samples, above its cap of 4(.|\n)*"):
            build(rule)
    build(lb.methods.adasgd(max=8))


def test_a_batch_of_one_is_refused_with_the_remedy() -> None:
    with pytest.raises(ValueError, match=r"never grow(.|\n)*batch_size=2"):
        build(lb.methods.adasgd(), batch_size=1)
    build(lb.AdaScale(), batch_size=1)  # the batch is not its matter
    build(lb.Milestones(), batch_size=1)


def test_an_optimizer_that_does_not_divide_is_refused_with_the_remedy() -> None:
    for method in (lb.methods.adadagrad, lb.methods.adadam):
        with pytest.raises(ValueError, match=r"preconditioned_moments(.|\n)*torch.optim.Adagrad"):
            build(method())


def test_dots_that_the_meter_does_not_measure_are_refused_with_another_test() -> None:
    needs = "InnerProductTest needs 'inner_product_variance'"
    with pytest.raises(ValueError, match=rf"{needs}(.|\n)*lb.NormTest"):
        build(lb.InnerProductTest())


def test_a_loop_of_ones_own_refuses_what_sets_the_batch() -> None:
    model = small_model()
    with pytest.raises(ValueError, match=r"under lb.attach"):
        lb.attach(model, sgd(model), lb.methods.adasgd(), batch_size=8, base_batch_size=8)
