"""What changes a gradient between two backward calls is refused before a weight moves."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import largebatch as lb
from largebatch.act.attached import Attached
from largebatch.core.errors import MicroBatchMissed
from largebatch.measure.accumulated import IN_ALL, AccumulatedGradients
from small_runs import class_data, class_loss, classifier, weights

CLEARED, CHANGED = "was cleared between", "was changed between"


def change(act: Callable[[nn.Module, torch.optim.Optimizer], Any], text: str, name: str) -> Any:
    return pytest.param(act, text, id=name)


def each(act: Callable[[nn.Parameter], Any]) -> Callable[[nn.Module, Any], None]:
    def on_all(model: nn.Module, optimizer: Any) -> None:
        with torch.no_grad():
            for parameter in model.parameters():
                act(parameter)

    return on_all


def replace(parameter: nn.Parameter) -> None:
    parameter.grad = 0.5 * parameter.grad


CHANGES = [
    change(lambda m, o: o.zero_grad(), CLEARED, "zero_grad"),
    change(lambda m, o: o.zero_grad(set_to_none=False), CLEARED, "zero_grad to zeros"),
    change(lambda m, o: m.zero_grad(), CLEARED, "model.zero_grad"),
    change(lambda m, o: nn.utils.clip_grad_norm_(m.parameters(), 1e-3), CHANGED, "clip_grad_norm_"),
    change(
        lambda m, o: nn.utils.clip_grad_norm_(m.parameters(), torch.inf),
        CHANGED,
        "clip_grad_norm_ for its norm alone",
    ),
    change(
        lambda m, o: nn.utils.clip_grad_value_(m.parameters(), 1e-3), CHANGED, "clip_grad_value_"
    ),
    change(each(lambda p: p.grad.mul_(0.5)), CHANGED, "multiplied in place"),
    change(each(replace), CHANGED, "replaced"),
    change(each(lambda p: p.grad.normal_()), CHANGED, "noise, as for differential privacy"),
]


def micro_batches(steps: int = 1, parts: int = 4) -> list[list[tuple[Tensor, Tensor]]]:
    x, y = class_data()
    size = 20 // parts
    return [
        [(x[at : at + size], y[at : at + size]) for at in range(20 * step, 20 * step + 20, size)]
        for step in range(steps)
    ]


def attached(model: nn.Module, optimizer: torch.optim.Optimizer, **more: Any) -> Attached:
    rule = more.pop("rule", lb.AdaScale())
    return lb.attach(model, optimizer, rule, batch_size=20, base_batch_size=5, **more)


def under_attach(model: nn.Module, act: Callable[..., Any], *, after: int) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    attached(model, optimizer)
    (step,) = micro_batches()
    for at, (x, y) in enumerate(step):
        (class_loss(model, x, y) / 4).backward()
        if at == after:
            act(model, optimizer)
    optimizer.step()


def under_controller(model: nn.Module, act: Callable[..., Any], *, after: int) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    batches = lb.BatchLoader(class_data(), batch_size=20, max_micro_batch_size=5)
    control = lb.Controller(model, optimizer, lb.AdaScale(), batches, base_batch_size=5)
    for batch in control.steps(steps=1):
        for at, (x, y) in enumerate(batch):
            control.backward(class_loss(model, x, y))
            if at == after:
                act(model, optimizer)
        control.step()


DOORS = pytest.mark.parametrize("door", [under_attach, under_controller])


@DOORS
@pytest.mark.parametrize("after", [0, 2])
@pytest.mark.parametrize(("act", "text"), CHANGES)
def test_a_gradient_that_changed_is_refused_before_a_weight_moves(door, act, text, after) -> None:
    model = classifier()
    before = weights(model)
    with pytest.raises(MicroBatchMissed, match=text):
        door(model, act, after=after)
    assert all(map(torch.equal, before, weights(model)))


@DOORS
def test_an_equal_gradient_in_another_tensor_is_no_change(door) -> None:
    def replace_by_equal(parameter: nn.Parameter) -> None:
        parameter.grad = parameter.grad.clone()

    door(classifier(), each(replace_by_equal), after=1)


@DOORS
def test_the_norm_of_the_gradients_between_micro_batches_is_free(door) -> None:
    norms = []
    door(
        classifier(),
        lambda m, o: norms.append(nn.utils.get_total_norm([p.grad for p in m.parameters()])),
        after=1,
    )
    assert norms[0] > 0


def test_both_remedies_of_the_errors_work() -> None:
    for act in (CHANGES[0].values[0], CHANGES[3].values[0]):
        model = classifier()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        control = attached(model, optimizer)
        (step,) = micro_batches()
        for x, y in step[:2]:
            class_loss(model, x, y).backward()
        act(model, optimizer)
        control.drop()
        optimizer.zero_grad()
        for x, y in step:
            (class_loss(model, x, y) / 4).backward()
        optimizer.step()
        assert control.optimizer_steps == 1


@pytest.mark.parametrize("wrapped", ["first", "last", "all"])
@pytest.mark.parametrize(("act", "text"), CHANGES[:4])
def test_reentrant_checkpoints_hide_no_change(wrapped, act, text) -> None:
    class Checkpointed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Sequential(nn.Linear(5, 7), nn.Tanh())
            self.last = nn.Linear(7, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = x.detach().requires_grad_()
            for name, layer in (("first", self.first), ("last", self.last)):
                if wrapped in (name, "all"):
                    x = checkpoint(layer, x, use_reentrant=True)
                else:
                    x = layer(x)
            return x

    torch.manual_seed(0)
    model = Checkpointed()
    under_attach(model, lambda *_: None, after=1)
    before = weights(model)
    model = copy.deepcopy(model)
    with pytest.raises(MicroBatchMissed, match=text):
        under_attach(model, act, after=1)
    assert all(map(torch.equal, before, weights(model)))


def test_few_gradients_are_looked_at_and_those_of_each_group() -> None:
    def tensors(count: int) -> list[Tensor]:
        return [nn.Parameter(torch.ones(1)) for _ in range(count)]

    small, large = tensors(2), tensors(9)
    frozen = nn.Parameter(torch.ones(1), requires_grad=False)
    seen = AccumulatedGradients([{"params": [frozen, *small]}, {"params": large}])._parameters
    assert list(map(id, seen)) == list(map(id, [*small, large[0], large[4], large[8]]))
    many = AccumulatedGradients([{"params": tensors(5)} for _ in range(300)])
    assert len(many._parameters) == IN_ALL == 24


class Tokens(nn.Module):
    """An embedding whose gradient is sparse, and a head that some batches do not use."""

    def __init__(self, *, sparse: bool = True) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 5, sparse=sparse)
        self.head, self.rare = nn.Linear(5, 3), nn.Linear(5, 3)
        self.used = 0

    def forward(self, x: Tensor) -> Tensor:
        found = self.embedding((x[:, 0].abs() * 5).long().clamp(max=10))
        self.used += 1
        return self.head(found) + (self.rare(found) if self.used % 3 == 0 else 0.0)


class Checkpoints(nn.Module):
    def __init__(self, *, use_reentrant: bool) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(5, 7), nn.Tanh())
        self.head, self.use_reentrant = nn.Linear(7, 3), use_reentrant

    def forward(self, x: Tensor) -> Tensor:
        x = x.detach().requires_grad_()
        return self.head(checkpoint(self.body, x, use_reentrant=self.use_reentrant))


def frozen() -> nn.Module:
    model = classifier()
    model[0].weight.requires_grad_(False)
    return model


def optimizer_of(name: str, **options: Any) -> Callable[[nn.Module], torch.optim.Optimizer]:
    kind = getattr(torch.optim, name)
    return lambda model: kind([p for p in model.parameters() if p.requires_grad], 0.01, **options)


def plain_backward(called: nn.Module, x: Tensor, y: Tensor) -> None:
    (class_loss(called, x, y) / 4).backward()


def autocast_backward(called: nn.Module, x: Tensor, y: Tensor) -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = class_loss(called, x, y) / 4
    loss.backward()


def double_backward(called: nn.Module, x: Tensor, y: Tensor) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*create_graph=True")
        (class_loss(called, x, y) / 4).backward(create_graph=True)


SGD = optimizer_of("SGD", momentum=0.9)
RIGHT = {
    "reentrant": (lambda: Checkpoints(use_reentrant=True), SGD, plain_backward),
    "not reentrant": (lambda: Checkpoints(use_reentrant=False), SGD, plain_backward),
    "create_graph": (classifier, SGD, double_backward),
    "sparse": (Tokens, optimizer_of("SGD"), plain_backward),
    "unused in some micro-batches": (lambda: Tokens(sparse=False), SGD, plain_backward),
    "foreach": (classifier, optimizer_of("AdamW", foreach=True), plain_backward),
    "fused": (classifier, optimizer_of("AdamW", fused=True), plain_backward),
    "autocast": (classifier, SGD, autocast_backward),
    "frozen": (frozen, SGD, plain_backward),
    "compiled": (classifier, SGD, plain_backward),
}


def trained(name: str, *, door: str, clip: float | None = None) -> tuple[list[Tensor], Any]:
    """The weights, and those of their moving average, after three steps; and the control."""
    make, optimize, backward = RIGHT[name]
    torch.manual_seed(0)
    model = make()
    called: Any = model
    if name == "compiled":
        torch.compiler.reset()
        called = torch.compile(model, backend="aot_eager")
    optimizer = optimize(model)
    average = torch.optim.swa_utils.AveragedModel(
        model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.9)
    )
    control: Any = None
    if door == "attach":
        control = attached(called, optimizer, rule=lb.Observe(statistics=("moments",)))
    elif door == "watch":
        control = lb.watch(called, optimizer, batch_size=20)
    for step in micro_batches(3):
        for x, y in step:
            backward(called, x, y)
        if clip is not None:
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        optimizer.zero_grad()
        average.update_parameters(model)
    return [*weights(model), *weights(average)], control


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
@pytest.mark.parametrize("door", ["attach", "watch"])
@pytest.mark.parametrize(
    ("name", "clip"),  # torch clips no sparse gradients
    [(name, clip) for name in RIGHT for clip in (None, 0.1) if clip is None or name != "sparse"],
)
def test_right_loops_raise_no_alarm_and_train_as_without(name, door, clip) -> None:
    bare, _ = trained(name, door="", clip=clip)
    ours, control = trained(name, door=door, clip=clip)
    assert all(map(torch.equal, bare, ours))
    if door == "attach":
        assert (control.optimizer_steps, control.skipped) == (3, 0)
    else:
        assert (len(control.series), control.dropped) == (3, 0)


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
@pytest.mark.parametrize("clip", [None, 0.1])
@pytest.mark.parametrize("name", [name for name in RIGHT if name not in ("create_graph", "sparse")])
def test_the_controller_raises_no_alarm_either(name, clip) -> None:
    make, optimize, _ = RIGHT[name]
    torch.manual_seed(0)
    model = make()
    called: Any = model
    if name == "compiled":
        torch.compiler.reset()
        called = torch.compile(model, backend="aot_eager")
    batches = lb.BatchLoader(class_data(), batch_size=20, max_micro_batch_size=5)
    rule = lb.Observe(statistics=("moments",))
    control = lb.Controller(called, optimize(model), rule, batches, base_batch_size=5)
    before = weights(model)
    for batch in control.steps(steps=3):
        for x, y in batch:
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=name == "autocast"):
                loss = class_loss(called, x, y)
            control.backward(loss)
        nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
        control.step(clip_norm=clip)
    assert (control.optimizer_steps, control.skipped) == (3, 0)
    assert not all(map(torch.equal, before, weights(model)))


@pytest.mark.parametrize(
    ("act", "text"),
    [
        change(lambda m, o: o.zero_grad(), CLEARED, "zero_grad"),
        change(lambda m, o: o.zero_grad(set_to_none=False), CLEARED, "zero_grad to zeros"),
        change(each(lambda p: p.grad.mul_(0.5)), CHANGED, "multiplied in place"),
        change(each(replace), CHANGED, "replaced"),
    ],
)
def test_sparse_gradients_that_changed_are_refused(act, text) -> None:
    class Sparse(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(11, 3, sparse=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.embedding((x[:, 0].abs() * 5).long().clamp(max=10))

    model = Sparse()
    before = weights(model)
    with pytest.raises(MicroBatchMissed, match=text):
        under_attach(model, act, after=1)
    assert all(map(torch.equal, before, weights(model)))


def poison(value: float) -> Callable[[nn.Module], None]:
    def on_all(model: nn.Module) -> None:
        for parameter in model.parameters():
            parameter.grad.mul_(value)

    return on_all


def poison_new(model: nn.Module) -> None:
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, torch.nan)


@pytest.mark.parametrize("act", [poison(torch.nan), poison(torch.inf), poison_new])
def test_a_value_that_becomes_not_finite_before_the_step_skips_it(act) -> None:
    model = classifier()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    control = attached(model, optimizer)
    for at, step in enumerate(micro_batches(3)):
        before = weights(model)
        for x, y in step:
            plain_backward(model, x, y)
        if at == 1:
            act(model)
        optimizer.step()
        optimizer.zero_grad()
        assert all(map(torch.equal, before, weights(model))) == (at == 1)
    assert (control.optimizer_steps, control.skipped) == (2, 1)


def test_clipping_after_the_last_backward_is_no_change_and_leaves_the_statistic() -> None:
    for clip in (lambda m: nn.utils.clip_grad_norm_(m.parameters(), 1e-3), poison(0.25)):
        found = []
        for act in (lambda m: None, clip):
            model = classifier()
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            control = attached(model, optimizer)
            for x, y in micro_batches()[0]:
                plain_backward(model, x, y)
            act(model)
            optimizer.step()
            found.append(control._seen.moments)
        assert found[0] == found[1]


def perturb(model: nn.Module, x: Tensor, y: Tensor) -> list[Tensor]:
    """SAM's ascent: the weights go up the gradient that is there; returns the way back."""
    with torch.no_grad():
        step = [0.05 * p.grad.sign() for p in model.parameters()]
        torch._foreach_add_(list(model.parameters()), step)
    return step


def sam(
    model: nn.Module, optimizer: Any, *, dropped: Callable[[], Any], clears: bool = True
) -> list[Tensor]:
    """Two steps of sharpness-aware minimization, with two micro-batches in each pass."""
    for step in micro_batches(2, parts=2):
        for x, y in step:
            (class_loss(model, x, y) / 2).backward()
        back = perturb(model, *step[0])
        dropped()
        if clears:
            optimizer.zero_grad()
        for x, y in step:
            (class_loss(model, x, y) / 2).backward()
        with torch.no_grad():
            torch._foreach_sub_(list(model.parameters()), back)
        optimizer.step()
        optimizer.zero_grad()
    return weights(model)


def test_sam_is_refused_by_name_and_right_once_its_first_pass_is_dropped() -> None:
    model = classifier()
    before = weights(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    attached(model, optimizer)
    with pytest.raises(MicroBatchMissed, match=r"first backward call of SAM.*control\.drop\(\)"):
        sam(model, optimizer, dropped=lambda: None)
    assert all(torch.allclose(a, b) for a, b in zip(before, weights(model), strict=True))

    bare = classifier()
    expected = sam(bare, torch.optim.SGD(bare.parameters(), lr=0.1), dropped=lambda: None)
    for door in ("attach", "watch"):
        model = classifier()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        control: Any = (
            attached(model, optimizer, rule=lb.Observe(statistics=("moments",)))
            if door == "attach"
            else lb.watch(model, optimizer, batch_size=20)
        )
        got = sam(model, optimizer, dropped=control.drop)
        assert all(map(torch.equal, expected, got))
        if door == "watch":
            assert (len(control.series), control.dropped) == (2, 0)


def test_a_first_pass_that_is_dropped_but_not_cleared_is_refused() -> None:
    model = classifier()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    control = attached(model, optimizer)
    with pytest.raises(
        MicroBatchMissed, match=r"control\.drop\(\) dropped .* optimizer\.zero_grad\(\)"
    ):
        sam(model, optimizer, dropped=control.drop, clears=False)
