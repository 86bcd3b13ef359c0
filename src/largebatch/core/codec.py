"""Dataclass <-> plain JSON values, strictly: an unknown field, a missing field or a wrong type is
an error, and a value that went out comes back equal.

A field that a class got after values of it were written is marked as `LATER`, and has a default,
which stands for it where those values are read.

A float that JSON lacks is written as "nan", "inf" or "-inf". Where a field may hold one of several
classes (a rule, a schedule's factor), the class name is written as "kind" and looked up in the
`kinds` that the reader passes. There a class name of an earlier version stands for a function of
its fields that returns today's value, so that old files are read for ever.
"""

from __future__ import annotations

import dataclasses
import inspect
import types
import typing
import zlib
from collections.abc import Callable, Mapping
from functools import cache
from math import isfinite
from typing import Any, Literal, Union

from largebatch.core.errors import RecordError

Maker = Callable[..., Any]
"""A dataclass; or a function that takes the fields of an earlier version's class by keyword. One
with a default may be absent."""

Kinds = Mapping[str, Maker]
"""Class name -> what makes a value of its fields."""

LATER: Mapping[str, Any] = {"later": True}
"""The `metadata` of a field that may be absent: `field(default=None, metadata=LATER)`."""

_AS_IT_IS: frozenset[type] = frozenset({type(None), bool, int, str})
"""Types whose values JSON writes as they are; a step's line is written while a model trains, so
`encode` asks by exact type first and remembers what it knows of a class."""


def encode(value: Any, *, kind: bool = False) -> Any:
    """Plain JSON values for a dataclass, a tuple, a frozenset of strings, a mapping by strings or a
    number.

    >>> from largebatch.core.measurement import Budget
    >>> encode(Budget(samples=10))
    {'base_steps': None, 'samples': 10, 'steps': None}

    Args:
        value: what to write.
        kind: whether to write the class name too, for a reader that cannot know it.

    Raises:
        RecordError: a type that has no plain form.
    """
    cls: type = type(value)
    if cls in _AS_IT_IS:
        return value
    columns = _columns(cls)
    if columns is None:
        return _encode_other(value, kind=kind)
    plain = {"kind": cls.__name__} if kind else {}
    for name, is_open in columns:
        item = getattr(value, name)
        item_type = type(item)
        if item_type in _AS_IT_IS or (item_type is float and isfinite(item)):
            plain[name] = item
        else:
            plain[name] = encode(item, kind=is_open)
    return plain


def decode(annotation: Any, plain: Any, *, kinds: Kinds | None = None, where: str = "value") -> Any:
    """The value that `encode` wrote, checked against its type.

    >>> from largebatch.core.measurement import Budget
    >>> decode(Budget, {'base_steps': None, 'samples': 10, 'steps': None}).samples
    10

    Args:
        annotation: the type to expect, as in a dataclass field.
        plain: JSON values.
        kinds: class name -> dataclass, for fields that may hold several classes; of an old class,
            a function from its fields to today's value.
        where: how errors name this value.

    Raises:
        RecordError: an unknown or missing field, a wrong type, or an unknown kind.
    """
    if type(plain) is annotation and annotation in _AS_IT_IS:
        return plain
    if dataclasses.is_dataclass(annotation) and isinstance(annotation, type):
        return _decode_fields(annotation, plain, kinds=kinds, where=where)
    origin, arguments = _parts(annotation)
    if origin is None and _is_open(annotation):
        return _decode_open(plain, kinds=kinds or {}, where=where)
    if origin in (Union, types.UnionType):
        if plain is None and type(None) in arguments:
            return None
        (inner,) = [a for a in arguments if a is not type(None)][:1]
        return decode(inner, plain, kinds=kinds, where=where)
    if origin in (tuple, frozenset):
        return _decode_items(origin, arguments, plain, kinds=kinds, where=where)
    if origin is Mapping:
        return _decode_mapping(arguments[1], plain, kinds=kinds, where=where)
    if origin is Literal:
        return _expect(plain in arguments, plain, annotation, where)
    return _decode_scalar(annotation, plain, where=where)


def decode_like(template: Any, plain: Any, *, where: str = "state") -> Any:
    """The value that `encode` wrote, of the same type as `template`, item by item in a tuple.

    Rules' states are read this way: the rule's `init()` is the template.
    """
    if template is None:
        return _expect(plain is None, plain, type(None), where)
    if isinstance(template, tuple):
        same = isinstance(plain, list) and len(plain) == len(template)
        _expect(same, plain, f"a list of {len(template)}", where)
        pairs = enumerate(zip(template, plain, strict=True))
        return tuple(decode_like(t, p, where=f"{where}[{i}]") for i, (t, p) in pairs)
    return decode(type(template), plain, where=where)


def renewed(plain: Any, *, kinds: Kinds) -> Any:
    """Return plain values of an earlier version as this one would write them.

    Old kinds and absent `LATER` fields are replaced at any depth. A kind that is not in `kinds`, as
    that of a user's own class, stays as it is.

    Args:
        plain: JSON values.
        kinds: as in `decode`.

    Raises:
        RecordError: an old kind with other fields than it had.
    """
    if isinstance(plain, list):
        return [renewed(item, kinds=kinds) for item in plain]
    if not isinstance(plain, Mapping):
        return plain
    items = {key: renewed(item, kinds=kinds) for key, item in plain.items()}
    kind = items.get("kind")
    make = kinds.get(kind) if isinstance(kind, str) else None
    if make is None:
        return items
    if not isinstance(make, type):
        return encode(_decode_open(items, kinds=kinds, where="an old value"), kind=True)
    missing = {f.name: f for f in dataclasses.fields(make) if f.name in _later(make) - set(items)}
    later = {name: encode(_default(field), kind=True) for name, field in missing.items()}
    return {**items, **later, "kind": make.__name__}


def checksum(state: Any) -> int:
    """A number below 2^32 of all fields of a dataclass but its own `digest`: damage changes it."""
    return zlib.crc32(repr(dataclasses.replace(state, digest=0)).encode(errors="replace"))


def _default(field: dataclasses.Field[Any]) -> Any:
    """Return the value of a field that is not given."""
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


def _encode_other(value: Any, *, kind: bool) -> Any:
    """The plain form of what is not a dataclass."""
    if isinstance(value, float):
        return float(value) if isfinite(value) else repr(float(value))
    if isinstance(value, (int, str)):
        return value
    if isinstance(value, frozenset):
        return sorted(value)
    if isinstance(value, (tuple, list)):
        return [encode(item, kind=kind) for item in value]
    if isinstance(value, Mapping):
        return {str(key): encode(item, kind=kind) for key, item in value.items()}
    raise RecordError(f"{type(value).__name__} has no JSON form: {value!r}")


def _decode_fields(
    cls: Maker, plain: Any, *, kinds: Kinds | None, where: str, name: str | None = None
) -> Any:
    name = name or cls.__name__
    _expect(isinstance(plain, Mapping), plain, name, where)
    fields = _fields(cls)
    unknown, missing = set(plain) - set(fields), set(fields) - set(plain) - _later(cls)
    if unknown or missing:
        raise RecordError(
            f"{where} is not a {name}: unknown fields {sorted(map(str, unknown))}, missing "
            f"fields {sorted(missing)}. It was written by another version or is damaged."
        )
    values = {
        field: decode(kind, plain[field], kinds=kinds, where=f"{where}.{field}")
        for field, kind in fields.items()
        if field in plain
    }
    return cls(**values)


def _decode_open(plain: Any, *, kinds: Kinds, where: str) -> Any:
    _expect(isinstance(plain, Mapping) and "kind" in plain, plain, "a value with a kind", where)
    name = plain["kind"]
    if name not in kinds:
        raise RecordError(f"{where} is of the unknown kind {name!r}; known: {sorted(kinds)}.")
    rest = {key: item for key, item in plain.items() if key != "kind"}
    return _decode_fields(kinds[name], rest, kinds=kinds, where=where, name=name)


def _decode_items(
    origin: type, arguments: tuple[Any, ...], plain: Any, *, kinds: Kinds | None, where: str
) -> Any:
    _expect(isinstance(plain, list), plain, origin.__name__, where)
    variadic = origin is frozenset or (len(arguments) == 2 and arguments[1] is Ellipsis)
    inner = (arguments[0],) * len(plain) if variadic else arguments
    _expect(len(inner) == len(plain), plain, f"{len(inner)} items", where)
    pairs = enumerate(zip(inner, plain, strict=True))
    return origin(decode(a, p, kinds=kinds, where=f"{where}[{i}]") for i, (a, p) in pairs)


def _decode_mapping(inner: Any, plain: Any, *, kinds: Kinds | None, where: str) -> Any:
    _expect(isinstance(plain, Mapping), plain, "a mapping", where)
    return {
        key: decode(inner, item, kinds=kinds, where=f"{where}[{key!r}]")
        for key, item in plain.items()
    }


def _decode_scalar(annotation: Any, plain: Any, *, where: str) -> Any:
    if annotation is float:
        if plain in ("nan", "inf", "-inf"):
            return float(plain)
        sound = isinstance(plain, (int, float)) and not isinstance(plain, bool)
        return float(_expect(sound, plain, float, where))
    if annotation is int:
        return _expect(isinstance(plain, int) and not isinstance(plain, bool), plain, int, where)
    return _expect(isinstance(plain, annotation), plain, annotation, where)


def _expect(sound: bool, plain: Any, expected: Any, where: str) -> Any:
    if not sound:
        shown = expected.__name__ if isinstance(expected, type) else str(expected)
        raise RecordError(f"{where} should be {shown}, found {plain!r}.")
    return plain


@cache
def _is_open(annotation: Any) -> bool:
    """Whether a field may hold several classes: a protocol, or a tuple of one."""
    if annotation is Any:
        return True
    origin, arguments = _parts(annotation)
    if origin is tuple:
        return any(_is_open(a) for a in arguments if a is not Ellipsis)
    return isinstance(annotation, type) and getattr(annotation, "_is_protocol", False)


@cache
def _parts(annotation: Any) -> tuple[Any, tuple[Any, ...]]:
    """The origin and the arguments of a type such as `tuple[int, str]`."""
    return typing.get_origin(annotation), typing.get_args(annotation)


@cache
def _columns(cls: type) -> tuple[tuple[str, bool], ...] | None:
    """(field, whether it is open) for each field of a dataclass; None for any other class."""
    if not dataclasses.is_dataclass(cls):
        return None
    return tuple((name, _is_open(annotation)) for name, annotation in _fields(cls).items())


@cache
def _fields(cls: Maker) -> dict[str, Any]:
    hints = typing.get_type_hints(cls)
    if not dataclasses.is_dataclass(cls):
        return {name: hint for name, hint in hints.items() if name != "return"}
    return {field.name: hints[field.name] for field in dataclasses.fields(cls)}


@cache
def _later(cls: Maker) -> frozenset[str]:
    """The fields that values of an earlier version lack; of a function, those with a default."""
    if not dataclasses.is_dataclass(cls):
        given = inspect.signature(cls).parameters.values()
        return frozenset([one.name for one in given if one.default is not one.empty])
    return frozenset([f.name for f in dataclasses.fields(cls) if f.metadata.get("later", False)])
