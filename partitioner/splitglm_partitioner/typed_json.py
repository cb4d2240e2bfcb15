"""Strict JSON for frozen dataclasses: the type annotations are the schema.

Every field is required and no other is allowed, so that a misspelt key is an error and never a silent default. The
dataclass itself checks ranges in ``__post_init__``. Floats survive exactly (shortest round-trip representation).
"""

from __future__ import annotations

import dataclasses
import json
import math
import types
import typing
from enum import Enum
from functools import cache
from typing import Any, TypeVar

from splitglm_core.errors import InputError

MAX_TEXT_CHARS = 4 << 20
T = TypeVar("T")


def to_plain(value: object) -> Any:
    """``value`` as JSON objects, arrays and scalars. Accepts dataclasses, enums, tuples and scalars."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_plain(getattr(value, f.name)) for f in dataclasses.fields(value) if f.init}
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, tuple):
        return [to_plain(item) for item in value]
    return value


def dumps(value: object) -> str:
    """Canonical JSON text: sorted keys, no spaces, no NaN; equal values give equal text."""
    return json.dumps(to_plain(value), sort_keys=True, separators=(",", ":"), allow_nan=False)


def parse(text: str, what: str) -> Any:
    """JSON values of ``text``; InputError for anything but plain JSON (duplicate keys, NaN, excess size or depth)."""
    if len(text) > MAX_TEXT_CHARS:
        raise InputError(f"{what} is longer than {MAX_TEXT_CHARS} characters")
    try:
        return json.loads(text, object_pairs_hook=_object, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{what} is not valid JSON: {error}", "write the file again") from None


def read(kind: type[T], plain: object, where: str) -> T:
    """Build ``kind`` from parsed JSON. InputError names the path of the first offence below ``where``."""
    return typing.cast(T, _read(kind, plain, where))


def loads(kind: type[T], text: str, what: str) -> T:
    """``read(parse(text))``."""
    return read(kind, parse(text, what), what)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    out = dict(pairs)
    if len(out) != len(pairs):
        raise ValueError("an object repeats a key")
    return out


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON number")


@cache
def _schema(kind: Any) -> dict[str, Any]:
    hints = typing.get_type_hints(kind)
    return {f.name: hints[f.name] for f in dataclasses.fields(kind) if f.init}


def _read(kind: Any, plain: Any, where: str) -> Any:
    origin = typing.get_origin(kind)
    if origin in (typing.Union, types.UnionType):
        return None if plain is None else _read(typing.get_args(kind)[0], plain, where)
    if origin is tuple:
        if not isinstance(plain, list):
            raise InputError(f"{where} must be an array")
        item = typing.get_args(kind)[0]
        return tuple(_read(item, value, f"{where}[{i}]") for i, value in enumerate(plain))
    if dataclasses.is_dataclass(kind):
        return _read_object(kind, plain, where)
    if isinstance(kind, type) and issubclass(kind, Enum):
        try:
            return kind(plain)
        except ValueError:
            raise InputError(f"{where} must be one of {', '.join(str(m.value) for m in kind)}") from None
    return _read_scalar(kind, plain, where)


def _read_object(kind: Any, plain: Any, where: str) -> Any:
    if not isinstance(plain, dict):
        raise InputError(f"{where} must be an object")
    schema = _schema(kind)
    unknown, missing = sorted(plain.keys() - schema.keys()), sorted(schema.keys() - plain.keys())
    if unknown:
        raise InputError(f"{where} has the unknown field {unknown[0]!r}")
    if missing:
        raise InputError(f"{where} lacks the field {missing[0]!r}")
    values = {name: _read(hint, plain[name], f"{where}.{name}") for name, hint in schema.items()}
    try:
        return kind(**values)
    except InputError as error:
        raise InputError(f"{where}: {error.what}", error.hint) from None


def _read_scalar(kind: Any, plain: Any, where: str) -> Any:
    if kind is float and isinstance(plain, int | float) and not isinstance(plain, bool):
        try:
            number = float(plain)
        except OverflowError:
            raise InputError(f"{where} is too large") from None
        if not math.isfinite(number):
            raise InputError(f"{where} must be finite")
        return number
    if kind in (bool, int, str) and type(plain) is kind:
        return plain
    wanted = {bool: "true or false", int: "a whole number", float: "a number", str: "a string"}[kind]
    raise InputError(f"{where} must be {wanted}")
