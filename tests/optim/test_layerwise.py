"""Test what the optimizers share: groups, precision, saved states and errors."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from largebatch.optim import Lamb, Lars
from round_trips import through_a_file
from small_runs import data, loss_of, small_model, weights

Build = Callable[..., Optimizer]


def lamb(parameters: Any, *, lr: float | Tensor = 0.03, **options: Any) -> Optimizer:
    return Lamb(parameters, lr=lr, **{"weight_decay": 0.1, **options})


def lars(parameters: Any, *, lr: float | Tensor = 0.03, **options: Any) -> Optimizer:
    return Lars(parameters, lr=lr, **{"weight_decay": 0.1, "trust_coefficient": 0.5, **options})


both = pytest.mark.parametrize("build", [lamb, lars])
variants = pytest.mark.parametrize(
    ("build", "options"),
    [
        (lamb, {}),
        (lamb, {"bias_correction": False}),
        (lamb, {"decoupled_weight_decay": True}),
        (lars, {}),
        (lars, {"momentum": 0.0}),
        (lars, {"nesterov": True}),
        (lars, {"lr_in_buffer": True}),
    ],
)


def train(model: nn.Module, optimizer: Optimizer, steps: int, *, seed: int = 0) -> list[Tensor]:
    """Return the weights after steps on different data."""
    dtype = next(model.parameters()).dtype
    for step in range(steps):
        x, y = data(16, seed=seed + step)
        optimizer.zero_grad()
        loss_of(model, x.to(dtype), y.to(dtype)).backward()
        optimizer.step()
    return weights(model)


def same(one: list[Tensor], other: list[Tensor]) -> bool:
    return all(map(torch.equal, one, other))


@both
def test_training_lowers_the_loss(build: Build) -> None:
    model = small_model()
    x, y = data()
    before = loss_of(model, x, y).item()
    train(model, build(model.parameters()), 60)
    assert loss_of(model, x, y).item() < 0.7 * before


@both
def test_groups_with_other_options_move_as_in_optimizers_of_their_own(build: Build) -> None:
    model, twin = small_model(), small_model()
    first, second = {"lr": 0.1, "weight_decay": 0.0}, {"lr": 0.01, "always_adapt": True}
    together = build(
        [{"params": model[0].parameters(), **first}, {"params": model[2].parameters(), **second}]
    )
    apart = build(twin[0].parameters(), **first), build(twin[2].parameters(), **second)
    for step in range(5):
        x, y = data(16, seed=step)
        for each, optimizers in ((model, (together,)), (twin, apart)):
            each.zero_grad()
            loss_of(each, x, y).backward()
            for optimizer in optimizers:
                optimizer.step()
    assert same(weights(model), weights(twin))


@both
def test_what_has_no_gradient_is_left_alone(build: Build) -> None:
    model = small_model()
    model.register_parameter("unused", nn.Parameter(torch.ones(2, 2)))
    model[0].weight.requires_grad_(False)
    before = weights(model)
    optimizer = build([{"params": model.parameters()}, {"params": []}])
    train(model, optimizer, 3)
    for name, p, w in zip(dict(model.named_parameters()), model.parameters(), before, strict=True):
        still = name in ("unused", "0.weight")
        assert torch.equal(p, w) is still
        assert (p not in optimizer.state) is still


@both
def test_a_step_without_any_gradient_does_nothing(build: Build) -> None:
    model = small_model()
    before = weights(model)
    build(model.parameters()).step()
    assert same(weights(model), before)


def test_the_steps_of_a_parameter_are_counted_from_its_own_first_gradient() -> None:
    late, always = (nn.Parameter(torch.ones(3)) for _ in range(2))
    optimizer = Lamb([late, always], lr=0.1)
    for step in range(5):
        always.grad = torch.ones(3)
        late.grad = torch.ones(3) if step == 4 else None
        optimizer.step()
    torch.testing.assert_close(late.detach(), torch.full((3,), 0.9))  # as Adam's first step


@variants
def test_gradients_stay_as_they_are(build: Build, options: dict[str, Any]) -> None:
    model = small_model()
    x, y = data()
    loss_of(model, x, y).backward()
    before = [p.grad.clone() for p in model.parameters()]
    build(model.parameters(), **options).step()
    assert same([p.grad for p in model.parameters()], before)


@both
def test_a_closure_gives_loss_and_gradients(build: Build) -> None:
    model, twin = small_model(), small_model()
    x, y = data()
    optimizer = build(model.parameters())

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = loss_of(model, x, y)
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == pytest.approx(loss_of(twin, x, y).item())
    loss_of(twin, x, y).backward()
    build(twin.parameters()).step()
    assert same(weights(model), weights(twin))


@variants
@pytest.mark.parametrize("shape", [(), (1,)])
def test_a_rate_in_a_tensor_equals_the_same_number(
    build: Build, options: dict[str, Any], shape: tuple[int, ...]
) -> None:
    model, twin = small_model(), small_model()
    rate = torch.tensor(0.03).reshape(shape)
    train(model, build(model.parameters(), lr=rate, **options), 10)
    train(twin, build(twin.parameters(), lr=0.03, **options), 10)
    assert same(weights(model), weights(twin))


@variants
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_rounds_the_weights_alone(
    build: Build, options: dict[str, Any], dtype: torch.dtype
) -> None:
    half = nn.Parameter(torch.randn(6, 5).to(dtype))
    single = nn.Parameter(half.detach().float())
    optimizer, twin = build([half], **options), build([single], **options)
    for _ in range(20):
        half.grad = 1e-3 * torch.randn(6, 5).to(dtype)
        single.grad = half.grad.float()
        optimizer.step()
        twin.step()
        assert torch.equal(half.detach(), single.detach().to(dtype))
        single.data.copy_(half.data)
    tensors = optimizer.state[half].values()
    assert {tensor.dtype for tensor in tensors} <= {torch.float32}
    assert same([*tensors], [*twin.state[single].values()])


@both
def test_norms_beyond_the_range_of_float16_are_no_matter(build: Build) -> None:
    weight = nn.Parameter(torch.full((50, 50), 3e4, dtype=torch.float16))
    weight.grad = torch.full((50, 50), 3e4, dtype=torch.float16)
    build([weight], lr=0.01).step()
    assert torch.isfinite(weight).all()
    assert (weight < 3e4).all()


@both
def test_types_and_layouts_may_be_mixed(build: Build) -> None:
    shapes = [(4, 3), (3,), (2, 3, 4, 4)]
    plain = [nn.Parameter(torch.randn(shape, dtype=torch.float64)) for shape in shapes]
    mixed = [nn.Parameter(p.detach().clone()) for p in plain]
    mixed[0].data = mixed[0].data.float()
    mixed[2].data = mixed[2].data.contiguous(memory_format=torch.channels_last)
    optimizers = build(plain), build(mixed)
    for _ in range(3):
        for one, other in zip(plain, mixed, strict=True):
            one.grad = torch.randn_like(one)
            other.grad = one.grad.to(other.dtype)
        for optimizer in optimizers:
            optimizer.step()
    for one, other in zip(plain, mixed, strict=True):
        torch.testing.assert_close(one.to(other.dtype), other, rtol=1e-5, atol=1e-6)
        assert {tensor.dtype for tensor in optimizers[1].state[other].values()} == {other.dtype}
    assert mixed[2].is_contiguous(memory_format=torch.channels_last)


@both
def test_an_optimizer_step_copies_no_value_to_the_host(build: Build) -> None:
    """Tensors without data: a value that was read would be an error."""
    model = small_model().to("meta")
    for p in model.parameters():
        p.grad = torch.empty_like(p)
    for rate in (0.1, torch.tensor(0.1), torch.tensor([0.1]), torch.tensor(0.1, device="meta")):
        build(model.parameters(), lr=rate).step()


@variants
@pytest.mark.parametrize("kind", ["state", "file", "pickle", "deepcopy"])
def test_a_copied_or_reloaded_optimizer_continues_with_the_same_bits(
    build: Build, options: dict[str, Any], kind: str
) -> None:
    model, through = small_model(), small_model()
    whole = train(through, build(through.parameters(), **options), 10)
    optimizer = build(model.parameters(), **options)
    train(model, optimizer, 5)
    if kind in ("pickle", "deepcopy"):
        copied = pickle.loads(pickle.dumps((model, optimizer))) if kind == "pickle" else None
        model, optimizer = copied or copy.deepcopy((model, optimizer))
    else:
        state = optimizer.state_dict()
        optimizer = build(model.parameters(), lr=77.0)
        optimizer.load_state_dict(through_a_file(state) if kind == "file" else state)
    assert same(train(model, optimizer, 5, seed=5), whole)


@both
def test_an_optimizer_of_bfloat16_weights_resumes_with_the_same_bits(build: Build) -> None:
    model, through = small_model().bfloat16(), small_model().bfloat16()
    whole = train(through, build(through.parameters()), 10)
    optimizer = build(model.parameters())
    train(model, optimizer, 5)
    again = build(model.parameters())
    again.load_state_dict(through_a_file(optimizer.state_dict()))
    assert same(train(model, again, 5, seed=5), whole)


@both
def test_a_loaded_state_is_a_copy(build: Build) -> None:
    model = small_model()
    optimizer = build(model.parameters())
    train(model, optimizer, 2)
    state = optimizer.state_dict()
    before = copy.deepcopy(state["state"])
    again = build(model.parameters())
    again.load_state_dict(state)
    train(model, again, 2)
    for index, tensors in before.items():
        assert same([*state["state"][index].values()], [*tensors.values()])


@both
def test_a_hook_may_change_the_state_that_is_loaded(build: Build) -> None:
    model = small_model()
    optimizer = build(model.parameters())
    train(model, optimizer, 2)
    again = build(model.parameters())
    again.register_load_state_dict_pre_hook(lambda _, state: {**state, "state": {}})
    again.load_state_dict(optimizer.state_dict())
    assert not again.state


@both
def test_the_state_of_other_groups_is_refused(build: Build) -> None:
    model = small_model()
    groups = [{"params": model[0].parameters()}, {"params": model[2].parameters()}]
    with pytest.raises(ValueError, match="number of parameter groups"):
        build(model.parameters()).load_state_dict(build(groups).state_dict())


@both
def test_a_bad_group_is_not_added(build: Build) -> None:
    model = small_model()
    optimizer = build(model[0].parameters())
    with pytest.raises(ValueError, match="weight_decay"):
        optimizer.add_param_group({"params": model[2].parameters(), "weight_decay": -1.0})
    assert len(optimizer.param_groups) == 1


def sparse() -> nn.Parameter:
    table = nn.Embedding(5, 3, sparse=True)
    table(torch.tensor([1, 2])).sum().backward()
    return table.weight


def complex_() -> nn.Parameter:
    weight = nn.Parameter(torch.ones(2, 2, dtype=torch.complex64))
    weight.grad = torch.ones_like(weight)
    return weight


@both
@pytest.mark.parametrize(("odd", "remedy"), [(sparse, "sparse=False"), (complex_, "view_as_real")])
def test_a_gradient_that_does_not_fit_is_refused_before_anything_moves(
    build: Build, odd: Callable[[], nn.Parameter], remedy: str
) -> None:
    fine = nn.Parameter(torch.ones(2, 2))
    fine.grad = torch.ones(2, 2)
    optimizer = build([{"params": [fine]}, {"params": [odd()]}])
    with pytest.raises(RuntimeError, match=rf"^{type(optimizer).__name__} .*{remedy}"):
        optimizer.step()
    assert torch.equal(fine, torch.ones(2, 2))
