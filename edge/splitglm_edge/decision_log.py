"""A file of decisions, one line of JSON each, from which every one of them can be recomputed.

Lines hold sizes and times, never text; the file is its owner's only (0600). A line is written by one call at the end of
the file, so that several processes may write to one. A file that would exceed ``MAX_BYTES`` becomes ``FILE.1``, in
place of the one before, and a new one begins: at most twice that is kept. Who writes holds the file's lock (``flock``),
so that of several processes one renames it and the others go on in the new one.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import stat
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from splitglm_core.errors import DeviceError, InputError

log = logging.getLogger(__name__)

LINE_VERSION: Final = 1
MAX_BYTES: Final = 16 << 20
MAX_LINE_BYTES: Final = 1 << 20
_FIELDS: Final = {"version", "at_s", "decision", "predicted", "measured", "new_tokens", "comparable", "finish"}


class DecisionLog:
    """Appends lines. Thread-safe.

    Raises:
        DeviceError: it cannot be written, or is no regular file: a device's mode is not ours to change, and nobody may
            read a pipe.
    """

    def __init__(self, path: Path, *, max_bytes: int = MAX_BYTES) -> None:
        self._path = path.expanduser()
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._failed = False
        try:
            file = self._open()
            try:
                if not stat.S_ISREG(os.fstat(file).st_mode):
                    raise OSError(0, "not a regular file")
                os.fchmod(file, 0o600)  # also where it was there before
            finally:
                os.close(file)
        except OSError as error:
            raise DeviceError(
                f"the decision log {self._path} cannot be written: {error.strerror}", "name another file"
            ) from None

    def append(self, line: str) -> None:
        """Add a line. What the disk refuses is lost, and said once: no reply fails for its log."""
        data = line.encode() + b"\n"
        with self._lock:
            try:
                file = self._with_room(len(data))
                try:
                    written = os.write(file, data)
                    if written < len(data):  # a part of a line would make all of the file unreadable
                        os.ftruncate(file, os.lseek(file, 0, os.SEEK_CUR) - written)
                        raise OSError(0, "the disk took a part of a line")
                finally:
                    os.close(file)
            except OSError as error:
                if not self._failed:
                    log.warning("the decision log cannot be written: %s", error.strerror)
                self._failed = True

    def _with_room(self, size: int) -> int:
        """The file that bears the name now, open and locked, with room for ``size`` bytes or empty."""
        while True:
            file = self._open()
            try:
                _lock(file)
                ours, named = os.fstat(file), self._named()
                # While we waited for the lock another process may have renamed it.
                if named is not None and (ours.st_dev, ours.st_ino) == (named.st_dev, named.st_ino):
                    if ours.st_size == 0 or ours.st_size + size <= self._max_bytes:
                        return file
                    self._path.replace(f"{self._path}.1")
            except BaseException:
                os.close(file)
                raise
            os.close(file)

    def _named(self) -> os.stat_result | None:
        try:
            return self._path.stat()
        except FileNotFoundError:
            return None

    def _open(self) -> int:
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | getattr(os, "O_CLOEXEC", 0)
        return os.open(self._path, flags | getattr(os, "O_NONBLOCK", 0), 0o600)  # a pipe must not make anybody wait


def _lock(file: int) -> None:
    """Until it is closed. A file system without locks keeps whole lines all the same, and may lose some at a rename."""
    try:
        import fcntl
    except ImportError:  # not on this system
        return
    with contextlib.suppress(OSError):
        fcntl.flock(file, fcntl.LOCK_EX)


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of a decision log, ``decision`` as ``decision_log.replay`` of the partitioner takes it.

    Raises:
        InputError: there is no such file, or a line is none of ours.
    """
    try:
        file = path.expanduser().open("rb")
    except OSError as error:
        raise InputError(f"the decision log {path} cannot be read: {error.strerror}", "check the path") from None
    with file:
        number = 0
        while data := file.readline(MAX_LINE_BYTES + 1):
            number += 1
            if len(data) > MAX_LINE_BYTES:
                raise InputError(f"line {number} of {path} is longer than {MAX_LINE_BYTES} bytes")
            if data.strip():
                yield _parse(data, f"line {number} of {path}")


def _parse(data: bytes, where: str) -> dict[str, Any]:
    try:
        line = json.loads(data)
    except (ValueError, RecursionError):
        raise InputError(f"{where} is not JSON", "name a file that --decision-log wrote") from None
    if not isinstance(line, dict) or line.keys() != _FIELDS or line["version"] != LINE_VERSION:
        raise InputError(f"{where} is not a decision of this release", "name a file that --decision-log wrote")
    terms = (line["predicted"], line["measured"])
    if not all(isinstance(of, dict) and all(_is_term(*item) for item in of.items()) for of in terms):
        raise InputError(f"{where} has terms that are no finite numbers")
    if type(line["comparable"]) is not bool or not isinstance(line["decision"], dict):
        raise InputError(f"{where} is malformed")
    line["decision"] = json.dumps(line["decision"])
    return line


def _is_term(name: str, value: object) -> bool:
    """A name that can be shown, and a number that can be counted with."""
    if not name.isidentifier() or isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:
        return False
