"""One emulated link direction (``Lane``) and one proxied TCP connection over two of them.

A connection runs four tasks: per direction one that takes slices from the sender when the shared queue has room, and
one that hands them to the receiver when they have arrived. All its state is touched by the event loop's thread only.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections import deque
from collections.abc import Callable
from typing import Final

from splitglm_sims.shaper import Direction, LinkShape, Shaper

Tap = Callable[[Direction, int, bytes], None]

WINDOW_BYTES: Final = 8 * 2**20  # of one connection on its way: a TCP window, so a receiver that stalls holds back
SOCKET_BUFFER_BYTES: Final = 64 * 1024  # small, so that the shaped queue and not the kernel's holds what waits
# Event loops round timers up to whole milliseconds; aiming half of one early centres the error on zero.
_HALF_TICK_S: Final = 0.5e-3


class ConnectionBroken(Exception):
    """Ends the tasks of one connection with a reset to both sides."""


class Lane:
    """One direction: its shaper, its clock, its faults and its counters; shared by all connections."""

    def __init__(self, shaper: Shaper) -> None:
        self.shaper = shaper
        self.turn = asyncio.Lock()  # first come, first served: connections take turns slice by slice
        self.blackholed = False
        self.cut_after: int | None = None  # bytes still to deliver before the connection that carries on is reset
        self.entered_bytes = 0
        self.delivered_bytes = 0
        self._running = asyncio.Event()
        self._running.set()
        self._origin_s = asyncio.get_running_loop().time()
        self._paused_at_s = 0.0

    def now_s(self) -> float:
        """The lane's own clock: it stands still while the lane is paused, so everything on the way freezes in place."""
        if not self._running.is_set():
            return self._paused_at_s
        return asyncio.get_running_loop().time() - self._origin_s

    def pause(self) -> None:
        self._paused_at_s = self.now_s()
        self._running.clear()

    def resume(self) -> None:
        if not self._running.is_set():
            self._origin_s = asyncio.get_running_loop().time() - self._paused_at_s
            self._running.set()

    def is_due(self, time_s: float) -> bool:
        return self._running.is_set() and time_s - self.now_s() <= _HALF_TICK_S

    async def until(self, time_s: float) -> None:
        while not self.is_due(time_s):
            await self._running.wait()
            await asyncio.sleep(max(0.0, time_s - self.now_s() - _HALF_TICK_S))

    async def admit(self, size: int) -> float:
        """Waits for a turn and for room in the queue; returns the arrival time of these ``size`` bytes."""
        async with self.turn:
            await self._running.wait()
            # The lane may be paused or reshaped while this waits, so the answer is asked for again.
            while (room_s := self.shaper.room_at_s(self.now_s(), size)) > self.now_s():
                await self._running.wait()
                await asyncio.sleep(max(0.0, room_s - self.now_s()))
            return self.shaper.offer(self.now_s(), size).arrival_s

    def shape(self, shape: LinkShape) -> None:
        self.shaper.reshape(shape)


class _Flow:
    """What one connection has on its way in one direction: (arrival, bytes), ``b""`` for end, ``None`` for reset."""

    def __init__(self, lane: Lane, direction: Direction, source: socket.socket, sink: socket.socket) -> None:
        self.lane = lane
        self.direction = direction
        self.source = source
        self.sink = sink
        self.on_the_way: deque[tuple[float, bytes | None]] = deque()
        self.bytes_on_the_way = 0
        self.changed = asyncio.Event()
        self.lost_bytes = False

    def put(self, arrival_s: float, data: bytes | None) -> None:
        self.on_the_way.append((arrival_s, data))
        self.bytes_on_the_way += len(data or b"")
        self.changed.set()

    def pop(self) -> bytes | None:
        _, data = self.on_the_way.popleft()
        self.bytes_on_the_way -= len(data or b"")
        self.changed.set()
        return data

    async def wait_for_change(self) -> None:
        self.changed.clear()
        await self.changed.wait()


class Connection:
    """One accepted client, proxied to the upstream address until both directions have ended or one was reset."""

    def __init__(self, number: int, client: socket.socket, lanes: dict[Direction, Lane], tap: Tap | None) -> None:
        self.number = number
        self.was_reset = False
        self._client = client
        self._lanes = lanes
        self._tap = tap
        self._flows: dict[Direction, _Flow] = {}

    @property
    def lost_bytes(self) -> bool:
        """True when a blackhole swallowed some of its bytes: TCP can never deliver the rest."""
        return any(flow.lost_bytes for flow in self._flows.values())

    def close(self) -> None:
        """For a connection whose task was cancelled before it began; harmless otherwise."""
        self._client.close()

    async def run(self, upstream: tuple[str, int], *, handshake: bool) -> None:
        """Proxies until the end. Cancelling it resets both sides."""
        sockets = [self._client]
        graceful = False
        try:
            _tune(self._client)
            server = await _connect(*upstream)
            sockets.append(server)
            up = _Flow(self._lanes[Direction.UP], Direction.UP, self._client, server)
            down = _Flow(self._lanes[Direction.DOWN], Direction.DOWN, server, self._client)
            self._flows = {Direction.UP: up, Direction.DOWN: down}
            if handshake:  # SYN and SYN-ACK cross the link before the client's first byte may
                for lane in (up.lane, down.lane):
                    await lane.until(lane.now_s() + lane.shaper.shape.delay_s)
            async with asyncio.TaskGroup() as tasks:
                for flow, back in ((up, down), (down, up)):
                    tasks.create_task(self._take(flow))
                    tasks.create_task(self._deliver(flow, back))
            graceful = True
        except* (ConnectionBroken, OSError):
            pass
        finally:
            self.was_reset = not graceful
            for each in sockets:
                if not graceful:
                    _close_with_reset(each)
                each.close()

    async def _take(self, flow: _Flow) -> None:
        loop = asyncio.get_running_loop()
        lane = flow.lane
        while True:
            while flow.bytes_on_the_way > WINDOW_BYTES:
                await flow.wait_for_change()
            try:
                data: bytes | None = await loop.sock_recv(flow.source, lane.shaper.shape.slice_bytes)
            except OSError:
                data = None  # the sender was reset; that news takes as long as data does
            if data:
                lane.entered_bytes += len(data)
                if self._tap is not None:
                    self._tap(flow.direction, self.number, data)
            flow.put(await lane.admit(len(data or b"")), data)
            if not data:
                return

    async def _deliver(self, flow: _Flow, back: _Flow) -> None:
        loop = asyncio.get_running_loop()
        lane = flow.lane
        while True:
            while not flow.on_the_way:
                await flow.wait_for_change()
            await lane.until(flow.on_the_way[0][0])
            data = flow.pop()
            if lane.blackholed:
                flow.lost_bytes = True  # an end or a reset is lost like data
                continue
            if data is None:
                raise ConnectionBroken
            if not data:
                _shut_down_writing(flow.sink)
                return
            cut = lane.cut_after is not None and len(data) > lane.cut_after
            if lane.cut_after is not None:
                data = data[: lane.cut_after]
                lane.cut_after -= len(data)
            try:
                await loop.sock_sendall(flow.sink, data)
            except OSError:
                await self._report_back(back)
                return
            lane.delivered_bytes += len(data)
            if cut:
                lane.cut_after = None
                raise ConnectionBroken

    async def _report_back(self, back: _Flow) -> None:
        """The receiver is gone: the sender learns it one delay later, after what was already coming back to it."""
        arrival_s = await back.lane.admit(0)
        await back.lane.until(arrival_s)
        if back.lane.blackholed:
            back.lost_bytes = True
            return
        while back.on_the_way and back.on_the_way[0][0] <= arrival_s:
            await back.wait_for_change()
        raise ConnectionBroken


async def _connect(host: str, port: int) -> socket.socket:
    loop = asyncio.get_running_loop()
    family, kind, protocol, _, address = (await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM))[0]
    server = socket.socket(family, kind, protocol)
    try:
        server.setblocking(False)
        server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SOCKET_BUFFER_BYTES)  # before connect, or it is not used
        _tune(server)
        await loop.sock_connect(server, address)
    except BaseException:
        server.close()
        raise
    return server


def _tune(each: socket.socket) -> None:
    each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def _shut_down_writing(sink: socket.socket) -> None:
    try:
        sink.shutdown(socket.SHUT_WR)
    except OSError:
        pass  # the receiver has gone already


def _close_with_reset(each: socket.socket) -> None:
    try:
        each.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    except OSError:
        pass  # already closed by the other side
