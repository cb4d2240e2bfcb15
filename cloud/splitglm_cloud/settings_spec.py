"""One setting: its kind, bounds and help, from which its flag, its environment variable and its key in files follow.

A settings class is a dataclass whose fields are annotated ``Annotated[type, Setting(...)]``.
"""

from __future__ import annotations

import dataclasses
import math
import re
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import NoneType
from typing import Any, Final

from splitglm_core.errors import InputError
from splitglm_core.plan import Precision
from splitglm_core.ranges import LayerRange

ENV_PREFIX: Final = "SPLITGLM_CLOUD_"
_UNITS: Final = {"": 0, "k": 10, "m": 20, "g": 30, "t": 40}
_NAME_UNITS: Final = ("_bytes", "_s")
_SWITCH: Final = dict.fromkeys(("true", "yes", "on", "1"), True) | dict.fromkeys(("false", "no", "off", "0"), False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What a field's annotation says of it.

    Attributes:
        help: one sentence for ``--help`` and the documents.
        flag: of the command line; by default the name without its unit.
        key: in files and, in capitals, in the environment; by default the field's name.
        least, above, most: bounds of a number; ``above`` is exclusive.
        choices: of a text.
        or_check: raises InputError for a text that may not stand beside the choices; without it none may.
        also_env: a variable that other verbs know too; the setting's own wins.
        secret: its value is never shown.
    """

    help: str
    flag: str = ""
    key: str = ""
    least: float | None = None
    above: float | None = None
    most: float | None = None
    choices: tuple[str, ...] = ()
    or_check: Callable[[str], None] | None = None
    also_env: str = ""
    secret: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """A setting of a class, resolved.

    Attributes:
        kind: ``switch``, ``number``, ``size``, ``real``, ``text``, ``path``, ``precision``, ``layers`` or ``pairing``.
        default: ``dataclasses.MISSING`` when there is none.
    """

    name: str
    kind: str
    default: Any
    setting: Setting

    @property
    def key(self) -> str:
        return self.setting.key or self.name

    @property
    def flag(self) -> str:
        bare = self.key
        for unit in _NAME_UNITS:
            bare = bare.removesuffix(unit)
        return self.setting.flag or "--" + bare.replace("_", "-")

    @property
    def variable(self) -> str:
        return ENV_PREFIX + self.key.upper()

    @property
    def metavar(self) -> str:
        """What stands for the value in help texts."""
        if self.name.endswith("_s") and self.kind == "real":
            return "SECONDS"
        if self.name.endswith("_dir"):
            return "DIR"
        words = {"number": "N", "size": "SIZE", "real": "X", "text": "TEXT", "path": "FILE", "layers": "A:B"}
        choices = tuple(known.value for known in Precision) if self.kind == "precision" else self.setting.choices
        return "|".join(choices) or words.get(self.kind, "FILE")

    def from_text(self, text: str) -> Any:
        """The value of a flag or a variable.

        Raises:
            InputError: not of this kind, or out of bounds. The text of a secret is not repeated.
        """
        value = _PARSERS[self.kind](text.strip())
        if value is None:
            raise InputError(f"{text!r} is not {_WANTED[self.kind]}")
        self.check(value)
        return value

    def from_file(self, value: object, folder: Path) -> Any:
        """The value of a key in a TOML file; paths in it are relative to its ``folder``.

        Raises:
            InputError: of another type, or out of bounds. What stands where a secret belongs is not repeated.
        """
        wanted: tuple[type, ...] = {"switch": (bool,), "number": (int,), "size": (int, str), "real": (int, float)}.get(
            self.kind, (str,)
        )
        if not isinstance(value, wanted) or (isinstance(value, bool) and self.kind != "switch"):
            said = f"a {type(value).__name__}" if self.setting.secret else repr(value)
            raise InputError(f"{said} is not {_WANTED[self.kind]}")
        if isinstance(value, str):
            if self.kind in ("path", "pairing"):
                value = str(folder / Path(value).expanduser())
            return self.from_text(value)
        value = float(value) if self.kind == "real" else value  # type: ignore[arg-type]
        self.check(value)
        return value

    def check(self, value: Any) -> None:
        """Bounds and choices.

        Raises:
            InputError: the value breaks one.
        """
        rule, words = self.setting, self.name.replace("_", " ")
        if value is None:
            return
        if rule.choices and value not in rule.choices:
            if rule.or_check is not None:
                rule.or_check(value)
                return
            raise InputError(f"{value!r} is not a {words}", f"use {', '.join(rule.choices[:-1])} or {rule.choices[-1]}")
        if self.kind in ("number", "size", "real"):
            if not math.isfinite(value):
                raise InputError(f"{self.name} must be finite")
            if rule.least is not None and value < rule.least:
                raise InputError(f"{self.name} must be at least {rule.least:g}")
            if rule.above is not None and value <= rule.above:
                raise InputError(f"{self.name} must be more than {rule.above:g}")
            if rule.most is not None and value > rule.most:
                raise InputError(f"{self.name} must be at most {rule.most:g}")

    def shown(self, value: Any) -> str:
        """As a person reads it and a file could hold it; a secret's value stays secret."""
        if value is None or value is dataclasses.MISSING:
            return "-"
        if self.setting.secret:
            return "(set)"
        if self.kind == "size":
            return size_text(value)
        if self.kind == "layers":
            return f"{value.start}:{value.stop}"
        if self.kind == "switch":
            return "true" if value else "false"
        return value.value if isinstance(value, Precision) else f"{value:g}" if self.kind == "real" else str(value)


def known_settings(settings: type) -> Mapping[str, Known]:
    """Every setting of a settings class by its field's name, in order."""
    return _known(settings)


@cache
def _known(settings: type) -> dict[str, Known]:
    hints = typing.get_type_hints(settings, include_extras=True)
    found = {}
    for item in dataclasses.fields(settings):
        base, setting = typing.get_args(hints[item.name])
        (kind,) = set(typing.get_args(base) or (base,)) - {NoneType}
        word = "size" if kind is int and item.name.endswith("_bytes") else _KINDS[kind]
        found[item.name] = Known(name=item.name, kind=word, default=item.default, setting=setting)
    return found


def size_text(size_bytes: int) -> str:
    """``4 << 30`` as ``4GiB``; exact, so that it can be read back."""
    for unit, shift in (("GiB", 30), ("MiB", 20), ("KiB", 10)):
        if size_bytes and size_bytes % (1 << shift) == 0:
            return f"{size_bytes >> shift}{unit}"
    return str(size_bytes)


def parse_layers(text: str | None) -> LayerRange | None:
    """``A:B`` to layers [A, B).

    Raises:
        InputError: not of that form, or empty.
    """
    if text is None:
        return None
    match = re.fullmatch(r"(\d{1,9}):(\d{1,9})", text)
    if match is None or int(match[1]) >= int(match[2]):
        raise InputError(f"layers {text[:80]!r} are not A:B with A < B", "write for example 10:30")
    return LayerRange(int(match[1]), int(match[2]))


def _size(text: str) -> int | None:
    match = re.fullmatch(r"(\d{1,15}) ?(?:([kmgt])i?)?b?", text.lower())
    return int(match[1]) << _UNITS[match[2] or ""] if match else None


def _number(text: str) -> int | None:
    return int(text) if re.fullmatch(r"[+-]?\d{1,18}", text) else None


def _real(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _precision(text: str) -> Precision | None:
    return next((known for known in Precision if known.value == text), None)


def _pairing(text: str) -> bytes:
    from splitglm_security.keys import PairingCode

    return PairingCode.read(Path(text).expanduser()).psk()


_KINDS: Final[dict[type, str]] = {
    bool: "switch",
    int: "number",
    float: "real",
    str: "text",
    Path: "path",
    Precision: "precision",
    LayerRange: "layers",
    bytes: "pairing",
}
_PARSERS: Final[dict[str, Callable[[str], Any]]] = {
    "switch": lambda text: _SWITCH.get(text.lower()),
    "number": _number,
    "size": _size,
    "real": _real,
    "text": lambda text: text or None,
    "path": lambda text: Path(text).expanduser() if text and "\0" not in text else None,
    "precision": _precision,
    "layers": parse_layers,
    "pairing": _pairing,
}
_WANTED: Final = {
    "switch": "true or false",
    "number": "a whole number",
    "size": "a number of bytes such as 4294967296, 256MiB or 4GiB",
    "real": "a number",
    "text": "a text",
    "path": "a path",
    "precision": "one of " + ", ".join(known.value for known in Precision),
    "layers": "a range of layers such as 10:30",
    "pairing": "the path of a pairing file",
}
