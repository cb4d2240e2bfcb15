"""Ending what was dropped without ``close``.

Ending a reply talks to the cloud and takes locks. The cyclic collector calls finalisers in any thread, at any
allocation, also inside those very locks, so what it finds is only put into a queue here and ended by a thread of its
own. What reference counting drops is ended at once, by the thread that dropped it.
"""

from __future__ import annotations

import gc
import logging
import queue
import sys
import threading
from collections.abc import Callable
from typing import Literal

log = logging.getLogger(__name__)

Work = Callable[[], None]


class Closer:
    """One per process, since there is one collector."""

    def __init__(self) -> None:
        # Of all queues this one may be written to by a finaliser that interrupts another ``put``.
        self._left: queue.SimpleQueue[Work] = queue.SimpleQueue()
        self._collecting = 0  # identity of the thread in a collection
        self._starting = threading.Lock()
        self._thread: threading.Thread | None = None
        self._held: set[object] = set()

    def start(self) -> None:
        """Begin; harmless when it began before. To be called before anything can be dropped."""
        with self._starting:
            if self._on_collection not in gc.callbacks:
                gc.callbacks.append(self._on_collection)
            if self._thread is None or not self._thread.is_alive():  # not alive: this is a fork
                self._thread = threading.Thread(target=self._end_all, name="splitglm-closer", daemon=True)
                self._thread.start()

    def hold(self, reply: object) -> None:
        """Keep a reply under way out of the collector's reach, whatever cycle its user has put it into."""
        self._held.add(reply)

    def release(self, reply: object) -> None:
        """It has ended."""
        self._held.discard(reply)

    def end(self, work: Work) -> None:
        """Do ``work`` now, or soon in another thread when the collector is asking."""
        if sys.is_finalizing():
            return  # no thread answers any more, and the process takes everything with it
        if self._collecting == threading.get_ident():
            self.end_later(work)
        else:
            work()

    def end_later(self, work: Work) -> None:
        """Do ``work`` soon in another thread. Takes no lock."""
        self._left.put(work)

    def settle(self, timeout_s: float) -> None:
        """Wait until what was dropped before this call has been ended."""
        if threading.current_thread() is self._thread:
            return
        done = threading.Event()
        self._left.put(done.set)
        done.wait(timeout_s)

    def _on_collection(self, phase: Literal["start", "stop"], _info: dict[str, int]) -> None:
        self._collecting = threading.get_ident() if phase == "start" else 0

    def _end_all(self) -> None:
        while True:
            work = self._left.get()
            try:
                work()
            except Exception as error:  # nobody waits for this, and the next one must not suffer
                log.warning("ending what was dropped failed: %s", type(error).__name__)
            del work  # while waiting for the next, hold nothing


CLOSER = Closer()
