"""What a study can name: studies, strategies with their sources, link classes, workloads, presets."""

from __future__ import annotations

from dataclasses import dataclass

from splitglm_sims.links.fitted import LINK_CLASSES, link_class
from splitglm_sims.presets.machines import CLOUDS, DEVICES
from splitglm_sims.strategies.registry import options_of, registered, strategy_names
from splitglm_sims.study.load import STUDIES
from splitglm_sims.workloads.workload import load_workload, workload_names


@dataclass(frozen=True, slots=True, kw_only=True)
class Inventory:
    """One kind of thing: ``rows`` below ``header``."""

    name: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def inventory() -> tuple[Inventory, ...]:
    """Everything that ships with the package."""
    return (_studies(), _strategies(), _links(), _workloads(), _devices(), _clouds())


def _studies() -> Inventory:
    rows = tuple((name, STUDIES.load(name).about) for name in STUDIES.names())
    return Inventory(name="studies", header=("name", "about"), rows=rows)


def _strategies() -> Inventory:
    rows = []
    for name in strategy_names():
        entry = registered(name)
        marks = [word for word, holds in (("lossy", entry.lossy), ("clairvoyant", entry.clairvoyant)) if holds]
        options = ", ".join(f"{key}={value}" for key, value in options_of(name).items())
        rows.append((name, entry.about, ", ".join(marks), options, entry.source))
    return Inventory(name="strategies", header=("name", "about", "marks", "options", "source"), rows=tuple(rows))


def _links() -> Inventory:
    rows = []
    for name in LINK_CLASSES.names():
        entry = link_class(name)
        rows.append((name, entry.use.value, entry.about, entry.source))
    return Inventory(name="link classes", header=("name", "use", "about", "source"), rows=tuple(rows))


def _workloads() -> Inventory:
    rows = tuple((name, load_workload(name).about) for name in workload_names())
    return Inventory(name="workloads", header=("name", "about"), rows=rows)


def _devices() -> Inventory:
    rows = []
    for name in DEVICES.names():
        entry = DEVICES.load(name)
        rows.append((name, entry.about, entry.basis.value, entry.source))
    return Inventory(name="devices", header=("name", "about", "basis", "source"), rows=tuple(rows))


def _clouds() -> Inventory:
    rows = []
    for name in CLOUDS.names():
        entry = CLOUDS.load(name)
        rows.append((name, entry.about, entry.basis.value, entry.source))
    return Inventory(name="clouds", header=("name", "about", "basis", "source"), rows=tuple(rows))
