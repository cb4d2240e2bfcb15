"""A device and a cloud joined by two queues of bytes: no sockets, no time, every message boundary can be cut."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Sequence

import integer_model as model
from session_ends import Driver, Held, Host, Turn

from splitglm_wire import framing
from splitglm_wire.frames import ErrorCode, Frame

CHAT = (
    Turn(keep=0, says=(11, 12, 13, 14, 15, 16, 17, 18), max_tokens=4),
    Turn(keep=100, says=(21, 22, 23), max_tokens=3),
    Turn(keep=5, says=(31, 32), max_tokens=3),
)


class Pair:
    """One conversation. ``pump`` moves one message or computes one part; ``run`` does until nothing moves."""

    def __init__(
        self,
        arm: str,
        turns: Sequence[Turn] = CHAT,
        *,
        seed: int = 5,
        chunk: int = 3,
        window: int = 4,
        order: str = "udw",
    ) -> None:
        numbers = itertools.count(1)
        self.driver = Driver(
            plan=model.PLANS[arm],
            turns=turns,
            seed=seed,
            ids=lambda: next(numbers).to_bytes(16, "big"),
            chunk=chunk,
            window=window,
        )
        self.host = Host(self._to_device)
        self.up: deque[bytes] = deque()
        self.down: deque[bytes] = deque()
        self.ups = self.downs = self.moves = 0
        self.log: list[Frame] = []
        self.fail_at: dict[int, ErrorCode] = {}  # count of parts computed -> how that part fails
        self.parts = 0
        self.up_limit = self.down_limit = 1 << 30  # messages that still pass in each direction
        self.hosts = [self.host]
        self._order = order
        self._handles = itertools.count(1)
        self.stream = 0
        self._connect()
        self._send(self.driver.start(next(self._handles)))

    @property
    def held(self) -> Held:
        return self.host.sessions[self.driver.machine.session_id]

    def cut(self, to: Host | None = None) -> None:
        """The stream dies; what is under way is lost. The device comes back on a new one, maybe to another host."""
        self.host.detach(self.stream)
        if to is not None and not self.driver.done:
            self.host = to
        self.up.clear()
        self.down.clear()
        self.up_limit = self.down_limit = 1 << 30
        self.driver.broke()
        self._connect()
        if not self.driver.done:
            self._send(self.driver.reattach(next(self._handles)))

    def new_host(self) -> Host:
        """A cloud that knows nothing."""
        self.hosts.append(Host(self._to_device))
        return self.hosts[-1]

    def pump(self) -> bool:
        """One move; which kind comes first is the order's choice."""
        for kind in self._order:
            if kind == "u" and self.up and self.ups < self.up_limit:
                self.ups += 1
                self.host.receive(self.stream, framing.decode(self.up.popleft()))
            elif kind == "d" and self.down and self.downs < self.down_limit:
                self.downs += 1
                self._send(self.driver.receive(framing.decode(self.down.popleft())))
            elif kind == "w" and self.host.busy():
                self.parts += 1
                self.host.work(self.host.busy()[0], self.fail_at.get(self.parts))
            else:
                continue
            self.moves += 1
            return True
        return False

    def run(self, until: Callable[[Pair], bool] = lambda pair: False, limit: int = 5000) -> None:
        for _ in range(limit):
            if until(self) or not self.pump():
                return
        raise AssertionError("no end in sight")

    def advance(self, moves: int) -> None:
        """Run until so many moves were made, or to the end."""
        self.run(until=lambda pair: pair.moves >= moves or pair.driver.done)

    def finish(self) -> None:
        """Run to the end: every turn answered in full, both sides agree about what is cached."""
        self.run()
        assert self.driver.done, f"stuck in {self.driver.machine.state}"
        assert self.driver.machine.idle
        self.host.check_quiet()
        assert self.held.session.kv_length == self.driver.machine.confirmed
        assert self.host.engine.slots[self.held.key].kv == model.states(self.driver.line)

    def _connect(self) -> None:
        self.stream += 1
        self.host.attach(self.stream)

    def _send(self, frames: Sequence[Frame]) -> None:
        self.log += frames
        self.up.extend(framing.encode(frame) for frame in frames)

    def _to_device(self, stream: int, frame: Frame) -> None:
        if stream == self.stream:
            self.log.append(frame)
            self.down.append(framing.encode(frame))
