"""From a cell of a study to its world: the link, the device, the cloud and the jobs of one seed."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache, lru_cache
from pathlib import Path
from typing import Final

import numpy as np

from splitglm_core.errors import InputError
from splitglm_partitioner.drafts import DraftStatistics
from splitglm_partitioner.profiles import CloudProfile
from splitglm_sims.links.files import Asymmetry, RoundTrips, from_files, hairpin_round_trips, ping_round_trips
from splitglm_sims.links.fitted import link_class
from splitglm_sims.presets.courses import BackgroundLoad, CloudLoad, Thermal, combined
from splitglm_sims.presets.machines import DevicePreset, cloud_preset, device_preset
from splitglm_sims.strategies import cloud_mtp
from splitglm_sims.strategies.facts import Facts
from splitglm_sims.strategies.registry import make_strategy
from splitglm_sims.strategies.strategy import Strategy
from splitglm_sims.study.columns import Columns, ColumnsBuilder
from splitglm_sims.study.config import Conditions, LinkEntry, LoadedStudy, RttSource, StudyConfig
from splitglm_sims.study.store import Cell
from splitglm_sims.workloads.acceptance import acceptance_table
from splitglm_sims.workloads.jobs import jobs
from splitglm_sims.workloads.workload import load_workload
from splitglm_sims.world.course import Course
from splitglm_sims.world.crowd import CrowdResult, CrowdScene, run_crowd
from splitglm_sims.world.lone import run_lone
from splitglm_sims.world.scene import CloudScene, DeviceScene, Job, LinkScene, Scene

CROWD_LINKS: Final = 64
_SHORTEST_S: Final = 600.0
_BEYOND: Final = 1.25  # a device that answers slowly lives longer than its last request was due
_OFFSET = 0x0FF5E7  # domain of the draw of a trace's beginning: no other draw of the seed repeats it


def simulate(study: LoadedStudy, cell: Cell) -> Columns:
    """Run one cell. InputError when its world cannot be as the study says."""
    builder = ColumnsBuilder()
    if cell.devices:
        crowd = crowd_of(study, cell)
        facts = Facts.of(crowd.device(0))
        found = run_crowd(crowd, lambda index: strategy_of(cell, facts, index))
        for index, records in enumerate(found.records):
            scene = crowd.device(index)
            builder.add(records, scene.jobs, scene.link, device=index)
        _check_asked(sum(map(len, found.records)), study.config)
        return builder.build(_crowd_facts(found, study.config.seconds or found.end_s))
    scene = scene_of(study, cell)
    records = run_lone(scene, strategy_of(cell, Facts.of(scene)), compare=study.config.compares(cell.strategy))
    builder.add(records, scene.jobs, scene.link)
    return builder.build()


def scene_of(study: LoadedStudy, cell: Cell) -> Scene:
    """The world of a lone device."""
    asked = jobs_of(study.config, cell, cell.seed)
    _check_asked(len(asked), study.config)
    seconds = max(_SHORTEST_S, _BEYOND * asked[-1].at_s)
    return _scene(
        study,
        cell,
        jobs=asked,
        link=link_of(cell.link, study.folder, cell.seed, seconds),
        cloud=cloud_of(study.config, cell.seed, seconds),
        seed=cell.seed,
        seconds=seconds,
    )


def crowd_of(study: LoadedStudy, cell: Cell) -> CrowdScene:
    """Devices with users, loads and links of their own, and one cloud.

    There are at most ``CROWD_LINKS`` different links: devices that share one begin at different places in it.
    """
    config, seconds = study.config, max(_SHORTEST_S, study.config.seconds or 0.0)
    cloud = CloudScene(profile=_cloud(config.cloud, _device(config.device).model))
    kinds = min(cell.devices, CROWD_LINKS)
    links = [link_of(cell.link, study.folder, _of_device(cell.seed, kind), seconds) for kind in range(kinds)]

    @cache
    def device(index: int) -> Scene:
        link = links[index % kinds]
        place = (index // kinds) / math.ceil(cell.devices / kinds)
        begin_s = link.offset_s + place * max(link.up.period_s, link.down.period_s)
        seed = _of_device(cell.seed, index)
        return _scene(
            study,
            cell,
            jobs=jobs_of(config, cell, seed),
            link=replace(link, offset_s=begin_s),
            cloud=cloud,
            seed=seed,
            seconds=seconds,
        )

    return CrowdScene(devices=cell.devices, device=device, cloud=cloud)


def _scene(
    study: LoadedStudy,
    cell: Cell,
    *,
    jobs: tuple[Job, ...],
    link: LinkScene,
    cloud: CloudScene,
    seed: int,
    seconds: float,
) -> Scene:
    preset = _device(study.config.device)
    return Scene(
        model=preset.shape,
        device=device_of(preset, study.config.conditions, seed, seconds),
        link=link,
        cloud=cloud,
        jobs=jobs,
        drafts=drafts_of(study.config.drafters, study.config.device, study.config.cloud),
        objective=study.config.objective,
        seed=cell.seed,
    )


def _check_asked(requests: int, config: StudyConfig) -> None:
    if not requests:
        raise InputError(f"nobody asks anything within {config.seconds:g} s", "make the world longer")


def _crowd_facts(found: CrowdResult, seconds: float) -> dict[str, float]:
    busy = found.busy_ratio[: math.ceil(seconds / found.sample_s)]
    return {
        "cloud busy %": 100.0 * sum(busy) / max(1, len(busy)),
        "most waiting": float(max(found.waiting, default=0)),
        "refused steps": float(found.refusals),
        "expired steps": float(found.expired),
    }


def strategy_of(cell: Cell, facts: Facts, device: int = 0) -> Strategy:
    """A fresh strategy for one device, which draws by the seed of its world and its number."""
    options = dict(cell.strategy.options)
    seed = _of_device(cell.seed, device)
    return make_strategy(cell.strategy.name, situation_facts=facts, seed=seed, options=options)


def jobs_of(config: StudyConfig, cell: Cell, seed: int) -> tuple[Job, ...]:
    """What the user of one device asks, with the study's privacy and deadlines."""
    asked = jobs(_workload(cell.workload), seed, seconds=config.seconds, count=config.requests)
    return tuple(
        replace(
            job,
            privacy=job.privacy if cell.privacy is None else cell.privacy,
            deadline_s=job.deadline_s if config.deadlines else None,
        )
        for job in asked
    )


def _of_device(seed: int, device: int) -> int:
    """A seed of its own for each device of a world."""
    return int(np.random.SeedSequence([seed, device]).generate_state(1)[0])


def device_of(preset: DevicePreset, conditions: Conditions, seed: int, seconds: float) -> DeviceScene:
    """The device under the study's conditions."""
    slowdown, temperature_c = Course.constant(1.0), None
    if conditions.heat:
        slowdown, temperature_c = Thermal().courses(seed, seconds)
    if conditions.background:
        slowdown = combined(slowdown, BackgroundLoad().course(seed, seconds))
    return DeviceScene(
        profile=preset.profile(),
        slowdown=slowdown,
        jitter=conditions.device_jitter,
        temperature_c=temperature_c,
    )


def cloud_of(config: StudyConfig, seed: int, seconds: float) -> CloudScene:
    """The cloud with the load of others."""
    profile, conditions = _cloud(config.cloud, _device(config.device).model), config.conditions
    if not conditions.cloud_load:
        return CloudScene(profile=profile, jitter=conditions.cloud_jitter)
    queue_s, slowdown = CloudLoad().courses(seed, seconds)
    return CloudScene(profile=profile, slowdown=slowdown, queue_s=queue_s, jitter=conditions.cloud_jitter)


@lru_cache(maxsize=8)
def drafts_of(names: tuple[str, ...], device: str, cloud: str) -> dict[str, tuple[DraftStatistics, ...]]:
    """The drafters that a study gives its device and its cloud, by genre."""
    own = [name for name in names if name != cloud_mtp.NAME]
    preset, table = _device(device), acceptance_table()
    drafts = table.drafts(preset.profile(), own) if own else {}
    if cloud_mtp.NAME not in names:
        return drafts
    return cloud_mtp.with_cloud_mtp(drafts, _cloud(cloud, preset.model), table.genres)


# Thousands of devices of a crowd are of one preset: its file is read once.
_device = lru_cache(maxsize=8)(device_preset)
_workload = lru_cache(maxsize=8)(load_workload)


@lru_cache(maxsize=8)
def _cloud(name: str, model: str) -> CloudProfile:
    return cloud_preset(name).profile(model)


def link_of(link: LinkEntry, folder: Path | None, seed: int, seconds: float) -> LinkScene:
    """A link of a class: generated anew for each seed, or recorded and begun at another place."""
    if link.generated:
        return link_class(link.name).scene(seed, seconds)
    if folder is None:
        raise InputError(f"the link {link.name!r} needs trace files", "name the folder that holds them: --traces DIR")
    scene = _recorded(link, folder)
    share = float(np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, _OFFSET]))).random())
    return replace(scene, offset_s=share * max(scene.up.period_s, scene.down.period_s))


@lru_cache(maxsize=8)
def _recorded(link: LinkEntry, folder: Path) -> LinkScene:
    down, up = (None if path is None else folder / path for path in (link.down, link.up))
    if link.round_trips is RttSource.HAIRPIN and down is not None:
        round_trips = hairpin_round_trips(down)
    elif link.round_trips is RttSource.PINGS and down is not None:
        round_trips = ping_round_trips(down)
    else:
        round_trips = RoundTrips(rtt_s=link.rtt_s or 0.0, jitter_s=link.jitter_s)
    ratio = link.up_per_down
    return from_files(
        down=down,
        up=up,
        asymmetry=None if ratio is None else Asymmetry(up_per_down=ratio, because=link.because),
        round_trips=round_trips,
        rest_after_s=math.inf if link.rest_after_s is None else link.rest_after_s,
        promotion_s=link.promotion_s,
    )
