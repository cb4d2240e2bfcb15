"""What survives between the turns of a chat: one decoder with its caches on both sides."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

from splitglm_core.errors import InputError
from splitglm_core.plan import Arm, SplitPlan
from splitglm_edge.decoding import Decoder, DeviceDecoder
from splitglm_edge.decoding_cloud import CloudDecoder
from splitglm_edge.decoding_hidden import HiddenDecoder
from splitglm_edge.front import Front
from splitglm_edge.remote import Connect, RemoteSession
from splitglm_edge.timeouts import Timeouts


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """A decoder ready for a reply, and how it was chosen."""

    plan: SplitPlan
    decoder: Decoder
    remote: RemoteSession | None
    why: str
    notes: tuple[str, ...]
    predicted_ttft_s: float | None
    predicted_per_token_s: float | None


@dataclass(frozen=True, slots=True)
class _Sums:
    bytes_up: int = 0
    bytes_down: int = 0
    reconnects: int = 0


class Conversation:
    """Holds at most one decoder. One reply at a time; what that reply uses is touched by its thread only."""

    def __init__(self, front: Front, hidden: int, capacity: int, timeouts: Timeouts | None = None) -> None:
        self._front = front
        self._hidden = hidden
        self._capacity = capacity
        self._timeouts = timeouts or Timeouts()
        self._lock = threading.Lock()
        self._close_reply: Callable[[], None] | None = None  # of the reply under way
        self._ended = False
        self._decoder: Decoder | None = None
        self._remote: RemoteSession | None = None
        self._at_start = _Sums()
        self._lost = _Sums()  # of sessions of this reply that were lost

    @property
    def decoder(self) -> Decoder | None:
        return self._decoder

    @property
    def remote(self) -> RemoteSession | None:
        return self._remote

    @property
    def bytes_up(self) -> int:
        """Bytes of records sent for the current reply."""
        return self._of_reply().bytes_up

    @property
    def bytes_down(self) -> int:
        return self._of_reply().bytes_down

    @property
    def reconnects(self) -> int:
        """Times a stream broke during the current reply and its session went on."""
        return self._of_reply().reconnects

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
        self._lost, self._at_start = _Sums(), self._now()

    def release(self) -> None:
        """The reply that claimed this conversation ended, however."""
        with self._lock:
            self._close_reply = None

    def end(self) -> None:
        """Close the reply under way, if there is one, and free everything. May come from any thread."""
        with self._lock:
            self._ended = True
            close_reply = self._close_reply
        if close_reply is not None:
            close_reply()
        self.forget()

    def decoder_for(self, plan: SplitPlan, connect: Connect) -> Decoder:
        """The decoder of this plan: the kept one when the cut is the same, else a new one."""
        kept = self._decoder
        if kept is not None and kept.usable and _same_caches(kept.plan, plan):
            return kept
        self.forget()
        if plan.arm is Arm.DEVICE:
            self._decoder = DeviceDecoder(plan, self._capacity, self._front, self._hidden)
            return self._decoder
        remote = self._remote = RemoteSession(connect, self._timeouts)
        if plan.arm is Arm.CLOUD:
            self._decoder = CloudDecoder(plan, self._capacity, remote, self._hidden)
        else:
            self._decoder = HiddenDecoder(plan, self._capacity, self._front, remote, self._hidden)
        return self._decoder

    def forget(self) -> None:
        """Drop the caches of both sides; the next reply starts from its whole prompt."""
        if self._decoder is not None:
            self._decoder.close()
        elif self._remote is not None:
            self._remote.close()  # its decoder could not be made
        self._lost, self._at_start = self._of_reply(), _Sums()
        self._decoder = None
        self._remote = None

    def _now(self) -> _Sums:
        remote = self._remote
        return _Sums() if remote is None else _Sums(remote.bytes_up, remote.bytes_down, remote.reconnects)

    def _of_reply(self) -> _Sums:
        now, start, lost = self._now(), self._at_start, self._lost
        return _Sums(
            lost.bytes_up + now.bytes_up - start.bytes_up,
            lost.bytes_down + now.bytes_down - start.bytes_down,
            lost.reconnects + now.reconnects - start.reconnects,
        )


def _same_caches(a: SplitPlan, b: SplitPlan) -> bool:
    """True when what is cached under ``a`` serves ``b``: same cut, same side of the head, same codec on the wire."""
    same_cut = (a.layers, a.s, a.t, a.head, a.chunk_tokens) == (b.layers, b.s, b.t, b.head, b.chunk_tokens)
    return same_cut and (a.codec is b.codec or a.arm in (Arm.DEVICE, Arm.CLOUD))
