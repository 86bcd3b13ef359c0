"""Test that values of an earlier version's classes are read as today's values."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

import pytest

from largebatch.core.codec import LATER, decode, encode, renewed
from largebatch.core.errors import RecordError


class Shape(Protocol):
    """A field that may hold several classes."""

    def area(self) -> float: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Box:
    """A rectangle."""

    width: float
    height: float
    depth: float = field(default=1.0, metadata=LATER)

    def area(self) -> float:
        return self.width * self.height


@dataclass(frozen=True, slots=True, kw_only=True)
class Pile:
    """Shapes within a shape."""

    shapes: tuple[Shape, ...]

    def area(self) -> float:
        return sum(shape.area() for shape in self.shapes)


def square(*, side: float) -> Box:
    """Return today's value for a class of an earlier version."""
    return Box(width=side, height=side)


def cube(*, side: float, depth: float = 9.0) -> Box:
    """Return today's value for a class that had no field `depth` in an earlier version."""
    return Box(width=side, height=side, depth=depth)


KINDS: dict[str, Any] = {"Box": Box, "Pile": Pile, "Oblong": Box, "Square": square, "Cube": cube}
SQUARE = {"kind": "Square", "side": 2.0}
BOX = {"kind": "Box", "width": 2.0, "height": 2.0, "depth": 1.0}


def test_an_old_kind_is_made_of_its_old_fields() -> None:
    assert decode(Shape, SQUARE, kinds=KINDS) == Box(width=2.0, height=2.0)
    assert decode(Shape, {**BOX, "kind": "Oblong"}, kinds=KINDS) == Box(width=2.0, height=2.0)
    pile = decode(Shape, {"kind": "Pile", "shapes": [SQUARE, BOX]}, kinds=KINDS)
    assert pile == Pile(shapes=(Box(width=2.0, height=2.0),) * 2)


def test_a_field_of_an_old_kind_that_has_a_default_may_be_absent() -> None:
    old = {"kind": "Cube", "side": 2.0}
    assert decode(Shape, old, kinds=KINDS) == Box(width=2.0, height=2.0, depth=9.0)
    assert decode(Shape, {**old, "depth": 3.0}, kinds=KINDS) == Box(width=2, height=2, depth=3.0)
    assert renewed(old, kinds=KINDS) == {**BOX, "depth": 9.0}
    with pytest.raises(RecordError, match="missing fields"):
        decode(Shape, {"kind": "Cube", "depth": 3.0}, kinds=KINDS)


def test_a_value_read_from_an_old_kind_is_written_as_the_current_kind() -> None:
    assert encode(decode(Shape, SQUARE, kinds=KINDS), kind=True) == BOX


@pytest.mark.parametrize("fields", [{}, {"side": "wide"}, {"side": 2.0, "colour": 1}])
def test_an_old_kind_with_other_fields_than_it_had_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(RecordError, match="the shape"):
        decode(Shape, {"kind": "Square", **fields}, kinds=KINDS, where="the shape")


def test_plain_values_are_renewed_at_any_depth() -> None:
    old = {"kind": "Pile", "shapes": [SQUARE, {"kind": "Box", "width": 2.0, "height": 2.0}]}
    assert renewed(old, kinds=KINDS) == {"kind": "Pile", "shapes": [BOX, BOX]}
    assert renewed({"kind": "Oblong", "width": 2.0, "height": 2.0}, kinds=KINDS) == BOX


def test_plain_values_of_current_and_user_kinds_are_not_renewed() -> None:
    own = {"kind": "Own", "inner": [1, None, "x", {"shape": SQUARE}]}
    assert renewed(own, kinds=KINDS) == {"kind": "Own", "inner": [1, None, "x", {"shape": BOX}]}
    for plain in (BOX, None, 3, [1.5], {"a": {"b": []}}, {"kind": None}, {"kind": ["Box"]}):
        assert renewed(plain, kinds=KINDS) == plain
