"""Measuring on two processes: one pair of them for all checks, since their start takes seconds."""

from __future__ import annotations

import copy
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from accelerator_sums import as_on_accelerator
from complex_twin import twins
from gradient_twin import coordinate_noise_scale, rows_of_parts, twin_of
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode

import largebatch as lb
from distributed import run_on_ranks
from largebatch.act.loader import BatchLoader
from largebatch.core.errors import LargeBatchError, RanksDisagree
from largebatch.core.plan import BatchPlan
from largebatch.measure.coordinates import CoordinateNoiseScale
from largebatch.measure.meter import Meter
from largebatch.measure.ranks import Ranks
from largebatch.measure.squared_norms import SquaredNorms
from largebatch.measure.taps import Detached, Flat, LeafHooks
from largebatch.rules import Observe
from small_runs import Seen, class_data, class_loss, classifier, measuring_controller, train

Check = Callable[[int], None]
CHECKS: dict[str, Check] = {}


def check(function: Check) -> Check:
    CHECKS[function.__name__] = function
    return function


def run_all() -> dict[str, str]:
    failures = {}
    for name, function in CHECKS.items():
        torch.manual_seed(0)
        try:
            function(dist.get_rank())
        except Exception:
            failures[name] = traceback.format_exc()
        dist.barrier()
    return failures


@pytest.fixture(scope="module")
def failures() -> list[dict[str, str]]:
    return run_on_ranks(run_all, 2)


def replicated(model: nn.Module, **options: Any) -> DistributedDataParallel:
    return DistributedDataParallel(model, bucket_cap_mb=0.0001, **options)  # several buckets


def measured(
    rank: int, model: nn.Module, *, tap: Any = LeafHooks, batch_size: int = 20, wrapped: Any = None
) -> list[Any]:
    """Four steps of two micro-batches on each rank, each against the twin of all four."""
    bare = wrapped or model.module
    plain = copy.deepcopy(bare)
    optimizer = torch.optim.SGD(bare.parameters(), lr=0.05, momentum=0.9)
    reference = torch.optim.SGD(plain.parameters(), lr=0.05, momentum=0.9)
    control, seen = measuring_controller(
        model, optimizer, batch_size=batch_size, micro=6, meter=Meter(model, tap=tap())
    )
    x, y = class_data()
    sizes = BatchPlan(batch_size=batch_size, ranks=2, max_micro_batch_size=6, least_parts=2).sizes
    assert len(sizes) == 4
    at, twins = 0, []
    for batch in control.steps(steps=4):
        cuts = []
        for size in sizes:
            cuts.append([i % len(x) for i in range(at, at + size)])
            at += size
        twin = twin_of(plain, class_loss, [(x[cut], y[cut]) for cut in cuts])
        twins.append(twin)
        for j, (a, b) in enumerate(batch):
            assert torch.equal(a, x[cuts[2 * j + rank]])
            control.backward(class_loss(model, a, b))
        reading = control.measure()
        for parameter, expected in zip(bare.parameters(), twin.gradient, strict=True):
            torch.testing.assert_close(parameter.grad, expected.float(), rtol=3e-4, atol=3e-6)
        assert reading.moments.parts == 4
        assert reading.moments.source == "micro-batches x ranks"
        assert reading.moments.variance == pytest.approx(twin.variance, rel=1e-4)
        assert reading.moments.batch_sqnorm == pytest.approx(twin.batch_sqnorm, rel=1e-4)
        assert reading.loss == pytest.approx(twin.loss, rel=1e-5)
        assert reading.samples == batch_size
        control.step()
        for parameter, gradient in zip(plain.parameters(), twin.gradient, strict=True):
            parameter.grad = gradient.float()
        reference.step()
    assert len(seen.steps) == (4 if rank == 0 else 0)  # the first rank alone records
    return [reading]


@check
def leaf_hooks_see_local_gradients_in_the_first_iteration_and_after_the_buckets_are_rebuilt(rank):
    measured(rank, replicated(classifier()))


@check
def leaf_hooks_with_gradients_as_bucket_views(rank):
    measured(rank, replicated(classifier(), gradient_as_bucket_view=True))


@check
def leaf_hooks_while_unused_parameters_are_looked_for(rank):
    measured(rank, replicated(classifier(), find_unused_parameters=True))


@check
def a_static_graph_that_would_have_to_accumulate_is_refused(rank):
    model = replicated(classifier(), static_graph=True)
    with pytest.raises(LargeBatchError, match="static_graph"):
        measured(rank, model)


@check
def parts_of_unequal_size_on_the_ranks(rank):
    measured(rank, replicated(classifier()), batch_size=22)


@check
def detached_gives_the_same_moments_and_gradients(rank):
    measured(rank, replicated(classifier()), tap=Detached)
    measured(rank, replicated(classifier(), gradient_as_bucket_view=True), tap=Detached)


@check
def flat_gives_the_same_moments_and_gradients(rank):
    measured(rank, replicated(classifier()), tap=Flat, batch_size=22)


@check
def complex_gradients_are_averaged_and_measured_as_pairs_of_real_ones(rank):
    x, y = torch.randn(60, 4), torch.randn(60, 3)
    dist.broadcast(x, 0)
    dist.broadcast(y, 0)
    for tap, mixed in ((LeafHooks, True), (Detached, True), (Flat, False)):
        readings = []
        for bare in twins(mixed=mixed):
            model = replicated(bare)
            control = lb.Controller(
                model,
                torch.optim.SGD(bare.parameters(), lr=0.05),
                Observe(),
                BatchLoader((x, y), batch_size=20, max_micro_batch_size=5, shuffle=False),
                base_batch_size=4,
                meter=Meter(model, tap=tap()),
            )
            for batch in control.steps(steps=3):
                for a, b in batch:
                    control.backward(nn.functional.mse_loss(model(a), b))
                readings.append(control.measure())
                control.step(clip_norm=0.5)
        for found, expected in zip(readings[:3], readings[3:], strict=True):
            assert found.moments.variance == pytest.approx(expected.moments.variance, rel=1e-5)
            assert found.batch_sqnorm == pytest.approx(expected.batch_sqnorm, rel=1e-5)


@check
def replicas_of_a_compiled_model(rank):
    model = classifier()
    compiled = torch.compile(model, backend="aot_eager", dynamic=True)
    measured(rank, DistributedDataParallel(compiled), wrapped=model)


@check
def a_compiled_replica(rank):
    model = classifier()
    compiled = torch.compile(DistributedDataParallel(model), backend="aot_eager", dynamic=True)
    measured(rank, compiled, wrapped=model)


def attached(model: nn.Module, **more: Any) -> tuple[Any, torch.optim.Optimizer, Seen]:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    seen = Seen()
    control = lb.attach(
        model, optimizer, Observe(), batch_size=20, base_batch_size=4, record=seen, **more
    )
    return control, optimizer, seen


def own_step(rank: int, model: nn.Module, step: int, *, silent: bool = False) -> list[Any]:
    """The backward calls of one step of a user's own loop; returns all ranks' micro-batches."""
    x, y = class_data()
    cuts = [[(20 * step + 5 * j + i) % 60 for i in range(5)] for j in range(4)]
    for k in (0, 1):
        cut = cuts[2 * k + rank]
        if silent and k == 0:
            with model.no_sync():
                (class_loss(model, x[cut], y[cut]) / 2).backward()
        else:
            (class_loss(model, x[cut], y[cut]) / 2).backward()
    return [(x[cut], y[cut]) for cut in cuts]


def own_loop(rank: int, *, silent: bool, micro_batches: int | None, **options: Any) -> None:
    model = replicated(classifier(), **options)
    control, optimizer, seen = attached(model, micro_batches=micro_batches)
    twins = []
    for step in range(4):
        before = copy.deepcopy(model.module)
        twins.append(twin_of(before, class_loss, own_step(rank, model, step, silent=silent)))
        optimizer.step()
        optimizer.zero_grad()
    for step, twin in zip(seen.steps, twins, strict=False):
        assert step.moments.variance == pytest.approx(twin.variance, rel=1e-4)
        assert step.moments.batch_sqnorm == pytest.approx(twin.batch_sqnorm, rel=1e-4)
    control.close()


@check
def attach_looks_at_the_batch_after_the_reduction_with_and_without_no_sync(rank):
    for micro_batches in (2, None):
        own_loop(rank, silent=True, micro_batches=micro_batches)
        own_loop(rank, silent=False, micro_batches=micro_batches)
    own_loop(rank, silent=True, micro_batches=2, gradient_as_bucket_view=True)
    own_loop(rank, silent=True, micro_batches=None, find_unused_parameters=True)


@check
def one_backward_on_each_rank_of_a_static_graph(rank):
    for options in ({}, {"static_graph": True}):
        model = replicated(classifier(), **options)
        _, optimizer, seen = attached(model)
        x, y = class_data()
        for step in range(4):
            cuts = [slice(20 * (step % 3) + 10 * r, 20 * (step % 3) + 10 * r + 10) for r in (0, 1)]
            micro_batches = [(x[cut], y[cut]) for cut in cuts]
            twin = twin_of(model.module, class_loss, micro_batches)
            class_loss(model, *micro_batches[rank]).backward()
            optimizer.step()
            optimizer.zero_grad()
            if rank == 0:
                moments = seen.steps[step].moments
                assert moments.source == "ranks"
                assert moments.variance == pytest.approx(twin.variance, rel=1e-4), step
                assert moments.batch_sqnorm == pytest.approx(twin.batch_sqnorm, rel=1e-4), step


class Syncs(TorchDispatchMode):
    """Counts what waits for the device: `item`, `bool`, `float` of a tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


@contextmanager
def counted() -> Iterator[dict[str, int]]:
    found, plain, lists = {}, Tensor.tolist, []
    made = torch.tensor

    def tolist(tensor: Tensor) -> Any:  # on a CPU it reads memory without a dispatch
        lists.append(tensor)
        return plain(tensor)

    with (
        mock.patch.object(dist, "all_reduce", side_effect=dist.all_reduce) as reduces,
        mock.patch.object(Tensor, "tolist", tolist),
        mock.patch.object(torch, "tensor", side_effect=made) as tensors,
        Syncs() as syncs,
    ):
        yield found
    found["all_reduce"], found["syncs"] = reduces.call_count, len(lists) + syncs.count
    found["copies to the device"] = tensors.call_count


@check
def one_collective_and_one_host_sync_a_step_in_a_controller(rank):
    model = replicated(classifier())
    control, _ = measuring_controller(model, torch.optim.SGD(model.parameters(), lr=0.05))
    as_on_accelerator(control.meter.sums)
    for step, batch in enumerate(control.steps(steps=3)):
        with counted() as found:
            for x, y in batch:
                control.backward(class_loss(model, x, y))
            control.step(clip_norm=0.1)
        assert found == {"all_reduce": 1, "syncs": 1, "copies to the device": 1}, (step, found)


@check
def one_collective_and_one_host_sync_a_step_under_attach(rank):
    model = replicated(classifier())
    control, optimizer, _ = attached(model)
    as_on_accelerator(control.meter.sums)
    for step in range(3):
        with counted() as found:
            own_step(rank, model, step)
            optimizer.step()
            optimizer.zero_grad()
        syncs = 1 if step else 2  # the first step compares the ranks' inputs
        wanted = {"all_reduce": 1, "syncs": syncs, "copies to the device": 1}
        assert found == wanted, (step, found)


def coordinates(tap: Any) -> Meter:
    model = replicated(classifier())
    statistics = [SquaredNorms(), CoordinateNoiseScale(quantile=0.9)]
    return Meter(model, statistics=statistics, tap=tap())


def expected_coordinates(model: nn.Module, micro_batches: list[Any]) -> Any:
    """The noise scale of the coordinate at the quantile 0.9, for micro-batches of 5."""
    rows = rows_of_parts(model, class_loss, micro_batches)
    return pytest.approx(coordinate_noise_scale(rows, [5] * len(rows), quantile=0.9), rel=1e-3)


@check
def single_coordinates_cost_one_more_collective_and_few_host_syncs(rank):
    for tap, collectives in ((LeafHooks, 2), (Detached, 3), (Flat, 3)):
        meter = coordinates(tap)
        control, _ = measuring_controller(
            meter.model,
            torch.optim.SGD(meter.model.parameters(), lr=0.05),
            ask=("coordinate_noise_scale",),
            micro=6,
            meter=meter,
        )
        as_on_accelerator(meter.sums)
        x, y = class_data()
        for step, batch in enumerate(control.steps(steps=2)):
            before = copy.deepcopy(meter.model.module)
            cuts = [[(20 * step + 5 * j + i) % 60 for i in range(5)] for j in range(4)]
            with counted() as found:
                for a, b in batch:
                    control.backward(class_loss(meter.model, a, b))
                reading = control.measure()
                control.step()
            assert found["all_reduce"] == collectives, (step, found)
            assert found["syncs"] <= 6, (step, found)
            micro_batches = [(x[cut], y[cut]) for cut in cuts]
            expected = expected_coordinates(before, micro_batches)
            assert reading.coordinate_noise_scale == expected


@check
def single_coordinates_under_attach(rank):
    meter = coordinates(LeafHooks)
    model, optimizer, seen = meter.model, torch.optim.SGD(meter.model.parameters(), lr=0.05), Seen()
    rule = Observe(statistics=("coordinate_noise_scale",))
    lb.attach(model, optimizer, rule, batch_size=20, base_batch_size=4, meter=meter, record=seen)
    for step in range(2):
        before = copy.deepcopy(model.module)
        expected = expected_coordinates(before, own_step(rank, model, step))
        nn.utils.clip_grad_norm_(model.parameters(), 1e-3)
        optimizer.step()
        optimizer.zero_grad()
        if rank == 0:
            assert seen.steps[-1].coordinate_noise_scale == expected


@check
def ranks_that_disagree_about_single_coordinates_are_told(rank):
    for first, second in ((frozenset(), None), (None, frozenset())):
        meter = coordinates(LeafHooks)
        control, _ = measuring_controller(
            meter.model,
            torch.optim.SGD(meter.model.parameters(), lr=0.05),
            ask=("coordinate_noise_scale",),
            meter=meter,
        )
        measure = second if rank else first
        if measure is not None:
            control.decider = replace(control.decider, measure=measure)
        with pytest.raises(RanksDisagree, match=r"measure \(rank 0: .*rank 1: "):
            train(control, loss=class_loss, steps=3)


@check
def a_rule_that_measures_by_chance_is_told(rank):
    @dataclass(frozen=True)
    class Moody(Observe):
        def update(self, state: None, seen: Any, proposed: Any) -> Any:
            wanted = self.needs if dist.get_rank() == seen.step % 2 else frozenset()
            return None, replace(proposed, measure_next=wanted)

    meter = coordinates(LeafHooks)
    optimizer = torch.optim.SGD(meter.model.parameters(), lr=0.05)
    batches = BatchLoader(class_data(), batch_size=20, max_micro_batch_size=5)
    rule = Moody(statistics=("coordinate_noise_scale",))
    control = lb.Controller(meter.model, optimizer, rule, batches, base_batch_size=4, meter=meter)
    with pytest.raises(RanksDisagree, match=r"measure \(rank 0"):
        train(control, loss=class_loss, steps=3)


@check
def a_state_that_differs_is_refused_on_every_rank_by_name(rank):
    for change in ({"samples": 77}, {"measure": frozenset()}):
        model = replicated(classifier())
        control, _ = measuring_controller(model, torch.optim.SGD(model.parameters(), lr=0.05))
        if rank == 1:
            control.decider = replace(control.decider, **change)
        (name,) = change
        with pytest.raises(RanksDisagree, match=rf"{name} \(rank 0: .*rank 1: "):
            train(control, loss=class_loss, steps=3)


@check
def a_state_that_differs_under_attach_is_refused_on_every_rank(rank):
    model = replicated(classifier())
    control, optimizer, _ = attached(model)
    if rank == 1:
        control.decider = replace(control.decider, base_steps=3.0)
    own_step(rank, model, 0)
    with pytest.raises(RanksDisagree, match=r"base_steps \(rank 0: .*rank 1: 3.0"):
        optimizer.step()


@check
def settings_that_differ_are_refused_by_the_first_name(rank):
    ranks = Ranks()
    ranks.agree({"a": 1, "b": 2})
    with pytest.raises(RanksDisagree, match=r"about b \(rank 0: 0, rank 1: 1\)"):
        ranks.agree({"a": 1, "b": rank, "c": rank})
    with pytest.raises(RanksDisagree, match=r"extra \(rank 0: None, rank 1: 1\)"):
        ranks.agree({"a": 1} if rank == 0 else {"a": 1, "extra": 1})
    model = replicated(classifier())
    control, _ = measuring_controller(
        model, torch.optim.SGD(model.parameters(), lr=0.05), batch_size=20 + 2 * rank
    )
    with pytest.raises(RanksDisagree, match=r"batch_size \(rank 0: 20, rank 1: 22\)"):
        next(iter(control.steps(steps=1)))


@check
def a_model_that_is_not_replicated_is_refused(rank):
    with pytest.raises(ValueError, match="not in DistributedDataParallel"):
        Meter(classifier())


@check
def one_rank_with_a_bad_gradient_makes_the_step_not_finite_everywhere(rank):
    model = replicated(classifier())
    control, _ = measuring_controller(model, torch.optim.SGD(model.parameters(), lr=0.05))
    finite = []
    for step, batch in enumerate(control.steps(steps=2)):
        for x, y in batch:
            loss = class_loss(model, x, y)
            control.backward(loss * float("nan") if (step, rank) == (1, 1) else loss)
        finite.append(control.measure().finite)
        control.step()
    assert finite == [True, False, True]


@pytest.mark.distributed
@pytest.mark.parametrize("name", CHECKS)
def test_every_measurement_case_passes_on_two_processes(name, failures):
    found = [of_rank[name] for of_rank in failures if name in of_rank]
    assert not found, "\n".join(found)
