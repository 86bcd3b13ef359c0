"""`lb.watch` changes no bit of a training and never stops it; its label says what is measured."""

from __future__ import annotations

import random
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import largebatch as lb
from distributed import run_on_ranks
from largebatch.measure.squared_norms import SquaredNorms
from small_runs import class_data, class_loss, classifier

STEPS = 19
"""The first step, which shows the loop, and two stretches of eight steps and a pair."""

PAIRS = "pairs of consecutive steps"

OFTEN = "every 8th step at first, later every 160th"

EXACT_BY_EXAMPLES = "exact if the loss is a mean over the examples"

BATCH = 12


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(1, 6, batch_first=True, num_layers=2, dropout=0.3)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(x.unsqueeze(2))[0][:, -1])


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)


def adamw(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=0.01)


@dataclass(frozen=True)
class Case:
    """A model and its optimizer.

    Args:
        make: the bare model.
        optimize: its optimizer.
        compiled: whether the model is compiled.
        source: what one backward per step is measured from.
        exact: whether the label says that it is.
    """

    make: Callable[[], nn.Module]
    optimize: Callable[[nn.Module], torch.optim.Optimizer] = sgd
    compiled: bool = False
    source: str = "examples"
    exact: bool = True


CASES = {
    "dropout": Case(lambda: classifier(nn.Dropout(0.3))),
    "batch norm": Case(lambda: classifier(nn.BatchNorm1d(7)), adamw, source=PAIRS, exact=False),
    "compiled": Case(classifier, compiled=True, source=PAIRS, exact=False),
    "LSTM": Case(Recurrent, source=PAIRS, exact=False),
}


def batches(steps: int = STEPS) -> list[tuple[Tensor, Tensor]]:
    x, y = class_data(BATCH * steps)
    return list(zip(x.split(BATCH), y.split(BATCH), strict=True))


def state(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[Any]:
    """All that a training has: weights, buffers, optimizer, generators."""
    found: list[Any] = [tensor.clone() for tensor in model.state_dict().values()]
    for one in optimizer.state_dict()["state"].values():
        found += [v.clone() if isinstance(v, Tensor) else v for v in one.values()]
    found += [torch.get_rng_state(), random.getstate(), numpy.random.get_state()[1].tolist()]
    return found


def same(ours: list[Any], theirs: list[Any]) -> bool:
    return len(ours) == len(theirs) and all(
        torch.equal(a.nan_to_num(), b.nan_to_num()) if isinstance(a, Tensor) else a == b
        for a, b in zip(ours, theirs, strict=True)
    )


def train(
    case: Case,
    *,
    watched: bool,
    parts: int = 1,
    poisoned: tuple[int, ...] = (),
    closure: tuple[int, ...] = (),
    steps: int = STEPS,
    **options: Any,
) -> tuple[list[Any], Any]:
    torch.manual_seed(0)
    random.seed(0)
    numpy.random.seed(0)
    model = case.make()
    called: Any = model
    if case.compiled:
        torch.compiler.reset()
        called = torch.compile(model, backend="aot_eager")
    optimizer = case.optimize(model)
    noise = lb.watch(called, optimizer, batch_size=BATCH, **options) if watched else None
    for step, (x, y) in enumerate(batches(steps)):
        factor = torch.nan if step in poisoned else 1.0 / parts

        def run(x: Tensor = x, y: Tensor = y, factor: float = factor) -> Tensor:
            optimizer.zero_grad()
            for own, target in zip(x.chunk(parts), y.chunk(parts), strict=True):
                loss = factor * class_loss(called, own, target)
                loss.backward()
            return loss.detach()

        if step in closure:
            optimizer.step(run)
        else:
            run()
            nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            optimizer.step()
    return state(model, optimizer), noise


compiles = pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")


@compiles
@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize("name", CASES)
def test_no_bit_of_the_training_changes(name, parts) -> None:
    case = CASES[name]
    bare, _ = train(case, watched=False, parts=parts)
    ours, noise = train(case, watched=True, parts=parts)
    assert same(bare, ours)
    assert noise.dropped <= (parts == 1)  # the first step shows what the loop is
    source, often, exact, measured = case.source, OFTEN, case.exact, 3
    if parts == 3:
        source, often, exact, measured = "micro-batches", "every step", True, STEPS
    assert len(noise.series) == measured
    assert noise.label.startswith(
        f"measured from {source}, {often}; noise scale of the raw gradient, before "
    )
    assert ("; the estimate is exact" in noise.label) == exact
    assert ("approximate: the weights moved between the two steps" in noise.label) == (not exact)


@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize("name", ["dropout", "batch norm", "LSTM"])
@pytest.mark.parametrize("poisoned", [(0,), (1,), (5,)])
def test_a_step_that_is_not_finite_trains_exactly_as_without(name, parts, poisoned) -> None:
    case = CASES[name]
    bare, _ = train(case, watched=False, parts=parts, poisoned=poisoned)
    ours, noise = train(case, watched=True, parts=parts, poisoned=poisoned)
    assert same(bare, ours)
    assert any(isinstance(one, Tensor) and one.isnan().any() for one in ours)
    assert noise.dropped <= 1


@pytest.mark.parametrize("closure", [(0,), (3, 4)])
@pytest.mark.parametrize("parts", [1, 3])
def test_steps_with_a_closure_are_left_out_and_train_as_without(closure, parts) -> None:
    case = CASES["dropout"]
    bare, _ = train(case, watched=False, parts=parts, closure=closure, steps=6)
    with pytest.warns(RuntimeWarning, match=r"not measure a step .* closure\(\); optimizer\.step"):
        ours, noise = train(case, watched=True, parts=parts, closure=closure, steps=6)
    assert same(bare, ours)
    assert noise.dropped >= len(closure)
    if parts == 3:
        assert len(noise.series) == 6 - len(closure)


class Raising(SquaredNorms):
    """A statistic that fails in one of its calls, in each step."""

    def __init__(self, where: str, error: Exception) -> None:
        super().__init__()
        self.where, self.error = where, error

    def _fail(self, where: str) -> None:
        if where == self.where:
            raise self.error

    def open(self) -> None:
        self._fail("open")
        super().open()

    def see(self, index: int, gradient: Tensor) -> None:
        self._fail("see")
        super().see(index, gradient)

    def close_part(self, sums: Any, *, coefficient: float) -> None:
        self._fail("close_part")
        super().close_part(sums, coefficient=coefficient)

    def close_batch(self, sums: Any, *, share: float) -> None:
        self._fail("close_batch")
        super().close_batch(sums, share=share)

    def read(self, totals: Any) -> Any:
        self._fail("read")
        return super().read(totals)


@pytest.mark.parametrize("where", ["see", "close_part", "close_batch", "read"])
@pytest.mark.parametrize(
    "error", [RuntimeError("broken"), KeyError("x"), torch.OutOfMemoryError("no memory")]
)
def test_an_exception_inside_the_measuring_is_counted_and_named_once(where, error) -> None:
    case = Case(classifier)
    bare, _ = train(case, watched=False, parts=3, steps=4)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.manual_seed(0)
        model = classifier()
        optimizer = sgd(model)
        meter = lb.Meter(model, statistics=[Raising(where, error)])
        noise = lb.watch(model, optimizer, batch_size=BATCH, meter=meter)
        for x, y in batches(4):
            optimizer.zero_grad()
            for own, target in zip(x.chunk(3), y.chunk(3), strict=True):
                (class_loss(model, own, target) * (1.0 / 3)).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            optimizer.step()
    assert same(bare, state(model, optimizer))
    assert (noise.dropped, noise.series) == (4, [])
    (warning,) = caught
    assert warning.category is RuntimeWarning
    assert type(error).__name__ in str(warning.message)
    assert "training is not changed" in str(warning.message)


def test_an_exception_while_a_step_is_opened_stops_no_training() -> None:
    bare, _ = train(Case(classifier), watched=False, parts=3, steps=4)
    torch.manual_seed(0)
    model = classifier()
    optimizer = sgd(model)
    statistic = Raising("", RuntimeError("broken"))
    noise = lb.watch(
        model, optimizer, batch_size=BATCH, meter=lb.Meter(model, statistics=[statistic])
    )
    for step, (x, y) in enumerate(batches(4)):
        optimizer.zero_grad()
        for own, target in zip(x.chunk(3), y.chunk(3), strict=True):
            (class_loss(model, own, target) * (1.0 / 3)).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        statistic.where = "open" if step == 0 else ""  # fails as the second step opens
        if step == 0:
            with pytest.warns(RuntimeWarning, match="RuntimeError: broken"):
                optimizer.step()
        else:
            optimizer.step()
    assert same(bare, state(model, optimizer))
    assert len(noise.series) == 3
    assert noise.dropped == 1


@pytest.mark.parametrize("parts", [1, 3])
def test_a_counter_of_samples_that_raises_stops_no_training(parts) -> None:
    def samples(args: Any, kwargs: Any) -> float:
        raise KeyError("input_ids")

    bare, _ = train(CASES["dropout"], watched=False, parts=parts, steps=4)
    with pytest.warns(RuntimeWarning, match="KeyError: 'input_ids'"):
        ours, noise = train(CASES["dropout"], watched=True, parts=parts, steps=4, samples=samples)
    assert same(bare, ours)
    assert noise.dropped == 4


def test_under_attach_an_exception_inside_the_measuring_comes_at_the_step_with_its_cause() -> None:
    model = classifier()
    optimizer = sgd(model)
    cause = ValueError("broken")
    meter = lb.Meter(model, statistics=[Raising("see", cause)])
    lb.attach(model, optimizer, lb.AdaScale(), batch_size=BATCH, base_batch_size=4, meter=meter)
    x, y = batches(1)[0]
    for own, target in zip(x.chunk(3), y.chunk(3), strict=True):
        class_loss(model, own, target).backward()
    with pytest.raises(lb.errors.LargeBatchError, match="ValueError: broken") as error:
        optimizer.step()
    assert error.value.__cause__ is cause


def test_under_attach_memory_that_runs_out_in_a_hook_is_torchs_error() -> None:
    model = classifier()
    meter = lb.Meter(model, statistics=[Raising("see", torch.OutOfMemoryError("no memory"))])
    lb.attach(model, sgd(model), lb.AdaScale(), batch_size=BATCH, base_batch_size=4, meter=meter)
    with pytest.raises(torch.OutOfMemoryError, match="no memory"):
        class_loss(model, *batches(1)[0]).backward()


def test_what_is_measured_is_named_before_the_first_step_and_after_a_failure() -> None:
    model = classifier()
    noise = lb.watch(model, sgd(model), batch_size=BATCH)
    assert noise.label == "no step has been measured yet"
    _, noise = train(CASES["dropout"], watched=True, parts=3, steps=2)
    assert noise.label == (
        "measured from micro-batches, every step; noise scale of the raw gradient, before SGD "
        "changes it; the estimate is exact"
    )
    assert str(noise).endswith(noise.label)


def test_the_noise_scale_of_a_data_set_is_named_as_approximate() -> None:
    _, noise = train(CASES["dropout"], watched=True, parts=3, steps=2, dataset_size=24)
    assert noise.label.endswith(
        "; the estimate is exact; for the data set of 24 samples, the estimate is approximate "
        "while the weights move within an epoch"
    )


def on_ranks(parts: int) -> str:
    torch.manual_seed(0)
    model = DistributedDataParallel(classifier())
    optimizer = sgd(model)
    noise = lb.watch(model, optimizer, batch_size=BATCH)
    for x, y in batches(2):
        own = torch.distributed.get_rank()
        for at in range(parts):
            x_, y_ = x.chunk(2 * parts)[2 * at + own], y.chunk(2 * parts)[2 * at + own]
            (class_loss(model, x_, y_) / parts).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert len(noise.series) == 2
    return str(noise.label)


@pytest.mark.distributed
@pytest.mark.parametrize(("parts", "source"), [(1, "ranks"), (2, "micro-batches x ranks")])
def test_the_label_names_the_ranks(parts, source) -> None:
    first, second = run_on_ranks(on_ranks, 2, parts)
    assert first == second
    assert first == (
        f"measured from {source}, every step; noise scale of the raw gradient, before SGD changes "
        "it; the estimate is exact"
    )


def test_submodules_called_directly_fall_back_to_consecutive_steps() -> None:
    model = classifier()
    optimizer = sgd(model)
    noise = lb.watch(model, optimizer, batch_size=BATCH)
    for x, y in batches(3):
        for layer in model:
            x = layer(x)
        nn.functional.cross_entropy(x, y).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert noise.label.startswith(f"measured from {PAIRS}, {OFTEN};")


def rows(model: nn.Module) -> lb.Meter:
    return lb.Meter(model, examples=lb.PerExample(batch_norm_rows=True))


def examples(model: nn.Module) -> lb.Meter:
    return lb.Meter(model, examples=lb.PerExample())


def temporal(model: nn.Module) -> lb.Meter:
    return lb.Meter(model, statistics=[lb.measure.TemporalMoments()])


@pytest.mark.parametrize(
    ("meter", "inside", "source", "exactness"),
    [
        (rows, [nn.BatchNorm1d(7)], "examples", "approximate: batch normalization by rows.*"),
        (rows, [], "examples", EXACT_BY_EXAMPLES),
        (examples, [], "examples", EXACT_BY_EXAMPLES),
        (
            temporal,
            [nn.BatchNorm1d(7)],
            PAIRS,
            "approximate: the weights moved between the two steps of a pair .*",
        ),
    ],
)
def test_a_meter_that_is_passed_measures_every_step_and_is_named(
    meter, inside, source, exactness
) -> None:
    model = classifier(*inside)
    optimizer = sgd(model)
    noise = lb.watch(model, optimizer, batch_size=BATCH, meter=meter(model))
    for x, y in batches(3):
        class_loss(model, x, y).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert len(noise.series) == 3 - (source == PAIRS)
    assert re.fullmatch(
        f"measured from {source}, every step; noise scale of the raw gradient, before SGD changes "
        f"it; the estimate is {exactness}",
        noise.label,
    ), noise.label


def test_an_exception_of_the_users_own_code_in_a_block_goes_on_to_the_user() -> None:
    model = classifier()
    optimizer = sgd(model)
    noise = lb.watch(model, optimizer, batch_size=BATCH)
    with pytest.raises(KeyError, match="mine"), noise.part():
        raise KeyError("mine")
    assert noise.dropped == 0
    with (
        pytest.warns(RuntimeWarning, match="inside another"),
        noise.part(),
        pytest.raises(KeyError, match="mine"),
        noise.part(),
    ):
        raise KeyError("mine")


@pytest.mark.parametrize(
    "mistake",
    [
        lambda noise: noise.micro_batch(0),
        lambda noise: noise.micro_batch(4, weight=float("nan")),
        lambda noise: noise.part(samples=0).__enter__(),
        lambda noise: noise.part(weight=0).__enter__(),
    ],
)
def test_a_mistake_in_what_is_told_leaves_the_step_out_and_stops_no_training(mistake) -> None:
    model = classifier()
    optimizer = sgd(model)
    noise = lb.watch(model, optimizer, batch_size=BATCH)
    before = model[0].weight.clone()
    for step, (x, y) in enumerate(batches(3)):
        if step == 0:
            with pytest.warns(RuntimeWarning, match="could not measure a step"):
                mistake(noise)
        for own, target in zip(x.chunk(3), y.chunk(3), strict=True):
            (class_loss(model, own, target) / 3).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert not torch.equal(before, model[0].weight)
    assert (noise.dropped, len(noise.series)) == (1, 2)


@pytest.mark.parametrize("samples", [None, BATCH])
def test_a_block_of_one_backward_call_is_measured_by_its_examples(samples) -> None:
    model = classifier()
    optimizer = sgd(model)
    noise = lb.watch(model, optimizer, batch_size=BATCH)
    for x, y in batches(3):
        with noise.part(samples=samples):
            class_loss(model, x, y).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert noise.label.startswith("measured from examples")
    assert (noise.dropped, len(noise.series)) == (0, 1)


@pytest.mark.parametrize("told", [False, True])
@pytest.mark.parametrize("parts", [1, 2])
def test_a_step_that_the_scaler_skips_is_left_out_without_a_word(parts, told) -> None:
    model = classifier()
    optimizer = sgd(model)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12)
    noise = lb.watch(model, optimizer, batch_size=BATCH, scaler=scaler)
    skipped = (0, 3, 6, 7)
    for step, (x, y) in enumerate(batches(12)):
        for own, target in zip(x.chunk(parts), y.chunk(parts), strict=True):
            if told:
                noise.micro_batch(len(own), weight=1)
            loss = class_loss(model, own, target) / parts
            scaler.scale(loss * (torch.inf if step in skipped else 1.0)).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
    assert scaler.get_scale() == 2.0**8
    assert noise.dropped == 0
    assert len(noise.series) == (1 if parts == 1 else 12 - len(skipped))


def test_parameters_that_come_later_are_named_and_their_steps_left_out() -> None:
    model = classifier()
    model[-1].requires_grad_(False)
    optimizer = sgd(model)
    noise = lb.watch(model, optimizer, batch_size=BATCH)
    for step, (x, y) in enumerate(batches(4)):
        if step == 2:
            model[-1].requires_grad_(True)
        for own, target in zip(x.chunk(2), y.chunk(2), strict=True):
            (class_loss(model, own, target) / 2).backward()
        if step == 2:
            with pytest.warns(RuntimeWarning, match=r"had 2 trainable parameters .* has 4"):
                optimizer.step()
        else:
            optimizer.step()
        optimizer.zero_grad()
    assert (noise.dropped, len(noise.series)) == (2, 2)


def a_small_data_set(*, samples: int = 256, noise_scale: float = 1000.0) -> Tensor:
    """Inputs of `Scores`, whose gradients have this noise scale with respect to all of them."""
    rows = torch.randn(samples, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    rows -= rows.mean(0)
    rows *= (noise_scale * (samples - 1) / rows.square().sum()).sqrt()
    rows[:, 0] += 1.0
    return rows


def watched_epochs(**options: Any) -> lb.Watch:
    """Watch 100 epochs that a shuffling loader draws, with weights that stay."""
    model = nn.Linear(8, 1, bias=False).double()  # the mean output's gradient is the mean input
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    noise = lb.watch(model, optimizer, batch_size=64, **options)
    order = torch.Generator().manual_seed(1)
    loader = torch.utils.data.DataLoader(
        a_small_data_set(), batch_size=16, shuffle=True, generator=order
    )
    for at, x in enumerate(batch for _ in range(100) for batch in loader):
        (model(x).mean() / 4).backward()
        if at % 4 == 3:
            optimizer.step()
            optimizer.zero_grad()
    return noise


def test_a_data_set_smaller_than_its_noise_scale_has_one_once_its_size_is_known() -> None:
    found = watched_epochs(dataset_size=256).estimate
    assert found.low < 1000.0 < found.high < float("inf")
    assert found.noise_scale == pytest.approx(1000.0, rel=0.5)
    assert "of the data set of 256 samples" in str(found)
    unknown = str(watched_epochs())
    assert "estimated squared norm is negative" in unknown
    assert "lb.watch(..., dataset_size=len(dataset))" in unknown


@pytest.mark.parametrize("size", [1, 4])
def test_a_data_set_that_holds_no_batch_is_refused(size: int) -> None:
    model = classifier()
    with pytest.raises(ValueError, match=r"dataset_size=len\(dataset\)"):
        lb.watch(model, sgd(model), batch_size=8, dataset_size=size)


@pytest.mark.parametrize("size", [256.0, (256, 2), "256", True])
def test_a_data_set_size_that_is_no_whole_number_is_refused(size: Any) -> None:
    model = classifier()
    with pytest.raises(ValueError, match=r"^dataset_size=.* whole number of samples.*len\(dataset"):
        lb.watch(model, sgd(model), batch_size=8, dataset_size=size)
