"""The table of sessions: which stream owns which session, what may be opened, what is forgotten.

Lives on the event loop's thread. It feeds frames to the sans-IO sessions and carries out the actions they return:
frames go to the owning stream, work goes to the executor. A session outlives its stream by ``session_ttl_s``, so that
a device can come back to its KV caches; one whose stream lives but asks nothing of it ends after ``attached_idle_s``.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final

from splitglm_cloud.engine.events import Event, Failure, Owner
from splitglm_cloud.execution.executor import Commands
from splitglm_cloud.gateway.held import Held, Stream
from splitglm_cloud.gateway.load import LoadGate
from splitglm_cloud.gateway.offer import refusal as why_not
from splitglm_cloud.gateway.reaction import Rebuild
from splitglm_cloud.gateway.recent_load import RecentLoad
from splitglm_cloud.gateway.refusal import Refusal
from splitglm_cloud.gateway.reply_watch import ReplyRecord, ReplyWatch
from splitglm_cloud.metrics import Metrics, class_label
from splitglm_cloud.status import SessionStatus
from splitglm_core.shapes import ModelShape
from splitglm_wire.cloud import Abort, Action, CloudSession, Configure, Cut, Drop, Output, Send, Submit
from splitglm_wire.frames import (
    Cancel,
    Close,
    Error,
    ErrorCode,
    Frame,
    Open,
    Ping,
    Reply,
    Result,
    Step,
    Truncate,
)
from splitglm_wire.limits import MAX_SESSIONS_PER_STREAM
from splitglm_wire.manifest import CloudManifest

FULL_RETRY_S: Final = 0.5
"""When there may be a place again, where that is not foreseen."""
RESTART_S: Final = 1.0
"""A worker that is replaced is back in about this time, or it takes much longer."""
_NO_SESSION: Final = Refusal(ErrorCode.NO_SESSION, "no such session on this stream")
_TAKEN: Final = Refusal(ErrorCode.FENCED, "a newer stream owns this session")
_STRANGE_FRAME: Final = Refusal(ErrorCode.BAD_REQUEST, "a device does not send this frame")


class SessionTable:
    """All sessions of a server.

    Args:
        max_sessions: sessions held at once.
        session_ttl_s: life of a session without a stream.
        attached_idle_s: life of a session that has a stream and no work.
        gate: which sessions and steps are let in.
        load: what pings are answered with.
        on_reply: receives every finished reply, for traces.
        tenants_apart: owners are proven, so that no tenant takes another's session; else a device may come back from
            another address.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        *,
        manifest: CloudManifest,
        shape: ModelShape,
        executor: Commands,
        metrics: Metrics,
        max_sessions: int,
        session_ttl_s: float,
        attached_idle_s: float,
        gate: LoadGate,
        load: RecentLoad,
        on_reply: Callable[[ReplyRecord], None] | None = None,
        tenants_apart: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._manifest = manifest
        self._shape = shape
        self._executor = executor
        self._metrics = metrics
        self._max_sessions = max_sessions
        self._ttl_s = session_ttl_s
        self._attached_idle_s = attached_idle_s
        self._gate = gate
        self._load = load
        self._on_reply = on_reply
        self._apart = tenants_apart
        self._clock = clock
        self._judged = 0  # so far; makes hints differ
        self._by_id: dict[bytes, Held] = {}
        self._by_key: dict[int, Held] = {}
        self._streams: dict[Stream, dict[int, Held]] = {}  # by handle
        self._keys = itertools.count(1)
        self.draining = False

    def __len__(self) -> int:
        return len(self._by_id)

    @property
    def busy(self) -> int:
        """Sessions with a step under way."""
        return sum(held.session.busy for held in self._by_id.values())

    @property
    def streams(self) -> Sequence[Stream]:
        return list(self._streams)

    def attach(self, stream: Stream) -> None:
        self._streams[stream] = {}
        self._metrics.streams.set(len(self._streams))

    def detach(self, stream: Stream, now_s: float) -> None:
        """The stream ended; its sessions wait for their device."""
        for held in self._streams.pop(stream, {}).values():
            held.stream = None
            held.idle_since_s = now_s
            self._act(held, held.session.on_stream_lost())
        self._metrics.streams.set(len(self._streams))

    def receive(self, stream: Stream, frame: Frame) -> None:
        """Take one frame of a device."""
        if isinstance(frame, Ping):
            stream.send(self._load.pong(frame, self._clock()))
            return
        if isinstance(frame, Open):
            self._open(stream, replace(frame, criticality=max(frame.criticality, stream.owner.highest)))
            return
        held = self._streams[stream].get(frame.handle)
        if held is None:
            self._refuse(stream, frame, _NO_SESSION)
            return
        session = held.session
        held.asked = True
        held.up_bytes += len(getattr(frame, "payload", b""))
        match frame:
            case Step() if (busy := self._judge(held, frame)) is not None:
                held.watch.refused(busy.code)
                self._metrics.errors.labels(busy.code.name).inc()
                stream.send(busy.of_step(frame, have=session.kv_length))
            case Step():
                self._act(held, session.on_step(frame))
            case Truncate():
                self._act(held, session.on_truncate(frame))
            case Cancel():
                self._act(held, session.on_cancel(frame))
            case Close():
                self._act(held, session.on_close(frame))
            case _:
                self._refuse(stream, frame, _STRANGE_FRAME)

    def on_outcome(self, key: int, outcome: Event) -> None:
        """The executor finished a part of a step."""
        held = self._by_key.get(key)
        if held is None:
            return
        if isinstance(outcome, Output):
            now_s = self._clock()
            held.watch.answered(outcome, now_s)
            self._load.answered(key, outcome, now_s)
            held.answered(outcome)
            self._act(held, held.session.on_output(outcome))
        elif isinstance(outcome, Failure):
            held.watch.failed(outcome.code, self._clock())
            self._load.ended(key, outcome.seq)
            retry_after_s = outcome.retry_after_s
            if outcome.code is ErrorCode.OVERLOADED:
                self._judged += 1
                retry_after_s = self._gate.retry_after_s(nonce=self._judged, most_s=retry_after_s)
            retry_after_ms = round(1000 * retry_after_s)
            self._act(held, held.session.on_failure(outcome.seq, outcome.code, outcome.text, retry_after_ms))
        else:
            if outcome.seq is not None:
                held.watch.failed(ErrorCode.KV_GAP, self._clock())
            self._load.ended(key)
            self._act(held, held.session.on_evicted())

    def on_rebuild(self, key: int, rebuild: Rebuild) -> None:
        """A session's keys and values are computed anew; nothing to be done, only told."""
        held = self._by_key.get(key)
        if held is not None and rebuild is Rebuild.BEGAN:
            held.watch.rebuild_began(self._clock())
            self._load.rebuilt(key)
        elif held is not None:
            held.watch.rebuild_ended(self._clock(), ok=rebuild is Rebuild.OK)
        if rebuild is Rebuild.LEFT:
            self._metrics.rebuilds.labels("left").inc()

    def sweep(self, now_s: float) -> None:
        """Forget sessions whose device did not come back, or asked nothing, in time."""
        for held in list(self._by_id.values()):
            held.watch.swept(now_s)
            if held.stream is not None and (held.asked or held.session.busy):
                held.asked, held.idle_since_s = False, now_s
            elif now_s - held.idle_since_s > (self._ttl_s if held.stream is None else self._attached_idle_s):
                self._forget(held)

    def status(self) -> tuple[SessionStatus, ...]:
        """Every session, for ``splitglm ps``; nothing that gives a right to one."""
        now_s = self._clock()
        return tuple(held.status(self._shape, now_s) for held in self._by_key.values())

    def _open(self, stream: Stream, frame: Open) -> None:
        reason = why_not(frame, self._shape, self._manifest)
        if self.draining:
            reason = Refusal(ErrorCode.DRAINING, "the cloud is shutting down")
        if reason is not None:
            self._refuse(stream, frame, reason)
            return
        handles = self._streams[stream]
        if frame.handle not in handles and len(handles) >= MAX_SESSIONS_PER_STREAM:
            busy = Refusal(ErrorCode.OVERLOADED, "too many sessions on one stream", FULL_RETRY_S)
            self._refuse(stream, frame, busy)
            return
        held = self._by_id.get(frame.session_id)
        if held is not None and self._apart and held.owner.tenant != stream.owner.tenant:
            self._refuse(stream, frame, _TAKEN)  # its id is a secret; should it leak, it is still not theirs
            return
        if handles.get(frame.handle, held) is not held:
            self._refuse(stream, frame, Refusal(ErrorCode.BAD_REQUEST, "another session has this handle"))
            return
        if held is None:
            full = self._judge_new(stream, frame)
            if full is not None:
                self._refuse(stream, frame, full)
                return
            session = CloudSession(session_id=frame.session_id, hidden=self._shape.hidden)
            key = next(self._keys)
            watch = ReplyWatch(key, self._metrics, self._on_reply)
            held = Held(key, session, stream, frame.handle, stream.owner, watch, self._clock())
            self._by_id[frame.session_id] = self._by_key[held.key] = held
            self._metrics.sessions.set(len(self._by_id))
        elif frame.fence <= held.session.newest_fence:
            self._refuse(stream, frame, _TAKEN)
            return
        elif held.stream is not stream or held.handle != frame.handle:
            self._rebind(held, stream, frame.handle)
        held.asked_for(frame)
        handles[frame.handle] = held
        self._metrics.opens.labels(class_label(frame.criticality), "ok").inc()
        self._act(held, held.session.on_open(frame))

    def _rebind(self, held: Held, stream: Stream, handle: int) -> None:
        """The device came back on another stream: the old one no longer hears of this session."""
        if held.stream is not None:
            self._streams[held.stream].pop(held.handle, None)
        held.stream, held.handle, held.owner = stream, handle, stream.owner

    def _judge_new(self, stream: Stream, frame: Open) -> Refusal | None:
        """May one more session be held? Only then room is made for it. Those that are held are never turned away."""
        if not self._executor.ready:
            return Refusal(ErrorCode.UNAVAILABLE, "the cloud cannot compute now", RESTART_S)
        self._judged += 1
        busy = self._gate.judge_open(stream.owner, frame.criticality, self._executor.stats(), nonce=self._judged)
        return busy or self._make_room(stream.owner)

    def _judge(self, held: Held, step: Step) -> Refusal | None:
        """May a step be queued? One that was answered already costs nothing: its reply is kept."""
        if step.seq <= held.session.last_seq:
            return None
        self._judged += 1
        return self._gate.judge_step(
            held.owner,
            held.criticality,
            self._executor.stats(),
            payload_bytes=len(step.payload),
            under_way=held.continues(step),
            nonce=self._judged,
        )

    def _make_room(self, owner: Owner) -> Refusal | None:
        """None when one more session may be held; a session nobody is attached to gives way, longest idle first."""
        full = self._gate.is_full_for(owner)
        if not full and len(self._by_id) < self._max_sessions:
            return None
        idle = [held for held in self._by_id.values() if held.stream is None and not held.session.busy]
        if full:
            idle = [held for held in idle if held.owner.tenant == owner.tenant]
        if not idle:
            text = "as many sessions as one tenant may have" if full else "the cloud holds as many sessions as it may"
            return Refusal(ErrorCode.OVERLOADED, text, FULL_RETRY_S)
        self._forget(min(idle, key=lambda held: held.idle_since_s))
        return None

    def _act(self, held: Held, actions: Sequence[Action]) -> None:
        self._gate.hold(held.key, held.claim)
        for action in actions:
            match action:
                case Send():
                    self._deliver(held, action.frame)
                case Configure():
                    held.watch.configured(action, self._clock())
                    self._executor.configure(held.key, action, held.owner)
                case Submit():
                    held.watch.submitted(action.step, self._clock())
                    if held.session.plan is not None:
                        self._load.submitted(held.key, held.session.plan, action.step)
                    if action.step.rows > 1:
                        self._metrics.tokens.labels("prefill").inc(action.step.rows)
                    self._executor.submit(held.key, action.step)
                case Abort():
                    self._executor.abort(held.key, action.seq)
                case Cut():
                    self._executor.cut(held.key, action.length)
                case Drop():
                    self._forget(held)

    def _deliver(self, held: Held, frame: Frame) -> None:
        if isinstance(frame, Error):
            self._metrics.errors.labels(frame.code.name).inc()
        elif isinstance(frame, Result) and frame.reply is Reply.TOKEN and frame.rows:
            self._metrics.generated.inc()
        held.down_bytes += len(getattr(frame, "payload", b""))
        if held.stream is not None:
            held.stream.send(frame)

    def _forget(self, held: Held) -> None:
        self._by_id.pop(held.session.session_id, None)
        self._by_key.pop(held.key, None)
        if held.stream is not None and held.stream in self._streams:
            self._streams[held.stream].pop(held.handle, None)
        self._gate.release(held.key)
        held.watch.ended(self._clock())
        self._load.ended(held.key)
        self._executor.drop(held.key)
        self._metrics.sessions.set(len(self._by_id))

    def _refuse(self, stream: Stream, frame: Frame, refusal: Refusal) -> None:
        """Refuse all that the device wants of the session."""
        self._metrics.errors.labels(refusal.code.name).inc()
        if isinstance(frame, Open):
            self._metrics.opens.labels(class_label(frame.criticality), "refused").inc()
        stream.send(refusal.of_session(frame))
