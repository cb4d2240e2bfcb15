"""Where settings come from: a flag wins over its environment variable, that over the file, that over the default."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

from splitglm_cloud.settings import CloudSettings
from splitglm_cloud.settings_spec import ENV_PREFIX, Known, known_settings
from splitglm_core.errors import DeviceError, InputError

CONFIG_VARIABLE: Final = ENV_PREFIX + "CONFIG"
MAX_FILE_BYTES: Final = 1 << 16
_FOR_DEVICES: Final = frozenset({"SPLITGLM_CLOUD_KEY"})
"""Variables with our prefix that belong to the device's half (docs/cli.md)."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a value came from: ``default``, ``file``, ``env`` or ``flag``, and which one."""

    kind: str
    where: str = ""

    def __str__(self) -> str:
        return f"{self.kind} {self.where}".strip()


DEFAULT: Final = Origin("default")


@dataclass(frozen=True, slots=True, kw_only=True)
class Resolved:
    """Values by field name, without those that are left to their defaults, and where each came from."""

    values: Mapping[str, Any]
    origins: Mapping[str, Origin]

    def settings(self) -> CloudSettings:
        """The settings.

        Raises:
            InputError: no model is named, or values do not go together.
        """
        if "model" not in self.values:
            raise InputError("no model is named", "give MODEL, or `model = ...` in the configuration file")
        return CloudSettings(**self.values)

    def lines(self) -> Iterable[tuple[Known, Any, Origin]]:
        """Every setting with its value, or its default, and its origin."""
        for known in known_settings(CloudSettings).values():
            default = None if known.default is MISSING else known.default
            yield known, self.values.get(known.name, default), self.origins.get(known.name, DEFAULT)


def resolve(
    *, flags: Mapping[str, str | bool | None], environment: Mapping[str, str], file: Path | None = None
) -> Resolved:
    """Settings from everything that was said.

    Args:
        flags: by field name; None was not given.
        environment: variables by name; unknown ones with our prefix are refused, for they are most likely mistyped.
        file: TOML; if None, the one that ``SPLITGLM_CLOUD_CONFIG`` names.

    Raises:
        InputError: an unknown key, a value of the wrong type or out of bounds; says which and where.
        DeviceError: the file cannot be read.
    """
    known = known_settings(CloudSettings)
    values: dict[str, Any] = {}
    origins: dict[str, Origin] = {}

    def take(item: Known, origin: Origin, said: str, read: Callable[[], Any]) -> None:
        try:
            values[item.name] = read()
        except InputError as error:
            raise InputError(f"{said}: {error.what}", error.hint) from None
        origins[item.name] = origin

    if file is None and environment.get(CONFIG_VARIABLE):
        file = Path(environment[CONFIG_VARIABLE])
    if file is not None:
        file = file.expanduser()
        by_key = {item.key: item for item in known.values()}
        for key, raw in _toml(file).items():
            if key not in by_key:
                raise InputError(f"{file} has an unknown key {key!r}", _nearest(key, by_key))
            item, where = by_key[key], Origin("file", str(file))
            take(item, where, f"{key} in {file}", partial(item.from_file, raw, file.parent))

    variables = {item.variable: item for item in known.values()}
    for name in environment:
        if name.startswith(ENV_PREFIX) and name not in variables and name not in {CONFIG_VARIABLE, *_FOR_DEVICES}:
            raise InputError(f"the environment has an unknown variable {name}", _nearest(name, variables))
    for item in known.values():
        for variable in (item.setting.also_env, item.variable):  # the setting's own wins
            if environment.get(variable):
                take(item, Origin("env", variable), variable, partial(item.from_text, environment[variable]))

    for name, flag in flags.items():
        if flag is not None:
            item = known[name]
            said = "MODEL" if name == "model" else item.flag
            take(item, Origin("flag", said), said, partial(item.from_text, str(flag)))
    return Resolved(values=values, origins=origins)


def _toml(file: Path) -> dict[str, Any]:
    try:
        with file.open("rb") as stream:
            data = stream.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise DeviceError(f"cannot read {file}: {error.strerror}", "check --config") from None
    if len(data) > MAX_FILE_BYTES:
        raise InputError(f"{file} is larger than {MAX_FILE_BYTES} bytes", "see deploy/cloud.example.toml")
    try:
        return tomllib.loads(data.decode("utf-8"))
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InputError(f"{file} is not TOML: {error}", "see deploy/cloud.example.toml") from None
    except RecursionError:
        raise InputError(f"{file} is nested too deeply", "see deploy/cloud.example.toml") from None


def _nearest(name: str, names: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(names), n=1, cutoff=0.5)
    return f"did you mean {near[0]}? `splitglm cloud config` lists all" if near else "`splitglm cloud config` lists all"
