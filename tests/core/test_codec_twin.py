"""Compare the codec, which caches classes, with a naive version without a cache. It is strict."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from fractions import Fraction
from typing import Any, Protocol, get_args, get_origin, get_type_hints

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from largebatch.core.codec import decode, encode
from largebatch.core.decision import Decision
from largebatch.core.errors import RecordError
from largebatch.core.measurement import Budget, GradientMoments, Measurement


def naive_encode(value: Any, *, kind: bool = False) -> Any:
    """Return the same plain values without any cache."""
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else repr(float(value))
    if isinstance(value, frozenset):
        return sorted(value)
    if isinstance(value, (tuple, list)):
        return [naive_encode(item, kind=kind) for item in value]
    if isinstance(value, Mapping):
        return {str(key): naive_encode(item, kind=kind) for key, item in value.items()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        hints = get_type_hints(type(value))
        plain = {"kind": type(value).__name__} if kind else {}
        for field in dataclasses.fields(value):
            item = getattr(value, field.name)
            plain[field.name] = naive_encode(item, kind=naive_is_open(hints[field.name]))
        return plain
    raise RecordError(type(value).__name__)


def naive_is_open(annotation: Any) -> bool:
    """Whether a field's type is a protocol, `Any`, or a tuple of one."""
    if get_origin(annotation) is tuple:
        return any(naive_is_open(a) for a in get_args(annotation) if a is not Ellipsis)
    return annotation is Any or getattr(annotation, "_is_protocol", False)


class Shape(Protocol):
    def area(self) -> float: ...


@dataclass(frozen=True, slots=True)
class Square:
    side: float

    def area(self) -> float:
        return self.side**2


@dataclass(frozen=True, slots=True)
class Point:
    def area(self) -> float:
        return 0.0


@dataclass(frozen=True, slots=True)
class Drawing:
    one: Shape
    many: tuple[Shape, ...]
    whatever: Any
    pair: tuple[float, int] = (0.0, 0)


class Level(IntEnum):
    HIGH = 2


floats = st.floats() | st.just(-0.0)
counts = st.integers(0, 2**63)
moments = st.builds(
    GradientMoments, batch_size=floats, parts=counts, batch_sqnorm=floats, variance=floats
)
budgets = st.builds(Budget, samples=st.integers(1, 2**40)) | st.builds(
    Budget, base_steps=st.floats(1e-3, 1e12)
)
measurements = st.builds(
    Measurement,
    step=counts,
    samples=counts,
    base_steps=floats,
    batch_size=counts,
    base_batch_size=counts,
    base_lr=floats,
    loss=st.none() | floats,
    finite=st.booleans(),
    moments=st.none() | moments,
    inner_product_variance=st.none() | floats,
    budget=st.none() | budgets,
)
decisions = st.builds(
    Decision,
    next_batch_size=counts,
    base_steps=floats,
    lr_multiplier=floats,
    measure_next=st.frozensets(st.text(max_size=5)),
    reason=st.text(),
)
shapes = st.builds(Square, floats) | st.builds(Point)
trees = st.recursive(
    st.none() | st.booleans() | counts | floats | st.text() | shapes,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text() | counts, inner, max_size=3)
    ),
    max_leaves=8,
)
drawings = st.builds(Drawing, shapes, st.lists(shapes).map(tuple), trees)


@given(value=measurements | decisions | trees | drawings, kind=st.booleans())
def test_the_fast_encoder_equals_its_naive_twin_to_the_byte(value: Any, kind: bool) -> None:
    assert json.dumps(encode(value, kind=kind)) == json.dumps(naive_encode(value, kind=kind))


@given(measurements | decisions)
def test_what_is_encoded_is_legal_json_and_comes_back_equal(value: Any) -> None:
    text = json.dumps(encode(value), allow_nan=False)
    back = decode(type(value), json.loads(text))
    assert back == value or '"nan"' in text  # nan differs from itself
    assert json.dumps(naive_encode(back)) == text


def test_each_number_that_json_lacks_is_written_as_a_word() -> None:
    assert encode((math.nan, math.inf, -math.inf)) == ["nan", "inf", "-inf"]
    assert encode(Square(math.inf)) == {"side": "inf"}


def test_numbers_of_other_types_are_written_as_plain_numbers_or_refused() -> None:
    assert encode(numpy.float64("nan")) == "nan"
    assert type(encode(numpy.float64(0.5))) is float
    assert json.dumps(encode(Level.HIGH)) == "2"
    for stranger in (numpy.float32(1.0), Fraction(1, 2), b"bytes", Square):
        with pytest.raises(RecordError, match="has no JSON form"):
            encode(stranger)


def test_only_a_field_that_may_hold_several_classes_gets_its_kind() -> None:
    plain = encode(Drawing(one=Square(2.0), many=(Point(),), whatever=Square(1.0)))
    assert plain == {
        "one": {"kind": "Square", "side": 2.0},
        "many": [{"kind": "Point"}],
        "whatever": {"kind": "Square", "side": 1.0},
        "pair": [0.0, 0],
    }


BUDGET = {"base_steps": None, "samples": 10, "steps": None}


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ({"samples": True}, "value.samples should be int, but it is True"),
        ({"samples": 10.0}, "value.samples should be int, but it is 10.0"),
        ({"samples": "10"}, "value.samples should be int"),
        ({"base_steps": "many"}, "value.base_steps should be float"),
        ({"epochs": 1}, r"unknown fields \['epochs'\]"),
    ],
)
def test_a_wrong_type_or_field_is_named(damage: dict[str, Any], message: str) -> None:
    with pytest.raises(RecordError, match=message):
        decode(Budget, BUDGET | damage)


def test_a_missing_field_is_named() -> None:
    with pytest.raises(RecordError, match=r"missing fields \['samples'\]"):
        decode(Budget, {"base_steps": None, "steps": 5})


def test_a_whole_number_is_read_as_a_float_where_a_float_is_declared() -> None:
    read = decode(Square, {"side": 2})
    assert read == Square(2.0)
    assert type(read.side) is float


def test_a_value_of_several_classes_is_found_by_its_kind() -> None:
    drawing = Drawing(one=Square(2.0), many=(Point(), Square(1.0)), whatever=Point())
    kinds = {"Square": Square, "Point": Point}
    assert decode(Drawing, encode(drawing), kinds=kinds) == drawing
    with pytest.raises(RecordError, match=r"unknown kind 'Square'\. The known kinds are "):
        decode(Drawing, encode(drawing), kinds={"Point": Point})
