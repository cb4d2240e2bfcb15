"""The engine in worker processes: a crash or a hang ends a worker, never the gateway nor anybody's stream.

One thread talks to all workers, over ZeroMQ sockets in private folders and shared memory; nothing listens on a network.
"""

from __future__ import annotations

import logging
import os
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace

from splitglm_cloud.engine.events import Emit, Owner
from splitglm_cloud.engine.stats import EngineStats
from splitglm_cloud.execution import messages
from splitglm_cloud.execution.facts import EngineFacts, EngineSpec
from splitglm_cloud.execution.payloads import INLINE_BYTES
from splitglm_cloud.execution.roster import Order
from splitglm_cloud.execution.seats import Supervision, WorkerFacts
from splitglm_cloud.execution.supervisor import Supervisor
from splitglm_core.errors import DeviceError, InternalError, SplitGlmError
from splitglm_wire.actions import Abort, Configure, Cut, Drop, Submit
from splitglm_wire.frames import Step

log = logging.getLogger(__name__)


class ProcessExecutor:
    """Engines in processes of their own.

    Args:
        spec: of all workers together: they share its memory for keys and values, and this machine's processors.
        emit: receives (session, event) on the executor's thread.
        on_lost: on the same thread, sessions whose worker died or was killed. Nothing more comes from it for them, and
            what was ordered for them before they are configured again has no effect.
        workers: processes; every session lives in one of them.
        inline_bytes: larger payloads go through shared memory.
    """

    def __init__(
        self,
        spec: EngineSpec,
        emit: Emit,
        on_lost: Callable[[Sequence[int]], None],
        *,
        workers: int = 1,
        supervision: Supervision | None = None,
        inline_bytes: int = INLINE_BYTES,
    ) -> None:
        if os.name != "posix":
            raise DeviceError("engine workers need a POSIX system", "use the inline executor")
        if workers < 1:
            raise InternalError("an executor without workers")
        self._spec = share_of(spec, workers)
        self._workers = workers
        self._emit = emit
        self._on_lost = on_lost
        self._supervision = supervision or Supervision()
        self._inline_bytes = inline_bytes
        self._orders: deque[Order] = deque()
        self._woken = False
        self._stop_by_s: float | None = None
        self._in_time = True
        self._news: queue.SimpleQueue[messages.Progress | EngineFacts | SplitGlmError] = queue.SimpleQueue()
        self._facts: EngineFacts | None = None
        self._supervisor: Supervisor | None = None
        self._wake_fd = -1
        self._wake_lock = threading.Lock()  # the descriptor is not closed, and its number taken, under a writer's hands
        self._thread = threading.Thread(target=self._run, name="splitglm-workers", daemon=True)

    @property
    def facts(self) -> EngineFacts:
        """What the workers serve; known once ``start`` has returned."""
        if self._facts is None:
            raise InternalError("the workers have not been started")
        return self._facts

    @property
    def ready(self) -> bool:
        """True while at least one worker can take work."""
        return self._supervisor is not None and self._supervisor.ready

    def start(self, progress: Callable[[str, int, int], None] | None = None) -> None:
        """Returns when every worker is ready.

        Args:
            progress: called with (part, parts done, parts in all) while graphs are checked or built.

        Raises:
            SplitGlmError: what kept a worker from starting; none is left then.
        """
        self._thread.start()
        try:
            while self._facts is None:
                news = self._news.get()
                if isinstance(news, SplitGlmError):
                    raise news
                if isinstance(news, EngineFacts):
                    self._facts = news
                elif progress is not None:
                    progress(news.part, news.done, news.total)
        except BaseException:
            self.stop(0.0)
            raise

    def stop(self, timeout_s: float) -> bool:
        """Workers finish their batches and end. False when some had to be killed."""
        if self._stop_by_s is None:
            self._stop_by_s = time.monotonic() + timeout_s
            self._wake()
        if self._thread.is_alive():
            self._thread.join()
        return self._in_time

    def configure(self, session: int, config: Configure, owner: Owner) -> None:
        self._order(Order(session, config, owner))

    def submit(self, session: int, step: Step) -> None:
        self._order(Order(session, Submit(step)))

    def abort(self, session: int, seq: int) -> None:
        self._order(Order(session, Abort(seq)))

    def cut(self, session: int, length: int) -> None:
        self._order(Order(session, Cut(length)))

    def drop(self, session: int) -> None:
        self._order(Order(session, Drop()))

    def stats(self) -> EngineStats:
        """Of all workers, as each of them said last (several times a second)."""
        return self._supervisor.stats() if self._supervisor is not None else EngineStats()

    def workers(self) -> tuple[WorkerFacts, ...]:
        return self._supervisor.workers() if self._supervisor is not None else ()

    def _order(self, order: Order) -> None:
        self._orders.append(order)
        self._wake()

    def _wake(self) -> None:
        # The flag is taken back before the orders are read, so an order is never left lying; one byte is enough.
        if not self._woken:
            with self._wake_lock:
                if self._wake_fd >= 0:
                    self._woken = True
                    os.write(self._wake_fd, b"w")

    def _run(self) -> None:
        # Workers die with the thread that started them (PR_SET_PDEATHSIG), so all are started from this one.
        ear_fd, self._wake_fd = os.pipe()
        self._supervisor = supervisor = Supervisor(
            self._spec,
            workers=self._workers,
            emit=self._emit,
            on_lost=self._on_lost,
            announce=self._news.put,
            supervision=self._supervision,
            inline_bytes=self._inline_bytes,
            wake_fd=ear_fd,
        )
        try:
            self._attend(supervisor)
        except Exception:
            log.exception("the thread of the engine workers failed")
            supervisor.lose_everything()
            self._in_time = False
            self._news.put(InternalError("the engine workers cannot be supervised"))
        finally:
            supervisor.close()
            with self._wake_lock:
                os.close(self._wake_fd)
                self._wake_fd = -1
            os.close(ear_fd)

    def _attend(self, supervisor: Supervisor) -> None:
        asked = False
        while not supervisor.stopped:
            supervisor.attend()
            self._woken = False
            while self._orders:
                supervisor.obey(self._orders.popleft())
            if self._stop_by_s is None:
                continue
            if not asked:
                supervisor.stop()
                asked = True
            if time.monotonic() >= self._stop_by_s and not supervisor.stopped:
                self._in_time = False
                return


def share_of(spec: EngineSpec, workers: int) -> EngineSpec:
    """One worker's part of the machine and of the budget."""
    threads = spec.threads or (max(1, (os.cpu_count() or 1) // workers) if workers > 1 else 0)
    return replace(spec, threads=threads, kv_budget_bytes=max(1, spec.kv_budget_bytes // workers))
