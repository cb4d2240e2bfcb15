"""A seeded world of devices, streams and clouds in virtual time around the real session machines.

Frames travel as bytes, in order within a stream. Until ``HEALED_S`` the world breaks things: streams end at one end
first or turn into black holes, their frames arrive late, frames of dead streams come again, clouds crash and come
back empty, idle sessions are forgotten, sessions lose their positions, devices go to another cloud and back, steps
fail, steps are slow, clouds are busy and refuse what is asked, replies are cancelled. ``Driver`` and ``Host`` assert
safety at every step; afterwards every conversation must end (liveness).
"""

from __future__ import annotations

import heapq
import itertools
import random
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import integer_model as model
from session_ends import Driver, Held, Host, Turn

from splitglm_wire import framing
from splitglm_wire.device import State
from splitglm_wire.frames import ErrorCode, Frame

HEALED_S = 12.0
PATIENCE_S = 2.0
END_S = 90.0
FAULTS = ("cut", "cut", "device first", "host first", "black hole", "crash", "forget", "echo", "echo", "evict", "roam")


@dataclass(slots=True, eq=False)
class Stream:
    ident: int
    device: Device
    host: Host
    at_device: bool = True  # the device's end is alive
    at_host: bool = True
    black: bool = False
    up_s: float = 0.0  # when the newest frame of each direction arrives
    down_s: float = 0.0
    handles: dict[int, Driver] = field(default_factory=dict)
    next_handle: int = 1
    heard_s: float = 0.0


@dataclass(slots=True, eq=False)
class Device:
    drivers: list[Driver]
    cloud: int
    stream: Stream | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    events: int
    digest: int
    rebuilds: int
    reconnects: int
    refusals: int
    retried: int


class World:
    def __init__(self, seed: int) -> None:
        self.rng = rng = random.Random(seed)
        self.now_s = 0.0
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._count = itertools.count()
        self._idents = itertools.count(1)
        self._streams: dict[int, Stream] = {}
        self._seen: list[tuple[bytes, Frame]] = []  # session and frame, for echoes
        self._working: set[tuple[int, int]] = set()
        self._digest = 0
        self.reconnects = 0
        self._failed = self._forgot = False  # so far: a step failed; a cloud was without a session it once had
        self._delay_s = rng.choice((0.002, 0.02, 0.1))
        self._slow = rng.choice((0.0, 0.02, 0.1))
        self._fail = rng.choice((0.0, 0.0, 0.03, 0.1))
        self._busy = rng.choice((0.0, 0.0, 0.05, 0.3))
        self.hosts = [Host(self._from_host, self._is_busy), Host(self._from_host, self._is_busy)]
        self._down_until_s = [0.0, 0.0]
        self.devices = [self._device() for _ in range(rng.randint(1, 2))]
        for device in self.devices:
            self._at(rng.uniform(0, 0.2), lambda device=device: self._connect(device))
            self._at(1.0, lambda device=device: self._watch(device))
        for _ in range(rng.randint(0, 9)):
            self._at(rng.uniform(0, HEALED_S) * rng.random(), self._fault)

    def run(self) -> Outcome:
        events = 0
        while self._heap:
            self.now_s, _, happen = heapq.heappop(self._heap)
            assert self.now_s < END_S, "liveness: conversations did not end"
            events += 1
            happen()
        drivers = [driver for device in self.devices for driver in device.drivers]
        assert all(driver.done and driver.machine.idle for driver in drivers), "liveness: a conversation stopped"
        for host in self.hosts:
            host.check_quiet()
        rebuilds = sum(driver.rebuilds for driver in drivers)
        refusals = sum(driver.refusals for driver in drivers)
        assert self._failed or not refusals, "no step failed, yet one was refused"
        assert self._failed or self._forgot or not rebuilds, "nothing was forgotten, yet something was rebuilt"
        retried = sum(driver.retried for driver in drivers)
        return Outcome(events, self._digest, rebuilds, self.reconnects, refusals, retried)

    def _device(self) -> Device:
        rng = self.rng

        def ids() -> bytes:
            return rng.randbytes(16)

        drivers = []
        for _ in range(rng.choice((1, 2, 2))):
            turns = [
                Turn(
                    keep=rng.choice((0, rng.randrange(20), 100)),
                    says=tuple(rng.randrange(model.VOCAB) for _ in range(rng.randint(1, 7))),
                    max_tokens=rng.randint(1, 6),
                    cancel_after=rng.choice((None, None, rng.randint(1, 6))),
                )
                for _ in range(rng.randint(1, 3))
            ]
            plan = model.PLANS[rng.choice(tuple(model.PLANS))]
            seed, chunk, window = rng.randrange(1000), rng.randint(1, 4), rng.randint(1, 5)
            retries = rng.random() < 0.7
            drivers.append(
                Driver(plan=plan, turns=turns, seed=seed, ids=ids, chunk=chunk, window=window, retries=retries)
            )
        return Device(drivers, rng.randrange(2))

    def _at(self, delay_s: float, happen: Callable[[], None]) -> None:
        heapq.heappush(self._heap, (self.now_s + delay_s, next(self._count), happen))

    @property
    def _healed(self) -> bool:
        return self.now_s >= HEALED_S

    # Streams

    def _connect(self, device: Device) -> None:
        if all(driver.done for driver in device.drivers):
            return
        if self._down_until_s[device.cloud] > self.now_s:
            self._at(0.3, lambda: self._connect(device))
            return
        stream = Stream(next(self._idents), device, self.hosts[device.cloud], heard_s=self.now_s)
        device.stream = self._streams[stream.ident] = stream
        stream.host.attach(stream.ident)
        for driver in self.rng.sample(device.drivers, len(device.drivers)):
            self._begin(stream, driver)

    def _begin(self, stream: Stream, driver: Driver) -> None:
        """Open or re-open a conversation under the next handle of the stream."""
        if driver.done and driver.replies:
            return
        handle, stream.next_handle = stream.next_handle, stream.next_handle + 1
        stream.handles[handle] = driver
        self._up(stream, driver.reattach(handle) if driver.replies else driver.start(handle))

    def _up(self, stream: Stream, frames: Sequence[Frame]) -> None:
        for frame in frames:
            data = framing.encode(frame)
            stream.up_s = max(stream.up_s, self.now_s) + self._delay_s * self.rng.random()
            self._at(stream.up_s - self.now_s, lambda data=data: self._arrive_up(stream, data))

    def _arrive_up(self, stream: Stream, data: bytes) -> None:
        if stream.black or not stream.at_host:
            return
        frame = framing.decode(data)
        self._note(b"up", stream.ident, data)
        driver = stream.handles.get(frame.handle)
        if driver is not None and len(self._seen) < 400:
            self._seen.append((driver.machine.session_id, frame))
        stream.host.receive(stream.ident, frame)
        self._kick(stream.host)

    def _from_host(self, ident: int, frame: Frame) -> None:
        stream = self._streams[ident]
        data = framing.encode(frame)
        stream.down_s = max(stream.down_s, self.now_s) + self._delay_s * self.rng.random()
        self._at(stream.down_s - self.now_s, lambda: self._arrive_down(stream, data))

    def _arrive_down(self, stream: Stream, data: bytes) -> None:
        if stream.black:
            return
        frame = framing.decode(data)
        self._note(b"down", stream.ident, data)
        driver = stream.handles.get(frame.handle)
        if driver is None:
            return
        frames = driver.receive(frame)
        if not stream.at_device:
            assert not frames, "I2: a dead stream was heard"
            return
        stream.heard_s = self.now_s
        self._up(stream, frames)
        if not driver.done and driver.machine.state in (State.BROKEN, State.CLOSED):
            # Refused as a whole on a living stream: try again there.
            del stream.handles[frame.handle]
            self._at(0.2, lambda: self._begin(stream, driver) if stream.at_device else None)

    def _lose(self, stream: Stream) -> None:
        """The device notices that its stream is gone."""
        if not stream.at_device:
            return
        stream.at_device = False
        self.reconnects += 1
        for driver in stream.device.drivers:
            driver.broke()
        self._at(self.rng.uniform(0.01, 0.3), lambda: self._connect(stream.device))

    def _end(self, stream: Stream) -> None:
        """The host notices."""
        if stream.at_host:
            stream.at_host = False
            stream.host.detach(stream.ident)

    def _watch(self, device: Device) -> None:
        if all(driver.done for driver in device.drivers):
            return
        stream = device.stream
        if stream is not None and stream.at_device and self.now_s - stream.heard_s > PATIENCE_S:
            self._lose(stream)
            self._at(self.rng.uniform(0, 3), lambda: self._end(stream))
        self._at(0.5, lambda: self._watch(device))

    # Compute

    def _kick(self, host: Host) -> None:
        for held in host.busy():
            if (id(host), held.key) not in self._working:
                self._working.add((id(host), held.key))
                slow = not self._healed and self.rng.random() < self._slow
                delay_s = self.rng.uniform(0.5, 4.0) if slow else self.rng.uniform(0.001, 0.03)
                self._at(delay_s, lambda held=held: self._work(host, held))

    def _work(self, host: Host, held: Held) -> None:
        self._working.discard((id(host), held.key))
        if host not in self.hosts:
            return
        fails = not self._healed and self.rng.random() < self._fail
        self._failed = self._failed or fails
        host.work(held, self.rng.choice((ErrorCode.INTERNAL, ErrorCode.OVERLOADED)) if fails else None)
        self._kick(host)

    def _is_busy(self) -> bool:
        busy = not self._healed and self.rng.random() < self._busy
        self._failed = self._failed or busy
        return busy

    # Faults

    def _fault(self) -> None:
        rng, kind = self.rng, self.rng.choice(FAULTS)
        device = rng.choice(self.devices)
        stream = device.stream
        if kind == "crash":
            self._crash(rng.randrange(2))
        elif kind == "forget":
            host = rng.choice(self.hosts)
            idle = [held for held in host.sessions.values() if held.stream is None and not held.session.busy]
            if idle:
                self._forgot = True
                host.forget(rng.choice(idle))
        elif kind == "echo":
            self._echo()
        elif kind == "evict":
            self._evict()
        elif stream is None or not stream.at_device:
            return
        elif kind == "black hole":
            stream.black = True
            self._at(rng.uniform(0, 6), lambda: self._end(stream))
        elif kind == "device first":
            self._lose(stream)
            self._at(rng.uniform(0, 4), lambda: self._end(stream))
        elif kind == "host first":
            self._end(stream)
            self._at(rng.uniform(0, 2), lambda: self._lose(stream))
        else:
            if kind == "roam":
                device.cloud = 1 - device.cloud
                self._forgot = True
            self._end(stream)
            self._lose(stream)

    def _evict(self) -> None:
        """A session's keys and values are gone, whether it is idle or at work."""
        host = self.rng.choice(self.hosts)
        if host.sessions:
            held = self.rng.choice(list(host.sessions.values()))
            self._forgot, self._failed = True, self._failed or held.session.busy
            host.evict(held)

    def _crash(self, cloud: int) -> None:
        self._forgot = True
        host = self.hosts[cloud]
        self.hosts[cloud] = Host(self._from_host, self._is_busy)
        self._down_until_s[cloud] = self.now_s + self.rng.uniform(0, 2)
        for stream in self._streams.values():
            if stream.host is host:
                stream.at_host = False
                self._at(self.rng.uniform(0, 1), lambda stream=stream: self._lose(stream))

    def _echo(self) -> None:
        """Frames of streams that no longer count reach their session once more, on every host that knows it."""
        for session_id, frame in self.rng.sample(self._seen, min(8, len(self._seen))):
            for host in self.hosts:
                held = host.sessions.get(session_id)
                if held is not None and getattr(frame, "fence", 0) < held.session.newest_fence:
                    host.echo(held, frame)
                    self._kick(host)

    def _note(self, kind: bytes, ident: int, data: bytes) -> None:
        self._digest = zlib.crc32(b"%s %d %.6f " % (kind, ident, self.now_s) + data, self._digest)
