"""The models on this machine: where they lie, which there are, and how they go away.

Layout: ``<root>/models/<name>/`` (a checkpoint with ``manifest.json`` and ``source.json``) and
``<root>/graphs/<first 16 hex digits of the fingerprint>/<precision>/`` (what was built from it). The root is
``SPLITGLM_HOME``, else the platform's cache directory.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import platformdirs

from splitglm_core.errors import InputError, ModelInvalid, ModelNotFound, SplitGlmError
from splitglm_core.plan import Precision
from splitglm_glm.config import CONFIG_FILE
from splitglm_glm.fingerprint import load_or_build
from splitglm_glm.staging import disk_errors, exclusive
from splitglm_glm.strict_json import read_object

HOME_VARIABLE: Final = "SPLITGLM_HOME"
SOURCE_FILE: Final = "source.json"
_MAX_SOURCE_BYTES: Final = 1 << 20
_NAME: Final = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,126}[A-Za-z0-9])?")
_HUB_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Where a stored model came from.

    Attributes:
        kind: "demo", "local" or "hub".
        origin: package, directory or hub id.
        revision: what pins the origin's content: commit, SHA-256, or fingerprint (hex).
        inexpressible_bytes: bytes that no token of the tokenizer can express, ascending.
    """

    kind: str
    origin: str
    revision: str
    inexpressible_bytes: tuple[int, ...] = ()

    def save(self, directory: Path) -> None:
        (directory / SOURCE_FILE).write_text(json.dumps(asdict(self), indent=1), encoding="utf-8")

    @classmethod
    def load(cls, directory: Path) -> Source:
        """Raises ``ModelNotFound`` when there is none and ``ModelInvalid`` when it is malformed."""
        raw = read_object(directory / SOURCE_FILE, _MAX_SOURCE_BYTES)
        values: dict[str, Any] = {key: raw.get(key) for key in ("kind", "origin", "revision")}
        lost = raw.get("inexpressible_bytes")
        if all(isinstance(value, str) for value in values.values()) and isinstance(lost, list):
            return cls(**values, inexpressible_bytes=tuple(lost))
        raise ModelInvalid(f"{directory / SOURCE_FILE} is malformed", "pull the model again")


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredModel:
    """One model of the store. ``problem`` is empty unless the directory is damaged."""

    name: str
    directory: Path
    source: Source | None
    size_bytes: int
    graphs_bytes: int
    fingerprint: str  # hex; empty when damaged
    problem: str = ""


class ModelStore:
    """Models by name. Nothing is created before something is written.

    Args:
        root: where the store lies; by default ``SPLITGLM_HOME`` or the platform's cache directory.
    """

    def __init__(self, root: Path | None = None) -> None:
        chosen = root or os.environ.get(HOME_VARIABLE) or platformdirs.user_cache_dir("splitglm", appauthor=False)
        self.root = Path(chosen).expanduser().absolute()

    def model_dir(self, name: str) -> Path:
        """Where model ``name`` lies or would lie.

        Raises:
            InputError: not a name that can be a directory.
        """
        if not _NAME.fullmatch(name) or ".." in name:
            raise InputError(f"{name[:200]!r} is not a model name", "use letters, digits, '.', '_' and '-'")
        return self.root / "models" / name

    def find(self, name_or_path: str | Path) -> Path:
        """The directory of a stored model (by name or hub id) or of any checkpoint on disk (by path).

        Raises:
            ModelNotFound: neither.
        """
        text = str(name_or_path)
        name = name_of(text)
        if name is not None and (self.model_dir(name) / CONFIG_FILE).is_file():
            return self.model_dir(name)
        path = Path(text).expanduser()
        if path.is_dir():
            return path.absolute()
        raise ModelNotFound(f"there is no model {text[:200]!r} in {self.root}", f"splitglm pull {text[:200]}")

    def list(self) -> tuple[StoredModel, ...]:
        """Every model of the store, by name."""
        directory = self.root / "models"
        names = sorted(path.name for path in directory.iterdir() if path.is_dir()) if directory.is_dir() else []
        return tuple(self.show(name) for name in names)

    def show(self, name: str) -> StoredModel:
        """One stored model; hashes it unless its manifest is current.

        Raises:
            ModelNotFound: no model of that name is stored.
        """
        directory = self._stored(name)
        source, fingerprint, problem = None, "", ""
        try:
            fingerprint = load_or_build(directory).fingerprint.hex()
            source = Source.load(directory)
        except SplitGlmError as error:
            problem = error.what
        return StoredModel(
            name=directory.name,
            directory=directory,
            source=source,
            size_bytes=_size_bytes(directory),
            graphs_bytes=_size_bytes(self._graphs_of(fingerprint)) if fingerprint else 0,
            fingerprint=fingerprint,
            problem=problem,
        )

    def remove(self, name: str) -> None:
        """Delete a model and what was built from it (unless a model of the same content stays), all or nothing.

        Raises:
            ModelNotFound: no model of that name is stored.
        """
        lock = self.root / "locks" / f"{self._stored(name).name}.lock"
        with disk_errors(self.root), exclusive(lock):
            model = self.show(name)  # again: it may have gone while we waited
            others = {other.fingerprint for other in self.list() if other.name != model.name}
            staging = self.root / "staging" / model.name
            shutil.rmtree(staging, ignore_errors=True)
            staging.mkdir(parents=True)
            model.directory.replace(staging / "removed")
            if model.fingerprint and model.fingerprint not in others and self._graphs_of(model.fingerprint).exists():
                self._graphs_of(model.fingerprint).replace(staging / "graphs")
            shutil.rmtree(staging, ignore_errors=True)

    def graphs_dir(self, checkpoint_dir: Path, precision: Precision) -> Path:
        """Where the graphs of a checkpoint lie or will lie; the checkpoint may be anywhere on disk."""
        return self._graphs_of(load_or_build(checkpoint_dir).fingerprint.hex()) / precision.value

    def _graphs_of(self, fingerprint: str) -> Path:
        return self.root / "graphs" / fingerprint[:16]

    def _stored(self, name: str) -> Path:
        directory = self.model_dir(name_of(name) or name)
        if not directory.is_dir():
            raise ModelNotFound(f"there is no model {name[:200]!r} in {self.root}", "splitglm ls")
        return directory


def name_of(text: str) -> str | None:
    """The store's name for a model name or hub id (``org/model`` becomes ``org--model``); None for anything else."""
    name = text.replace("/", "--") if is_hub_id(text) else text
    return name if _NAME.fullmatch(name) and ".." not in name else None


def is_hub_id(text: str) -> bool:
    """True for ``org/model``."""
    return _HUB_ID.fullmatch(text) is not None and ".." not in text and len(text) <= 96


def _size_bytes(directory: Path) -> int:
    return sum(path.lstat().st_size for path in directory.rglob("*") if path.is_file())
