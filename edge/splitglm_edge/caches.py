"""The caches of one conversation on both sides: one decoder and, when its plan has one, the session in the cloud."""

from __future__ import annotations

from dataclasses import dataclass, fields
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
from splitglm_edge.watching import StepWatch
from splitglm_partitioner.request import same_caches


class Cloud(Protocol):
    """What conversations need of the agent's connection."""

    def link(self) -> CloudLink:
        """The open link, made anew when the old one is gone."""

    def watch(self) -> StepWatch:
        """Learns from a session's steps and their answers."""


@dataclass(frozen=True, slots=True)
class Sums:
    """What sessions cost: bytes of sealed records, payload in them, streams that broke and went on."""

    bytes_up: int = 0
    bytes_down: int = 0
    payload_up: int = 0
    payload_down: int = 0
    reconnects: int = 0

    def plus(self, other: Sums, sign: int = 1) -> Sums:
        return Sums(*(getattr(self, f.name) + sign * getattr(other, f.name) for f in fields(self)))


class Caches:
    """Touched by one thread at a time: that of the reply under way, or who ends the conversation."""

    def __init__(self, front: Front, shape: ModelShape, capacity: int, timeouts: Timeouts) -> None:
        self.decoder: Decoder | None = None
        self.remote: RemoteSession | None = None
        self._front = front
        self._shape = shape
        self._capacity = capacity
        self._timeouts = timeouts
        self._at_start = Sums()
        self._lost = Sums()  # of sessions of this reply that were lost

    def begin(self) -> None:
        """A reply begins: its sums start from here."""
        self._lost, self._at_start = Sums(), self._now()

    def rest(self) -> None:
        """The reply ended."""
        if self.remote is not None:
            self.remote.rest()

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
        remote = self.remote = RemoteSession(cloud.link, self._timeouts, vocab=self._shape.vocab, watch=cloud.watch())
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
        self._lost, self._at_start = self.of_reply(), Sums()
        self.decoder = None
        self.remote = None

    def of_reply(self) -> Sums:
        """Of the current reply so far."""
        return self._lost.plus(self._now()).plus(self._at_start, -1)

    def _now(self) -> Sums:
        remote = self.remote
        return Sums() if remote is None else Sums(*(getattr(remote, f.name) for f in fields(Sums)))
