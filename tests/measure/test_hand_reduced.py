"""`lb.Meter(model, replicated=True)`: the user reduces the gradients, and not DDP.

One pair of processes runs all checks, since their start takes seconds.
"""

from __future__ import annotations

import math
import traceback
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import largebatch as lb
from distributed import run_on_ranks
from largebatch.core.errors import LargeBatchError, RanksDisagree
from largebatch.measure.hand_reduced import ELEMENTS, NAMES, TENSORS, HandReduced
from largebatch.measure.ranks import Ranks
from largebatch.measure.sums import Sums, rows_by_name
from small_runs import class_data, class_loss, classifier, weights

pytestmark = pytest.mark.distributed
RANKS, PARTS, SIZE, STEPS = 2, 2, 5, 3
BATCH = RANKS * PARTS * SIZE


def parts(step: int) -> list[tuple[Tensor, Tensor]]:
    """This rank's micro-batches."""
    x, y = class_data(STEPS * BATCH)
    places = range(step * BATCH, (step + 1) * BATCH, SIZE)
    return [(x[at : at + SIZE], y[at : at + SIZE]) for at in places][dist.get_rank() :: RANKS]


def gradients(model: nn.Module) -> list[Tensor]:
    return [p.grad for p in model.parameters() if p.grad is not None]


def average(model: nn.Module) -> None:
    """An all-reduce of the mean, which gloo does not have as one operation."""
    for gradient in gradients(model):
        dist.all_reduce(gradient, op=dist.ReduceOp.SUM)
        gradient.div_(RANKS)


def flat_average(model: nn.Module) -> None:
    """One all-reduce of all gradients in a row, as hand-written loops do for speed."""
    row = torch.cat([gradient.flatten() for gradient in gradients(model)])
    dist.all_reduce(row)
    torch._foreach_copy_(
        gradients(model),
        [
            piece.view_as(gradient)
            for piece, gradient in zip(
                (row / RANKS).split([g.numel() for g in gradients(model)]),
                gradients(model),
                strict=True,
            )
        ],
    )


def new_average(model: nn.Module) -> None:
    """The gradients are replaced by their means."""
    for parameter in model.parameters():
        total = parameter.grad.clone()
        dist.all_reduce(total)
        parameter.grad = total / RANKS


def sum_up(model: nn.Module) -> None:
    for gradient in gradients(model):
        dist.all_reduce(gradient, op=dist.ReduceOp.SUM)


def clip(model: nn.Module) -> None:
    nn.utils.clip_grad_norm_(model.parameters(), 0.05)


def nothing(model: nn.Module) -> None:
    pass


def clip_values(model: nn.Module) -> None:
    nn.utils.clip_grad_value_(model.parameters(), 0.02)


def clip_each(model: nn.Module) -> None:
    for parameter in model.parameters():
        nn.utils.clip_grad_norm_(parameter, 0.02)


def decay_matrices(model: nn.Module) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.grad.add_(parameter, alpha=0.1)


def add_noise(model: nn.Module) -> None:
    generator = torch.Generator().manual_seed(0)
    for gradient in gradients(model):
        gradient.add_(torch.randn(gradient.shape, generator=generator), alpha=0.1)


def weighted_average(model: nn.Module) -> None:
    for gradient in gradients(model):
        gradient.mul_(0.25 if dist.get_rank() else 0.75)
        dist.all_reduce(gradient)


def half_average(model: nn.Module) -> None:
    """The gradients travel in bfloat16."""
    for parameter in model.parameters():
        short = parameter.grad.bfloat16()
        dist.all_reduce(short)
        parameter.grad = (short / RANKS).float()


def negate(model: nn.Module) -> None:
    torch._foreach_neg_(gradients(model))


def ascend(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.05, maximize=True)


def average_when_ready(model: nn.Module) -> None:
    """Average each parameter's gradient in its hook, in the last backward of each step."""
    backwards = dict.fromkeys(model.parameters(), 0)

    def reduce(parameter: Tensor) -> None:
        backwards[parameter] += 1
        if backwards[parameter] % PARTS == 0:
            dist.all_reduce(parameter.grad)
            parameter.grad.div_(RANKS)

    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(reduce)


def average_in_each_backward(model: nn.Module) -> None:
    """Average all that has been added up so far, in each backward."""

    def reduce(parameter: Tensor) -> None:
        dist.all_reduce(parameter.grad)
        parameter.grad.div_(RANKS)

    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(reduce)


def average_before_adding(model: nn.Module) -> None:
    """Average each gradient before autograd adds it to `.grad`, so that no hook sees its own."""

    def reduced(gradient: Tensor) -> Tensor:
        total = gradient.clone()
        dist.all_reduce(total)
        return total / RANKS

    for parameter in model.parameters():
        parameter.register_hook(reduced)


def train(
    *reduce: Callable[[nn.Module], None],
    prepare: Callable[[nn.Module], None] = nothing,
    optimizer_of: Callable[[nn.Module], torch.optim.Optimizer] | None = None,
    data: Callable[[int], list[tuple[Tensor, Tensor]]] = parts,
    ddp: bool = False,
    reduction: str = "mean",
    divisor: float = PARTS,
    lr: float = 0.05,
    seed: int = 1,
    rule: Any = None,
    door: str = "attach",
) -> dict[str, Any]:
    """The numbers of each step, and the weights at the end."""
    model: Any = classifier(seed=seed)
    prepare(model)
    model = DistributedDataParallel(model) if ddp else model
    meter = lb.Meter(model, replicated=not ddp)
    sgd = torch.optim.SGD(model.parameters(), lr=lr)
    optimizer = optimizer_of(model) if optimizer_of else sgd
    seen = lb.MemoryRecord()
    control: Any = None
    if door == "attach":
        control = lb.attach(
            model,
            optimizer,
            rule or lb.AdaScale(),
            batch_size=BATCH,
            base_batch_size=SIZE,
            meter=meter,
            reduction=reduction,
            record=seen,
        )
    elif door == "watch":
        control = lb.watch(model, optimizer, batch_size=BATCH, meter=meter)
    numbers, gains = [], []
    for step in range(STEPS):
        for at, (x, y) in enumerate(data(step)):
            with model.no_sync() if ddp and at < PARTS - 1 else nullcontext():
                (class_loss(model, x, y) / divisor).backward()
        for act in reduce:
            act(model)
        optimizer.step()
        optimizer.zero_grad()
        if door == "attach":
            moments = control._seen.moments
            numbers.append((moments.variance, moments.sqnorm, moments.batch_sqnorm))
            gains.append(control.gain)
    if door == "watch":
        numbers = control.series
    return {
        "numbers": numbers,
        "dropped": control.dropped if door == "watch" else 0,
        "gains": gains,
        "weights": [w.double().flatten().tolist() for w in weights(model)],
    }


def error_of(act: Callable[[], Any]) -> tuple[str, str]:
    try:
        act()
    except Exception as error:
        return type(error).__name__, str(error)
    return "", ""


def differing_weights() -> Any:
    return error_of(lambda: train(average, seed=1 + dist.get_rank()))


def one_weight_differs() -> Any:
    def model_of() -> nn.Module:
        model = classifier()
        if dist.get_rank() == 1:
            with torch.no_grad():
                model[2].bias[0] += 1e-3
        return model

    def act() -> None:
        model = model_of()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        meter = lb.Meter(model, replicated=True)
        lb.attach(
            model, optimizer, lb.AdaScale(), batch_size=BATCH, base_batch_size=SIZE, meter=meter
        )
        for x, y in parts(0):
            (class_loss(model, x, y) / PARTS).backward()
        average(model)
        optimizer.step()

    return error_of(act)


def same_parts(step: int) -> list[tuple[Tensor, Tensor]]:
    """The same micro-batches on all ranks."""
    x, y = class_data(STEPS * BATCH)
    places = range(step * BATCH, (step + 1) * BATCH, SIZE * RANKS)
    return [(x[at : at + SIZE], y[at : at + SIZE]) for at in places]


def same_data() -> Any:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        gains = train(average, data=same_parts)["gains"]
    return [len(gains), any("got the same input" in str(one.message) for one in caught)]


def moments_of(model: nn.Module, inputs: Callable[[int], Tensor]) -> Any:
    """Whether each step had moments, and whether all of the clocks and gains are finite."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    control = lb.attach(
        model,
        optimizer,
        lb.AdaScale(),
        batch_size=BATCH,
        base_batch_size=SIZE,
        meter=lb.Meter(model, replicated=True),
    )
    known, finite = [], True
    for step in range(STEPS):
        for at in range(PARTS):
            torch.manual_seed(10 * (step * PARTS + at) + dist.get_rank())
            x = inputs(step)
            nn.functional.cross_entropy(model(x), torch.arange(SIZE) % 3).div(PARTS).backward()
        average(model)
        optimizer.step()
        optimizer.zero_grad()
        known.append(control._seen.moments is not None)
        finite = finite and math.isfinite(control.gain) and math.isfinite(control.base_steps)
    return {"known": known, "finite": finite}


def zero_head() -> Any:
    """The head's weight is 0, so no other parameter has a gradient in the first step."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 64), nn.Linear(64, 64), nn.Linear(64, 3, bias=False))
    nn.init.zeros_(model[2].weight)
    return moments_of(model, lambda step: torch.randn(SIZE, 4))


def late_rows() -> Any:
    """The rows of an embedding that are compared are not used in the first step."""
    torch.manual_seed(0)

    def tokens(step: int) -> Tensor:
        return torch.randint(100, (SIZE,)) + (1000 if step == 0 else 0)

    return moments_of(nn.Embedding(2000, 3), tokens)


def refused_by_controller() -> Any:
    def act() -> None:
        model = classifier()
        batches = lb.BatchLoader(class_data(), batch_size=BATCH, max_micro_batch_size=SIZE)
        lb.Controller(
            model,
            torch.optim.SGD(model.parameters(), lr=0.1),
            lb.AdaScale(),
            batches,
            base_batch_size=SIZE,
            meter=lb.Meter(model, replicated=True),
        )

    return error_of(act)


def without_saying_so() -> Any:
    return error_of(lambda: lb.Meter(classifier()))


def watched() -> Any:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = train(average, clip_values, door="watch")
    return found | {"warned": sum("not one factor" in str(one.message) for one in caught)}


RUNS: dict[str, Callable[[], Any]] = {
    "ddp": lambda: train(ddp=True),
    "ddp, clipped": lambda: train(clip, ddp=True),
    "mean": lambda: train(average),
    "mean of a row": lambda: train(flat_average),
    "mean in new tensors": lambda: train(new_average),
    "sum": lambda: train(sum_up, lr=0.05 / RANKS),
    "sum, divided by all": lambda: train(sum_up, reduction="sum", divisor=PARTS * RANKS),
    "mean, clipped": lambda: train(average, clip),
    "row, clipped": lambda: train(flat_average, clip),
    "watch, ddp": lambda: train(ddp=True, door="watch"),
    "watch, mean": lambda: train(average, door="watch"),
    "bare": lambda: train(average, door=""),
    "mean when ready": lambda: train(prepare=average_when_ready),
    "mean in each backward": lambda: train(prepare=average_in_each_backward),
    "mean when ready, clipped": lambda: train(clip, prepare=average_when_ready),
    "mean in bfloat16": lambda: train(half_average),
    "negated": lambda: train(average, negate, optimizer_of=ascend),
    "same data": same_data,
    "zero head": zero_head,
    "late rows": late_rows,
    "not reduced, clipped": lambda: error_of(lambda: train(clip)),
    "clipped by value": lambda: error_of(lambda: train(average, clip_values)),
    "clipped one by one": lambda: error_of(lambda: train(average, clip_each)),
    "decay of matrices": lambda: error_of(lambda: train(average, decay_matrices)),
    "noise": lambda: error_of(lambda: train(average, add_noise)),
    "weighted": lambda: error_of(lambda: train(weighted_average)),
    "mean before adding": lambda: error_of(lambda: train(prepare=average_before_adding)),
    "watch, clipped by value": watched,
    "bare, clipped by value": lambda: train(average, clip_values, door=""),
    "not reduced": lambda: error_of(lambda: train(nothing)),
    "reduced on the device of one rank": lambda: error_of(
        lambda: train(lambda m: [g.mul_(1.0 + dist.get_rank()) for g in gradients(m)])
    ),
    "other weights": differing_weights,
    "one other weight": one_weight_differs,
    "controller": refused_by_controller,
    "not said": without_saying_so,
}


def everything() -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, act in RUNS.items():
        torch.manual_seed(0)
        try:
            found[name] = act()
        except Exception:
            found[name] = traceback.format_exc()
        dist.barrier()
    return found


@pytest.fixture(scope="module")
def answers() -> list[dict[str, Any]]:
    return run_on_ranks(everything, RANKS)


def of(answers: list[dict[str, Any]], name: str) -> dict[str, Any]:
    first, second = (answer[name] for answer in answers)
    assert not isinstance(first, str), first
    assert first == second  # every rank has the same numbers and weights
    return first


def close(ours: Any, theirs: Any) -> bool:
    return all(a == pytest.approx(b, rel=1e-5, abs=1e-9) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("mean", "ddp"),
        ("mean of a row", "ddp"),
        ("mean in new tensors", "ddp"),
        ("mean when ready", "ddp"),
        ("mean in each backward", "ddp"),
        ("mean when ready, clipped", "ddp, clipped"),
        ("negated", "ddp"),
        ("sum", "ddp"),
        ("sum, divided by all", "ddp"),
        ("mean, clipped", "ddp, clipped"),
        ("row, clipped", "ddp, clipped"),
    ],
)
def test_the_numbers_and_weights_are_those_of_ddp(answers, ours, theirs) -> None:
    mine, ddp = of(answers, ours), of(answers, theirs)
    assert len(ddp["numbers"]) == STEPS
    assert close(mine["numbers"], ddp["numbers"]), (mine["numbers"], ddp["numbers"])
    assert mine["gains"] == pytest.approx(ddp["gains"], rel=1e-5)
    assert close(mine["weights"], ddp["weights"])


def test_clipping_after_the_all_reduce_leaves_the_first_statistic_as_it_was(answers) -> None:
    clipped, free = of(answers, "mean, clipped"), of(answers, "mean")
    assert clipped["numbers"][0] == pytest.approx(free["numbers"][0], rel=1e-5)
    assert clipped["weights"] != free["weights"]
    assert free["numbers"][0][2] > 0.05**2


def test_watch_has_the_numbers_of_ddp_and_changes_no_bit(answers) -> None:
    assert close(of(answers, "watch, mean")["numbers"], of(answers, "watch, ddp")["numbers"])
    assert of(answers, "watch, mean")["dropped"] == 0
    assert of(answers, "watch, mean")["weights"] == of(answers, "bare")["weights"]


@pytest.mark.parametrize(
    ("name", "kind", "text"),
    [
        ("not reduced", "RanksDisagree", "The gradients of the 2 ranks differ"),
        ("reduced on the device of one rank", "RanksDisagree", "gradients of the 2 ranks differ"),
        ("not reduced, clipped", "RanksDisagree", "The gradients of the 2 ranks differ"),
        ("clipped by value", "LargeBatchError", "not one factor times the sum of the 2 ranks'"),
        ("clipped one by one", "LargeBatchError", "not one factor times the sum"),
        ("decay of matrices", "LargeBatchError", "not one factor times the sum"),
        ("noise", "LargeBatchError", "not one factor times the sum"),
        ("weighted", "LargeBatchError", "not one factor times the sum"),
        ("mean before adding", "LargeBatchError", "gave the same gradients on all 2 ranks"),
        ("other weights", "RanksDisagree", "weights of the 2 ranks differ in the first step"),
        ("one other weight", "RanksDisagree", "weights of the 2 ranks differ in the first step"),
        ("controller", "ValueError", "lb.Controller leaves no place"),
        ("not said", "ValueError", "meter=lb.Meter(model, replicated=True)"),
    ],
)
def test_what_would_train_wrong_is_refused_on_all_ranks(answers, name, kind, text) -> None:
    for answer in answers:
        assert answer[name][0] == kind, answer[name]
        assert text in answer[name][1]


def test_an_all_reduce_in_bfloat16_is_no_other_change(answers) -> None:
    short, exact = of(answers, "mean in bfloat16"), of(answers, "mean")
    for mine, full in zip(short["numbers"], exact["numbers"], strict=True):
        assert mine == pytest.approx(full, rel=0.02)


def test_equal_data_on_all_ranks_is_a_warning_and_no_error(answers) -> None:
    assert of(answers, "same data") == [STEPS, True]


def test_a_step_that_shows_no_factor_has_no_moments_and_no_nan(answers) -> None:
    assert of(answers, "zero head") == {"known": [True] * STEPS, "finite": True}
    known = [False] + [True] * (STEPS - 1)
    assert of(answers, "late rows") == {"known": known, "finite": True}


def test_watch_leaves_out_what_it_cannot_measure_and_trains_on(answers) -> None:
    found = of(answers, "watch, clipped by value")
    assert (found["dropped"], found["numbers"], found["warned"]) == (STEPS, [], 1)
    assert found["weights"] == of(answers, "bare, clipped by value")["weights"]


class Pretended(Ranks):
    """Ranks whose sums are formed by the test."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.count = count

    def sum_(self, values: Tensor) -> Tensor:
        return values


def summed(owns: list[list[Tensor]], now: list[Tensor]) -> tuple[HandReduced, dict[str, float]]:
    """Sums over ranks with these gradients of their own, if all optimizers get `now`."""
    parameters = [torch.zeros_like(one, requires_grad=True) for one in now]
    by_hand = HandReduced(parameters, Pretended(len(owns)))
    total = dict.fromkeys(NAMES, 0.0)
    for own in owns:
        by_hand.forget()
        for index, gradient in enumerate(own):
            by_hand.see(index, gradient / 4.0)
            by_hand.see(index, gradient * 0.75)
            parameters[index].grad = now[index].clone()
        sums = Sums(Ranks(), device=torch.device("cpu"))
        sums.open(rows_by_name(NAMES))
        by_hand.compare(sums)
        for name, value in sums.reduce().items():
            total[name] += value
    return by_hand, total


def draws(shapes: list[tuple[int, ...]], ranks: int, dtype: torch.dtype) -> list[list[Tensor]]:
    generator = torch.Generator().manual_seed(3)
    return [
        [torch.randn(s, generator=generator, dtype=dtype) for s in shapes] for _ in range(ranks)
    ]


SHAPES: dict[str, list[tuple[int, ...]]] = {
    "one": [(7,)],
    "scalar": [(), (3, 2)],
    "long rows": [(2, 3 * ELEMENTS), (5,)],
    "many": [(2, 3)] * (3 * TENSORS),
    "empty": [(0, 3), (4,)],
}


@pytest.mark.parametrize("shapes", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex64])
def test_the_factor_is_that_of_all_elements(shapes, dtype) -> None:
    owns = draws(shapes, 3, dtype)
    now = [0.07 * sum(gradients) for gradients in zip(*owns, strict=True)]
    by_hand, sums = summed(owns, now)
    product = sum(
        (c.conj() * g).real.double().sum() for own in owns for c, g in zip(own, now, strict=True)
    )
    naive = sum(g.abs().double().square().sum() for g in now) / product
    assert by_hand.factor(sums) == pytest.approx(float(naive), rel=1e-5)
    assert by_hand.factor(sums) == pytest.approx(0.07, rel=1e-5)
    assert not by_hand.reduced_early(sums)


def test_a_parameter_that_one_rank_does_not_use_counts_as_zero_there() -> None:
    owns = draws([(6, 2), (3,)], 2, torch.float32)
    now = [0.5 * (owns[0][0] + owns[1][0]), 0.5 * owns[0][1]]
    by_hand, sums = summed([owns[0], owns[1][:1]], now)
    assert by_hand.factor(sums) == pytest.approx(0.5, rel=1e-5)


def test_sparse_gradients_are_compared_as_dense_ones() -> None:
    owns = draws([(6, 2)], 2, torch.float32)
    now = [0.5 * (owns[0][0] + owns[1][0])]
    sparse = [[own[0].to_sparse(1)] for own in owns]
    by_hand, sums = summed(sparse, now)
    assert by_hand.factor(sums) == pytest.approx(0.5, rel=1e-5)


@pytest.mark.parametrize("changed", range(4))
def test_a_change_of_one_parameter_is_found(changed) -> None:
    owns = draws([(9, 4), (4,), (4, 3), (3,)], 2, torch.float32)
    now = [0.5 * sum(gradients) for gradients in zip(*owns, strict=True)]
    now[changed] = now[changed] * 0.8
    by_hand, sums = summed(owns, now)
    with pytest.raises(LargeBatchError, match="not one factor"):
        by_hand.factor(sums)


def test_equal_norms_are_not_equal_gradients() -> None:
    owns = draws([(9, 4), (4,)], 2, torch.float32)
    one, sums = summed(owns[:1], owns[0])
    turned = [gradient.flip(0) for gradient in owns[0]]
    _, others = summed(owns[1:], turned)
    both = HandReduced(one._parameters, Pretended(2))
    with pytest.raises(RanksDisagree):
        both.factor({name: sums[name] + others[name] for name in NAMES})


@pytest.mark.parametrize("value", [0.0, math.nan, math.inf])
def test_gradients_that_show_nothing_give_no_factor(value) -> None:
    full = [torch.full((3, 2), value)]
    by_hand, sums = summed([full, full], full)
    assert by_hand.factor(sums) is None


def test_a_gradient_that_autograd_did_not_make_is_found() -> None:
    by_hand, sums = summed([[torch.zeros(4)]] * 2, [torch.ones(4)])
    with pytest.raises(LargeBatchError, match="weight decay or noise added"):
        by_hand.factor(sums)


def test_gradients_reduced_in_the_backward_are_seen_as_equal() -> None:
    own = draws([(3, 2)], 1, torch.float32)[0]
    by_hand, sums = summed([own, own], own)
    assert by_hand.reduced_early(sums)
