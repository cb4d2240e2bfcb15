"""The engine in one thread of this process.

Commands are queued in order and applied between batches; events come back through ``emit`` on the executor's thread.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable

from splitglm_cloud.engine.engine import Engine
from splitglm_cloud.engine.events import Emit, Owner
from splitglm_wire.cloud import Configure
from splitglm_wire.frames import Step

log = logging.getLogger(__name__)


class InlineExecutor:
    """The engine in one thread of this process.

    Args:
        build: makes the engine, given the function that receives its outputs; called in the caller's thread.
        emit: receives (session, output) on the executor's thread.
    """

    def __init__(self, build: Callable[[Emit], Engine], emit: Emit) -> None:
        self._engine = build(emit)
        self._commands: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._loop, name="splitglm-engine", daemon=True)

    @property
    def waiting(self) -> int:
        return self._engine.waiting

    @property
    def sessions(self) -> int:
        return self._engine.sessions

    def start(self) -> None:
        self._thread.start()

    def stop(self, timeout_s: float) -> bool:
        self._commands.put(None)
        if self._thread.is_alive():
            self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def configure(self, session: int, config: Configure, owner: Owner) -> None:
        self._commands.put(lambda: self._engine.configure(session, config, owner))

    def submit(self, session: int, step: Step) -> None:
        self._commands.put(lambda: self._engine.submit(session, step))

    def abort(self, session: int, seq: int) -> None:
        self._commands.put(lambda: self._engine.abort(session, seq))

    def cut(self, session: int, length: int) -> None:
        self._commands.put(lambda: self._engine.cut(session, length))

    def drop(self, session: int) -> None:
        self._commands.put(lambda: self._engine.drop(session))

    def kv_bytes(self, session: int) -> int:
        return self._engine.kv_bytes(session)

    def _loop(self) -> None:
        busy = False
        while True:
            try:
                # Between batches take what is there; with nothing to do, sleep until a command comes.
                command = self._commands.get(block=not busy)
            except queue.Empty:
                busy = self._turn()
                continue
            if command is None:
                self._engine.close()
                return
            try:
                command()
            except Exception:
                log.exception("an engine command failed")
            busy = True

    def _turn(self) -> bool:
        try:
            return self._engine.turn()
        except Exception:
            log.exception("the engine's loop failed")
            return False
