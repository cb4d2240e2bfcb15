"""One engine worker as its gateway holds it: process, socket, shared memory, pulse. Used from one thread."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import Final

import zmq

from splitglm_cloud.engine.stats import EngineStats
from splitglm_cloud.execution import messages, pulse
from splitglm_cloud.execution.facts import EngineFacts, EngineSpec
from splitglm_cloud.execution.payloads import RING_BYTES, Memory, Reader, Writer
from splitglm_cloud.execution.roster import Order
from splitglm_core.errors import DeviceError, InternalError
from splitglm_wire.actions import Abort, Configure, Cut, Submit

log = logging.getLogger(__name__)

QUEUED_MESSAGES: Final = 10_000
"""In a socket, each way. A worker that has let so many commands pile up is as good as hung."""
REAP_S: Final = 2.0
SOCKET_NAME: Final = "worker"
SOCKET_OPTIONS: Final = (
    (zmq.LINGER, 0),
    (zmq.SNDHWM, QUEUED_MESSAGES),
    (zmq.RCVHWM, QUEUED_MESSAGES),
    (zmq.MAXMSGSIZE, messages.MAX_FRAME_BYTES),
)


class WorkerState(Enum):
    STARTING = "starting"
    READY = "ready"
    STOPPING = "stopping"
    ENDING = "ending"  # given up and killed, not gone yet
    DOWN = "down"  # waits for its next start


class Worker:
    """One incarnation of an engine worker. Made started; ``end`` and ``reap`` leave nothing of it behind.

    Raises:
        DeviceError: the system has no room for another process, socket or mapping.
    """

    def __init__(
        self,
        *,
        index: int,
        epoch: int,
        spec: EngineSpec,
        context: zmq.Context[zmq.Socket[bytes]],
        inline_bytes: int,
    ) -> None:
        self.index = index
        self.epoch = epoch
        self.state = WorkerState.STARTING
        self.why = ""  # it was given up, if it was
        self.started_s = time.monotonic()
        self.stats = EngineStats()
        self.facts: EngineFacts | None = None
        self.watchdog: pulse.Watchdog | None = None
        self._folder = private_folder()
        try:
            self._memory = Memory.create(RING_BYTES)
        except OSError as error:
            self.connected()
            raise DeviceError(f"no shared memory for an engine worker: {error.strerror}") from error
        self._writer, self._reader = Writer(self._memory.down, inline_bytes=inline_bytes), Reader(self._memory.up)
        self.socket = context.socket(zmq.PAIR)
        self.life, theirs = os.pipe()  # its other end is the worker's alone: it reads as ended when the worker has
        try:
            for option, value in SOCKET_OPTIONS:
                self.socket.setsockopt(option, value)
            address = f"ipc://{self._folder / SOCKET_NAME}"
            self.socket.bind(address)
            self.process = self._spawn(spec, address, theirs, inline_bytes)
        except (OSError, zmq.ZMQError) as error:
            os.close(self.life)
            self._close_channel()
            raise DeviceError(f"an engine worker cannot be started: {error}") from error
        finally:
            os.close(theirs)

    def _spawn(self, spec: EngineSpec, address: str, life_fd: int, inline_bytes: int) -> subprocess.Popen[bytes]:
        start = messages.Start(
            spec=spec,
            epoch=self.epoch,
            index=self.index,
            gateway_pid=os.getpid(),
            address=address,
            life_fd=life_fd,
            memory_fd=self._memory.fd,
            ring_bytes=RING_BYTES,
            inline_bytes=inline_bytes,
            log_level=logging.getLevelName(logging.getLogger().getEffectiveLevel()),
        )
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "splitglm_cloud.execution.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            pass_fds=(self._memory.fd, life_fd),
            start_new_session=True,  # Ctrl-C is the gateway's: its workers finish what they compute
        )
        if process.stdin is not None:  # stays open: its end tells the worker that the gateway is gone
            try:
                process.stdin.write(messages.encode_start(start))
                process.stdin.flush()
            except BrokenPipeError:
                pass  # it has ended already, which is noticed like any other death
        return process

    def obey(self, order: Order) -> bool:
        """Pass an order on. False when the worker has stopped taking messages."""
        session, action = order.session, order.action
        if isinstance(action, Submit):
            payload = action.step.payload
            at = self._writer.put(payload)
            submit = messages.submit_of(self.epoch, session, action.step, at)
            return self.send(submit, payload if at is None else None)
        if isinstance(action, Configure):
            return self.send(messages.ConfigureSession(self.epoch, session, action, order.owner))
        if isinstance(action, Abort):
            return self.send(messages.AbortStep(self.epoch, session, action.seq))
        if isinstance(action, Cut):
            return self.send(messages.CutSession(self.epoch, session, action.length))
        return self.send(messages.DropSession(self.epoch, session))

    def send(self, message: messages.Command, payload: bytes | memoryview | None = None) -> bool:
        """False when the worker has stopped taking messages."""
        frames: list[bytes | memoryview] = [messages.encode(message)]
        if payload is not None:
            frames.append(payload)
        try:
            self.socket.send_multipart(frames, zmq.NOBLOCK)
        except zmq.Again:
            return False
        return True

    def reports(self) -> Iterator[tuple[messages.Report, bytes]]:
        """What has arrived, with its payload.

        Raises:
            InternalError: it is not what a worker says.
        """
        while True:
            try:
                frames = self.socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            report = messages.decode_report(frames[0])
            if report.epoch != self.epoch:
                continue
            if isinstance(report, messages.Freed):
                self._writer.freed(report.position)
            elif isinstance(report, messages.OutputOf):
                yield report, self._payload(report, frames)
            else:
                yield report, b""

    def _payload(self, report: messages.OutputOf, frames: list[bytes]) -> bytes:
        if report.at is None:
            payload = frames[1] if len(frames) == 2 else b""
        else:
            payload = self._reader.take(report.at, report.size)
            told = self._reader.to_tell()
            if told is not None:
                self.send(messages.Freed(self.epoch, told))
        if len(payload) != report.size:
            raise InternalError("an output's payload has another size than announced")
        return payload

    def connected(self) -> None:
        """The worker has found the socket: nobody else needs its name, and a killed gateway cannot leave it behind."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def ready(self, facts: EngineFacts, watchdog_s: float) -> None:
        self.facts = facts
        self.state = WorkerState.READY
        self.watchdog = pulse.Watchdog(least_s=watchdog_s, expected_s=facts.batch_s)

    def hangs(self, now_s: float, *, working: bool) -> bool:
        """True when its compute loop has stood still for too long."""
        if self.watchdog is None or self.state is not WorkerState.READY:
            return False
        cells = self._memory.pulse
        return self.watchdog.hangs(now_s, beats=pulse.beats(cells), p99_s=pulse.p99_s(cells), working=working)

    def stop(self) -> None:
        """Ask it to finish its batch and end."""
        if self.state is WorkerState.READY and self.send(messages.Stop(self.epoch)):
            self.state = WorkerState.STOPPING
        elif self.state is not WorkerState.ENDING:
            self.end()

    def end(self, why: str = "") -> None:
        """Give it up: kill it, hear nothing more of it."""
        if self.state is not WorkerState.ENDING:
            self.why = why
            self.state = WorkerState.ENDING
            self.process.kill()
            self._close_channel()

    def reap(self) -> str:
        """It is dead or dying, or has said its last word after ``stop``: collect it. Says how it ended."""
        code: int | None = None
        if self.process.stdin is not None:
            try:
                self.process.stdin.close()
            except BrokenPipeError:
                pass
        try:
            if self.state is WorkerState.STOPPING:
                code = self.process.wait(REAP_S)
        except subprocess.TimeoutExpired:
            pass
        self.end()
        os.close(self.life)
        try:
            return ending(self.process.wait(REAP_S) if code is None else code)
        except subprocess.TimeoutExpired:  # its files are closed, so it holds neither memory nor sessions any more
            log.error("an engine worker does not go away", extra={"pid": self.process.pid})
            return "did not go away"

    def _close_channel(self) -> None:
        if not self.socket.closed:
            self.socket.close(linger=0)
            self._memory.close()
            self.connected()


def ending(code: int) -> str:
    """A process's return code in words."""
    if code < 0:
        try:
            return f"ended by {signal.Signals(-code).name}"
        except ValueError:
            return f"ended by signal {-code}"
    return f"ended with code {code}"


def private_folder() -> Path:
    """A new folder that only this user may enter, with room for a socket's name.

    Raises:
        DeviceError: the system's folder for such things has too long a name for a socket in it.
    """
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    folder = Path(tempfile.mkdtemp(prefix="splitglm-", dir=runtime if runtime and Path(runtime).is_dir() else None))
    if len(os.fsencode(folder / SOCKET_NAME)) > zmq.IPC_PATH_MAX_LEN:
        folder.rmdir()
        raise DeviceError(f"{folder} is too long a name for a socket", "set TMPDIR to a shorter folder")
    return folder
