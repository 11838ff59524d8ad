"""Values from a file checked against the types that a dataclass declares, and made into it.

One mechanism for every JSON file that others may have written: what passes has the declared types all the way down.
"""

from __future__ import annotations

import dataclasses
import functools
import reprlib
import types
import typing
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from rmadapter.errors import InputError, check_choice, is_finite_number

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

T = TypeVar("T", bound="DataclassInstance")

# Free-form values nest no deeper: what they are written to again must hold them.
DEEPEST = 16
_WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text", type(None): "null"}


def from_plain(kind: type[T], values: object, where: str) -> T:
    """The dataclass ``kind`` with the fields ``values``, as JSON has them; ``where`` names them in messages.

    Raises:
        InputError: a value of another type (the message names the field, the value and what is valid), an unknown
            field (with the nearest one), one without a default that is missing; what ``kind`` itself raises.
    """
    if not isinstance(values, Mapping):
        raise InputError(f"{where} is {reprlib.repr(values)}; valid: an object")
    fields = {field.name: field for field in dataclasses.fields(kind)}
    for name in values:
        check_choice(f"key in {where}", name, fields)
    for name, field in fields.items():
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if required and name not in values:
            raise InputError(f"{where} lacks field {name!r}")
    hints = type_hints(kind)
    return kind(**{name: _conform(hints[name], value, f"{where}.{name}") for name, value in values.items()})


def check_types(instance: DataclassInstance, where: str) -> None:
    """Raise InputError unless every field of ``instance`` has the type that its class declares."""
    for name, kind in type_hints(type(instance)).items():
        _conform(kind, getattr(instance, name), f"{where}.{name}")


@functools.cache
def type_hints(kind: type) -> Mapping[str, Any]:
    """Field -> type of a dataclass; its names are looked up once a process."""
    return typing.get_type_hints(kind)


def _conform(kind: Any, value: object, where: str) -> Any:
    """``value`` as ``kind``: JSON's lists as tuples, whole numbers as floats, objects as dataclasses."""
    if kind is Any:
        _check_depth(value, where)
        return value
    if isinstance(kind, types.UnionType) or typing.get_origin(kind) is typing.Union:
        return _conform(_member(kind, value, where), value, where)
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        if isinstance(value, kind):
            check_types(value, where)
            return value
        return from_plain(kind, value, where)
    origin, members = typing.get_origin(kind) or kind, typing.get_args(kind)
    if not _is(origin, value):
        raise InputError(f"{where} is {reprlib.repr(value)}; valid: {type_words(kind)}")
    if origin is float:
        return float(typing.cast(float, value))
    if origin is list:
        return [_conform(members[0], item, f"{where}[{n}]") for n, item in enumerate(typing.cast(list, value))]
    if origin is dict:
        return {name: _conform(members[1], item, f"{where}.{name}") for name, item in typing.cast(dict, value).items()}
    if origin is tuple:
        items = tuple(typing.cast(tuple, value))
        if len(items) != len(members):
            raise InputError(f"{where} is {reprlib.repr(value)}; valid: {type_words(kind)}")
        return tuple(_conform(m, item, f"{where}[{n}]") for n, (m, item) in enumerate(zip(members, items, strict=True)))
    return value


def _is(origin: Any, value: object) -> bool:
    """Whether ``value`` is of ``origin``, where a bool is no number and JSON's list may be a tuple."""
    if origin is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and is_finite_number(value)
    if origin is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, (list, tuple) if origin is tuple else origin)


def _member(kind: Any, value: object, where: str) -> Any:
    """The member of a union that ``value`` is to be, by the outermost type."""
    for member in typing.get_args(kind):
        origin = typing.get_origin(member) or member
        if dataclasses.is_dataclass(origin):
            if isinstance(value, (Mapping, typing.cast(type, origin))):
                return member
        elif _is(origin, value):
            return member
    raise InputError(f"{where} is {reprlib.repr(value)}; valid: {type_words(kind)}")


def type_words(kind: Any) -> str:
    """What a value of this type is, for people: "a number or null"."""
    origin, members = typing.get_origin(kind) or kind, typing.get_args(kind)
    if isinstance(kind, types.UnionType) or origin is typing.Union:
        return " or ".join(type_words(member) for member in members)
    if origin is list:
        return f"a list, each of it {type_words(members[0])}"
    if origin is tuple:
        return f"a list of {len(members)}, each of it {type_words(members[0])}"
    return _WORDS.get(origin, "an object")


def _check_depth(value: object, where: str) -> None:
    """Raise InputError where lists and objects are nested deeper than ``DEEPEST``."""
    level = [value]
    for _ in range(DEEPEST):
        level = [
            item
            for outer in level
            if isinstance(outer, (dict, list))
            for item in (outer.values() if isinstance(outer, dict) else outer)
        ]
        if not level:
            return
    raise InputError(f"{where} is nested deeper than {DEEPEST} levels; valid: plain values")
