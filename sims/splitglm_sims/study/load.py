"""A study by name or file, made ready to run: shipped link classes looked up, fixed arms listed, trace files found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from splitglm_core.errors import InputError
from splitglm_core.plan import Privacy
from splitglm_sims.links.fitted import Use, link_class
from splitglm_sims.presets.machines import cloud_preset, device_preset
from splitglm_sims.presets.shelf import Shelf
from splitglm_sims.strategies.facts import Facts
from splitglm_sims.strategies.registry import make_strategy
from splitglm_sims.study.config import LinkEntry, LoadedStudy, Role, StrategyEntry, StudyConfig, parse_study
from splitglm_sims.workloads.workload import load_workload
from splitglm_sims.world.scene import Job


class _Studies(Shelf[StudyConfig]):
    """Studies hold tables of options, which ``parse_study`` reads."""

    def parse(self, text: str, where: str) -> StudyConfig:
        return parse_study(text, where)


STUDIES: Final = _Studies(kind=StudyConfig, package="splitglm_sims.study", folder="shipped", word="study")


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
    _check_names(config)
    study = LoadedStudy(config=config, folder=folder)
    if not config.fixed_arms:
        return study
    return replace(study, config=replace(config, strategies=(*config.strategies, *_fixed_arms(study))))


def _check_names(config: StudyConfig) -> None:
    """Told now, and not after hours: what cannot be loaded, and strategies that cannot be made."""
    device = device_preset(config.device)
    cloud = cloud_preset(config.cloud).profile(device.model)
    for workload in config.workloads:
        load_workload(workload)
    facts = Facts(model=device.shape, device=device.profile(), cloud=cloud)
    for entry in config.strategies:
        made = make_strategy(entry.name, situation_facts=facts, seed=0, options=dict(entry.options))
        if made.clairvoyant and config.devices:
            raise InputError(f"the strategy {entry.label} is clairvoyant and has no place in a crowd")


def _fixed_arms(study: LoadedStudy) -> list[StrategyEntry]:
    """Every fixed arm that some request may take, under each privacy that allows it; less the sides that it names."""
    from splitglm_sims.strategies.fixed import fixed_arms
    from splitglm_sims.study.build import jobs_of, scene_of
    from splitglm_sims.study.store import Cell, cells
    from splitglm_sims.world.handset import Handset

    named = {entry.name for entry in study.config.strategies}
    found: dict[str, StrategyEntry] = {}
    worlds: dict[tuple[Privacy | None, str], list[Cell]] = {}
    for cell in cells(study.config):
        if cell.link == study.config.links[0]:  # links do not decide what is allowed
            worlds.setdefault((cell.privacy, cell.workload), []).append(cell)
    for (privacy, _), members in worlds.items():
        one_each = {cell.seed: cell for cell in members}.values()
        asked = _kinds([job for cell in one_each for job in jobs_of(study.config, cell, cell.seed)])
        handset = Handset(replace(scene_of(study, members[0]), jobs=asked))
        for arm in dict.fromkeys(arm for index in range(len(asked)) for arm in fixed_arms(handset.situation(index))):
            if f"{arm.label}-only" in named:
                continue
            options = tuple(sorted(arm.options().items()))
            known = found.get(arm.label)
            allowed: tuple[Privacy, ...] = () if privacy is None else (privacy,)
            if known is not None:
                allowed = known.privacy if privacy in known.privacy else (*known.privacy, *allowed)
            found[arm.label] = StrategyEntry(
                name="fixed", label=arm.label, role=Role.FIXED, privacy=allowed, options=options
            )
    return list(found.values())


def _kinds(jobs: Sequence[Job]) -> tuple[Job, ...]:
    """Of each privacy and genre the shortest job, to which most is allowed."""
    kinds: dict[tuple[Privacy, str], Job] = {}
    for job in sorted(jobs, key=lambda job: job.prompt_tokens + job.max_new_tokens):
        kinds.setdefault((job.privacy, job.genre), job)
    return tuple(kinds.values())


def _with_use(link: LinkEntry) -> LinkEntry:
    """What a shipped class is for is part of it: nobody may report on what was tuned on."""
    own = link_class(link.name).use if link.generated else Use.REPORT
    if link.generated and own is Use.TUNE and link.use is Use.REPORT:
        raise InputError(f"the link class {link.name} is for tuning: results on it are not for reporting")
    return replace(link, use=link.use or own)
