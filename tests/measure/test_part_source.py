"""The seam of what a step's parts are: backward calls by themselves, or the examples in them."""

from __future__ import annotations

import inspect

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import largebatch as lb
from largebatch.measure import meter, observer
from largebatch.measure.examples.example_counts import ExampleCounts
from largebatch.measure.examples.per_example import PerExample, part_source_of
from largebatch.measure.part_counts import BackwardCounts, PartCounts
from largebatch.measure.part_source import BackwardParts, PartSource
from largebatch.measure.shares import Shares, parts_of

MOMENTS = frozenset({"moments"})


def members(kind: type) -> set[str]:
    return {name for name in vars(kind) if not name.startswith("_")}


def measured(examples: lb.PerExample | None) -> tuple[lb.Reading, lb.Meter]:
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    one = lb.Meter(model, examples=examples)
    one.bind(torch.optim.SGD(model.parameters(), lr=0.1))
    one.open(MOMENTS)
    for last in (False, True):
        loss = cross_entropy(model(torch.randn(4, 3)), torch.arange(4) % 2)
        one.backward(loss, share=0.5, weight=4, samples=4, last=last)
    return one.close(planned_weight=8), one


@pytest.mark.parametrize("module", [meter, observer], ids=["meter", "observer"])
def test_neither_meter_nor_observer_asks_what_the_parts_are(module):
    source = inspect.getsource(module)
    for word in ("self.examples is", "isinstance(self.part_source", ".examples is not None"):
        assert word not in source


@pytest.mark.parametrize(
    ("protocol", "kinds"),
    [(PartSource, (BackwardParts, PerExample)), (PartCounts, (BackwardCounts, ExampleCounts))],
    ids=["source", "counts"],
)
def test_both_kinds_of_parts_answer_every_question(protocol, kinds):
    asked = members(protocol)
    for kind in kinds:
        assert asked <= members(kind) | vars(kind()).keys()


@pytest.mark.parametrize(
    ("examples", "parts", "label", "least"),
    [(None, 2, "micro-batches", 2), (lb.PerExample(), 8, "examples", 2),
     (lb.PerExample(groups=2), 4, "examples", 2)],
    ids=["backward calls", "examples", "groups"],
)  # fmt: skip
def test_the_source_gives_the_number_and_the_name_of_the_parts(examples, parts, label, least):
    reading, one = measured(examples)
    assert (reading.moments.parts, reading.moments.source) == (parts, label)
    assert one.least_samples == least
    assert reading.samples == 8


def sums_of(counts: PartCounts, sizes: list[int]) -> dict[str, float]:
    return Shares(samples=sizes, weights=[], groups=counts.groups(len(sizes))).numbers()


def test_a_backward_of_the_default_source_is_one_part():
    parts = parts_of(sums_of(BackwardCounts(), [4, 4]), source="micro-batches")
    assert (parts.count, parts.weight_per_unit, parts.squared_weight_per_unit) == (2, 0.5, 0.5)


def test_groups_weigh_by_their_own_samples():
    counts = ExampleCounts()
    counts.add(rows=4, parts=2)
    counts.add(rows=8, parts=4)
    parts = parts_of(sums_of(counts, [4, 8]), source="examples")
    assert (parts.count, parts.weight_per_unit, parts.squared_weight_per_unit) == (6, 1.0, 0.375)


def test_a_step_without_statistics_has_backward_calls_for_parts_under_either_source():
    for counts in (ExampleCounts(), BackwardCounts()):
        parts = parts_of(sums_of(counts, [4, 4, 4]), source="micro-batches")
        assert (parts.count, parts.weight_per_unit) == (3, 0.75)
        assert counts.count(3) == 3
        assert counts.label(ranks=1, parts=3) == "micro-batches"


def test_what_was_seen_of_a_backward_is_released_when_it_was_read():
    source = part_source_of(lb.PerExample())
    _, one = measured(source)
    assert one.part_source is source
    assert source._gradients.part.rows == 0
