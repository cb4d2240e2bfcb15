"""What a chat template may spend and make: the meter, and the operations on text that could multiply it."""

from __future__ import annotations

import json
from collections.abc import ItemsView, Iterable, Iterator, KeysView, Mapping, ValuesView
from contextvars import ContextVar
from typing import Any, Final

from jinja2.exceptions import SecurityError
from jinja2.utils import Namespace

MAX_CHARS: Final = 16 << 20
MAX_STEPS: Final = 1_000_000
_CHARS_PER_STEP: Final = 1024
_ITEMS_PER_STEP: Final = 64
_MAX_INDENT: Final = 64
_MAX_INT_BITS: Final = 256
_MAX_EXPONENT: Final = 64


class TemplateRefused(SecurityError):
    """The template does something, or does so much of it, that no chat template needs."""


class Budget:
    """Work that one rendering may still do. A step is about a microsecond of Python."""

    def __init__(self) -> None:
        self._left = MAX_STEPS

    def spend(self, steps: int) -> None:
        self._left -= steps
        if self._left < 0:
            raise TemplateRefused("it does not end within its bound of work")

    def charge(self, value: Any) -> None:
        """Pay for handling all of ``value``, shared parts as often as they occur."""
        if isinstance(value, str):
            self.spend(1 + len(value) // _CHARS_PER_STEP)
            return
        self.spend(1)
        if isinstance(value, Namespace):
            value = object.__getattribute__(value, "_Namespace__attrs")
        if isinstance(value, Mapping):
            value = value.items()
        if isinstance(value, list | tuple | set | frozenset | KeysView | ValuesView | ItemsView):
            for item in value:
                self.charge(item)

    def charge_length(self, value: Any) -> None:
        """Pay for one pass over ``value`` that does not look into its items."""
        if isinstance(value, str):
            self.spend(1 + len(value) // _CHARS_PER_STEP)
        elif isinstance(value, list | tuple):
            self.spend(1 + len(value) // _ITEMS_PER_STEP)
        else:
            self.spend(1)


CURRENT: ContextVar[Budget] = ContextVar("chat_template_budget")
"""The budget of the rendering under way."""


def each(values: Iterable[Any]) -> Iterator[Any]:
    """``values``, one step a turn."""
    budget = CURRENT.get()
    for value in values:
        budget.spend(1)
        yield value


def sized(value: Any) -> Any:
    """``value``, paid for in full."""
    CURRENT.get().charge(value)
    return value


def sliced(value: Any) -> Any:
    """``value``, paid for by its length."""
    CURRENT.get().charge_length(value)
    return value


def bound(chars: int) -> None:
    """Pay for making ``chars`` characters or items, before they are made."""
    if chars > MAX_CHARS:
        raise TemplateRefused(f"it makes more than {MAX_CHARS} characters")
    CURRENT.get().spend(1 + max(0, chars) // _CHARS_PER_STEP)


def join(pieces: Iterable[str]) -> str:
    """The pieces in one, which is how Jinja ends every block, macro and template."""
    kept, chars, budget = [], 0, CURRENT.get()
    for piece in pieces:
        chars += len(piece)
        if chars > MAX_CHARS:
            raise TemplateRefused(f"it makes more than {MAX_CHARS} characters")
        budget.spend(1 + len(piece) // _CHARS_PER_STEP)
        kept.append(piece)
    return "".join(kept)


def concat(values: list[Any]) -> str:
    """The ``~`` operator."""
    CURRENT.get().charge(values)
    return join(str(value) for value in values)


def joined(values: Iterable[Any], d: str = "", attribute: str | None = None) -> str:
    """The filter ``join``."""
    if attribute is not None:
        values = [value.get(attribute, "") if isinstance(value, Mapping) else "" for value in values]
    pieces = list(each(values))
    CURRENT.get().charge(pieces)
    separator = str(d)
    bound(len(separator) * len(pieces))
    return join(text for i, value in enumerate(pieces) for text in (separator if i else "", str(value)))


def replace(text: Any, old: str, new: str, count: int | None = None) -> str:
    """The filter and method ``replace``."""
    CURRENT.get().charge(text)
    text = str(text)
    found = text.count(old) if count is None else min(int(count), text.count(old))
    bound(len(text) + found * max(0, len(new) - len(old)))
    return str.replace(text, old, new, -1 if count is None else int(count))


def indent(text: str, width: int | str = 4, first: bool = False, blank: bool = False) -> str:
    """The filter ``indent``."""
    pad = width if isinstance(width, str) else " " * min(int(width), _MAX_INDENT + 1)
    if len(pad) > _MAX_INDENT:
        raise TemplateRefused(f"it indents by more than {_MAX_INDENT}")
    lines = str(text).split("\n")
    bound(len(text) + len(pad) * len(lines))
    return "\n".join(pad + line if (i or first) and (line or blank) else line for i, line in enumerate(lines))


def tojson(
    value: Any, ensure_ascii: bool = False, indent: int | None = None, separators: Any = None, sort_keys: bool = False
) -> str:
    """The filter ``tojson`` as chat templates mean it: without escapes for HTML."""
    if indent is not None and not 0 <= int(indent) <= _MAX_INDENT:
        raise TemplateRefused(f"it indents by more than {_MAX_INDENT}")
    CURRENT.get().charge(value)
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def check_binary(operator: str, left: Any, right: Any) -> None:
    """Pay for ``left operator right``, or refuse what could be huge."""
    budget = CURRENT.get()
    budget.charge(left)
    budget.charge(right)
    texts = [value for value in (left, right) if isinstance(value, str | list | tuple)]
    numbers = [value for value in (left, right) if isinstance(value, int)]
    if operator == "%" and isinstance(left, str):
        raise TemplateRefused("it formats text with %")
    if operator == "*" and texts and numbers:
        bound(len(texts[0]) * numbers[0])
    elif operator == "+" and len(texts) == 2:
        bound(len(texts[0]) + len(texts[1]))
    elif any(number.bit_length() > _MAX_INT_BITS for number in numbers):
        raise TemplateRefused("it computes with huge numbers")
    elif operator == "**" and (not isinstance(right, int) or abs(right) > _MAX_EXPONENT):
        raise TemplateRefused("it computes a huge power")
