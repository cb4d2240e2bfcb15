"""The caches of one conversation on both sides: one decoder and, when its plan has one, the session in the cloud."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from splitglm_core.errors import LinkError
from splitglm_core.plan import Arm, SplitPlan
from splitglm_core.shapes import ModelShape
from splitglm_edge.decoding import Decoder, DeviceDecoder
from splitglm_edge.decoding_cloud import CloudDecoder
from splitglm_edge.decoding_hidden import HiddenDecoder
from splitglm_edge.front import Front
from splitglm_edge.link import CloudLink
from splitglm_edge.remote import RemoteSession
from splitglm_edge.timeouts import Timeouts
from splitglm_partitioner.request import same_caches


class Cloud(Protocol):
    """What conversations need of the agent's connection."""

    def link(self) -> CloudLink:
        """The open link, made anew when the old one is gone."""

    def observe_queue(self, seconds: float) -> None:
        """A step of ours waited that long in the cloud although nothing of ours was before it."""


@dataclass(frozen=True, slots=True)
class _Sums:
    bytes_up: int = 0
    bytes_down: int = 0
    reconnects: int = 0


class Caches:
    """Touched by one thread at a time: that of the reply under way, or who ends the conversation."""

    def __init__(self, front: Front, shape: ModelShape, capacity: int, timeouts: Timeouts) -> None:
        self.decoder: Decoder | None = None
        self.remote: RemoteSession | None = None
        self._front = front
        self._shape = shape
        self._capacity = capacity
        self._timeouts = timeouts
        self._at_start = _Sums()
        self._lost = _Sums()  # of sessions of this reply that were lost

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

    def begin(self) -> None:
        """A reply begins: its sums start from here."""
        self._lost, self._at_start = _Sums(), self._now()

    def decoder_for(self, plan: SplitPlan, cloud: Cloud | None) -> Decoder:
        """The decoder of this plan: the kept one when its caches serve the plan, else a new one."""
        kept = self.decoder
        if kept is not None and kept.usable and same_caches(kept.plan, plan):
            return kept
        self.forget()
        hidden = self._shape.hidden
        if plan.arm is Arm.DEVICE:
            self.decoder = DeviceDecoder(plan, self._capacity, self._front, hidden)
            return self.decoder
        if cloud is None:
            raise LinkError("no cloud is configured", "name one with --cloud HOST:PORT")
        remote = self.remote = RemoteSession(
            cloud.link, self._timeouts, vocab=self._shape.vocab, observe_queue=cloud.observe_queue
        )
        if plan.arm is Arm.CLOUD:
            self.decoder = CloudDecoder(plan, self._capacity, remote, hidden)
        else:
            self.decoder = HiddenDecoder(plan, self._capacity, self._front, remote, hidden)
        return self.decoder

    def forget(self) -> None:
        """Drop the caches of both sides; the next reply starts from its whole prompt."""
        if self.decoder is not None:
            self.decoder.close()
        elif self.remote is not None:
            self.remote.close()  # its decoder could not be made
        self._lost, self._at_start = self._of_reply(), _Sums()
        self.decoder = None
        self.remote = None

    def _now(self) -> _Sums:
        remote = self.remote
        return _Sums() if remote is None else _Sums(remote.bytes_up, remote.bytes_down, remote.reconnects)

    def _of_reply(self) -> _Sums:
        now, start, lost = self._now(), self._at_start, self._lost
        return _Sums(
            lost.bytes_up + now.bytes_up - start.bytes_up,
            lost.bytes_down + now.bytes_down - start.bytes_down,
            lost.reconnects + now.reconnects - start.reconnects,
        )
