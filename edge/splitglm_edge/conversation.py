"""What survives between the turns of a chat: one decoder with its caches on both sides."""

from __future__ import annotations

import threading
from dataclasses import dataclass

from splitglm_core.errors import InputError
from splitglm_core.plan import Arm, SplitPlan
from splitglm_edge.decoding import CloudDecoder, Decoder, DeviceDecoder, HiddenDecoder
from splitglm_edge.front import Front
from splitglm_edge.remote import Connect, RemoteSession


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


class Conversation:
    """Holds at most one decoder. One reply at a time."""

    def __init__(self, front: Front, hidden: int, capacity: int) -> None:
        self._front = front
        self._hidden = hidden
        self._capacity = capacity
        self._busy = threading.Lock()
        self._decoder: Decoder | None = None
        self._remote: RemoteSession | None = None
        self._bytes_at_start = (0, 0)
        self._bytes_before = (0, 0)  # of sessions of this reply that were lost

    @property
    def decoder(self) -> Decoder | None:
        return self._decoder

    @property
    def remote(self) -> RemoteSession | None:
        return self._remote

    @property
    def bytes_up(self) -> int:
        """Bytes of records sent for the current reply."""
        return self._bytes_before[0] + self._now()[0] - self._bytes_at_start[0]

    @property
    def bytes_down(self) -> int:
        return self._bytes_before[1] + self._now()[1] - self._bytes_at_start[1]

    def claim(self) -> None:
        """Begin a reply.

        Raises:
            InputError: another reply of this conversation is not finished.
        """
        if not self._busy.acquire(blocking=False):
            raise InputError("this conversation is still replying", "finish, close or cancel the other reply first")
        self._bytes_before = (0, 0)
        self._bytes_at_start = self._now()

    def release(self) -> None:
        """The reply ended, however; harmless when there is none."""
        if self._busy.locked():
            self._busy.release()

    def decoder_for(self, plan: SplitPlan, connect: Connect) -> Decoder:
        """The decoder of this plan: the kept one when the cut is the same, else a new one."""
        kept = self._decoder
        if kept is not None and _same_caches(kept.plan, plan):
            return kept
        self.forget()
        if plan.arm is Arm.DEVICE:
            self._decoder = DeviceDecoder(plan, self._capacity, self._front, self._hidden)
            return self._decoder
        remote = self._remote = RemoteSession(connect)
        if plan.arm is Arm.CLOUD:
            self._decoder = CloudDecoder(plan, self._capacity, remote, self._hidden)
        else:
            self._decoder = HiddenDecoder(plan, self._capacity, self._front, remote, self._hidden)
        return self._decoder

    def forget(self) -> None:
        """Drop the caches of both sides; the next reply starts from its whole prompt."""
        up, down = self._now()
        if self._decoder is not None:
            self._decoder.close()
        self._bytes_before = (
            self._bytes_before[0] + up - self._bytes_at_start[0],
            self._bytes_before[1] + down - self._bytes_at_start[1],
        )
        self._bytes_at_start = (0, 0)
        self._decoder = None
        self._remote = None

    def _now(self) -> tuple[int, int]:
        return (self._remote.bytes_up, self._remote.bytes_down) if self._remote is not None else (0, 0)


def _same_caches(a: SplitPlan, b: SplitPlan) -> bool:
    """True when what is cached under ``a`` serves ``b``: same cut, same side of the head, same codec on the wire."""
    same_cut = (a.layers, a.s, a.t, a.head, a.chunk_tokens) == (b.layers, b.s, b.t, b.head, b.chunk_tokens)
    return same_cut and (a.codec is b.codec or a.arm in (Arm.DEVICE, Arm.CLOUD))
