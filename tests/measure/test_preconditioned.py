"""The gradient as the optimizer divides it: in one unit, and by what torch divides by."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

import largebatch as lb
from distributed import run_on_ranks
from largebatch.measure.preconditioned import PreconditionedNorms
from small_runs import class_data, classifier

WARM = PreconditionedNorms.WARM
STATISTIC = ("preconditioned_moments",)
TINY = 1e-30
FAMILY: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "nadam": torch.optim.NAdam,
    "radam": torch.optim.RAdam,
    "adagrad": torch.optim.Adagrad,
    "amsgrad": lambda p, **options: torch.optim.Adam(p, amsgrad=True, **options),
}


# the loss's scale


def noisy_data() -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(1)
    x = torch.randn(32 * 30, 10, generator=draw)
    scores = x @ torch.randn(10, 4, generator=draw)
    return x, (scores + 2.0 * torch.randn(scores.shape, generator=draw)).argmax(-1)


def trained(scale: float, kind: str, *, door: str = "attach") -> list[tuple[float, float]]:
    """The gain and the clock of each step of 30, in which the loss is multiplied by `scale`."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(10, 16), nn.Tanh(), nn.Linear(16, 4))
    optimizer = FAMILY[kind](model.parameters(), lr=2e-3, eps=TINY)
    rule, record = lb.methods.adascale_adam(), lb.MemoryRecord()

    def set_lr(step: int) -> None:
        # RAdam moves by the bare gradient in its first five steps, so by the loss's scale
        still = kind == "radam" and step < 5
        optimizer.param_groups[0]["lr"] = 0.0 if still else 2e-3

    if door == "controller":
        batches = lb.BatchLoader(noisy_data(), batch_size=32, max_micro_batch_size=8, seed=0)
        driven = lb.Controller(model, optimizer, rule, batches, base_batch_size=8, record=record)
        for at, batch in enumerate(driven.steps(steps=30)):
            set_lr(at)
            for x, y in batch:
                driven.backward(scale * cross_entropy(model(x), y))
            driven.step()
    else:
        lb.attach(model, optimizer, rule, batch_size=32, base_batch_size=8, record=record)
        x, y = noisy_data()
        for at in range(30):
            set_lr(at)
            for rows in torch.arange(32 * at, 32 * at + 32).split(8):
                (scale * cross_entropy(model(x[rows]), y[rows]) / 4).backward()
            optimizer.step()
            optimizer.zero_grad()
    return [(seen.base_steps, decision.base_steps) for seen, decision in record.steps]


@pytest.mark.parametrize("door", ["attach", "controller"])
@pytest.mark.parametrize("kind", FAMILY)
def test_gain_and_clock_do_not_depend_on_the_losss_scale(kind: str, door: str) -> None:
    plain = trained(1.0, kind, door=door)
    assert {gain for _, gain in plain[: WARM + 1]} >= {1.0}
    assert max(gain for _, gain in plain) > 1.2
    for scale in (1000.0, 0.001):
        for found, expected in zip(trained(scale, kind, door=door), plain, strict=True):
            assert found == pytest.approx(expected, rel=1e-3)


# who is warm


def attached(
    model: nn.Module, optimizer: torch.optim.Optimizer, **options: Any
) -> tuple[lb.MemoryRecord, Any]:
    record, rule = lb.MemoryRecord(), lb.Observe(statistics=STATISTIC)
    control = lb.attach(
        model, optimizer, rule, batch_size=8, base_batch_size=4, record=record, **options
    )
    return record, control


def step_of(losses: list[Tensor], optimizer: torch.optim.Optimizer) -> None:
    for loss in losses:
        (loss / len(losses)).backward()
    optimizer.step()
    optimizer.zero_grad()


@pytest.mark.parametrize("kind", FAMILY)
def test_nothing_is_known_until_a_parameter_is_warm(kind: str) -> None:
    model, (x, y) = classifier(), class_data()
    optimizer = FAMILY[kind](model.parameters(), lr=1e-3)
    record, _ = attached(model, optimizer)
    for _ in range(WARM + 2):
        step_of(
            [cross_entropy(model(x[:4]), y[:4]), cross_entropy(model(x[4:8]), y[4:8])], optimizer
        )
    known = [seen.preconditioned_moments is not None for seen, _ in record.steps]
    assert known == [False] * WARM + [True] * 2


def test_a_layer_that_begins_late_counts_as_one_without_a_gradient() -> None:
    """Its twin never has the layer's gradient in the sums, and no step has another unit."""
    x, y = class_data()

    def heads(*, late: bool, scale: float = 1.0) -> list[lb.GradientMoments | None]:
        torch.manual_seed(0)
        model = nn.ModuleDict({"old": nn.Linear(5, 3), "new": nn.Linear(5, 3)})
        rates = [{"params": model["old"].parameters()}, {"params": model["new"].parameters()}]
        optimizer = torch.optim.Adam(rates, lr=0.0, eps=TINY)
        record, _ = attached(model, optimizer)
        for step in range(WARM + 9):
            losses = []
            for rows in (slice(0, 4), slice(4, 8)):
                loss = cross_entropy(model["old"](x[rows]), y[rows])
                if late and step >= WARM + 2:
                    loss = loss + cross_entropy(model["new"](x[rows]), y[rows])
                losses.append(scale * loss)
            step_of(losses, optimizer)
        return [seen.preconditioned_moments for seen, _ in record.steps]

    found, alone, scaled = heads(late=True), heads(late=False), heads(late=True, scale=1000.0)
    begins = WARM + 2
    assert found[: begins + WARM] == alone[: begins + WARM]
    assert found[-1].batch_sqnorm > 1.5 * alone[-1].batch_sqnorm
    for moments, other in zip(found[WARM:], scaled[WARM:], strict=True):
        assert moments.variance == pytest.approx(other.variance, rel=1e-4)
        assert moments.batch_sqnorm == pytest.approx(other.batch_sqnorm, rel=1e-4)


def test_a_warm_parameter_without_a_gradient_tells_nothing() -> None:
    model = nn.ModuleDict({"old": nn.Linear(5, 3), "new": nn.Linear(5, 3)})
    optimizer = torch.optim.Adam(model.parameters(), lr=0.0)
    record, _ = attached(model, optimizer)
    x, y = class_data()
    for step in range(WARM + 2):
        head = model["old" if step <= WARM else "new"]
        step_of([cross_entropy(head(x[:4]), y[:4]), cross_entropy(head(x[4:8]), y[4:8])], optimizer)
    assert [s.seen.preconditioned_moments is None for s in record.steps[WARM:]] == [False, True]


def test_the_first_step_of_a_fused_optimizer_may_be_left_out() -> None:
    """Then there is a state with no step in it, and 0 / 0 must not make the sums NaN."""
    model, (x, y) = classifier(), class_data()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for parameter in model.parameters():
        zeros = torch.zeros_like(parameter)
        optimizer.state[parameter] = {
            "step": torch.tensor(0.0), "exp_avg": zeros.clone(), "exp_avg_sq": zeros.clone()
        }  # fmt: skip
    record, _ = attached(model, optimizer)
    step_of([cross_entropy(model(x[:4]), y[:4]), cross_entropy(model(x[4:8]), y[4:8])], optimizer)
    assert record.steps[0].seen.finite
    assert record.steps[0].seen.preconditioned_moments is None


# what the optimizer divides by


class Linear(nn.Module):
    """A loss that is linear in the weights, whose gradient is the mean input."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(6, dtype=dtype))

    def forward(self, x: Tensor) -> Tensor:
        products = self.weight * x.conj() if x.is_complex() else self.weight * x
        return (products.real if x.is_complex() else products).sum(-1).mean()


def rectified(beta: float, step: int) -> float:
    """RAdam's factor of a step (Liu et al., 2020), which no denominator has."""
    last = 2 / (1 - beta) - 1
    now = last - 2 * step * beta**step / (1 - beta**step)
    return (((now - 4) * (now - 2) * last) / ((last - 4) * (last - 2) * now)) ** 0.5


BETAS = {"betas": (0.0, 0.99)}
TENSORS = (torch.tensor(0.0), torch.tensor(0.75))
DIVIDERS = {
    "adam": (torch.optim.Adam, BETAS),
    "adam whose v is the last square": (torch.optim.Adam, {"betas": (0.0, 0.0)}),
    "adam with tensors": (torch.optim.Adam, {"betas": TENSORS, "foreach": False}),
    "fused": (torch.optim.Adam, {**BETAS, "fused": True}),
    "amsgrad": (torch.optim.Adam, {**BETAS, "amsgrad": True}),
    "amsgrad, fused": (torch.optim.Adam, {**BETAS, "amsgrad": True, "fused": True}),
    "amsgrad, foreach": (torch.optim.Adam, {**BETAS, "amsgrad": True, "foreach": True}),
    "adamw": (torch.optim.AdamW, {**BETAS, "weight_decay": 0.0}),
    "nadam": (torch.optim.NAdam, BETAS),
    "radam": (torch.optim.RAdam, BETAS),
    "adagrad": (torch.optim.Adagrad, {}),
    "adagrad from above": (torch.optim.Adagrad, {"initial_accumulator_value": 0.5}),
}  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [
        pytest.param(kind, dtype, id=f"{kind}-{'complex' if dtype.is_complex else 'real'}")
        for kind, (_, options) in DIVIDERS.items()
        for dtype in (torch.float64, torch.complex128)
        if not (dtype.is_complex and options.get("fused"))  # torch has no such fused Adam
    ],
)
def test_the_gradient_is_divided_by_what_torch_divided_the_last_one_by(
    kind: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The denominator is read off the optimizer's own movement: weight = -lr gradient / it."""
    make, options = DIVIDERS[kind]
    monkeypatch.setattr(PreconditionedNorms, "RARE", 0.0)
    model = Linear(dtype)
    optimizer = make([model.weight], lr=0.1, eps=0.3, **options)
    record, _ = attached(model, optimizer)
    draw, moved = torch.Generator().manual_seed(0), []
    gradients = [2 * 0.7**t * torch.randn(2, 6, generator=draw, dtype=dtype) for t in range(9)]
    for parts in gradients:
        before = model.weight.detach().clone()
        step_of([model(x.expand(4, -1)) for x in parts], optimizer)
        moved.append(as_reals(before - model.weight.detach()))
    factor = 1.0
    if make is torch.optim.RAdam:
        factor = rectified(0.99, 8)
    if make is torch.optim.Adagrad:
        factor = 8**-0.5  # the mean of the squares and not their sum
    used = factor * 0.1 * as_reals(gradients[7].mean(0)) / moved[7]
    divided = (as_reals(gradients[8]) / used).unbind()
    found = record.steps[8].seen.preconditioned_moments
    mean = (divided[0] + divided[1]) / 2
    assert found.batch_sqnorm == pytest.approx(float(mean.square().sum()), rel=1e-5)
    variance = 8 / 2 * float((divided[0] - divided[1]).square().sum()) / 2
    assert found.variance == pytest.approx(variance, rel=1e-5)


def as_reals(tensor: Tensor) -> Tensor:
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor


def test_amsgrad_divides_by_its_maximum() -> None:
    model = Linear(torch.float64)
    model.weight = nn.Parameter(torch.zeros(2, dtype=torch.float64))
    optimizer = torch.optim.Adam([model.weight], lr=1e-3, amsgrad=True)
    optimizer.state[model.weight] = {
        "step": torch.tensor(1000.0),
        "exp_avg": torch.zeros(2, dtype=torch.float64),
        "exp_avg_sq": torch.tensor([1e-4, 1.0], dtype=torch.float64),
        "max_exp_avg_sq": torch.tensor([1.0, 1.0], dtype=torch.float64),
    }
    record, _ = attached(model, optimizer)
    parts = torch.tensor([[1.0, 1.0], [0.5, 2.0]], dtype=torch.float64)
    step_of([model(x.expand(4, -1)) for x in parts], optimizer)
    applied = (0.75**2 + 1.5**2) * (1 - 0.999**1000)  # 1.778, where sqrt(v) alone gives 594
    found = record.steps[0].seen.preconditioned_moments.batch_sqnorm
    assert found == pytest.approx(applied, rel=2 * PreconditionedNorms.RARE)


# SGD, which does not divide


@pytest.mark.parametrize("examples", [False, True], ids=["micro-batches", "examples"])
@pytest.mark.parametrize("door", ["attach", "controller"])
def test_under_sgd_the_divided_gradient_is_the_bare_one(door: str, examples: bool) -> None:
    def run(rule: Any) -> list[Any]:
        model, data = classifier(), class_data()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
        meter = lb.Meter(model, examples=lb.PerExample() if examples else None)
        record = lb.MemoryRecord()
        options = {"base_batch_size": 8, "record": record, "meter": meter}
        if door == "controller":
            batches = lb.BatchLoader(data, batch_size=8, max_micro_batch_size=4, seed=0)
            control = lb.Controller(model, optimizer, rule, batches, **options)
            for batch in control.steps(steps=12):
                for x, y in batch:
                    control.backward(cross_entropy(model(x), y))
                control.step()
        else:
            lb.attach(model, optimizer, rule, batch_size=8, **options)
            x, y = data
            for at in range(0, 48, 8):
                for rows in torch.arange(at, at + 8).split(4):
                    (cross_entropy(model(x[rows]), y[rows]) / 2).backward()
                optimizer.step()
                optimizer.zero_grad()
        return record.steps

    grows = door == "controller"
    method, bare = (lb.methods.adadam, lb.methods.adasgd) if grows else (divided, lb.AdaScale)
    options = {"eta": 0.5, "every": 2} if grows else {}
    found, expected = run(method(**options)), run(bare(**options))
    for one, other in zip(found, expected, strict=True):
        assert one.seen.preconditioned_moments == other.seen.moments
        assert one.decision.next_batch_size == other.decision.next_batch_size
        assert one.decision.lr_multiplier == other.decision.lr_multiplier
    assert any(step.seen.moments is not None for step in expected)


def divided() -> lb.AdaScale:
    return lb.AdaScale(statistic="preconditioned_moments")


def test_both_statistics_of_sgd_are_equal_and_a_zero_gradient_is_known() -> None:
    model = Linear(torch.float64)
    record, rule = lb.MemoryRecord(), lb.Observe(statistics=("moments", *STATISTIC))
    optimizer = torch.optim.SGD([model.weight], lr=0.1)
    lb.attach(model, optimizer, rule, batch_size=8, base_batch_size=4, record=record)
    for size in (1.0, 0.0):
        step_of(
            [model(size * x.expand(4, -1)) for x in torch.eye(6, dtype=torch.float64)[:2]],
            optimizer,
        )
    for seen, _ in record.steps:
        assert seen.preconditioned_moments == seen.moments
    assert record.steps[1].seen.moments.batch_sqnorm == 0.0


# several processes


def on_two_ranks() -> list[tuple[Any, float]]:
    """Each step's moments and gain on this rank; the digests would tell if the ranks differed."""
    torch.manual_seed(0)
    model = DistributedDataParallel(classifier(dtype=torch.float64))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    x, y = class_data(dtype=torch.float64)
    rank, found = torch.distributed.get_rank(), []
    control = lb.attach(
        model, optimizer, lb.methods.adascale_adam(), batch_size=8, base_batch_size=2
    )
    for at in range(9):
        rows = slice(4 * ((2 * at + rank) % 12), 4 * ((2 * at + rank) % 12) + 4)
        cross_entropy(model(x[rows]), y[rows]).backward()
        optimizer.step()
        optimizer.zero_grad()
        found.append(control.decision.base_steps)
        control.advance()
    return found


@pytest.mark.distributed
def test_two_ranks_agree_from_the_step_on_in_which_the_moments_are_known() -> None:
    first, second = run_on_ranks(on_two_ranks, 2)
    assert first == second
    assert first[:WARM] == [1.0] * WARM
    assert max(first[WARM:]) > 1.0
