"""Convert dataclasses to plain JSON values and back, and check every field when reading.

An unknown field, a missing field or a wrong type raises an error. A decoded value equals the value
that was encoded.

`LATER` marks a field that was added to a class when values of the class had already been saved. If
a `LATER` field is missing, the field gets its default.

JSON has no NaN and no infinity, so NaN and infinite floats are written as "nan", "inf" or "-inf".
If a field may hold one of several classes (such as a rule, or a factor of a schedule), the class
name is written as "kind" and looked up in the `kinds` that the reader passes. A class name of an
earlier version stands for a function that takes the old fields and returns today's value, so old
files stay readable.
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
"""Dataclass, or a function that takes the fields of an old class as keyword arguments.

A field may be missing if the function's parameter has a default.
"""

Kinds = Mapping[str, Maker]
"""Class names, each with the dataclass or the function that makes a value from its fields."""

LATER: Mapping[str, Any] = {"later": True}
"""Metadata that marks a field which may be missing: `field(default=None, metadata=LATER)`."""

_AS_IT_IS: frozenset[type] = frozenset({type(None), bool, int, str})
"""Types whose values JSON writes unchanged.

Each training step is recorded during training, so `encode` has to be fast. Therefore `encode`
compares exact types first and caches the fields of each class.
"""


def encode(value: Any, *, kind: bool = False) -> Any:
    """Return plain JSON values for a dataclass, tuple, frozenset of strings, mapping or number.

    >>> from largebatch.core.measurement import Budget
    >>> encode(Budget(samples=10))
    {'base_steps': None, 'samples': 10, 'steps': None}

    Args:
        value: Value to encode. The keys of a mapping must be strings.
        kind: Whether to write the class name as "kind", for a field that may hold several classes.

    Raises:
        RecordError: The type of a value has no plain JSON form.
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
    """Return the value that `encode` wrote, after checking its type.

    >>> from largebatch.core.measurement import Budget
    >>> decode(Budget, {'base_steps': None, 'samples': 10, 'steps': None}).samples
    10

    Args:
        annotation: Expected type, as in a dataclass field.
        plain: JSON values.
        kinds: Class names, each with its dataclass, for fields that may hold several classes. A
            class name of an earlier version comes with a function that makes today's value from the
            old fields.
        where: Name of the value in error messages.

    Raises:
        RecordError: A field is unknown or missing, a type is wrong, or a kind is unknown.
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
    """Return the value that `encode` wrote, converted to the type of `template`.

    Rules' states are read with this function, and the template is the rule's `init()`. A tuple is
    read item by item.

    Args:
        template: Value of the expected type.
        plain: JSON values.
        where: Name of the value in error messages.
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
    """Return plain values of an earlier version in the form that this version writes.

    Old kinds and missing `LATER` fields are replaced at any depth. A kind that is not in `kinds`,
    such as a user's own class, stays unchanged.

    Args:
        plain: JSON values.
        kinds: Class names, each with its dataclass or function, as in `decode`.

    Raises:
        RecordError: The fields of a stored value are not the fields of the value's old class.
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
    """Return a checksum below 2^32 of all fields of a dataclass except its own field `digest`."""
    return zlib.crc32(repr(dataclasses.replace(state, digest=0)).encode(errors="replace"))


def _default(field: dataclasses.Field[Any]) -> Any:
    """Return the default of a dataclass field."""
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


def _encode_other(value: Any, *, kind: bool) -> Any:
    """Return the plain JSON form of a value that is no dataclass."""
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
    raise RecordError(
        f"The value {value!r:.200} has no JSON form, because its type {type(value).__name__} is "
        "not supported. Use None, bool, int, float, str, or a tuple, mapping or dataclass of them."
    )


def _decode_fields(
    cls: Maker, plain: Any, *, kinds: Kinds | None, where: str, name: str | None = None
) -> Any:
    name = name or cls.__name__
    _expect(isinstance(plain, Mapping), plain, name, where)
    fields = _fields(cls)
    unknown, missing = set(plain) - set(fields), set(fields) - set(plain) - _later(cls)
    if unknown or missing:
        raise RecordError(
            f"{where} cannot be read as {name}: unknown fields {sorted(map(str, unknown))}, "
            f"missing fields {sorted(missing)}. The data is corrupted, or another version of "
            "largebatch wrote it. Use that version, or an intact copy of the data."
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
        raise RecordError(
            f"{where} has the unknown kind {name!r}. The known kinds are {sorted(kinds)}. If "
            f"{name!r} is a class of your own, pass the rule that uses it."
        )
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
        raise RecordError(
            f"{where} should be {shown}, but it is {plain!r}. The data is corrupted, or another "
            "version of largebatch wrote it. Use an intact copy of the data."
        )
    return plain


@cache
def _is_open(annotation: Any) -> bool:
    """Return whether a field may hold several classes: a protocol, or a tuple of a protocol."""
    if annotation is Any:
        return True
    origin, arguments = _parts(annotation)
    if origin is tuple:
        return any(_is_open(a) for a in arguments if a is not Ellipsis)
    return isinstance(annotation, type) and getattr(annotation, "_is_protocol", False)


@cache
def _parts(annotation: Any) -> tuple[Any, tuple[Any, ...]]:
    """Return the origin and the arguments of a type such as `tuple[int, str]`."""
    return typing.get_origin(annotation), typing.get_args(annotation)


@cache
def _columns(cls: type) -> tuple[tuple[str, bool], ...] | None:
    """Return each dataclass field's name, and whether the field may hold several classes.

    The result is None for a class that is no dataclass.
    """
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
    """Return the fields that may be missing.

    A dataclass may lack its `LATER` fields. A function may lack the parameters that have defaults.
    """
    if not dataclasses.is_dataclass(cls):
        given = inspect.signature(cls).parameters.values()
        return frozenset([one.name for one in given if one.default is not one.empty])
    return frozenset([f.name for f in dataclasses.fields(cls) if f.metadata.get("later", False)])
