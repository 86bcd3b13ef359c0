"""Runs whose batch grows by a test: on one process and on two, interrupted and not, and refused."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.functional import mse_loss
from torch.nn.parallel import DistributedDataParallel

import largebatch as lb
from distributed import run_on_ranks
from largebatch.record import MemoryRecord
from round_trips import through_a_file
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
    rule: Any,
    optimize: Build = sgd,
    *,
    batch_size: int = 8,
    most: int | None = 4,
    examples: bool = False,
    model: nn.Module | None = None,
) -> tuple[nn.Module, torch.optim.Optimizer, lb.Controller, MemoryRecord]:
    model = small_model() if model is None else model
    if dist.is_initialized():
        model = DistributedDataParallel(model)
    optimizer, record = optimize(model), MemoryRecord()
    batches = lb.BatchLoader(DATA, batch_size=batch_size, max_micro_batch_size=most, seed=0)
    meter = lb.Meter(model, examples=lb.PerExample() if examples else None)
    control = lb.Controller(
        model, optimizer, rule, batches, base_batch_size=8, record=record, meter=meter
    )
    return model, optimizer, control, record


def unknown(paper: str) -> int:
    """The steps in which an optimizer that divides the gradient has too young a state."""
    return 5 if paper in ("adadagrad", "adadam") else 0


@every_paper
def test_the_batch_of_a_paper_grows_in_tested_steps_and_says_why(paper: str) -> None:
    rule, optimize = PAPERS[paper]
    _, optimizer, control, record = build(rule(eta=0.5, every=3), optimize)
    rate = optimizer.param_groups[0]["lr"]
    train(control, samples=1500)
    sizes = [seen.batch_size for seen, _ in record.steps[:-1]]  # the budget cuts the last one
    assert sizes[0] == 8
    assert 16 < max(sizes) <= 96
    for seen, decision in record.steps[:-1]:
        grown = decision.next_batch_size > seen.batch_size
        assert decision.next_batch_size <= 2 * seen.batch_size
        assert decision.lr_multiplier == pytest.approx(math.sqrt(seen.batch_size / 8))
        # the first three, then every third; Adam's first steps divide nothing
        tested = (seen.step < 3 or seen.step % 3 == 0) and seen.step >= unknown(paper)
        assert ("theta_max" in decision.reason) == tested
        if grown:
            assert "] > eta 0.5" in decision.reason
        if decision.next_batch_size < seen.batch_size:
            assert "] < 0.5" in decision.reason
            assert 2 * decision.next_batch_size >= seen.batch_size
        measured = seen.moments is not None or seen.preconditioned_moments is not None
        assert measured == tested
    assert optimizer.param_groups[0]["lr"] == rate


@every_paper
def test_a_growing_batch_never_exceeds_its_cap(paper: str) -> None:
    rule, optimize = PAPERS[paper]
    _, _, control, record = build(rule(eta=0.2, every=1, max=40, growth=3.0), optimize)
    train(control, samples=1000)
    before = unknown(paper) + 4
    sizes = [seen.batch_size for seen, _ in record.steps]
    assert sizes[:before] == [8] * before, "before the fourth measurement nothing is known"
    grown = [size for size in sizes if size > 8]
    assert grown[0] <= 24
    assert max(seen.batch_size for seen, _ in record.steps) == 40


def test_the_data_set_is_the_cap_where_none_is_given() -> None:
    _, _, control, record = build(lb.methods.adasgd(eta=0.01, every=1, growth=4.0))
    train(control, samples=2000)
    assert max(seen.batch_size for seen, _ in record.steps) == 96
    assert "batch size 96, the whole data set" in record.steps[3][1].reason


def test_the_learning_rate_stays_constant_while_the_batch_grows_without_scaling() -> None:
    _, _, control, record = build(lb.methods.adasgd(eta=0.2, every=2, scaling=None))
    train(control, samples=1000)
    assert record.steps[-2][0].batch_size > 16
    assert {decision.lr_multiplier for _, decision in record.steps} == {1.0}


LENGTH = 18
CUTS = [*[(step,) for step in range(1, LENGTH)], tuple(range(1, LENGTH))]


@every_paper
def test_stopped_at_any_step_and_at_every_one_the_bits_are_those_of_the_whole_run(
    paper: str,
) -> None:
    method, optimize = PAPERS[paper]
    rule = method(eta=0.5, every=2, scaling=lb.LinearScaling())
    whole, seen = pieces(rule, optimize, cuts=())
    assert len({step.batch_size for step, _ in seen}) >= 3
    for cuts in CUTS:
        model, also = pieces(rule, optimize, cuts=cuts)
        assert also == seen
        assert all(map(torch.equal, weights(whole), weights(model)))


def pieces(rule: Any, optimize: Build, *, cuts: tuple[int, ...]) -> tuple[nn.Module, list[Any]]:
    """A run of LENGTH steps that is built anew after each of these; its model and its record."""
    model, optimizer, control, record = build(rule, optimize)
    steps: list[Any] = []
    for stop in (*cuts, LENGTH):
        for batch in control.steps(steps=LENGTH):
            for x, y in batch:
                control.backward(loss_of(control.model, x, y))
            if control.optimizer_steps + 1 == stop:
                control.stop()
            control.step()
        steps += record.steps
        if stop < LENGTH:
            state = {"m": model.state_dict(), "o": optimizer.state_dict()}
            state = through_a_file({**state, "c": control.state_dict()})
            model, optimizer, control, record = build(rule, optimize)
            control.load_state_dict(state["c"])
            model.load_state_dict(state["m"])
            optimizer.load_state_dict(state["o"])
    return model, steps


def a_run(paper: str, most: int | None) -> list[Any]:
    """The sizes, rates and reasons of a run whose tests decide, and the weights at its end."""
    method, optimize = PAPERS[paper]
    rule = method(eta=0.4, every=3, growth=8.0)
    model, _, control, _ = build(rule, optimize, most=most)
    decisions = train(control, steps=40)
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
        assert len({size for size, _, _ in decisions if size not in (8, 64, 96)}) >= 1
        assert [d[:2] for d in there] == [d[:2] for d in decisions]
        for a, b in zip(moved, also, strict=True):
            torch.testing.assert_close(torch.tensor(a), torch.tensor(b), rtol=1e-3, atol=1e-5)


def test_a_step_that_is_not_finite_does_not_change_the_batch() -> None:
    _, _, control, record = build(lb.methods.adasgd(eta=0.05, every=1))
    for at, batch in enumerate(control.steps(steps=7)):
        for x, y in batch:
            loss = loss_of(control.model, x, y)
            control.backward(loss * math.nan if at == 5 else loss)
        control.step()
    sizes = [seen.batch_size for seen, _ in record.steps]
    assert sizes[:5] == [8, 8, 8, 8, 16]
    assert 16 < sizes[5] == sizes[6] < sizes[7]


def test_a_cap_below_the_start_is_refused_with_both_sizes() -> None:
    for rule in (lb.ClampBatch(max=4), lb.methods.adasgd(max=4)):
        with pytest.raises(ValueError, match=r"the rule caps the batch size at 4(.|\n)*"):
            build(rule)
    build(lb.methods.adasgd(max=8))


def test_a_batch_of_one_is_refused_with_the_remedy() -> None:
    for options in (
        {},
        {"examples": True},
        {"examples": True, "rule": lb.rules.InnerProductTest()},
    ):
        with pytest.raises(ValueError, match=r"never grow(.|\n)*batch_size=2"):
            build(**{"rule": lb.methods.adasgd(), "batch_size": 1, **options})
    for rule in (
        lb.AdaScale(),
        lb.rules.Milestones(),
    ):  # the batch is not its matter, or not by variance
        for examples in (False, True):
            build(rule, batch_size=1, examples=examples)


def test_an_optimizer_of_unknown_denominators_is_refused_with_both_remedies() -> None:
    needs = r"preconditioned_moments(.|\n)*torch.optim.Adagrad(.|\n)*"
    for examples in (False, True):
        for method in (lb.methods.adadagrad, lb.methods.adadam):
            with pytest.raises(ValueError, match=needs + r"lb\.methods\.adasgd\(\)"):
                build(method(), rmsprop, examples=examples)
    with pytest.raises(ValueError, match=needs + r"lb\.AdaScale\(\)"):
        build(lb.methods.adascale_adam(), rmsprop)


def rmsprop(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.RMSprop(model.parameters(), lr=0.01)


@pytest.mark.parametrize(
    "rule", [lb.rules.InnerProductTest(), lb.rules.AugmentedInnerProductTest()]
)
def test_dots_that_the_meter_does_not_measure_are_refused_with_the_remedies(rule: Any) -> None:
    needs = f"{type(rule).__name__} needs 'inner_product_variance'"
    with pytest.raises(ValueError, match=rf"{needs}(.|\n)*lb.PerExample(.|\n)*lb.NormTest"):
        build(rule)
    build(rule, examples=True)


@pytest.mark.parametrize("examples", [False, True])
def test_coordinates_that_the_meter_does_not_measure_are_refused_with_a_line_that_works(
    examples: bool,
) -> None:
    rule = lb.rules.CoordinateNormTest(statistic="coordinate_noise_scale")
    with pytest.raises(ValueError, match="coordinate_noise_scale") as refused:
        build(rule, examples=examples)
    line = str(refused.value).rpartition("meter=")[2].rstrip(".")
    assert ("PerExample" in line) == examples
    model = small_model()
    meter = eval(line, {"lb": lb, "model": model})
    batches = lb.BatchLoader(DATA, batch_size=8)
    lb.Controller(model, sgd(model), rule, batches, base_batch_size=8, meter=meter)


@every_paper
@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"eta": 0.0}, r"\(eta=0\.0\) was given, but eta must be a number above 0"),
        ({"eta": -1.0}, r"\(eta=-1\.0\) was given, but eta must be a number above 0"),
        ({"eta": "0.5"}, r"\(eta='0\.5'\) was given, but eta must be a number above 0"),
        ({"max": 0}, r"\(max=0\) was given, but max must be a whole number of samples"),
        ({"max": 20.5}, r"\(max=20\.5\) was given, but max must be a whole number of samples"),
        (
            {"every": 0},
            r"\(every=0\) was given, but every must be a whole number of optimizer steps",
        ),
        ({"every": 2.5}, r"\(every=2\.5\) was given, but every must be a whole number"),
        ({"growth": 0.5}, r"\(growth=0\.5\) was given, but growth must be a factor of 1 or more"),
        ({"scaling": "sqrt"}, "'sqrt' was given in place of a rule"),
    ],
)
def test_impossible_numbers_are_refused_by_the_method_that_takes_them(
    paper: str, wrong: Any, told: str
) -> None:
    with pytest.raises(ValueError, match=told) as refused:
        PAPERS[paper][0](**wrong)
    if "scaling" not in wrong:
        assert str(refused.value).startswith(f"lb.methods.{PAPERS[paper][0].__name__}(")
        eval(str(refused.value).rpartition("Example: ")[2], {"lb": lb})  # the line to paste


@pytest.mark.parametrize("examples", [False, True])
def test_a_sum_of_losses_is_refused_before_a_weight_moves(examples: bool) -> None:
    model, _, control, record = build(lb.methods.adasgd(), examples=examples)
    before = weights(model)
    with pytest.raises(ValueError, match=r"is a sum(.|\n)*backward\(loss / len\(x\)\)"):
        for batch in control.steps(steps=2):
            for x, y in batch:
                control.backward(mse_loss(model(x), y, reduction="sum"))
            control.step()
    assert all(map(torch.equal, before, weights(model)))
    for batch in control.steps(steps=2):  # the remedy, and what is a mean already
        for x, y in batch:
            control.backward(mse_loss(model(x), y, reduction="sum") / len(x))
        control.step()
    assert len(record.steps) == 2


def test_a_sum_over_one_sample_is_its_mean() -> None:
    model, _, control, _ = build(lb.methods.adasgd(), most=1)
    for batch in control.steps(steps=1):
        for x, y in batch:
            control.backward(mse_loss(model(x), y, reduction="sum"))
        control.step()


def test_attach_refuses_a_method_that_sets_the_batch() -> None:
    model = small_model()
    with pytest.raises(ValueError, match=r"with lb.attach"):
        lb.attach(model, sgd(model), lb.methods.adasgd(), batch_size=8, base_batch_size=8)


class Branches(nn.Module):
    """Uses one of its layers, so that the others have no gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(3, 1), nn.Linear(3, 1), nn.Linear(3, 1)])
        self.used = 0

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layers[self.used](x)
        return out


def flat_gradient(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Of all parameters, with zeros for those that have none."""
    found = torch.autograd.grad(
        loss_of(model, x, y), list(model.parameters()), allow_unused=True, materialize_grads=True
    )
    return torch.cat([g.flatten() for g in found])


@pytest.mark.parametrize("examples", [False, True])
def test_a_parameter_without_a_gradient_counts_as_one_of_zeros(examples: bool) -> None:
    torch.manual_seed(0)
    model = Branches()
    rule = lb.methods.adasgd(every=1, growth=1.0)
    _, _, control, record = build(rule, examples=examples, model=model)
    for batch in control.steps(steps=2):
        parts = []
        for at, (x, y) in enumerate(batch):
            model.used = at  # 0 and 1; 2 is never used
            rows = range(len(x)) if examples else [slice(None)]
            each = [(x[row].view(-1, 3), y[row].view(-1, 1)) for row in rows]
            parts += [flat_gradient(model, *one) for one in each]
            control.backward(loss_of(model, x, y))
        control.step()
        g = torch.stack(parts).double()
        variance = g.var(0).sum().item() * 8 / len(parts)
        moments = record.steps[-1][0].moments
        assert moments is not None
        assert moments.variance == pytest.approx(variance, rel=1e-5)
        assert moments.batch_sqnorm == pytest.approx(g.mean(0).square().sum().item(), rel=1e-5)
    assert model.layers[2].weight.grad is None


def test_per_example_gradients_of_a_loss_without_parameters_are_refused_with_a_line_to_paste() -> (
    None
):
    model, _, control, _ = build(lb.methods.adasgd(), examples=True)
    with pytest.raises(lb.LargeBatchError, match=r"No parameter(.|\n)*loss_fn\(model\(x\), y\)"):
        for batch in control.steps(steps=1):
            for x, _ in batch:
                control.backward(1.0 * model(x).new_zeros((), requires_grad=True))
