"""The flags of ``cloud serve`` and ``cloud config``: one for every setting, made from the setting itself."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Mapping
from dataclasses import MISSING
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from splitglm_cloud.settings import CloudSettings
from splitglm_cloud.settings_spec import Known, known_settings

if TYPE_CHECKING:
    from splitglm_cloud.settings_sources import Resolved

Config = Annotated[
    Path | None,
    typer.Option("--config", metavar="FILE", envvar="SPLITGLM_CLOUD_CONFIG", help="Settings in TOML."),
]


SettingFlags = Mapping[str, str | bool | None]
"""What was said, by field name; None where nothing was."""


def with_setting_flags(command: Callable[..., None]) -> Callable[..., None]:
    """A command that takes ``flags`` beside its own parameters.

    What a flag may say is checked where files and variables are (``settings_sources``), so that all three are refused
    in the same words.
    """
    known = known_settings(CloudSettings)

    @wraps(command)
    def run(**given: Any) -> None:
        flags = {name: given.pop(name) for name in known}
        command(flags=flags, **given)

    own = [item for item in inspect.signature(command, eval_str=True).parameters.values() if item.name != "flags"]
    parameters = [_parameter(item) for item in known.values()] + own
    as_keywords = [item.replace(kind=inspect.Parameter.KEYWORD_ONLY) for item in parameters]
    run.__signature__ = inspect.Signature(as_keywords)  # type: ignore[attr-defined]
    run.__annotations__ = {item.name: item.annotation for item in as_keywords}
    return run


def resolved(flags: SettingFlags, config: Path | None) -> Resolved:
    """What flags, this process's environment and the file say together.

    Raises:
        InputError, DeviceError: as ``settings_sources.resolve``.
    """
    from splitglm_cloud.settings_sources import resolve

    return resolve(flags=flags, environment=os.environ, file=config)


def _parameter(known: Known) -> inspect.Parameter:
    if known.name == "model":
        argument = typer.Argument(metavar="MODEL", help=known.setting.help, show_default=False)
        return _optional(known.name, Annotated[str | None, argument])
    default = "" if known.default in (MISSING, None, "") or known.kind == "switch" else known.shown(known.default)
    facts = [f"env: {known.setting.also_env}"] * bool(known.setting.also_env) + [f"default: {default}"] * bool(default)
    words = f"{known.setting.help} [{'; '.join(facts)}]" if facts else known.setting.help
    if known.kind == "switch":
        forms = f"{known.flag}/--no-{known.flag.removeprefix('--')}"
        return _optional(known.name, Annotated[bool | None, typer.Option(forms, help=words, show_default=False)])
    option = typer.Option(known.flag, metavar=known.metavar, help=words, show_default=False)
    return _optional(known.name, Annotated[str | None, option])


def _optional(name: str, annotation: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)
