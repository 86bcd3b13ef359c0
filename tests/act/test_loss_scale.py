"""Half precision: the scaler's place in a step, against torch's plain loop."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.amp import GradScaler

import largebatch as lb
from largebatch.record import MemoryRecord
from small_runs import adamw, data, loss_of, sgd, small_model, weights

X, Y = data(64)


def scaler(**options: Any) -> GradScaler:
    settings: dict[str, Any] = {"init_scale": 2.0**10, "growth_interval": 3}
    return GradScaler("cpu", **{**settings, **options})


class Overflow(torch.autograd.Function):
    """The identity, whose gradient overflows where it is told to."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, value: float) -> Tensor:
        ctx.value = value
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient * ctx.value, None


def spoiled(loss: Tensor, step: int, part: int, *, at: dict[tuple[int, int], float]) -> Tensor:
    value = at.get((step, part))
    return loss if value is None else Overflow.apply(loss, value)  # type: ignore[no-any-return]


SPOILED = {(2, 0): float("inf"), (5, 3): float("nan"), (6, 1): float("-inf")}


def plain_loop(steps: int, *, at: dict[tuple[int, int], float]) -> tuple[nn.Module, list[float]]:
    """torch's documented loop, with accumulation."""
    model = small_model()
    optimizer, scale = sgd(model), scaler()
    scales = []
    for step in range(steps):
        for part in range(4):
            rows = slice((step * 16 + part * 4) % 64, (step * 16 + part * 4) % 64 + 4)
            loss = spoiled(loss_of(model, X[rows], Y[rows]), step, part, at=at)
            scale.scale(loss / 4).backward()
        scale.step(optimizer)
        scale.update()
        optimizer.zero_grad()
        scales.append(scale.get_scale())
    return model, scales


def controlled(
    steps: int,
    *,
    at: dict[tuple[int, int], float],
    rule: Any = None,
    scale: GradScaler | None = None,
    optimize: Any = sgd,
) -> tuple[nn.Module, list[float], lb.Controller, MemoryRecord]:
    model = small_model()
    record = MemoryRecord()
    batches = lb.BatchLoader((X, Y), batch_size=16, max_micro_batch_size=4, shuffle=False)
    control = lb.Controller(
        model,
        optimize(model),
        rule or lb.chain(),
        batches,
        base_batch_size=4,
        record=record,
        scaler=scale,
    )
    scales = []
    for step, batch in enumerate(control.steps(samples=16 * steps)):
        for part, (x, y) in enumerate(batch):
            control.backward(spoiled(loss_of(model, x, y), step, part, at=at))
        control.step()
        scales.append(scale.get_scale() if scale is not None else 1.0)
    return model, scales, control, record


def test_a_controlled_run_is_torchs_own_loop_bit_by_bit_with_the_same_skips_and_scales() -> None:
    plain, their_scales = plain_loop(20, at=SPOILED)
    model, scales, control, _ = controlled(20, at=SPOILED, scale=scaler())
    assert scales == their_scales
    assert len(set(scales)) > 3
    assert all(torch.equal(a, b) for a, b in zip(weights(plain), weights(model), strict=True))
    assert (control.skipped, control.optimizer_steps) == (3, 17)


@pytest.mark.parametrize("optimize", [sgd, adamw])
def test_the_statistics_are_those_of_the_unscaled_gradient(optimize: Any) -> None:
    rule = lb.AdaScale() if optimize is sgd else lb.methods.adascale_adam()
    _, _, _, bare = controlled(12, at={}, rule=rule, optimize=optimize)
    _, scales, _, scaled = controlled(12, at={}, rule=rule, scale=scaler(), optimize=optimize)
    assert len(set(scales)) > 2
    for (seen, decision), (also, same) in zip(bare.steps, scaled.steps, strict=True):
        assert also.batch_sqnorm == pytest.approx(seen.batch_sqnorm, rel=1e-5)
        assert also.loss == pytest.approx(seen.loss, rel=1e-5)
        assert same.lr_multiplier == pytest.approx(decision.lr_multiplier, rel=1e-4)
        if seen.moments is not None and also.moments is not None:
            assert also.moments.variance == pytest.approx(seen.moments.variance, rel=1e-4)


def test_temporal_moments_survive_a_scale_that_changes() -> None:
    def run(scale: GradScaler | None) -> list[Any]:
        model = small_model()
        record = MemoryRecord()
        batches = lb.BatchLoader((X, Y), batch_size=16, max_micro_batch_size=16, shuffle=False)
        meter = lb.Meter(model, statistics=[lb.measure.TemporalMoments()])
        control = lb.Controller(
            model, sgd(model), lb.AdaScale(), batches,
            base_batch_size=4, meter=meter, record=record, scaler=scale,
        )  # fmt: skip
        for batch in control.steps(steps=8):
            for x, y in batch:
                control.backward(loss_of(model, x, y))
            control.step()
        return [step.seen.moments for step in record.steps]

    bare, scaled = run(None), run(scaler())
    for one, other in zip(bare[1:], scaled[1:], strict=True):
        assert other.variance == pytest.approx(one.variance, rel=1e-4)


def test_squares_that_overflow_before_the_gradient_lower_the_scale() -> None:
    # 2^100 times a gradient of about one is finite in float32, its square is not
    model, scales, control, _ = controlled(
        12, at={}, scale=scaler(init_scale=2.0**100, backoff_factor=2.0**-20)
    )
    assert 0 < control.skipped < 9
    assert scales[-1] <= 2.0**64
    assert all(w.isfinite().all() for w in weights(model))


def attached(
    steps: int, *, at: dict[tuple[int, int], float], scale: GradScaler | None, rule: Any = None
) -> tuple[nn.Module, list[float], Any, MemoryRecord]:
    model = small_model()
    optimizer, record = sgd(model), MemoryRecord()
    control = lb.attach(
        model, optimizer, rule or lb.chain(), batch_size=16, base_batch_size=4, micro_batches=4,
        record=record, scaler=scale,
    )  # fmt: skip
    scales = []
    for step in range(steps):
        for part in range(4):
            rows = slice((step * 16 + part * 4) % 64, (step * 16 + part * 4) % 64 + 4)
            loss = spoiled(loss_of(model, X[rows], Y[rows]), step, part, at=at) / 4
            (loss if scale is None else scale.scale(loss)).backward()
        if scale is None:
            optimizer.step()
        else:
            scale.step(optimizer)
            scale.update()
        optimizer.zero_grad()
        control.advance()
        scales.append(1.0 if scale is None else scale.get_scale())
    control.close()
    return model, scales, control, record


@pytest.mark.parametrize("rule", [lb.chain(), lb.Observe()], ids=["nothing", "observed"])
def test_under_attach_the_users_scaler_skips_and_the_skips_are_counted(rule: Any) -> None:
    plain, their_scales = plain_loop(20, at=SPOILED)
    model, scales, control, record = attached(20, at=SPOILED, scale=scaler(), rule=rule)
    assert scales == their_scales
    assert all(torch.equal(a, b) for a, b in zip(weights(plain), weights(model), strict=True))
    assert (control.skipped, control.optimizer_steps, control.samples) == (3, 17, 320)
    assert [step.seen.finite for step in record.steps].count(False) == 3


def test_under_attach_the_measured_gradient_is_unscaled() -> None:
    _, _, _, bare = attached(10, at={}, scale=None, rule=lb.AdaScale())
    _, _, _, scaled = attached(10, at={}, scale=scaler(), rule=lb.AdaScale())
    for (seen, _), (also, _) in zip(bare.steps, scaled.steps, strict=True):
        assert also.batch_sqnorm == pytest.approx(seen.batch_sqnorm, rel=1e-5)


@pytest.mark.parametrize("foreach", [False, True])
@pytest.mark.parametrize("rule", [lb.chain(), lb.AdaScale()], ids=["nothing", "adascale"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize(
    "kind", [torch.optim.SGD, torch.optim.AdamW, torch.optim.Adam, torch.optim.RMSprop]
)
def test_under_attach_a_step_that_is_not_finite_moves_nothing(
    kind: Any, value: float, rule: Any, foreach: bool
) -> None:
    model = small_model()
    optimizer = kind(model.parameters(), lr=0.01, weight_decay=0.1, foreach=foreach)
    control = lb.attach(model, optimizer, rule, batch_size=8, base_batch_size=4, micro_batches=2)
    for step in range(6):
        before = [w.clone() for w in weights(model)]
        state = [
            {key: torch.as_tensor(value).clone() for key, value in optimizer.state[p].items()
             if value is not None}
            for p in model.parameters()
        ]  # fmt: skip
        for part in range(2):
            rows = slice(8 * step + 4 * part, 8 * step + 4 * part + 4)
            spoil = {(2, 1): value, (3, 0): value}
            loss = loss_of(model, X[rows], Y[rows]) / 2
            spoiled(loss, step, part, at=spoil).backward()
        optimizer.step()
        optimizer.zero_grad()
        same = all(torch.equal(a, b) for a, b in zip(before, weights(model), strict=True))
        assert same == (step in (2, 3))
        if same:
            for p, then in zip(model.parameters(), state, strict=True):
                assert all(
                    torch.equal(torch.as_tensor(optimizer.state[p][key]), old)
                    for key, old in then.items()
                )
    assert (control.skipped, control.optimizer_steps) == (2, 4)


def test_bfloat16_autocast_needs_nothing() -> None:
    model = small_model()
    batches = lb.BatchLoader((X, Y), batch_size=16, max_micro_batch_size=4)
    control = lb.Controller(model, sgd(model), lb.AdaScale(), batches, base_batch_size=4)
    for batch in control.steps(steps=30):
        for x, y in batch:
            with torch.autocast("cpu", dtype=torch.bfloat16):
                loss = (model(x).float() - y).square().mean()
            control.backward(loss)
        control.step()
    assert control.skipped == 0
    assert loss_of(model, X, Y).item() < loss_of(small_model(), X, Y).item()


def test_float16_autocast_with_a_scaler_trains() -> None:
    model = small_model()
    batches = lb.BatchLoader((X, Y), batch_size=16, max_micro_batch_size=4)
    control = lb.Controller(
        model, sgd(model), lb.AdaScale(), batches, base_batch_size=4,
        scaler=GradScaler("cpu", init_scale=2.0**20),
    )  # fmt: skip
    for batch in control.steps(steps=40):
        for x, y in batch:
            with torch.autocast("cpu", dtype=torch.float16):
                loss = (model(x).float() - y).square().mean()
            control.backward(loss)
        control.step(clip_norm=1.0)
    assert control.skipped > 0  # the scale was too high at first
    assert loss_of(model, X, Y).item() < loss_of(small_model(), X, Y).item()


def test_a_disabled_scaler_is_none() -> None:
    bare, _, _, _ = controlled(5, at={})
    model, _, _, _ = controlled(5, at={}, scale=scaler(enabled=False))
    assert all(torch.equal(a, b) for a, b in zip(weights(bare), weights(model), strict=True))


def test_a_loss_scale_that_is_no_grad_scaler_is_refused() -> None:
    with pytest.raises(ValueError, match=r"torch\.amp\.GradScaler"):
        controlled(1, at={}, scale=2.0)  # type: ignore[arg-type]


def test_a_loss_scale_that_always_overflows_is_named_in_the_error() -> None:
    always = {(step, 0): float("inf") for step in range(20)}
    with pytest.raises(lb.errors.NotFinite, match=r"only the gradient overflows.*init_scale=1024"):
        controlled(20, at=always, scale=scaler())


def test_a_loss_that_is_not_finite_is_not_laid_to_the_scaler() -> None:
    model = small_model()
    batches = lb.BatchLoader((X, Y), batch_size=16, max_micro_batch_size=4)
    optimizer = sgd(model)
    control = lb.Controller(model, optimizer, lb.AdaScale(), batches, base_batch_size=4)
    with pytest.raises(lb.errors.NotFinite) as told:
        for batch in control.steps(steps=3):
            for x, y in batch:
                control.backward(loss_of(model, x, y) * float("nan"))
            control.step()
    assert "GradScaler" not in str(told.value)
