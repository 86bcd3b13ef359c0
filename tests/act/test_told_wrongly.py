"""What a user tells wrongly is an error before a weight moves, the same one on every rank."""

from __future__ import annotations

import copy
import math
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import largebatch as lb
from distributed import run_on_ranks
from largebatch.core.errors import LargeBatchError, MicroBatchMissed
from small_runs import class_data, class_loss, classifier

SIZE, PARTS = 5, 2
Tell = Callable[[Any, int], Any]
"""(control, number of the part) tells of it before its backward."""


class Loop:
    """Two micro-batches of five samples on each rank.

    Args:
        batch_size: as told to attach.
        same: whether all ranks get the same inputs.
        options: of attach.
    """

    def __init__(
        self, *, batch_size: int | None = None, same: bool = False, loss: Any = class_loss,
        watch: bool = False, **options: Any,
    ) -> None:  # fmt: skip
        self.rank = dist.get_rank() if dist.is_initialized() else 0
        self.ranks = dist.get_world_size() if dist.is_initialized() else 1
        self.bare = classifier()
        model = DistributedDataParallel(self.bare) if self.ranks > 1 else self.bare
        self.model, self.loss, self.same = model, loss, same
        self.optimizer = torch.optim.SGD(self.bare.parameters(), lr=0.05)
        size = batch_size or SIZE * PARTS * self.ranks
        if watch:
            self.control: Any = lb.watch(model, self.optimizer, batch_size=size, **options)
        else:
            self.control = lb.attach(
                model,
                self.optimizer,
                lb.AdaScale(),
                batch_size=size,
                base_batch_size=4,
                **options,
            )

    def inputs(self) -> Iterator[tuple[Tensor, Tensor]]:
        x, y = class_data()
        for at in range(PARTS):
            start = SIZE * (at + (0 if self.same else self.rank * PARTS))
            yield x[start : start + SIZE], y[start : start + SIZE]

    def step(self, tell: Tell = lambda control, at: None) -> None:
        """One step, after which no gradient is left."""
        try:
            for at, (x, y) in enumerate(self.inputs()):
                with tell(self.control, at) or _nothing():
                    (self.loss(self.model, x, y) / PARTS).backward()
            self.optimizer.step()
        finally:
            self.optimizer.zero_grad()

    def refused(
        self, kind: type[Exception], tell: Tell = lambda control, at: None, *, steps: int = 1
    ) -> str:
        """The text of the error of the last of so many steps; the next step works."""
        for _ in range(steps - 1):
            self.step()
        before = copy.deepcopy(self.bare.state_dict())
        with pytest.raises(kind) as caught:
            self.step(tell)
        now = self.bare.state_dict()
        assert all(torch.equal(before[name], now[name]) for name in before)
        return str(caught.value)


@contextmanager
def _nothing() -> Iterator[None]:
    yield


def weights(*values: Any) -> Tell:
    """Tells these weights, in their order; None tells the samples alone."""
    return lambda control, at: control.micro_batch(SIZE, weight=values[at])


def steps_on(loop: Loop) -> None:
    """The loop is measured after a step that was refused."""
    before = loop.control.optimizer_steps
    loop.control.advance()  # of the part that was told before the error
    loop.step(weights(3, 4))
    assert loop.control.optimizer_steps == before + 1
    assert loop.control.decision is not None


@pytest.mark.parametrize("weight", [0, -1.0, math.nan, math.inf, torch.tensor(0)])
@pytest.mark.parametrize("door", ["micro_batch", "part"])
def test_a_weight_out_of_range(door, weight) -> None:
    loop = Loop()

    def tell(control: Any, at: int) -> Any:
        return getattr(control, door)(samples=SIZE, weight=weight if at else 1.0)

    assert f"weight={float(weight):g} was given" in loop.refused(ValueError, tell)
    steps_on(loop)


@pytest.mark.parametrize("samples", [0, -3, math.nan, math.inf])
def test_samples_out_of_range(samples) -> None:
    loop = Loop()
    text = loop.refused(ValueError, lambda control, at: control.micro_batch(samples))
    assert f"samples={samples:g} was given, but a micro-batch has at least one sample" in text
    steps_on(loop)


def test_weights_of_some_parts_only() -> None:
    loop = Loop()
    text = loop.refused(MicroBatchMissed, weights(None, 2.0))
    assert "for 1 of the 2 micro-batches" in text
    steps_on(loop)


@pytest.mark.parametrize("count", [1, 3, 4])
def test_another_number_of_micro_batches(count) -> None:
    def tell(control: Any, at: int) -> None:
        for _ in range(count // PARTS + (count % PARTS if at else 0)):
            control.micro_batch(SIZE, weight=1)

    loop = Loop()
    text = loop.refused(MicroBatchMissed, tell)
    assert f"called {count} times" in text
    assert "2 micro-batches" in text
    steps_on(loop)


def breaks(args: Any, kwargs: Any) -> int:
    return kwargs["tokens"].shape[0]


@pytest.mark.parametrize(
    ("samples", "said"),
    [
        (breaks, "KeyError: 'tokens'"),
        (lambda args, kwargs: 0, "returned 0"),
        (lambda args, kwargs: -1, "returned -1"),
        (lambda args, kwargs: math.nan, "returned nan"),
        (lambda args, kwargs: None, "TypeError"),
    ],
)
def test_a_function_that_does_not_count_samples(samples, said) -> None:
    text = Loop(samples=samples).refused(LargeBatchError)
    assert said in text
    assert "lb.attach(..., samples=lambda args, kwargs:" in text


def test_a_function_that_counts_no_samples_changes_no_training_under_watch() -> None:
    loop, plain = Loop(samples=breaks, watch=True), Loop()
    plain.control.close()
    with pytest.warns(RuntimeWarning, match="KeyError: 'tokens'"):
        loop.step()
    plain.step()
    assert loop.control.dropped == 1
    for ours, theirs in zip(loop.bare.parameters(), plain.bare.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_a_function_that_counts_unequal_samples_is_told_what_is_assumed() -> None:
    def some(args: Any, kwargs: Any) -> int:
        return 3 if torch.equal(args[0][0], class_data()[0][0]) else 5

    loop = Loop(batch_size=8, samples=some)
    with pytest.warns(RuntimeWarning, match=r"have 3, 5 samples.*the same share.*weight=1\."):
        loop.step()
    loop = Loop(batch_size=8, samples=some)
    loop.step(lambda control, at: control.micro_batch((3, 5)[at], weight=1))
    loop.step(lambda control, at: control.micro_batch((3, 5)[at], weight=(3, 5)[at]))


def test_a_batch_size_without_the_micro_batches() -> None:
    text = Loop(batch_size=SIZE).refused(LargeBatchError)
    assert "batch_size=5 was given, but the model received 10 samples" in text
    assert "and 2 is the number of micro-batches." in text
    assert "with control.part(samples=len(x)): loss_fn(model(x), y).backward()" in text
    assert text.count("batch_size=10") == 1


def run(loop: Loop, *, steps: int) -> None:
    for _ in range(steps):
        loop.step()


def time_first(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """The same loss of inputs `[T, N, 5]` with T = 3."""
    scores = model(torch.stack([x, x, x])).mean(0)
    return nn.functional.cross_entropy(scores, y)


def test_inputs_with_the_time_first_are_named_in_one_warning() -> None:
    loop = Loop(loss=time_first)
    with pytest.warns(RuntimeWarning, match=r"batch_size=10 .* 6 rows.*samples=lambda") as caught:
        run(loop, steps=3)
    assert len(caught) == 1


def test_inputs_with_the_time_first_and_their_samples_are_silent() -> None:
    Loop(loss=time_first, samples=lambda args, kwargs: args[0].shape[1]).step()
    Loop(loss=time_first).step(lambda control, at: control.micro_batch(SIZE))


def test_a_part_inside_a_part() -> None:
    loop = Loop()

    @contextmanager
    def tell(control: Any, at: int) -> Iterator[None]:
        with control.part(), control.part():
            yield

    text = loop.refused(MicroBatchMissed, tell)
    assert "control.part() was entered inside another control.part()" in text
    steps_on(loop)


@pytest.mark.parametrize("inside", [0, 1])
def test_some_backward_calls_outside_of_part_blocks(inside) -> None:
    loop = Loop()
    text = loop.refused(
        MicroBatchMissed, lambda control, at: control.part() if at == inside else None
    )
    assert "1 backward calls of this step ran inside control.part(), and 1 ran outside" in text
    steps_on(loop)


# ------------------------------------------------------------------ on two ranks

CHECKS: dict[str, Callable[[], str]] = {}
"""Each gives the error's text, which must be the same on all ranks."""


def check(function: Callable[[], str]) -> Callable[[], str]:
    CHECKS[function.__name__] = function
    return function


def on_rank_1(wrong: Any, right: Any) -> Any:
    return wrong if dist.get_rank() == 1 else right


def refused_on_ranks(loop: Loop, kind: type[Exception], tell: Tell, said: str) -> str:
    text = loop.refused(kind, tell)
    assert said in text, text
    steps_on(loop)
    return text


@check
def a_weight_of_zero_on_one_rank() -> str:
    tell = on_rank_1(weights(2.0, 0), weights(2.0, 1.0))
    said = "Rank 1 of 2: weight=0 was given, but the weight of a micro-batch must be above 0"
    return refused_on_ranks(Loop(), LargeBatchError, tell, said)


@check
def a_micro_batch_without_tokens_on_one_rank_has_a_tiny_weight() -> str:
    loop = Loop(loss=on_rank_1(lambda model, x, y: 0.0 * class_loss(model, x, y), class_loss))
    loop.step(on_rank_1(weights(1e-6, 1e-6), weights(4, 7)))
    moments = loop.control._seen.moments
    assert moments.parts == 4
    assert 0.0 < moments.variance < math.inf
    return f"{moments.variance} {moments.sqnorm}"


@check
def a_weight_of_a_block_that_is_negative_on_one_rank() -> str:
    weight = on_rank_1(-1.0, 1.0)
    tell = lambda control, at: control.part(weight=weight)  # noqa: E731
    return refused_on_ranks(Loop(), LargeBatchError, tell, "Rank 1 of 2: weight=-1 was given")


@check
def a_weight_that_is_nan_on_all_ranks() -> str:
    return refused_on_ranks(Loop(), LargeBatchError, weights(math.nan, 1.0), "weight=nan")


@check
def no_samples_on_one_rank() -> str:
    samples = on_rank_1(0, SIZE)
    tell = lambda control, at: control.micro_batch(samples)  # noqa: E731
    return refused_on_ranks(Loop(), LargeBatchError, tell, "Rank 1 of 2: samples=0 was given")


@check
def weights_on_one_rank_only() -> str:
    tell = on_rank_1(weights(2.0, 5.0), weights(None, None))
    return refused_on_ranks(Loop(), MicroBatchMissed, tell, "for 2 of the 4 micro-batches")


@check
def a_weight_of_one_part_of_one_rank_only() -> str:
    tell = on_rank_1(weights(2.0, None), weights(2.0, 3.0))
    return refused_on_ranks(Loop(), MicroBatchMissed, tell, "Rank 1 of 2: A weight was passed")


@check
def another_number_of_micro_batches_on_one_rank() -> str:
    number = on_rank_1(2, 1)

    def tell(control: Any, at: int) -> None:
        for _ in range(number):
            control.micro_batch(SIZE, weight=1)

    return refused_on_ranks(Loop(), MicroBatchMissed, tell, "Rank 1 of 2: control.micro_batch was")


@check
def a_function_of_samples_that_raises_on_one_rank() -> str:
    samples = on_rank_1(breaks, lambda args, kwargs: len(args[0]))
    text = Loop(samples=samples).refused(LargeBatchError)
    assert "Rank 1 of 2: The function passed as samples= failed: KeyError" in text
    return text


@check
def a_function_of_samples_that_returns_0_on_one_rank() -> str:
    samples = on_rank_1(lambda args, kwargs: 0, lambda args, kwargs: len(args[0]))
    text = Loop(samples=samples).refused(LargeBatchError)
    assert "Rank 1 of 2: The function passed as samples= returned 0" in text
    return text


@check
def a_backward_outside_of_blocks_on_one_rank() -> str:
    outside = on_rank_1(True, False)
    tell = lambda control, at: None if at and outside else control.part()  # noqa: E731
    return refused_on_ranks(Loop(), MicroBatchMissed, tell, "Rank 1 of 2: 1 backward calls")


def of_batch_size(size: int, cause: str) -> str:
    text = Loop(batch_size=size).refused(LargeBatchError)
    assert f"batch_size={size} was given, but the model received 20 samples" in text
    assert cause in text
    return text


@check
def an_exception_that_is_no_error_of_the_library_on_one_rank() -> str:
    loop = Loop()
    if loop.rank == 1:
        loop.control.observer._parts.sizes = breaks  # type: ignore[method-assign]
    text = loop.refused(LargeBatchError)
    assert "Rank 1 of 2: The gradients of this step could not be measured: TypeError" in text
    return text


@check
def an_exception_in_the_parts_of_one_rank() -> str:
    loop = Loop()
    loop.step()
    if loop.rank == 1:
        loop.control.observer._parts._groups = lambda: 1 / 0  # type: ignore[method-assign]
    text = loop.refused(LargeBatchError)
    assert (
        "Rank 1 of 2: The gradients of this step could not be measured: ZeroDivisionError" in text
    )
    return text


def moments_of_ranks(scale: Callable[[int], float], tell: Tell) -> str:
    """The moments of one micro-batch on rank 0 and three on rank 1, and the warnings."""
    loop = Loop(batch_size=4 * SIZE)
    count = 1 + 2 * loop.rank
    x, y = class_data()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for step in range(2):
            each = []
            for at in range(4):
                start = SIZE * (4 * step + at)
                part = x[start : start + SIZE], y[start : start + SIZE]
                gradients = torch.autograd.grad(
                    class_loss(loop.bare, *part), list(loop.bare.parameters())
                )
                each.append(torch.cat([one.flatten() for one in gradients]).double())
                if (at > 0) == loop.rank:
                    tell(loop.control, count)
                    with _nothing() if at in (0, 3) else loop.model.no_sync():
                        (class_loss(loop.model, *part) * scale(count)).backward()
            loop.optimizer.step()
            loop.optimizer.zero_grad()
            parts = torch.stack(each)
            found = loop.control._seen.moments
            variance = SIZE * parts.var(0).sum().item()
            assert found.parts == 4
            assert loop.control.samples == (step + 1) * 4 * SIZE
            if scale(1) == scale(3):
                assert found.variance == pytest.approx(variance, rel=1e-3)
                sqnorm = parts.mean(0).square().sum().item() - variance / (4 * SIZE)
                assert found.sqnorm == pytest.approx(sqnorm, rel=1e-2)
    return " ".join(str(one.message) for one in caught if "micro-batches" in str(one.message))


@check
def ranks_with_different_numbers_of_micro_batches_are_named_once() -> str:
    text = moments_of_ranks(lambda count: 2 / 4, lambda control, count: None)
    assert text.count("The ranks have different numbers of micro-batches") == 1
    assert "4 on all ranks together" in text
    return text


@check
def ranks_with_different_numbers_of_micro_batches_and_weights_hear_nothing() -> str:
    def tell(control: Any, count: int) -> None:
        control.micro_batch(SIZE, weight=1 / count)

    text = moments_of_ranks(lambda count: 1 / count, tell)
    assert text == ""
    return text


@check
def a_batch_size_without_ranks_and_micro_batches() -> str:
    return of_batch_size(5, "and 4 is the number of micro-batches on all ranks.")


@check
def a_batch_size_without_the_ranks() -> str:
    return of_batch_size(10, "is the number of ranks or of micro-batches.")


@check
def samples_told_on_one_rank_only_with_a_batch_size_that_does_not_fit() -> str:
    """All ranks take the samples for told, or none does: nobody waits for another."""
    loop = Loop(batch_size=10)
    tell = on_rank_1(lambda control, at: control.micro_batch(SIZE), lambda control, at: None)
    loop.step(tell)
    loop.step()
    return "no error"


@check
def the_same_inputs_on_all_ranks_are_named_in_one_warning() -> str:
    loop = Loop(same=True)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run(loop, steps=3)
    texts = [str(one.message) for one in caught if issubclass(one.category, RuntimeWarning)]
    assert len(texts) == 1, texts
    assert "All 2 ranks got the same input in the first step" in texts[0]
    return texts[0]


@check
def inputs_with_the_time_first_are_named_in_one_warning() -> str:
    loop = Loop(loss=time_first)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run(loop, steps=3)
    texts = [str(one.message) for one in caught if issubclass(one.category, RuntimeWarning)]
    assert len(texts) == 1, texts
    assert "batch_size=20 was given, but the model received 12 rows" in texts[0]
    return texts[0]


def run_all() -> dict[str, tuple[bool, str]]:
    found = {}
    for name, function in CHECKS.items():
        torch.manual_seed(0)
        try:
            found[name] = True, function()
        except Exception:
            found[name] = False, traceback.format_exc()
        dist.barrier()
    return found


@pytest.fixture(scope="module")
def answers() -> list[dict[str, tuple[bool, str]]]:
    return run_on_ranks(run_all, 2)


@pytest.mark.distributed
@pytest.mark.parametrize("name", CHECKS)
def test_all_ranks_hear_of_it(name, answers) -> None:
    texts = []
    for found in answers:
        sound, text = found[name]
        assert sound, text
        texts.append(text)
    assert texts[0] == texts[1]
