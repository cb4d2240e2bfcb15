"""Where a model is put together before it appears in the store: one pull at a time, all or nothing.

``<root>/staging/<name>/`` holds ``intent.json`` (what is being pulled), ``tree/`` (what will be published by one
rename) and ``work/`` (what will not). A killed pull leaves that directory; the next pull of the same thing goes on with
it, a pull of something else under that name starts afresh. Locks are held by the kernel, so a dead process holds none.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from splitglm_core.errors import DeviceError, ModelInvalid, StorageFull
from splitglm_glm.progress import Progress, silent

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

INTENT_FILE: Final = "intent.json"
# A pull that nobody resumed for this long is not coming back.
ABANDONED_S: Final = 7 * 24 * 3600.0
# Left free beyond what a pull needs, so that the rest of the machine goes on working.
RESERVE_BYTES: Final = 64 << 20
_FULL: Final = (errno.ENOSPC, errno.EDQUOT)
_LOCK_RETRY_S: Final = 0.2


class Staging:
    """The directory of one pull, while its lock is held."""

    def __init__(self, base: Path, target: Path) -> None:
        self._base = base
        self._target = target
        self.tree = base / "tree"
        self.work = base / "work"

    def begin(self, intent: Mapping[str, Any]) -> bool:
        """Start or resume; True when an earlier pull of the same thing is being resumed."""
        wanted = json.dumps(intent, sort_keys=True)
        path = self._base / INTENT_FILE
        resumed = path.is_file() and path.read_text(encoding="utf-8") == wanted
        if not resumed:
            self.discard()
        self.tree.mkdir(parents=True, exist_ok=True)
        self.work.mkdir(exist_ok=True)
        if not resumed:
            path.write_text(wanted, encoding="utf-8")
        return resumed

    def publish(self) -> Path:
        """Make ``tree`` the model, durably; an older model of that name is replaced.

        A process that still reads the older one keeps its open files.
        """
        _flush_to_disk(self.tree)
        self._target.parent.mkdir(parents=True, exist_ok=True)
        older = self._base / "replaced"
        if self._target.exists():
            self._target.replace(older)
        self.tree.replace(self._target)
        _flush_directory(self._target.parent)
        self.discard()
        return self._target

    def discard(self) -> None:
        """Remove everything staged."""
        shutil.rmtree(self._base, ignore_errors=True)


@contextmanager
def staged(root: Path, name: str, progress: Progress = silent) -> Iterator[Staging]:
    """The staging directory of model ``name``, waiting for another pull of it to end first.

    A full disk or a refused model leaves nothing behind; any other failure leaves what a later pull can go on with.

    Raises:
        StorageFull: the disk is full.
        DeviceError: the store cannot be written.
    """
    with disk_errors(root):
        sweep(root, keep=name)
        with exclusive(root / "locks" / f"{name}.lock", progress):
            staging = Staging(root / "staging" / name, root / "models" / name)
            try:
                with disk_errors(root):
                    yield staging
            except (StorageFull, ModelInvalid):
                staging.discard()
                raise


@contextmanager
def exclusive(path: Path, progress: Progress = silent) -> Iterator[None]:
    """Hold the lock file ``path``; wait while another process or thread holds it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b") as file:
        if not _try_lock(file.fileno()):
            progress("waiting for another splitglm that works on the same model", 0, 0)
            while not _try_lock(file.fileno()):
                time.sleep(_LOCK_RETRY_S)
        yield  # closing the file releases the lock


def sweep(root: Path, *, keep: str) -> None:
    """Remove the staging directories that nobody works on and nobody has touched for a week."""
    directory = root / "staging"
    if not directory.is_dir():
        return
    for base in directory.iterdir():
        if base.name == keep or time.time() - _last_touched_s(base) < ABANDONED_S:
            continue
        lock = root / "locks" / f"{base.name}.lock"
        lock.parent.mkdir(parents=True, exist_ok=True)
        with lock.open("a+b") as file:
            if _try_lock(file.fileno()):
                shutil.rmtree(base, ignore_errors=True)


@contextmanager
def disk_errors(root: Path, needed_bytes: int = 0) -> Iterator[None]:
    """Turn the operating system's errors about the disk into ours.

    Raises:
        StorageFull: disk or quota is full.
        DeviceError: no permission, read-only, or a file system that cannot do what a store needs.
    """
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise _full(root, needed_bytes) from None
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.EXDEV, errno.ENOLCK, errno.ENOTDIR):
            raise DeviceError(
                f"the model store {root} cannot be used: {error.strerror}",
                "set SPLITGLM_HOME to a directory of yours on a local disk",
            ) from None
        raise


def require_free(root: Path, needed_bytes: int) -> None:
    """Raise ``StorageFull`` unless the disk of ``root`` has room for ``needed_bytes`` more."""
    if _free_bytes(root) < needed_bytes + RESERVE_BYTES:
        raise _full(root, needed_bytes)


def _full(root: Path, needed_bytes: int) -> StorageFull:
    needed = f"{needed_bytes:,} bytes are needed and " if needed_bytes else ""
    return StorageFull(
        f"the disk that holds {root} is full: {needed}{_free_bytes(root):,} bytes are free",
        "free some space (splitglm ls, splitglm rm) or set SPLITGLM_HOME to another disk",
    )


def _free_bytes(root: Path) -> int:
    while not root.exists() and root != root.parent:
        root = root.parent
    return shutil.disk_usage(root).free


def _last_touched_s(base: Path) -> float:
    times = [base.stat().st_mtime]
    for path in base.rglob("*"):
        try:
            times.append(path.lstat().st_mtime)
        except FileNotFoundError:  # another process is tidying up
            continue
    return max(times)


def _flush_to_disk(tree: Path) -> None:
    # Without this a power cut after the rename could leave the name but not the bytes.
    for path in tree.rglob("*"):
        if path.is_file():
            with path.open("r+b") as file:
                os.fsync(file.fileno())
    _flush_directory(tree)


def _flush_directory(directory: Path) -> None:
    if sys.platform == "win32":  # directories cannot be opened there
        return
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _try_lock(handle: int) -> bool:
    try:
        if sys.platform == "win32":
            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
        else:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    return True
