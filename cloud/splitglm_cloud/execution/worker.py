"""An engine worker: ``python -m splitglm_cloud.execution.worker``, started by a gateway and by nobody else.

It reads what to build from standard input, connects to the gateway's socket, and then one thread computes, hears and
answers. It dies with its gateway, whatever either of them is doing.
"""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import sys
import threading
import time
from typing import Final

import zmq

from splitglm_cloud.engine.engine import Engine
from splitglm_cloud.engine.events import Event
from splitglm_cloud.execution import messages
from splitglm_cloud.execution.building import build
from splitglm_cloud.execution.inline import COMMANDS_S, PARKED_PERIOD_S
from splitglm_cloud.execution.payloads import Memory, Reader, Writer
from splitglm_cloud.execution.pulse import Pulse
from splitglm_cloud.execution.workers import SOCKET_OPTIONS
from splitglm_cloud.logs import configure_logs
from splitglm_core.errors import InternalError, SplitGlmError
from splitglm_wire.actions import Output

log = logging.getLogger(__name__)

IDLE_BEAT_S: Final = 0.2
STATS_PERIOD_S: Final = 0.05
_PR_SET_PDEATHSIG: Final = 1


class Channel:
    """The worker's end of its socket and of the shared memory."""

    def __init__(self, start: messages.Start, socket: zmq.Socket[bytes], memory: Memory) -> None:
        self.epoch = start.epoch
        self._socket = socket
        self._reader = Reader(memory.down)
        self._writer = Writer(memory.up, inline_bytes=start.inline_bytes)

    def send(self, report: messages.Report, payload: bytes | None = None) -> None:
        """Waits when the gateway does not keep up: then it computes no more than it can tell."""
        frames = [messages.encode(report)]
        if payload is not None:
            frames.append(payload)
        self._socket.send_multipart(frames)

    def emit(self, session: int, event: Event) -> None:
        payload = event.payload if isinstance(event, Output) else b""
        at = self._writer.put(payload)
        inline = payload if payload and at is None else None
        self.send(messages.report_of(self.epoch, session, event, at), inline)

    def receive(self, wait_s: float) -> tuple[messages.Command, bytes] | None:
        """The next command and its payload; None when there is none within ``wait_s``."""
        while True:
            try:
                frames = self._socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                if wait_s <= 0 or not self._socket.poll(int(1000 * wait_s)):
                    return None
                continue
            command = messages.decode_command(frames[0])
            if command.epoch != self.epoch:
                continue
            if isinstance(command, messages.Freed):
                self._writer.freed(command.position)
                continue
            return command, self._payload(command, frames)

    def _payload(self, command: messages.Command, frames: list[bytes]) -> bytes:
        if not isinstance(command, messages.SubmitStep):
            return b""
        if command.at is None:
            payload = frames[1] if len(frames) == 2 else b""
        else:
            payload = self._reader.take(command.at, command.size)
            told = self._reader.to_tell()
            if told is not None:
                self.send(messages.Freed(self.epoch, told))
        if len(payload) != command.size:
            raise InternalError("a step's payload has another size than announced")
        return payload


class Loop:
    """Hear, compute, answer, beat; until told to stop."""

    def __init__(self, engine: Engine, channel: Channel, pulse: Pulse) -> None:
        self._engine = engine
        self._channel = channel
        self._pulse = pulse
        self._changed = True  # since the figures were told
        self._told_s = 0.0

    def run(self) -> None:
        computing = False
        while True:
            heard = self._channel.receive(0.0 if computing else self._rest_s())
            until_s = time.monotonic() + COMMANDS_S
            while heard is not None:
                command, payload = heard
                if isinstance(command, messages.Stop):
                    self._engine.close()
                    self._tell_stats()
                    return
                self._obey(command, payload)
                heard = self._channel.receive(0.0) if time.monotonic() < until_s else None
            started_s = time.monotonic()
            computing = self._engine.turn()
            now_s = time.monotonic()
            if computing:
                self._changed = True
                self._pulse.batch(now_s - started_s)
            self._pulse.beat()
            if self._changed and now_s - self._told_s >= STATS_PERIOD_S:
                self._tell_stats()

    def _rest_s(self) -> float:
        """How long there is nothing to do without a command."""
        rest_s = PARKED_PERIOD_S if self._engine.parked else IDLE_BEAT_S
        if not self._changed:
            return rest_s
        return min(rest_s, max(0.001, self._told_s + STATS_PERIOD_S - time.monotonic()))

    def _obey(self, command: messages.Command, payload: bytes) -> None:
        self._changed = True
        if isinstance(command, messages.SubmitStep):
            self._engine.submit(command.session, messages.step_of(command, payload))
        elif isinstance(command, messages.ConfigureSession):
            self._engine.configure(command.session, command.config, command.owner)
        elif isinstance(command, messages.AbortStep):
            self._engine.abort(command.session, command.seq)
        elif isinstance(command, messages.CutSession):
            self._engine.cut(command.session, command.length)
        elif isinstance(command, messages.DropSession):
            self._engine.drop(command.session)

    def _tell_stats(self) -> None:
        self._channel.send(messages.StatsOf(self._channel.epoch, self._engine.stats()))
        self._changed, self._told_s = False, time.monotonic()


def die_with_gateway(gateway_pid: int) -> None:
    """However the gateway ends, this process ends: at once by the kernel where it can, else when its pipe closes."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    if os.getppid() != gateway_pid:  # it ended before the kernel knew
        os._exit(0)
    threading.Thread(target=_exit_at_end_of_input, name="splitglm-gateway-watch", daemon=True).start()


def _exit_at_end_of_input() -> None:
    while os.read(0, 1):
        pass
    os._exit(0)


def serve(start: messages.Start, socket: zmq.Socket[bytes]) -> None:
    """Build and run until told to stop. What keeps the engine from being built is told to the gateway."""
    memory = Memory(start.memory_fd, start.ring_bytes)
    channel = Channel(start, socket, memory)
    channel.send(messages.Hello(start.epoch))
    try:
        built = build(start.spec, lambda part, done, total: channel.send(_progress(start.epoch, part, done, total)))
        engine = built.make_engine(channel.emit)
    except Exception as error:
        known = error if isinstance(error, SplitGlmError) else InternalError("the engine cannot be built")
        if known is not error:
            log.exception("the engine cannot be built")
        channel.send(messages.fatal_of(start.epoch, known))
        return
    channel.send(messages.Ready(start.epoch, built.facts))
    log.info("an engine worker is ready", extra={"worker": start.index, "runner": built.facts.runner})
    Loop(engine, channel, Pulse(memory.pulse)).run()
    channel.send(messages.Stopped(start.epoch))


def _progress(epoch: int, part: str, done: int, total: int) -> messages.Progress:
    return messages.Progress(epoch, part[:200], done, total)


def main() -> int:
    # Signals to a whole group are for the gateway: it lets running batches end and then says stop.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    with open(0, "rb", buffering=0, closefd=False) as standard_input:
        start = messages.decode_start(standard_input.readline(messages.MAX_START_BYTES))
    for fd in (start.memory_fd, start.life_fd):
        os.set_inheritable(fd, False)
    die_with_gateway(start.gateway_pid)
    configure_logs(start.log_level)
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    socket = context.socket(zmq.PAIR)
    for option, value in SOCKET_OPTIONS:
        socket.setsockopt(option, value)
    socket.connect(start.address)
    try:
        serve(start, socket)
    except BaseException:
        log.exception("an engine worker failed")
        os._exit(70)  # whatever is broken need not be taken down in order
    threading.Event().wait()  # the last word is on its way: the gateway closes our standard input when it has heard it
    return 0


if __name__ == "__main__":
    sys.exit(main())
