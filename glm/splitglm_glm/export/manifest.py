"""``graphs.json``: what a graph directory holds, for which checkpoint and by which builder."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from splitglm_core.errors import ModelInvalid
from splitglm_core.plan import Precision

# Raise on every change of the graphs' inputs, operators or weight layout: older directories are then rebuilt.
BUILDER_VERSION = 2
MANIFEST_NAME = "graphs.json"
EMBEDDING, HEAD = "embedding", "head"
_MAX_MANIFEST_BYTES = 4 << 20
_REBUILD = "run `splitglm pull` for this model again; it rebuilds only what is missing"


def layer_part(layer: int) -> str:
    """The part name of a decoder layer."""
    return f"layer-{layer:03d}"


def part_names(layers: int) -> tuple[str, ...]:
    """Every part of a model with ``layers`` decoder layers, in the order of a forward pass."""
    return (EMBEDDING, *(layer_part(i) for i in range(layers)), HEAD)


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphFile:
    """One file of a part. The digest is kept for ``.onnx`` files (a few kB); data files are checked by size."""

    bytes: int
    sha256: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphsManifest:
    """What a graph directory claims to hold.

    Attributes:
        builder: version of the code that wrote it.
        fingerprint: the checkpoint's fingerprint, 32 bytes.
        precision: of the weights.
        recipe: human-readable record of bits, blocks and symmetry.
        parts: part name -> file name -> size and digest.
    """

    builder: int
    fingerprint: bytes
    precision: Precision
    recipe: Mapping[str, object]
    parts: Mapping[str, Mapping[str, GraphFile]]

    def matches(self, fingerprint: bytes, precision: Precision) -> bool:
        """True when these graphs were made from that checkpoint, at that precision, by this builder."""
        return (self.builder, self.fingerprint, self.precision) == (BUILDER_VERSION, fingerprint, precision)

    def weight_bytes(self, part: str) -> int:
        """Size of the data files of ``part``."""
        return sum(file.bytes for name, file in self.parts[part].items() if name.endswith(".bin"))

    def problem(self, directory: Path, part: str) -> str | None:
        """Why ``part`` cannot be loaded, or None. Sizes are checked first: a short data file could crash a mapping."""
        if part not in self.parts:
            return f"the graph of {part} has not been built"
        for name, file in self.parts[part].items():
            path = directory / name
            try:
                size = path.stat().st_size
            except OSError:
                return f"{name} is missing"
            if size != file.bytes:
                return f"{name} has {size} bytes instead of {file.bytes}"
            if file.sha256 is not None and hashlib.sha256(path.read_bytes()).hexdigest() != file.sha256:
                return f"{name} was changed after it was built"
        return None

    def require(self, directory: Path, part: str) -> Path:
        """The ``.onnx`` file of ``part``; ModelInvalid when it or its data is missing, truncated or changed."""
        problem = self.problem(directory, part)
        if problem is not None:
            raise ModelInvalid(f"graph directory {directory.name}: {problem}", _REBUILD)
        return directory / f"{part}.onnx"

    def to_json(self) -> str:
        parts = {
            part: {
                name: {"bytes": f.bytes} if f.sha256 is None else {"bytes": f.bytes, "sha256": f.sha256}
                for name, f in sorted(files.items())
            }
            for part, files in sorted(self.parts.items())
        }
        content = {
            "builder": self.builder,
            "fingerprint": self.fingerprint.hex(),
            "precision": self.precision.value,
            "recipe": self.recipe,
            "parts": parts,
        }
        return json.dumps(content, indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str) -> GraphsManifest:
        """Parse; ValueError, TypeError or KeyError on anything that is not a manifest."""
        raw = json.loads(text)
        parts: dict[str, dict[str, GraphFile]] = {}
        for part, files in raw["parts"].items():
            parts[part] = {}
            for name, file in files.items():
                if Path(name).name != name:
                    raise ValueError("a part's file must be a plain file name")
                parts[part][name] = GraphFile(bytes=int(file["bytes"]), sha256=file.get("sha256"))
        return cls(
            builder=int(raw["builder"]),
            fingerprint=bytes.fromhex(raw["fingerprint"]),
            precision=Precision(raw["precision"]),
            recipe=dict(raw["recipe"]),
            parts=parts,
        )

    def write(self, directory: Path) -> None:
        """Replace the manifest of ``directory`` atomically."""
        staged = directory / f"{MANIFEST_NAME}.{os.getpid()}.part"
        staged.write_text(self.to_json(), encoding="utf-8")
        staged.replace(directory / MANIFEST_NAME)

    @classmethod
    def read(cls, directory: Path) -> GraphsManifest | None:
        """The manifest of ``directory``, or None when there is none that can be read."""
        path = directory / MANIFEST_NAME
        try:
            if path.stat().st_size > _MAX_MANIFEST_BYTES:
                return None
            return cls.from_json(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None

    @classmethod
    def open(cls, directory: Path, fingerprint: bytes, precision: Precision) -> GraphsManifest:
        """The manifest of graphs that belong to the given checkpoint and precision, or ModelInvalid."""
        manifest = cls.read(directory)
        if manifest is None:
            raise ModelInvalid(f"graph directory {directory.name} holds no {precision.value} graphs", _REBUILD)
        if not manifest.matches(fingerprint, precision):
            raise ModelInvalid(
                f"graph directory {directory.name} was built from another checkpoint, precision or splitglm version",
                _REBUILD,
            )
        return manifest
