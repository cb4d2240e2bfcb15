"""Both ends around the real session machines: ``Host`` is a cloud process, ``Driver`` a conversation on a device.

Every invariant that can be seen from one end is asserted here, at every step of every test that uses them.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import integer_model as model

from splitglm_core.plan import Arm, SplitPlan
from splitglm_core.sampling import SamplingParams
from splitglm_wire.cloud import Abort, Action, CloudSession, Configure, Cut, Drop, Output, Send, Submit
from splitglm_wire.device import (
    Attached,
    DeviceSession,
    Event,
    Gap,
    HiddenArrived,
    Refused,
    State,
    StepDone,
    TokenArrived,
)
from splitglm_wire.frames import (
    Cancel,
    Close,
    Error,
    ErrorCode,
    Frame,
    Open,
    Reply,
    Result,
    Rows,
    Scope,
    Step,
    Truncate,
)
from splitglm_wire.limits import MAX_QUEUED_STEPS

Deliver = Callable[[int, Frame], None]
Key = tuple[int, int]


@dataclass(slots=True, eq=False)
class Held:
    key: int
    session: CloudSession
    stream: int | None
    handle: int
    owed: dict[Key, Step] = field(default_factory=dict)  # accepted and not yet answered (fence, seq)


class Host:
    """One cloud process: sessions by id, streams, handles; as the product's session table.

    Args:
        busy: whether to refuse what is asked now, before anything is done: a new session, or a step.
    """

    def __init__(self, deliver: Deliver, busy: Callable[[], bool] = lambda: False) -> None:
        self._busy = busy
        self.engine = model.Engine()
        self.sessions: dict[bytes, Held] = {}
        self._streams: dict[int, dict[int, Held]] = {}
        self._deliver = deliver
        self._keys = itertools.count(1)

    def attach(self, stream: int) -> None:
        self._streams[stream] = {}

    def detach(self, stream: int) -> None:
        for held in self._streams.pop(stream, {}).values():
            held.stream = None
            self._act(held, held.session.on_stream_lost())
            held.owed.clear()

    def busy(self) -> list[Held]:
        return [held for held in self.sessions.values() if held.session.busy]

    def forget(self, held: Held) -> None:
        self.sessions.pop(held.session.session_id, None)
        if held.stream in self._streams:
            self._streams[held.stream].pop(held.handle, None)
        self.engine.drop(held.key)

    def receive(self, stream: int, frame: Frame) -> None:
        if stream not in self._streams:
            return
        if isinstance(frame, Open):
            self._open(stream, frame)
            return
        held = self._streams[stream].get(frame.handle)
        if held is None:
            self._refuse(stream, frame)
        elif isinstance(frame, Step) and frame.seq > held.session.last_seq and self._busy():
            self._refuse(stream, frame, of_step=True, have=held.session.kv_length)
        else:
            self.give(held, frame)

    def give(self, held: Held, frame: Frame) -> None:
        """Hand a frame to a session, wherever it came from."""
        session = held.session
        match frame:
            case Step():
                again = frame.seq == session.last_seq and frame.fence == session.fence
                actions = session.on_step(frame)
                if not again and not any(isinstance(a, Send) and isinstance(a.frame, Error) for a in actions):
                    assert (frame.fence, frame.seq) not in held.owed
                    held.owed[frame.fence, frame.seq] = frame
                assert len(held.owed) <= MAX_QUEUED_STEPS + 1, "I9: the queue is bounded"
            case Truncate():
                actions = session.on_truncate(frame)
            case Cancel():
                actions = session.on_cancel(frame)
            case Close():
                actions = session.on_close(frame)
            case _:
                raise AssertionError(f"a device sent {frame}")
        self._act(held, actions)

    def echo(self, held: Held, frame: Frame) -> None:
        """A frame of an older stream reaches the session once more; nobody hears the answer."""
        match frame:
            case Open():
                actions = held.session.on_open(frame)
            case Step():
                actions = held.session.on_step(frame)
            case Truncate():
                actions = held.session.on_truncate(frame)
            case Cancel():
                actions = held.session.on_cancel(frame)
            case _:
                actions = []
        self._act(held, [action for action in actions if not isinstance(action, Send)])

    def work(self, held: Held, fail: ErrorCode | None = None) -> None:
        """One part of the session's running step."""
        outcome = self.engine.advance(held.key, fail)
        if isinstance(outcome, Output):
            self._act(held, held.session.on_output(outcome))
        elif outcome is not None:
            self._act(held, held.session.on_failure(outcome.seq, outcome.code, "it failed"))

    def evict(self, held: Held) -> None:
        """The session's positions are gone, and with them the step that was computed."""
        self.engine.evict(held.key)
        self._act(held, held.session.on_evicted())

    def _open(self, stream: int, frame: Open) -> None:
        held = self.sessions.get(frame.session_id)
        if held is None and self._busy():
            self._refuse(stream, frame, code=ErrorCode.OVERLOADED)
            return
        if held is None:
            session = CloudSession(session_id=frame.session_id, hidden=model.HIDDEN)
            held = self.sessions[frame.session_id] = Held(next(self._keys), session, stream, frame.handle)
        elif (held.stream, held.handle) != (stream, frame.handle):
            if frame.fence <= held.session.newest_fence:
                self._refuse(stream, frame)
                return
            if held.stream in self._streams:
                self._streams[held.stream].pop(held.handle, None)
            held.stream, held.handle = stream, frame.handle
        self._streams[stream][frame.handle] = held
        if frame.fence > held.session.newest_fence:
            held.owed.clear()  # whatever was accepted before belongs to an older fence
        self._act(held, held.session.on_open(frame))

    def _refuse(
        self,
        stream: int,
        frame: Frame,
        code: ErrorCode = ErrorCode.NO_SESSION,
        *,
        of_step: bool = False,
        have: int = 0,
    ) -> None:
        error = Error(
            handle=frame.handle,
            fence=getattr(frame, "fence", 0),
            seq=getattr(frame, "seq", 0) if of_step else 0,
            code=ErrorCode.OVERLOADED if of_step else code,
            scope=Scope.STEP if of_step else Scope.SESSION,
            resumable=of_step or code is ErrorCode.OVERLOADED,
            retry_after_ms=0,
            have=have,
            text="not now",
        )
        self._deliver(stream, error)

    def _act(self, held: Held, actions: Sequence[Action]) -> None:
        for action in actions:
            match action:
                case Send():
                    self._account(held, action.frame)
                    if held.stream is not None:
                        self._deliver(held.stream, action.frame)
                case Configure():
                    self.engine.configure(held.key, action)
                case Submit():
                    self.engine.submit(held.key, action.step)
                case Abort():
                    self.engine.abort(held.key, action.seq)
                case Cut():
                    self.engine.cut(held.key, action.length)
                case Drop():
                    self.forget(held)
        slot = self.engine.slots.get(held.key)
        if slot is not None:
            assert (slot.run is not None) == held.session.busy
            if slot.run is None:
                assert len(slot.kv) == held.session.kv_length, "both know how long the cache is"

    @staticmethod
    def _account(held: Held, frame: Frame) -> None:
        """I5: at most one end of each accepted step; ``owed`` must be empty when nothing runs."""
        if isinstance(frame, Result):
            assert frame.fence == held.session.fence, "I2: a part under an older fence"
            if frame.last:
                held.owed.pop((frame.fence, frame.seq), None)
        elif isinstance(frame, Error) and frame.scope is Scope.STEP:
            held.owed.pop((frame.fence, frame.seq), None)

    def check_quiet(self) -> None:
        """Nothing runs: then nothing is owed (I5)."""
        for held in self.sessions.values():
            assert not held.session.busy
            assert not held.owed, "I5: an accepted step was never answered"


@dataclass(frozen=True, slots=True)
class Turn:
    """A user's turn: keep this many tokens of the conversation so far, then say something; maybe cancel."""

    keep: int
    says: tuple[int, ...]
    max_tokens: int
    cancel_after: int | None = None


class Driver:
    """A conversation of several turns on a device, through the same loop as the product's decoders.

    Methods return frames to send. ``replies`` is what the application has seen: it is checked token by token.
    """

    def __init__(
        self,
        *,
        plan: SplitPlan,
        turns: Sequence[Turn],
        seed: int,
        ids: Callable[[], bytes],
        chunk: int,
        window: int,
        retries: bool = False,
    ) -> None:
        self.retried = 0
        self._retries = retries  # asks once more for what a busy cloud refused, instead of beginning anew
        self.plan = plan
        self.turns = list(turns)
        self.machine = DeviceSession(handle=0, session_id=ids())
        self.replies: list[list[int]] = []
        self.rebuilds = 0
        self.refusals = 0
        self._seed = seed
        self._ids = ids
        self._chunk = chunk
        self._window = window
        self._samples = plan.arm is Arm.USHAPE
        self._with_tail = self._samples and plan.t < plan.layers
        self._line: list[int] = []  # tokens by position, as sent
        self._tail: list[int] = []
        self._state = 0
        self._prompt: list[int] = []
        self._expected: list[int] = []
        self._todo: list[int] = []
        self._last_ticket = 0
        self._cancelled = False

    @property
    def done(self) -> bool:
        return not self.turns and not self._expected

    @property
    def line(self) -> list[int]:
        """Tokens by position, as sent."""
        return self._line

    @property
    def reply(self) -> list[int]:
        return self.replies[-1]

    def start(self, handle: int) -> list[Frame]:
        """Open the first turn on a stream of which nothing is known yet."""
        self.machine.handle = handle
        return self._next_turn()

    def broke(self) -> None:
        self.machine.broke()

    def reattach(self, handle: int) -> list[Frame]:
        """A new stream: re-open, or begin a new session where the old one was closed."""
        if self.machine.state in (State.CLOSED, State.NEW):
            self.machine = DeviceSession(handle=handle, session_id=self._ids())
            self._line, self._tail = [], []
            return self._begin()
        return [self.machine.reopen(handle=handle, generated=() if self._samples else tuple(self.reply))]

    def receive(self, frame: Frame) -> list[Frame]:
        was = self.machine.confirmed
        events, frames = self.machine.receive(frame)
        if not any(isinstance(event, Gap) for event in events):
            assert self.machine.confirmed >= was, "confirmed positions never shrink by themselves"
        for event in events:
            frames += self._on(event)
        return frames

    def _next_turn(self) -> list[Frame]:
        self._expected, self._cancelled = [], False
        if not self.turns:
            return []
        turn = self.turns[0]
        said = self._prompt + (self.replies[-1] if self.replies else [])
        self._prompt = said[: turn.keep] + list(turn.says)
        self._expected = model.reference(self._prompt, turn.max_tokens, self._seed)
        self.replies.append([])
        return self._begin()

    def _begin(self) -> list[Frame]:
        """Open, keeping what the cloud has of the prompt and of the tokens generated so far."""
        tokens = self._prompt + self.reply
        limit = min(self.machine.confirmed, len(self._line), len(tokens) - 1)
        keep = next((i for i in range(limit) if self._line[i] != tokens[i]), limit)
        self._line, self._tail = self._line[:keep], self._tail[:keep]
        self._todo = tokens[keep:]
        frame = self.machine.open(
            plan=self.plan,
            sampling=SamplingParams(seed=self._seed, temperature=1.0, frequency_penalty=0.5),
            context=model.CONTEXT,
            keep=keep,
            stop_ids=model.STOPS,
            generated=() if self._samples else tuple(self.reply),
        )
        return [frame, *self._pump()]

    def _pump(self) -> list[Frame]:
        frames: list[Frame] = []
        while self._todo and self.machine.state in (State.OPENING, State.OPEN):
            if self.machine.in_flight >= self._window:
                break
            base = self.machine.length
            chunk, self._todo = self._todo[: self._chunk], self._todo[self._chunk :]
            last = not self._todo
            ids = self.plan.arm is Arm.CLOUD
            if self._samples:
                reply = Reply.ALL_HIDDEN if self._with_tail else Reply.LAST_HIDDEN if last else Reply.ACK
            else:
                reply = Reply.TOKEN if last else Reply.ACK
            left = self.turns[0].max_tokens - len(self.reply) if ids else 1
            ticket, step = self.machine.step(
                rows_kind=Rows.IDS if ids else Rows.HIDDEN,
                rows=len(chunk),
                payload=model.pack(chunk if ids else [model.front(t, base + i) for i, t in enumerate(chunk)]),
                reply=reply,
                generate=left if reply is Reply.TOKEN else 0,
            )
            assert base == len(self._line)
            self._line += chunk
            self._last_ticket = ticket if last else 0
            frames.append(step)
        return frames

    def _on(self, event: Event) -> list[Frame]:
        match event:
            case TokenArrived():
                if event.index:
                    self._line.append(self.reply[-1])
                return self._say(event.token)
            case HiddenArrived():
                values = model.unpack(event.payload)
                if self._with_tail:
                    assert event.base == len(self._tail), "hidden states in order, each once"
                    self._tail += values
                    assert self._tail == model.states(self._line[: len(self._tail)])
                self._state = values[-1]
                return []
            case StepDone():
                return self._on_done(event)
            case Gap():
                assert self.machine.idle
                self.rebuilds += 1
                return self._begin()
            case Refused():
                self.refusals += 1
                return self._after_refusal()
            case Attached():
                return self._pump()

    def _after_refusal(self) -> list[Frame]:
        """Once what was taken before is answered: ask again for the rest, or begin anew with what is confirmed."""
        if self.machine.state is not State.STALLED or not self.machine.idle:
            return []  # a session that was refused as a whole is asked for by whoever has the stream
        if not (self._retries and self.machine.may_retry):
            return self._begin()
        self.retried += 1
        return self.reattach(self.machine.handle)

    def _on_done(self, event: StepDone) -> list[Frame]:
        assert event.kv_length == self.machine.confirmed <= len(self._line)
        if self.machine.state is State.STALLED:
            return self._after_refusal()
        if event.ticket != self._last_ticket:
            return self._pump()
        frames: list[Frame] = []
        assert event.kv_length == len(self._line)
        if self._samples:
            frames += self._say(model.sample(self._state, len(self._line), self.reply, self._seed))
        if self._cancelled or self.reply[-1] in model.STOPS or len(self.reply) == self.turns[0].max_tokens:
            assert self._cancelled or self.reply == self._expected
            self.turns.pop(0)
            return frames + self._next_turn()
        self._todo = self.reply[-1:]
        return frames + self._pump()

    def _say(self, token: int) -> list[Frame]:
        at = len(self.reply)
        assert at < len(self._expected), "I1: more tokens than one machine gives"
        assert token == self._expected[at], f"I1: token {at} of reply {len(self.replies)} is {token}"
        self.reply.append(token)
        if self.turns[0].cancel_after == len(self.reply) and not self._cancelled:
            self._cancelled = True
            frame = self.machine.cancel(self._last_ticket)
            return [frame] if frame is not None else []
        return []
