"""The engine in one thread of this process.

Commands are queued in order and applied between batches; events come back through ``emit`` on the executor's thread.
"""

from __future__ import annotations

import logging
import math
import queue
import threading
import time
from collections.abc import Callable, Sequence
from typing import Final

from splitglm_cloud.engine.engine import Engine
from splitglm_cloud.engine.events import Emit, Owner
from splitglm_cloud.engine.stats import EngineStats
from splitglm_cloud.execution.seats import WorkerFacts
from splitglm_wire.cloud import Configure
from splitglm_wire.frames import Step

log = logging.getLogger(__name__)

STATS_PERIOD_S: Final = 0.05
PARKED_PERIOD_S: Final = 0.1
"""How often steps that wait for memory are tried again while nothing else happens."""
COMMANDS_S: Final = 0.01
"""What commands may take between two batches: whoever sends many costly ones does not hold up the others' steps."""


class InlineExecutor:
    """The engine in one thread of this process.

    Args:
        build: makes an engine, given the function that receives its events; called again if an engine breaks.
        emit: receives (session, event) on the executor's thread.
        on_lost: receives the sessions of a broken engine; nothing of what they held is left.
    """

    def __init__(self, build: Callable[[Emit], Engine], emit: Emit, on_lost: Callable[[Sequence[int]], None]) -> None:
        self._build = build
        self._emit = emit
        self._on_lost = on_lost
        self._engine = build(emit)
        self._stats = self._engine.stats()
        self._stats_s = 0.0
        self._told = True  # the statistics are of the last batch
        self._commands: queue.SimpleQueue[Callable[[Engine], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._loop, name="splitglm-engine", daemon=True)

    @property
    def ready(self) -> bool:
        return self._thread.is_alive()

    def stats(self) -> EngineStats:
        return self._stats

    def workers(self) -> tuple[WorkerFacts, ...]:
        return ()

    def start(self) -> None:
        self._thread.start()

    def stop(self, timeout_s: float) -> bool:
        self._commands.put(None)
        if self._thread.is_alive():
            self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def configure(self, session: int, config: Configure, owner: Owner) -> None:
        self._commands.put(lambda engine: engine.configure(session, config, owner))

    def submit(self, session: int, step: Step) -> None:
        self._commands.put(lambda engine: engine.submit(session, step))

    def abort(self, session: int, seq: int) -> None:
        self._commands.put(lambda engine: engine.abort(session, seq))

    def cut(self, session: int, length: int) -> None:
        self._commands.put(lambda engine: engine.cut(session, length))

    def drop(self, session: int) -> None:
        self._commands.put(lambda engine: engine.drop(session))

    def _loop(self) -> None:
        more = False
        while self._obey(wait=not more):
            more = self._turn()

    def _obey(self, *, wait: bool) -> bool:
        """Carry out the commands that have come; False after the last there will be.

        Args:
            wait: with nothing to compute, sleep until a command comes.
        """
        until_s = math.inf
        timeout_s = PARKED_PERIOD_S if self._engine.parked else None
        if wait and not self._told:
            timeout_s = STATS_PERIOD_S
        while time.monotonic() < until_s:
            try:
                command = self._commands.get(block=wait, timeout=timeout_s if wait else None)
            except queue.Empty:
                break
            if until_s == math.inf:
                wait, until_s = False, time.monotonic() + COMMANDS_S
            if command is None:
                self._engine.close()
                self._stats = self._engine.stats()
                return False
            try:
                command(self._engine)
            except Exception:
                log.exception("an engine command failed")
                self._replace()
        return True

    def _turn(self) -> bool:
        try:
            more = self._engine.turn()
            now_s = time.monotonic()
            # With one device the engine falls idle after every token: then this can wait until it stays idle.
            self._told = now_s - self._stats_s >= STATS_PERIOD_S
            if self._told:
                self._stats, self._stats_s = self._engine.stats(), now_s
            return more
        except Exception:
            log.exception("the engine's loop failed")
            self._replace()
            return True

    def _replace(self) -> None:
        """What a broken engine's tables say is not to be trusted: begin anew, its sessions are rebuilt."""
        lost = self._engine.session_keys()
        try:
            self._engine.close()
        except Exception:
            log.exception("a broken engine could not be closed")
        self._engine = self._build(self._emit)
        self._on_lost(lost)
