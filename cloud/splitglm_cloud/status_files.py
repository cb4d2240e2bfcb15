"""The runtime directory: one entry for every server of this user on this machine, readable by this user only.

An entry is a file ``NAME.json`` beside the socket ``NAME.sock``; it is live as long as somebody listens on the socket.
The directory has mode 0700 and is ours, and nobody else can replace it, or it is not used: in a place that others can
write to they could plant one.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import stat
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from splitglm_core.errors import DeviceError
from splitglm_security.files import read_private, replace_private

RUNTIME_VARIABLE: Final = "SPLITGLM_RUNTIME_DIR"
CONNECT_S: Final = 5.0
_ENTRY_BYTES: Final = 4096
_MAX_SOCKET_PATH: Final = 100
"""The kernel's limit is 108 with the closing zero byte, on some systems 104."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerEntry:
    """A server that runs, as it said when it started.

    Attributes:
        name: of its files: process id and a number, for there can be several in one process.
        listen: address with the port that was bound.
    """

    name: str
    pid: int
    model: str
    listen: str
    version: str


def default_runtime_dir() -> Path:
    """``SPLITGLM_RUNTIME_DIR``, or the user's runtime directory of this system."""
    import platformdirs

    named = os.environ.get(RUNTIME_VARIABLE)
    if named:
        return Path(named).expanduser()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the system has none: what it falls back to is checked below
        return Path(platformdirs.user_runtime_dir("splitglm", appauthor=False))


def socket_path(directory: Path, name: str) -> Path:
    return directory / f"{name}.sock"


def make_ours(directory: Path) -> None:
    """Make the directory if need be.

    Raises:
        DeviceError: it cannot be made, or is not this user's alone.
    """
    try:
        for folder in (*reversed(directory.parents), directory):  # not ``parents=True``: that heeds the umask alone
            if not folder.exists():
                folder.mkdir(mode=0o700, exist_ok=True)
        _check_ours(directory)
    except OSError as error:
        raise DeviceError(f"cannot use {directory}: {error.strerror}", "choose another with --runtime-dir") from None


def free_socket_path(directory: Path, name: str) -> Path:
    """Where the socket of a new server belongs; what a dead one left there is removed.

    Raises:
        DeviceError: the directory's name is too long for a socket.
    """
    path = socket_path(directory, name)
    if len(os.fsencode(path)) > _MAX_SOCKET_PATH:
        raise DeviceError(f"the name {path} is too long for a socket", "choose a shorter --runtime-dir")
    release(directory, name)
    return path


def announce(directory: Path, entry: ServerEntry) -> None:
    """Leave an entry; after its socket listens, or it would be taken for a dead server's.

    Raises:
        DeviceError: it cannot be written.
    """
    replace_private(_entry_path(directory, entry.name), json.dumps(asdict(entry)).encode())


def release(directory: Path, name: str) -> None:
    """Remove a server's entry and socket; harmless when there is none."""
    for path in (_entry_path(directory, name), socket_path(directory, name)):
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)


def servers(directory: Path) -> list[ServerEntry]:
    """The running servers by process id. Entries that nobody listens behind are removed.

    Raises:
        DeviceError: the directory is not this user's alone.
    """
    try:
        _check_ours(directory)
        names = sorted(path.stem for path in directory.iterdir() if path.suffix == ".json")
    except FileNotFoundError:
        return []
    except OSError as error:
        raise DeviceError(f"cannot read {directory}: {error.strerror}", "name another with --runtime-dir") from None
    found = []
    for name in names:
        entry = _read(directory, name)
        if entry is not None and entry.name == name and _listens(socket_path(directory, name)):
            found.append(entry)
        else:
            release(directory, name)
    return sorted(found, key=lambda entry: (entry.pid, entry.name))


def _listens(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(CONNECT_S)
        try:
            connection.connect(os.fspath(path))
        except (ConnectionRefusedError, FileNotFoundError):
            return False
        except OSError:
            return True  # busy or hung, not gone
    return True


def _entry_path(directory: Path, name: str) -> Path:
    return directory / f"{name}.json"


def _read(directory: Path, name: str) -> ServerEntry | None:
    try:
        values: Any = json.loads(read_private(_entry_path(directory, name), _ENTRY_BYTES) or b"")
        return ServerEntry(**values)
    except (DeviceError, ValueError, TypeError):
        return None


def _check_ours(directory: Path) -> None:
    found = directory.lstat()
    others = stat.S_IMODE(found.st_mode) & 0o077
    if stat.S_ISDIR(found.st_mode) and found.st_uid != os.getuid():
        raise DeviceError(f"{directory} is not this user's alone", "run this as its owner, or name another directory")
    if not stat.S_ISDIR(found.st_mode) or others:
        raise DeviceError(f"{directory} is not this user's alone", f"chmod 700 {directory}, or use --runtime-dir")
    # Who may change what is in the folder above could put another directory in the place of ours at any time.
    above = directory.absolute().parent
    found = above.stat()
    shared = found.st_mode & stat.S_IWOTH and not found.st_mode & stat.S_ISVTX
    if shared or found.st_uid not in (0, os.getuid()):
        raise DeviceError(f"others may replace what is in {above}", "choose another place with --runtime-dir")
