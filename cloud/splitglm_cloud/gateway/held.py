"""A session that a server holds: its protocol, its stream, and what is counted of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from splitglm_cloud.gateway.reply_watch import ReplyWatch
from splitglm_cloud.metrics import class_label
from splitglm_cloud.status import SessionStatus
from splitglm_core.shapes import ModelShape
from splitglm_wire.cloud import CloudSession
from splitglm_wire.frames import Frame


class Stream(Protocol):
    """One device's connection, as the table sees it."""

    def send(self, frame: Frame) -> None:
        """Queue a frame; never blocks. A stream that cannot keep up closes itself."""


@dataclass(slots=True, eq=False)
class Held:
    """One entry of the table.

    Attributes:
        key: the process's own number of the session.
        asked: its device has sent something since the last sweep.
        queued_bytes: payloads of its steps that run or wait.
        up_bytes, down_bytes: payloads so far.
    """

    key: int
    session: CloudSession
    stream: Stream | None
    handle: int
    watch: ReplyWatch
    opened_s: float
    idle_since_s: float = 0.0
    asked: bool = True
    queued_bytes: int = 0
    up_bytes: int = 0
    down_bytes: int = 0

    def status(self, shape: ModelShape, now_s: float, *, tenant: str = "") -> SessionStatus:
        """What may be shown of it."""
        session, plan = self.session, self.session.plan
        state = "away" if self.stream is None else "idle"
        if self.watch.rebuilding or session.busy:
            state = "rebuilding" if self.watch.rebuilding else "running"
        return SessionStatus(
            number=self.key,
            tenant=tenant,
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
