"""Values that ship with the package as TOML files, or that a user keeps in one: found by name, read strictly."""

from __future__ import annotations

import dataclasses
import tomllib
import types
import typing
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, Final, Generic, TypeVar

from splitglm_core.errors import InputError
from splitglm_partitioner.typed_json import read, to_plain

MAX_FILE_BYTES: Final = 1 << 20
SUFFIX: Final = ".toml"
T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Shelf(Generic[T]):
    """One kind of value, one folder of shipped files.

    Attributes:
        kind: frozen dataclass; its annotations are the schema, its defaults stand for keys that are left out.
        package, folder: where the shipped files lie.
        word: of the kind, for messages.
    """

    kind: type[T]
    package: str
    folder: str
    word: str

    def names(self) -> tuple[str, ...]:
        """Of the shipped files, sorted."""
        return _names(self.package, self.folder)

    def load(self, name_or_path: str) -> T:
        """By shipped name, or from a TOML file.

        Raises:
            InputError: there is none, or it is malformed; the message names file and key.
        """
        if name_or_path in self.names():
            return typing.cast(T, _shipped(self, name_or_path))
        path = Path(name_or_path).expanduser()
        try:
            if path.stat().st_size > MAX_FILE_BYTES:
                raise InputError(f"{path} is too long for a {self.word}")
            return self.parse(path.read_text("utf-8"), path.name)
        except (OSError, ValueError):
            raise InputError(
                f"there is no {self.word} {name_or_path!r}", f"name a file, or one of {', '.join(self.names())}"
            ) from None

    def parse(self, text: str, where: str) -> T:
        """TOML text to a value; ``where`` names it in messages."""
        try:
            plain = tomllib.loads(text)
        except (tomllib.TOMLDecodeError, RecursionError) as error:
            raise InputError(f"{where} is not TOML: {error}") from None
        return read(self.kind, _filled(self.kind, plain), where)


@cache
def _names(package: str, folder: str) -> tuple[str, ...]:
    files = resources.files(package).joinpath(folder).iterdir()
    return tuple(sorted(file.name.removesuffix(SUFFIX) for file in files if file.name.endswith(SUFFIX)))


@cache
def _shipped(shelf: Shelf[Any], name: str) -> Any:
    """Shipped files do not change while a program runs, and a crowd asks for them once for each device."""
    file = resources.files(shelf.package).joinpath(shelf.folder, name + SUFFIX)
    return shelf.parse(file.read_text("utf-8"), name)


def _filled(kind: Any, plain: Any) -> Any:
    """``plain`` with the defaults of every dataclass in it for the keys that were left out."""
    origin = typing.get_origin(kind)
    if origin in (typing.Union, types.UnionType):
        return _filled(typing.get_args(kind)[0], plain)
    if origin is tuple and isinstance(plain, list):
        return [_filled(typing.get_args(kind)[0], item) for item in plain]
    if not (dataclasses.is_dataclass(kind) and isinstance(plain, dict)):
        return plain
    hints = typing.get_type_hints(kind)
    out: dict[str, Any] = {}
    for field in dataclasses.fields(kind):
        if field.default is not dataclasses.MISSING:
            out[field.name] = to_plain(field.default)
    return out | {name: _filled(hints.get(name), value) for name, value in plain.items()}
