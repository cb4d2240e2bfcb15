"""Answers ``splitglm ps`` and ``top`` on a Unix socket that only this user can open: one JSON line asks, one answers.

Never a TCP port. Read-only: the one request is ``{"get": "status"}``.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Final

from splitglm_cloud.status import ServerStatus
from splitglm_cloud.status_files import ServerEntry, announce, free_socket_path, make_ours, release, socket_path
from splitglm_core.errors import DeviceError, LinkError, ProtocolError

log = logging.getLogger(__name__)

REQUEST: Final = b'{"get": "status"}\n'
MAX_REQUEST_BYTES: Final = 256
MAX_REPLY_BYTES: Final = 16 << 20
MAX_CONNECTIONS: Final = 8
DEADLINE_S: Final = 5.0
"""For a request to come, and for its reply to be read."""

_numbers = itertools.count(1)


class StatusServer:
    """Runs on the event loop that ``start`` is called on.

    Args:
        directory: the runtime directory.
        snapshot: called on the loop for every request.
    """

    def __init__(self, directory: Path, snapshot: Callable[[], ServerStatus]) -> None:
        self._directory = directory
        self._snapshot = snapshot
        self.name = f"{os.getpid()}-{next(_numbers)}"
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Leave an entry in the directory and listen.

        Raises:
            DeviceError: the directory cannot be used, or this system has no Unix sockets.
        """
        if not hasattr(socket, "AF_UNIX"):
            raise DeviceError("this system has no Unix sockets", "use --no-status")
        make_ours(self._directory)
        path = free_socket_path(self._directory, self.name)
        try:
            self._server = await asyncio.start_unix_server(self._accept, path=path, limit=MAX_REQUEST_BYTES)
            path.chmod(0o600)
        except OSError as error:
            raise DeviceError(f"cannot listen on {path}: {error.strerror}", "use --no-status") from None
        now = self._snapshot()
        announce(
            self._directory,
            ServerEntry(name=self.name, pid=now.pid, model=now.model, listen=now.listen, version=now.version),
        )

    async def stop(self) -> None:
        """Stop listening, end connections and remove the entry; harmless when it never began."""
        if self._server is None:
            return
        self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._server = None
        release(self._directory, self.name)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._tasks) >= MAX_CONNECTIONS:
            writer.close()
            return
        task = asyncio.ensure_future(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Requests of one connection until it ends, or breaks a rule."""
        try:
            while True:
                async with asyncio.timeout(DEADLINE_S):
                    line = await reader.readline()
                    if line != REQUEST:
                        return
                    writer.write(json.dumps(self._snapshot().to_document()).encode() + b"\n")
                    await writer.drain()
        except (TimeoutError, OSError, ValueError):  # ValueError: a line longer than the limit
            return
        except Exception as error:  # a status that cannot be told must not end the server
            log.error("status failed: %s", type(error).__name__)
        finally:
            writer.close()


def ask(directory: Path, entry: ServerEntry) -> ServerStatus:
    """The status of a server of this user.

    Raises:
        LinkError: it does not answer.
        ProtocolError: its answer cannot be read.
    """
    said = f"the server with process id {entry.pid} does not answer"
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(DEADLINE_S)
            connection.connect(os.fspath(socket_path(directory, entry.name)))
            connection.sendall(REQUEST)
            with connection.makefile("rb") as lines:
                line = lines.readline(MAX_REPLY_BYTES)
    except OSError as error:
        raise LinkError(f"{said}: {error.strerror or 'too late'}") from None
    if not line.endswith(b"\n"):
        raise LinkError(said)
    try:
        return ServerStatus.from_document(json.loads(line))
    except ValueError:
        raise ProtocolError("the server's status cannot be read") from None
