"""Files that only their owner may read or change: atomic creation, atomic replacement, refusal of loose permissions."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

try:
    import fcntl
except ImportError:  # not POSIX: the last of two simultaneous writers wins
    fcntl = None  # type: ignore[assignment]

from splitglm_core.errors import DeviceError, StorageFull

_POSIX = os.name == "posix"  # elsewhere mode bits mean nothing; the user's profile directory protects the file


def make_private_directory(directory: Path) -> None:
    """Create ``directory`` with mode 0700 if it is absent.

    Raises:
        DeviceError: it cannot be made, or others may change what is in it.
    """
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        mode = directory.stat().st_mode
    except OSError as error:
        raise _failed("make the directory", directory, error) from None
    if _POSIX and mode & 0o022 and not mode & stat.S_ISVTX:
        raise DeviceError(f"others may change files in {directory}", f"chmod 700 {directory}")


def read_private(path: Path, limit_bytes: int) -> bytes | None:
    """The content of a file of the owner's own, or None if there is no such file.

    Raises:
        DeviceError: unreadable, not a plain file, larger than ``limit_bytes``, or open to group or others.
    """
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise DeviceError(f"{path} is not a plain file")
            if _POSIX and status.st_mode & 0o077:
                raise DeviceError(f"{path} can be read or changed by others", f"chmod 600 {path}")
            if _POSIX and status.st_uid not in (0, os.geteuid()):
                raise DeviceError(f"{path} belongs to somebody else", "give a path of your own")
            data = file.read(limit_bytes + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _failed("read", path, error) from None
    except ValueError:  # a zero byte in it
        raise DeviceError(f"{str(path)!r} is not a path") from None
    if len(data) > limit_bytes:
        raise DeviceError(f"{path} is larger than {limit_bytes} bytes")
    return data


def create_private(path: Path, data: bytes) -> bool:
    """Write a new file with mode 0600, whole or not at all. False if the path exists: nothing is ever overwritten."""
    temporary = _write_beside(path, data)
    try:
        os.link(temporary, path)  # fails if the path exists, unlike rename
    except FileExistsError:
        return False
    except OSError as error:
        raise _failed("write", path, error) from None
    finally:
        temporary.unlink(missing_ok=True)
    _sync_directory(path.parent)
    return True


def replace_private(path: Path, data: bytes) -> None:
    """Write a file with mode 0600 in place of whatever is there, whole or not at all."""
    temporary = _write_beside(path, data)
    try:
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise _failed("write", path, error) from None
    _sync_directory(path.parent)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Keep other processes out of the file at ``path`` (through ``path.lock``) while it is read and replaced."""
    lock = path.with_name(f"{path.name}.lock")
    try:
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise _failed("lock", lock, error) from None
    try:
        if fcntl is not None:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)  # releases the lock


def _write_beside(path: Path, data: bytes) -> Path:
    temporary = path.with_name(f".{path.name}.{os.urandom(8).hex()}")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        except OSError:
            temporary.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise _failed("write", path, error) from None
    return temporary


def _sync_directory(directory: Path) -> None:
    if not _POSIX:
        return
    try:
        descriptor = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise _failed("write", directory, error) from None


def _failed(verb: str, path: Path, error: OSError) -> DeviceError:
    kind = StorageFull if error.errno in (errno.ENOSPC, errno.EDQUOT) else DeviceError
    return kind(f"cannot {verb} {path}: {error.strerror}")
