"""A link in user space: a TCP proxy on loopback that delays, limits and breaks both directions of what passes.

No privileges, no kernel modules: whatever connects to ``emulator.port`` reaches the upstream server over a link of the
stated shape, so the same benchmark runs on a laptop and in CI. TCP itself is not emulated (no loss, no congestion
control): bytes are delayed, queued and held back, as over a link whose sender already knows the rate. Bytes are counted
as payload, without packet headers. A connection's first byte waits one round trip for the handshake it stands for.

Timers are exact to about half a millisecond and never drift.

From a shell: ``python -m splitglm_sims.link_emulator --upstream HOST:PORT --rtt-ms 80 --mbit 10``. Benchmarks use it
so: in the process that is measured, the interpreter lock would be part of the link.
"""

from __future__ import annotations

import argparse
import asyncio
import concurrent.futures
import random
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Final

from splitglm_core.errors import DeviceError, InputError, SplitGlmError, status_of
from splitglm_sims.link_connection import SOCKET_BUFFER_BYTES, Connection, Lane, Tap
from splitglm_sims.shaper import Direction, LinkShape, Shaper
from splitglm_sims.traces import load_trace

_BACKLOG: Final = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkCounters:
    """Payload bytes taken from senders (``entered``) and handed to receivers (``delivered``), and connections."""

    up_entered_bytes: int
    up_delivered_bytes: int
    down_entered_bytes: int
    down_delivered_bytes: int
    connections_accepted: int
    connections_open: int
    connections_reset: int


class LinkEmulator:
    """An emulated link to ``upstream_host:upstream_port``: an async context manager; sync code uses ``run_in_thread``.

    The fault methods may be called from any thread and have taken effect when they return.

    Args:
        up: shape of the direction from the client to the upstream server; ``down`` of the other.
        seed: of the jitter.
        tap: called in the loop's thread with (direction, connection number, bytes) for all that enters the link.
        port: to listen on, on ``host``; 0 picks a free one.
        handshake: hold a new connection's bytes back for one round trip.
    """

    def __init__(
        self,
        upstream_host: str,
        upstream_port: int,
        up: LinkShape,
        down: LinkShape,
        *,
        seed: int = 0,
        tap: Tap | None = None,
        host: str = "127.0.0.1",
        port: int = 0,
        handshake: bool = True,
    ) -> None:
        self._upstream = (upstream_host, upstream_port)
        self._shapes = {Direction.UP: up, Direction.DOWN: down}
        self._seed = seed
        self._tap = tap
        self._host = host
        self._wanted_port = port
        self._handshake = handshake
        self._lanes: dict[Direction, Lane] = {}
        self._connections: dict[Connection, asyncio.Task[None]] = {}
        self._accepted = 0
        self._resets = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._listener: socket.socket | None = None
        self._accepting: asyncio.Task[None] | None = None

    async def __aenter__(self) -> LinkEmulator:
        loop = asyncio.get_running_loop()
        for salt, direction in enumerate(Direction):
            self._lanes[direction] = Lane(Shaper(self._shapes[direction], random.Random(2 * self._seed + salt)))
        listener = socket.socket()
        try:
            listener.setblocking(False)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SOCKET_BUFFER_BYTES)  # accepted sockets inherit it
            listener.bind((self._host, self._wanted_port))
            listener.listen(_BACKLOG)
        except OSError as error:
            listener.close()
            raise DeviceError(
                f"cannot listen on {self._host}:{self._wanted_port}: {error.strerror}", "choose another port"
            ) from error
        self._listener, self._loop = listener, loop
        self._accepting = loop.create_task(self._accept(listener))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        tasks = [*self._connections.values()]
        if self._accepting is not None:
            tasks.append(self._accepting)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._listener is not None:
            self._listener.close()
        self._loop = None

    @property
    def port(self) -> int:
        if self._listener is None:
            raise InputError("the link emulator has not been started", "enter it with `async with` or run_in_thread")
        return int(self._listener.getsockname()[1])

    @property
    def counters(self) -> LinkCounters:
        up, down = self._lanes[Direction.UP], self._lanes[Direction.DOWN]
        return LinkCounters(
            up_entered_bytes=up.entered_bytes,
            up_delivered_bytes=up.delivered_bytes,
            down_entered_bytes=down.entered_bytes,
            down_delivered_bytes=down.delivered_bytes,
            connections_accepted=self._accepted,
            connections_open=len(self._connections),
            connections_reset=self._resets,
        )

    def set_shape(self, direction: Direction, shape: LinkShape) -> None:
        """Another link from now on (roaming); what is on its way arrives as it was going to."""
        self._in_loop(lambda: self._lanes[direction].shape(shape))

    def blackhole(self, direction: Direction, *, on: bool = True) -> None:
        """Whatever would arrive vanishes, ends and resets included, and nobody is told.

        When it is switched off, connections that lost bytes are reset: TCP cannot go on without them.
        """
        self._in_loop(lambda: self._blackhole(direction, on))

    def pause(self, direction: Direction) -> None:
        """Freezes the direction: its queue fills and holds senders back; nothing is lost."""
        self._in_loop(lambda: self._lanes[direction].pause())

    def resume(self, direction: Direction) -> None:
        """Goes on exactly where ``pause`` froze it."""
        self._in_loop(lambda: self._lanes[direction].resume())

    def cut_after(self, direction: Direction, size: int) -> None:
        """Delivers ``size`` more bytes in this direction, then resets the connection that has the next one; once."""
        if size < 0:
            raise InputError(f"cannot cut after {size} bytes")

        def arm() -> None:
            self._lanes[direction].cut_after = size

        self._in_loop(arm)

    def reset_all(self) -> None:
        """Resets every open connection on both sides, at once."""
        self._in_loop(lambda: self._reset(lambda connection: True))

    def _blackhole(self, direction: Direction, on: bool) -> None:
        self._lanes[direction].blackholed = on
        if not on:
            self._reset(lambda connection: connection.lost_bytes)

    def _reset(self, chosen: Callable[[Connection], bool]) -> None:
        for connection, task in self._connections.items():
            if chosen(connection):
                task.cancel()

    def _in_loop(self, change: Callable[[], None]) -> None:
        loop = self._loop
        if loop is None:
            raise InputError("the link emulator is not running", "enter it with `async with` or run_in_thread")
        try:
            here: asyncio.AbstractEventLoop | None = asyncio.get_running_loop()
        except RuntimeError:
            here = None
        if here is loop:
            change()
            return
        done: concurrent.futures.Future[None] = concurrent.futures.Future()

        def call() -> None:
            change()
            done.set_result(None)

        loop.call_soon_threadsafe(call)
        done.result()

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            client, _ = await loop.sock_accept(listener)
            connection = Connection(self._accepted, client, self._lanes, self._tap)
            self._accepted += 1
            task = loop.create_task(connection.run(self._upstream, handshake=self._handshake))
            self._connections[connection] = task
            task.add_done_callback(partial(self._forget, connection))

    def _forget(self, connection: Connection, task: asyncio.Task[None]) -> None:
        del self._connections[connection]
        connection.close()
        self._resets += connection.was_reset


@contextmanager
def run_in_thread(emulator: LinkEmulator) -> Iterator[LinkEmulator]:
    """Runs ``emulator`` on an event loop in a thread of its own; ``.port`` and the fault methods work from here."""
    started: concurrent.futures.Future[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = concurrent.futures.Future()

    async def serve() -> None:
        stop = asyncio.Event()
        async with emulator:
            started.set_result((asyncio.get_running_loop(), stop))
            await stop.wait()

    def body() -> None:
        try:
            asyncio.run(serve())
        except BaseException as error:
            if started.done():
                raise
            started.set_exception(error)

    thread = threading.Thread(target=body, name="splitglm-emulator", daemon=True)
    thread.start()
    loop, stop = started.result()
    try:
        yield emulator
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m splitglm_sims.link_emulator", description=__doc__.split("\n")[0])
    parser.add_argument("--upstream", required=True, metavar="HOST:PORT", help="the server behind the link")
    parser.add_argument("--listen", type=int, default=0, metavar="PORT", help="on 127.0.0.1; default: a free port")
    parser.add_argument("--rtt-ms", type=float, default=0.0, help="round trip; half of it is each direction's delay")
    parser.add_argument("--jitter-ms", type=float, default=0.0, help="each direction's delay varies by +- this")
    parser.add_argument("--mbit", type=float, help="Mbit/s of both directions; default: unlimited")
    parser.add_argument("--up-mbit", type=float, help="Mbit/s towards the server, instead of --mbit")
    parser.add_argument("--down-mbit", type=float, help="Mbit/s towards the client, instead of --mbit")
    parser.add_argument("--up-trace", type=Path, metavar="FILE", help="rate towards the server over time")
    parser.add_argument("--down-trace", type=Path, metavar="FILE", help="rate towards the client over time")
    parser.add_argument("--queue-kib", type=int, default=64, help="what may wait for each direction (default 64)")
    parser.add_argument("--seed", type=int, default=0, help="of the jitter")
    return parser


def _shape(args: argparse.Namespace, mbit: float | None, trace: Path | None) -> LinkShape:
    mbit = args.mbit if mbit is None and trace is None else mbit
    return LinkShape(
        delay_s=args.rtt_ms / 2e3,
        rate_bytes_per_s=None if mbit is None else mbit * 1e6 / 8,
        jitter_s=args.jitter_ms / 1e3,
        queue_bytes=args.queue_kib * 1024,
        trace=None if trace is None else load_trace(trace),
    )


async def _serve(emulator: LinkEmulator) -> None:
    async with emulator:
        print(f"listening on 127.0.0.1:{emulator.port}; stop with Ctrl-C", flush=True)
        await asyncio.Event().wait()


def main(argv: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    try:
        host, colon, port = args.upstream.rpartition(":")
        if not (colon and host and port.isascii() and port.isdigit() and 0 < int(port) < 65536):
            raise InputError(f"--upstream {args.upstream!r} is not HOST:PORT")
        up, down = _shape(args, args.up_mbit, args.up_trace), _shape(args, args.down_mbit, args.down_trace)
        asyncio.run(_serve(LinkEmulator(host, int(port), up, down, seed=args.seed, port=args.listen)))
    except SplitGlmError as error:
        print(error.one_line(), file=sys.stderr)
        return status_of(error).exit_code
    except KeyboardInterrupt as error:
        return status_of(error).exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
