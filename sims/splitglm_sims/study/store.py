"""The folder of a study: what it runs, and one file per finished cell, each written whole or not at all."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import platform
import re
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata, resources
from itertools import product
from pathlib import Path
from typing import Any, Final

from splitglm_core.errors import InputError
from splitglm_core.plan import Privacy
from splitglm_core.version import VERSION
from splitglm_partitioner.typed_json import parse, read, to_plain
from splitglm_sims.links.fitted import LINK_CLASSES
from splitglm_sims.presets.machines import CLOUDS, DEVICES
from splitglm_sims.study.columns import Columns, decode, encode
from splitglm_sims.study.config import LinkEntry, LoadedStudy, StrategyEntry, StudyConfig, study_of
from splitglm_sims.workloads.workload import WORKLOADS

STUDY_FILE: Final = "study.json"
CELLS: Final = "cells"
SUFFIX: Final = ".cell"
# Whose source decides what a cell holds; the report's does not.
_PACKAGES: Final = ("splitglm_core", "splitglm_partitioner", "splitglm_cloud", "splitglm_sims")
_LEFT_OUT: Final = ("splitglm_sims/load/", "splitglm_sims/testbed/", "splitglm_sims/study/")
_DECISIVE: Final = ("splitglm_sims/study/build.py", "splitglm_sims/study/columns.py")
_VERSIONS: Final = ("numpy", "simpy")


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One world under one strategy.

    Attributes:
        devices: of a crowd; 0 for a lone device.
    """

    number: int
    link: LinkEntry
    workload: str
    privacy: Privacy | None
    strategy: StrategyEntry
    devices: int
    seed: int

    @property
    def key(self) -> str:
        crowd = f"/{self.devices} devices" if self.devices else ""
        world = f"{self.link.name}/{self.workload}/{privacy_word(self.privacy)}{crowd}"
        return f"{world}/{self.strategy.label}/seed {self.seed}"

    @property
    def file(self) -> str:
        return f"{self.number:06d}-{re.sub('[^A-Za-z0-9.]+', '-', self.key)[:150]}{SUFFIX}"


def privacy_word(privacy: Privacy | None) -> str:
    return "mixed" if privacy is None else privacy.value


def cells(config: StudyConfig) -> Iterator[Cell]:
    """Every cell, in the order of the configuration; a strategy only under the privacy that its entry names."""
    axes = product(
        *(config.links, config.workloads, config.privacy or (None,), config.devices or (0,)),
        *(config.strategies, config.seeds),
    )
    wanted = (axis for axis in axes if not axis[4].privacy or axis[2] in axis[4].privacy)
    for number, (link, workload, privacy, devices, strategy, seed) in enumerate(wanted):
        yield Cell(
            number=number,
            link=link,
            workload=workload,
            privacy=privacy,
            strategy=strategy,
            devices=devices,
            seed=seed,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Provenance:
    """What a cell depends on. Cells of different provenance must not be compared.

    Attributes:
        config: digest of the configuration.
        code: digest of the source that simulates, and of strategies of one's own that take part.
        files: digests of trace files, and of presets, classes and workloads of one's own.
        versions: ``(name, version)`` of Python, of this product and of what it computes with; stated, not enforced.
    """

    config: str
    code: str
    files: tuple[Digest, ...]
    versions: tuple[Version, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Digest:
    path: str
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Version:
    name: str
    version: str


def provenance(study: LoadedStudy) -> Provenance:
    """Of cells that would be run now."""
    config, folder = study.config, study.folder
    files = [] if folder is None else [(path, folder / path) for path in config.traces]
    files += [(name, Path(name).expanduser()) for name in own_files(config)]
    versions = [("splitglm", VERSION), ("Python", platform.python_version())]
    versions += [(name, metadata.version(name)) for name in _VERSIONS]
    return Provenance(
        config=config.digest,
        code=_code_digest([entry.name.partition(":")[0] for entry in config.strategies if ":" in entry.name]),
        files=tuple(
            Digest(path=name, sha256=hashlib.sha256(path.read_bytes()).hexdigest()[:12]) for name, path in files
        ),
        versions=tuple(Version(name=name, version=version) for name, version in versions),
    )


def own_files(config: StudyConfig) -> list[str]:
    """Names of presets, link classes and workloads that are not shipped but files."""
    links = [link.name for link in config.links if link.generated]
    named = ((DEVICES, [config.device]), (CLOUDS, [config.cloud]), (WORKLOADS, config.workloads), (LINK_CLASSES, links))
    return [name for shelf, names in named for name in names if name not in shelf.names()]


class Results:
    """A study's folder."""

    def __init__(self, folder: Path, config: StudyConfig, made_by: Provenance) -> None:
        self.folder = folder
        self.config = config
        self.made_by = made_by

    @classmethod
    def begin(cls, folder: Path, study: LoadedStudy) -> Results:
        """Make the folder, or go on in one that holds cells of the very same study.

        Raises:
            InputError: the folder holds another study, or cells of a changed configuration, trace or simulator.
        """
        now = provenance(study)
        if (folder / STUDY_FILE).exists():
            before = cls.open(folder)
            changed = [
                what
                for what, a, b in (
                    ("configuration", before.made_by.config, now.config),
                    ("set of files that it reads", before.made_by.files, now.files),
                    ("simulator", before.made_by.code, now.code),
                )
                if a != b
            ]
            if changed:
                raise InputError(
                    f"{folder} holds results of another {' and another '.join(changed)}",
                    "name another folder with --out, or delete this one",
                )
            return before
        if folder.is_dir() and any(folder.iterdir()):
            raise InputError(f"{folder} is not empty and holds no study", "name another folder with --out")
        (folder / CELLS).mkdir(parents=True, exist_ok=True)
        document = {"study": plain_config(study.config), "made_by": to_plain(now)}
        _write_whole(folder / STUDY_FILE, (json.dumps(document, indent=1, sort_keys=True) + "\n").encode())
        return cls(folder, study.config, now)

    @classmethod
    def open(cls, folder: Path) -> Results:
        """Read ``study.json``; InputError when there is none or it is damaged."""
        path = folder / STUDY_FILE
        try:
            document = parse(path.read_text("utf-8"), str(path))
        except (OSError, UnicodeDecodeError):
            raise InputError(f"{folder} holds no study", "run one with: splitglm sim run STUDY --out DIR") from None
        if not isinstance(document, dict) or not isinstance(document.get("study"), dict) or len(document) != 2:
            raise InputError(f"{path} is damaged", "run the study again in another folder")
        config = study_of(document["study"], str(path))
        return cls(folder, config, read(Provenance, document.get("made_by"), f"{path}.made_by"))

    def path(self, cell: Cell) -> Path:
        return self.folder / CELLS / cell.file

    def cells(self) -> Iterator[Cell]:
        """Every cell of the study, finished or not."""
        return cells(self.config)

    def missing(self) -> list[Cell]:
        """Cells that are still to be run."""
        return [cell for cell in self.cells() if not self.path(cell).exists()]

    def write(self, cell: Cell, columns: Columns) -> None:
        _write_whole(self.path(cell), encode(columns, cell.key))

    def read(self, cell: Cell) -> Columns:
        path = self.path(cell)
        try:
            return decode(path.read_bytes(), cell.key, str(path))
        except FileNotFoundError:
            raise InputError(f"{self.folder} lacks the cell {cell.key}", "run the study again: it goes on") from None


def plain_config(config: StudyConfig) -> dict[str, Any]:
    plain: dict[str, Any] = to_plain(config)
    for entry, strategy in zip(plain["strategies"], config.strategies, strict=True):
        entry["options"] = dict(strategy.options)
    return plain


def _write_whole(path: Path, data: bytes) -> None:
    """Never leaves a part of a file under its name, whoever is killed when."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        beside.write_bytes(data)
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def _code_digest(strategies: list[str]) -> str:
    """Of the source of everything that a cell's content depends on; ``strategies``: modules of the user's own."""
    found = hashlib.sha256()
    for package in _PACKAGES:
        root = Path(str(resources.files(package)))
        for file in sorted(root.rglob("*.py")):
            name = f"{package}/{file.relative_to(root).as_posix()}"
            if name in _DECISIVE or not name.startswith(_LEFT_OUT):
                found.update(name.encode() + b"\0" + file.read_bytes() + b"\0")
    for module in sorted(set(strategies)):
        spec = importlib.util.find_spec(module)
        if spec is not None and spec.origin is not None:
            found.update(module.encode() + b"\0" + Path(spec.origin).read_bytes() + b"\0")
    return found.hexdigest()[:12]
