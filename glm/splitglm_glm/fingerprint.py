"""Which model is this? A manifest of the files that decide its answers, and one SHA-256 over it.

Both halves of a split compare the 32-byte fingerprint in the handshake, so that a device and a cloud with different
weights, tokenisers or chat templates fail there with a clear error and never with wrong tokens.

Canonical form: JSON with sorted keys, no spaces, ASCII, ``{"files": [[name, size_bytes, sha256_hex], ...] sorted by
name, "format": "splitglm-manifest-v1"}``. Times are not part of it.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from splitglm_core.errors import ModelInvalid, SplitGlmError
from splitglm_glm.config import CONFIG_FILE
from splitglm_glm.strict_json import read_object
from splitglm_glm.tensor_files import contained_file, find_tensor_files

MANIFEST_FILE: Final = "manifest.json"
FORMAT: Final = "splitglm-manifest-v1"
MAX_MANIFEST_BYTES: Final = 1 << 20

_OPTIONAL_FILES: Final = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "chat_template.json")
_BLOCK_BYTES: Final = 4 << 20

Progress = Callable[[int, int], None]
"""Called with (bytes hashed so far, bytes in all)."""


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class FileEntry:
    """One file of a checkpoint. ``mtime_ns`` only tells whether a saved hash is still worth trusting."""

    name: str
    size_bytes: int
    sha256: str  # lower-case hex
    mtime_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """The identity of the checkpoint in ``directory``; ``files`` are sorted by name."""

    directory: Path
    files: tuple[FileEntry, ...]

    @classmethod
    def build(cls, directory: Path, progress: Progress | None = None) -> Manifest:
        """Hash every file that decides the model's answers, streaming.

        Raises:
            ModelNotFound: no such directory.
            ModelInvalid: a file is missing, unreadable, or leads outside the directory.
        """
        paths = _model_files(directory)
        total = sum(path.stat().st_size for path in paths)
        done = 0

        def advance(block_bytes: int) -> None:
            nonlocal done
            done += block_bytes
            if progress is not None:
                progress(done, total)

        return cls(directory=directory, files=tuple(_hash_file(path, advance) for path in paths))

    @property
    def fingerprint(self) -> bytes:
        """SHA-256 of the canonical form, 32 bytes."""
        listed = [[entry.name, entry.size_bytes, entry.sha256] for entry in self.files]
        document = {"format": FORMAT, "files": listed}
        return hashlib.sha256(json.dumps(document, sort_keys=True, separators=(",", ":")).encode("ascii")).digest()

    def save(self) -> Path:
        """Write ``manifest.json`` beside the checkpoint, replacing an older one atomically.

        Raises:
            OSError: the directory cannot be written (read-only, full).
        """
        document = {
            "format": FORMAT,
            "fingerprint": self.fingerprint.hex(),
            "files": [
                {"name": e.name, "size_bytes": e.size_bytes, "sha256": e.sha256, "mtime_ns": e.mtime_ns}
                for e in self.files
            ],
        }
        target = self.directory / MANIFEST_FILE
        handle, staged = tempfile.mkstemp(prefix=".manifest-", dir=self.directory)
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                json.dump(document, file, indent=1)
            Path(staged).chmod(0o644)  # mkstemp makes it private; other users of a shared model may read it
            Path(staged).replace(target)
        except BaseException:
            Path(staged).unlink(missing_ok=True)
            raise
        return target

    def is_current(self) -> bool:
        """True while the directory has the same files with the same sizes and times."""
        paths = _model_files(self.directory)
        seen = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in paths]
        return seen == [(entry.name, entry.size_bytes, entry.mtime_ns) for entry in self.files]

    def verify(self, progress: Progress | None = None) -> None:
        """Hash everything again, whatever sizes and times say.

        Raises:
            ModelInvalid: a file differs, is missing, or was added.
        """
        now = {entry.name: entry for entry in Manifest.build(self.directory, progress).files}
        then = {entry.name: entry for entry in self.files}
        for name in sorted(now.keys() | then.keys()):
            if name not in now or name not in then:
                change = "was added to" if name in now else "is missing from"
                raise ModelInvalid(f"{name} {change} {self.directory} since its manifest was made", "fetch it again")
            if (now[name].size_bytes, now[name].sha256) != (then[name].size_bytes, then[name].sha256):
                raise ModelInvalid(f"{self.directory / name} does not match its manifest", "fetch the file again")


def load_or_build(directory: Path, progress: Progress | None = None) -> Manifest:
    """The manifest saved beside the checkpoint if it is still current, else a new one, saved where that is possible.

    Raises:
        ModelNotFound, ModelInvalid: as ``Manifest.build``.
    """
    saved = _load(directory)
    if saved is not None and saved.is_current():
        return saved
    manifest = Manifest.build(directory, progress)
    try:
        manifest.save()
    except OSError:
        pass  # a read-only model directory only costs hashing again next time
    return manifest


def load(directory: Path) -> Manifest:
    """The manifest saved beside the checkpoint, current or not, for ``verify``.

    Raises:
        ModelNotFound: there is none.
        ModelInvalid: it is malformed.
    """
    raw = read_object(directory / MANIFEST_FILE, MAX_MANIFEST_BYTES)
    files = raw.get("files")
    if raw.get("format") != FORMAT or not isinstance(files, list):
        raise ModelInvalid(f"{directory / MANIFEST_FILE} is not a {FORMAT}", "delete it; it is made again")
    manifest = Manifest(directory=directory, files=tuple(sorted(_parse_entry(item, directory) for item in files)))
    if raw.get("fingerprint") != manifest.fingerprint.hex():
        raise ModelInvalid(f"{directory / MANIFEST_FILE} contradicts itself", "delete it; it is made again")
    return manifest


def _load(directory: Path) -> Manifest | None:
    try:
        return load(directory)
    except SplitGlmError:  # absent or damaged: it is only a cache
        return None


def _parse_entry(item: Any, directory: Path) -> FileEntry:
    if (
        isinstance(item, dict)
        and set(item) == {"name", "size_bytes", "sha256", "mtime_ns"}
        and isinstance(item["name"], str)
        and isinstance(item["sha256"], str)
        and type(item["size_bytes"]) is int
        and type(item["mtime_ns"]) is int
    ):
        return FileEntry(**item)
    raise ModelInvalid(f"{directory / MANIFEST_FILE} has a malformed entry", "delete it; it is made again")


def _model_files(directory: Path) -> list[Path]:
    tensor_files = find_tensor_files(directory)
    optional = [contained_file(directory, name) for name in _OPTIONAL_FILES if (directory / name).exists()]
    paths = [contained_file(directory, CONFIG_FILE), *optional, *tensor_files]
    return sorted(paths, key=lambda path: path.name)


def _hash_file(path: Path, advance: Callable[[int], None]) -> FileEntry:
    digest = hashlib.sha256()
    size = 0
    try:
        with path.open("rb") as file:
            # Taken first: a file that changes while it is hashed then looks stale next time, not current.
            mtime_ns = os.fstat(file.fileno()).st_mtime_ns
            while block := file.read(_BLOCK_BYTES):
                digest.update(block)
                size += len(block)
                advance(len(block))
    except OSError as error:
        raise ModelInvalid(f"{path} cannot be read: {error.strerror}", "check its permissions") from None
    return FileEntry(name=path.name, size_bytes=size, sha256=digest.hexdigest(), mtime_ns=mtime_ns)
