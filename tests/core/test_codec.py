"""Test the conversion of dataclasses to JSON and back. These tests check writing by reading the
result.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import pytest
from hypothesis import given
from hypothesis import strategies as st

from largebatch.core.average import Average
from largebatch.core.codec import LATER, decode, decode_like, encode
from largebatch.core.decision import Decision
from largebatch.core.errors import RecordError
from largebatch.core.measurement import Budget, GradientMoments, Measurement
from round_trips import through_json


class Shape(Protocol):
    def area(self) -> float: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Square:
    side: float = 1.0

    def area(self) -> float:
        return self.side**2


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    shapes: tuple[Shape, ...] = ()
    first: Shape = field(default_factory=Square)

    def area(self) -> float:
        return sum(shape.area() for shape in (*self.shapes, self.first))


@dataclass(frozen=True, slots=True, kw_only=True)
class Everything:
    whole: int = 1
    real: float = 0.5
    flag: bool = True
    word: str = "a"
    maybe: float | None = None
    names: frozenset[str] = frozenset()
    fixed: tuple[int, str] = (1, "a")
    many: tuple[float, ...] = ()
    choice: Literal["x", "y"] = "x"
    budget: Budget | None = None


KINDS = {"Square": Square, "Pair": Pair}
REALS = st.floats(allow_nan=False)


@given(
    value=st.builds(
        Everything,
        whole=st.integers(),
        real=REALS,
        flag=st.booleans(),
        word=st.text(),
        maybe=st.none() | REALS,
        names=st.frozensets(st.text()),
        fixed=st.tuples(st.integers(), st.text()),
        many=st.lists(REALS).map(tuple),
        choice=st.sampled_from(["x", "y"]),
        budget=st.none() | st.builds(Budget, samples=st.integers(1, 10**9)),
    )
)
def test_a_dataclass_comes_back_equal(value: Everything) -> None:
    assert decode(Everything, through_json(encode(value))) == value


@given(
    moments=st.builds(
        GradientMoments,
        batch_size=st.integers(1, 10**6),
        parts=st.integers(2, 64),
        batch_sqnorm=REALS,
        variance=REALS,
        source=st.sampled_from(["micro-batches", "ranks", "examples", "temporal"]),
    ),
    loss=st.none() | REALS,
)
def test_a_measurement_comes_back_equal(moments: GradientMoments, loss: float | None) -> None:
    seen = Measurement(
        step=1,
        samples=2,
        base_steps=3.0,
        batch_size=4,
        base_batch_size=5,
        loss=loss,
        moments=moments,
        budget=Budget(base_steps=10.0),
    )
    assert decode(Measurement, through_json(encode(seen))) == seen


def test_numbers_that_json_lacks_are_words() -> None:
    for value, word in [(math.inf, "inf"), (-math.inf, "-inf"), (math.nan, "nan")]:
        plain = encode(Square(side=value))
        assert plain == {"side": word}
        back = decode(Square, through_json(plain)).side
        assert back == value or (math.isnan(back) and math.isnan(value))


def test_an_open_field_writes_its_kind_at_any_depth() -> None:
    value = Pair(shapes=(Square(side=2.0), Pair(shapes=(Square(),))))
    plain = through_json(encode(value, kind=True))
    assert plain["kind"] == "Pair"
    assert plain["shapes"][1]["shapes"][0] == {"kind": "Square", "side": 1.0}
    assert decode(Shape, plain, kinds=KINDS) == value


def test_an_unknown_kind_lists_the_known_ones() -> None:
    with pytest.raises(RecordError, match=r"unknown kind 'Round'.*\['Pair', 'Square'\]"):
        decode(Shape, {"kind": "Round"}, kinds=KINDS)
    with pytest.raises(RecordError, match="a value with a kind"):
        decode(Shape, {"side": 1.0}, kinds=KINDS)


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ({"whole": 1.5}, "value.whole"),
        ({"whole": True}, "value.whole"),
        ({"real": "0.5"}, "value.real"),
        ({"real": True}, "value.real"),
        ({"real": None}, "value.real"),
        ({"flag": 1}, "value.flag"),
        ({"word": 1}, "value.word"),
        ({"names": "ab"}, "value.names"),
        ({"names": [1]}, r"value.names\[0\]"),
        ({"fixed": [1]}, "value.fixed"),
        ({"fixed": ["a", 1]}, r"value.fixed\[0\]"),
        ({"many": [0.5, "x"]}, r"value.many\[1\]"),
        ({"choice": "z"}, "value.choice"),
        ({"budget": {"samples": 1}}, r"value.budget.*missing fields \['base_steps', 'steps'\]"),
    ],
)
def test_a_wrong_type_is_refused_with_its_place(change: dict[str, Any], where: str) -> None:
    with pytest.raises(RecordError, match=where):
        decode(Everything, {**encode(Everything()), **change})


def test_unknown_and_missing_fields_are_refused_by_name() -> None:
    with pytest.raises(RecordError, match=r"unknown fields \['size'\], missing fields \['side'\]"):
        decode(Square, {"size": 1.0})
    with pytest.raises(RecordError, match="should be Square"):
        decode(Square, [1.0])


@dataclass(frozen=True, slots=True, kw_only=True)
class Aged:
    old: int = 1
    new: float | None = field(default=None, metadata=LATER)
    newer: int = field(default=7, metadata=LATER)


def test_a_field_that_came_later_may_be_absent_and_has_its_default() -> None:
    assert decode(Aged, {"old": 3}) == Aged(old=3)
    assert decode(Aged, {"old": 3, "newer": 2}) == Aged(old=3, newer=2)
    assert encode(Aged(old=3)) == {"old": 3, "new": None, "newer": 7}, "it is always written"
    for plain, told in (
        ({"new": 1.0}, r"missing fields \['old'\]"),
        ({"old": 3, "newest": 1}, r"unknown fields \['newest'\]"),
        ({"old": 3, "newer": 0.5}, r"value\.newer should be int"),
    ):
        with pytest.raises(RecordError, match=told):
            decode(Aged, plain)


def test_a_measurement_written_before_the_full_gradient_is_read() -> None:
    seen = Measurement(step=1, samples=2, base_steps=3.0, batch_size=4, base_batch_size=5)
    plain = through_json(encode(seen))
    assert plain.pop("full_sqnorm") is None
    assert decode(Measurement, plain) == seen
    for name in plain:
        rest = {key: value for key, value in plain.items() if key != name}
        with pytest.raises(RecordError, match=rf"missing fields \['{name}'\]"):
            decode(Measurement, rest)


def test_a_whole_number_is_a_real_one() -> None:
    back = decode(Square, {"side": 2}).side
    assert back == 2.0
    assert isinstance(back, float)


def test_encoding_refuses_a_value_that_has_no_plain_form() -> None:
    for value in (object(), Square, {1, 2}, b"bytes", 1j):
        with pytest.raises(RecordError, match="has no JSON form"):
            encode(value)


@given(count=st.integers(0, 9), value=REALS)
def test_states_are_read_like_their_template(count: int, value: float) -> None:
    state = (
        None,
        Average(values=(value, 1.0), weight=0.5, count=count),
        (Square(side=value), None),
    )
    template = (None, Average(), (Square(), None))
    assert decode_like(template, through_json(encode(state))) == state


@pytest.mark.parametrize("plain", [[], [None, None], [{"side": 1.0}], None, [3]])
def test_a_state_of_another_shape_is_refused(plain: Any) -> None:
    with pytest.raises(RecordError, match="state"):
        decode_like((None,), plain)


@given(reason=st.text(), names=st.frozensets(st.text()))
def test_a_set_is_written_in_order(reason: str, names: frozenset[str]) -> None:
    decision = Decision(next_batch_size=1, base_steps=1.0, measure_next=names, reason=reason)
    assert encode(decision)["measure_next"] == sorted(names)


@dataclass(frozen=True)
class Labelled:
    squares: Mapping[str, Square]


@given(squares=st.dictionaries(st.text(), st.builds(Square, side=REALS)))
def test_a_mapping_comes_back_equal(squares: dict[str, Square]) -> None:
    value = Labelled(squares=squares)
    assert decode(Labelled, through_json(encode(value))) == value


def test_a_wrong_item_of_a_mapping_is_named() -> None:
    with pytest.raises(RecordError, match=r"value\.squares\['a'\]\.side should be float"):
        decode(Labelled, {"squares": {"a": {"side": "wide"}}})
    with pytest.raises(RecordError, match="should be a mapping"):
        decode(Labelled, {"squares": [1]})


def test_unknown_fields_whose_names_have_several_types_are_named_in_the_error() -> None:
    with pytest.raises(RecordError, match=r"unknown fields \['1', 'weight'\]"):
        decode(Budget, {1: 2, "weight": 3})
