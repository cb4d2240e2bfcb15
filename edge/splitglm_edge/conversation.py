"""What survives between the turns of a chat: its caches on both sides, and who may use them now."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from dataclasses import dataclass

from splitglm_core.errors import InputError
from splitglm_core.plan import SplitPlan
from splitglm_core.shapes import ModelShape
from splitglm_edge.caches import Caches, Cloud, Sums
from splitglm_edge.closing import CLOSER
from splitglm_edge.decoding import Decoder
from splitglm_edge.front import Front
from splitglm_edge.remote import RemoteSession
from splitglm_edge.timeouts import Timeouts
from splitglm_partitioner.decision import Decision


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """A decoder ready for a reply, and how it was chosen."""

    plan: SplitPlan
    decoder: Decoder
    remote: RemoteSession | None
    decision: Decision
    why: str
    notes: tuple[str, ...]


class Conversation:
    """Holds at most one decoder. One reply at a time; what that reply uses is touched by its thread only.

    One that is dropped without ``end`` is ended soon after, in the ``CLOSER``'s thread.
    """

    def __init__(self, front: Front, shape: ModelShape, capacity: int, timeouts: Timeouts | None = None) -> None:
        self._caches = Caches(front, shape, capacity, timeouts or Timeouts())
        self._lock = threading.Lock()
        self._close_reply: Callable[[], None] | None = None  # of the reply under way
        self._ended = False
        # The finaliser holds the caches, so they outlive this object until they are freed.
        self._dropped = weakref.finalize(self, CLOSER.end_later, self._caches.forget)
        self._dropped.atexit = False

    @property
    def decoder(self) -> Decoder | None:
        return self._caches.decoder

    @property
    def remote(self) -> RemoteSession | None:
        return self._caches.remote

    @property
    def sums(self) -> Sums:
        """What the current reply cost on the wire so far."""
        return self._caches.of_reply()

    def claim(self, close_reply: Callable[[], None]) -> None:
        """Begin a reply. ``close_reply`` ends it and returns when it no longer uses this conversation.

        Raises:
            InputError: another reply of this conversation is not finished, or the conversation has ended.
        """
        with self._lock:
            if self._ended:
                raise InputError("this conversation has ended", "begin another one")
            if self._close_reply is not None:
                raise InputError("this conversation is still replying", "finish or close the other reply first")
            self._close_reply = close_reply
        self._caches.begin()

    def release(self) -> None:
        """The reply that claimed this conversation ended, however."""
        self._caches.rest()
        with self._lock:
            self._close_reply = None

    def end(self) -> None:
        """Close the reply under way, if there is one, and free everything. May come from any thread."""
        with self._lock:
            self._ended = True
            close_reply = self._close_reply
        if close_reply is not None:
            close_reply()
        self._caches.forget()
        self._dropped.detach()

    def decoder_for(self, plan: SplitPlan, cloud: Cloud | None) -> Decoder:
        """The decoder of this plan: the kept one when its caches serve the plan, else a new one."""
        return self._caches.decoder_for(plan, cloud)

    def forget(self) -> None:
        """Drop the caches of both sides; the next reply starts from its whole prompt."""
        self._caches.forget()
