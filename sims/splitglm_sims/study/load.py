"""A study by name or file, made ready to run: shipped link classes looked up, fixed arms listed, trace files found."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from splitglm_core.errors import InputError
from splitglm_sims.links.fitted import Use, link_class
from splitglm_sims.presets.shelf import Shelf
from splitglm_sims.study.config import LinkEntry, StudyConfig, parse_study


class _Studies(Shelf[StudyConfig]):
    """Studies hold tables of options, which ``parse_study`` reads."""

    def parse(self, text: str, where: str) -> StudyConfig:
        return parse_study(text, where)


STUDIES: Final = _Studies(kind=StudyConfig, package="splitglm_sims.study", folder="shipped", word="study")


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedStudy:
    """A study and the folder that its trace files lie in; None for a shipped study that was given none."""

    config: StudyConfig
    folder: Path | None


def load_study(name_or_path: str, *, traces: Path | None = None, seeds: tuple[int, ...] = ()) -> LoadedStudy:
    """A study by its shipped name or from a TOML file, whose trace files lie in ``traces`` or beside it.

    Args:
        seeds: instead of the study's own.

    Raises:
        InputError: there is none, or it is malformed (the message names file and field), or a trace file is missing.
    """
    config = STUDIES.load(name_or_path)
    beside = None if name_or_path in STUDIES.names() else Path(name_or_path).expanduser().parent
    folder = beside if traces is None else traces.expanduser()
    for path in config.traces:
        if folder is None:
            raise InputError(
                f"the study {config.name!r} needs trace files, which are not part of this package",
                "name the folder that holds them with --traces DIR",
            )
        if not (folder / path).is_file():
            raise InputError(f"there is no trace file {path} in {folder}", "name the folder that has it: --traces DIR")
    config = replace(config, seeds=seeds or config.seeds, links=tuple(map(_with_use, config.links)))
    return LoadedStudy(config=config, folder=folder)


def _with_use(link: LinkEntry) -> LinkEntry:
    """What a shipped class is for is part of it: nobody may report on what was tuned on."""
    own = link_class(link.name).use if link.generated else Use.REPORT
    if link.generated and own is Use.TUNE and link.use is Use.REPORT:
        raise InputError(f"the link class {link.name} is for tuning: results on it are not for reporting")
    return replace(link, use=link.use or own)
