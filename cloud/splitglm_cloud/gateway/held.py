"""A session that a server holds: its protocol, its stream, and what is counted of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from splitglm_cloud.engine.events import Owner
from splitglm_cloud.gateway.load import Claim
from splitglm_cloud.gateway.reply_watch import FEW_ROWS, ReplyWatch
from splitglm_cloud.metrics import class_label
from splitglm_cloud.status import SessionStatus
from splitglm_core.criticality import Criticality
from splitglm_core.shapes import ModelShape
from splitglm_wire.cloud import CloudSession, Output
from splitglm_wire.frames import Frame, Open, Step


class Stream(Protocol):
    """One device's connection, as the table sees it.

    Attributes:
        owner: whose it is.
    """

    owner: Owner

    def send(self, frame: Frame) -> None:
        """Queue a frame; never blocks. A stream that cannot keep up closes itself."""


@dataclass(slots=True, eq=False)
class Held:
    """One entry of the table.

    Attributes:
        key: the process's own number of the session.
        owner: whose stream opened it last.
        criticality: of the reply at hand.
        under_way: the reply at hand has begun to come.
        asked: its device has sent something since the last sweep.
        request: the device's number of the reply at hand.
        up_bytes, down_bytes: payloads so far.
    """

    key: int
    session: CloudSession
    stream: Stream | None
    handle: int
    owner: Owner
    watch: ReplyWatch
    opened_s: float
    criticality: Criticality = Criticality.CRITICAL
    under_way: bool = False
    idle_since_s: float = 0.0
    asked: bool = True
    request: int = 0
    up_bytes: int = 0
    down_bytes: int = 0

    def asked_for(self, frame: Open) -> None:
        """Its device opened a reply, or came back to one."""
        before, self.asked, self.criticality = self.request, True, frame.criticality
        self.request = frame.request
        self.under_way = bool(frame.generated) or (self.under_way and before == frame.request)

    def answered(self, output: Output) -> None:
        # Where the tail runs on the device, a chunk of a prompt is answered too, with as many rows as it has.
        self.under_way |= 0 < output.rows <= FEW_ROWS

    def continues(self, step: Step) -> bool:
        """Whether a step goes on with a reply that has begun to come; else it is (more of) a prompt.

        That the reply has begun is what its device says, so what waits counts too: a prompt in small pieces is one.
        """
        return self.under_way and self.session.held_rows + step.rows <= FEW_ROWS

    @property
    def claim(self) -> Claim:
        """What it holds of the server."""
        session, plan = self.session, self.session.plan
        rows = session.held_rows
        layers = len(plan.back) if plan is not None else 0
        return Claim(self.owner, rows=rows, row_layers=rows * layers, payload_bytes=session.held_bytes)

    def status(self, shape: ModelShape, now_s: float) -> SessionStatus:
        """What may be shown of it."""
        session, plan = self.session, self.session.plan
        state = "away" if self.stream is None else "idle"
        if self.watch.rebuilding or session.busy:
            state = "rebuilding" if self.watch.rebuilding else "running"
        return SessionStatus(
            number=self.key,
            tenant=self.owner.tenant,
            criticality=class_label(self.watch.criticality),
            arm=plan.arm.value if plan else "",
            s=plan.s if plan else 0,
            t=plan.t if plan else 0,
            positions=session.kv_length,
            state=state,
            age_s=now_s - self.opened_s,
            answers_per_s=self.watch.answers_per_s,
            kv_bytes=session.kv_length * shape.kv_bytes_per_token(layers=len(plan.back) if plan else 0),
            up_bytes=self.up_bytes,
            down_bytes=self.down_bytes,
        )
