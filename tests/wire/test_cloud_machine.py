"""Whatever a device sends, and whenever: a cloud session stays consistent, bounded and answers what it accepted."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import integer_model as model
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from splitglm_core.plan import Arm
from splitglm_core.sampling import SamplingParams
from splitglm_wire.cloud import Abort, Action, CloudSession, Configure, Cut, Drop, Output, Send, Submit
from splitglm_wire.frames import (
    KEEP_ALL,
    Cancel,
    Close,
    Ended,
    Error,
    ErrorCode,
    Open,
    Opened,
    Reply,
    Result,
    Rows,
    Scope,
    Step,
    Truncate,
)
from splitglm_wire.limits import MAX_QUEUED_STEPS

SMALL = st.integers(0, 12)
PLANS = st.sampled_from(sorted(model.PLANS))


class CloudMachine(RuleBasedStateMachine):
    """Frames of one hostile or honest device at random; an engine that computes, fails or stops early at random."""

    def __init__(self) -> None:
        super().__init__()
        self.session = CloudSession(session_id=bytes(16), hidden=model.HIDDEN)
        self.fence = 0
        self.kv = 0  # positions in the engine's cache
        self.running: Step | None = None
        self.tokens = 0
        self.aborted = False
        self.owed: list[tuple[int, int]] = []  # (fence, seq) of accepted steps
        self.step_before: Step | None = None
        self.computed: list[bytes] = []  # payloads of the running step's parts
        self.answer: list[bytes] = []  # of the last one that ended
        self.request = 0
        self.plan_name = ""

    @initialize(plan=PLANS)
    def begin(self, plan: str) -> None:
        self.open(plan, 1, 0, 0)

    @rule(plan=PLANS, newer=st.integers(-1, 2), keep=st.sampled_from([0, 1, 5, KEEP_ALL]), request=st.integers(0, 1))
    def open(self, plan: str, newer: int, keep: int, request: int) -> None:
        fence = max(0, self.session.newest_fence + newer)
        frame = Open(
            handle=fence % 7,
            session_id=bytes(16),
            fence=fence,
            request=self.request + request,
            plan=model.PLANS[plan],
            context=60,
            keep=keep,
            sampling=SamplingParams(),
        )
        accepted = fence > self.session.newest_fence
        if accepted:
            self.owed.clear()
            self.request += request
        actions = self.session.on_open(frame)
        assert accepted == (not self._errors(actions))
        self._act(actions)
        if accepted and not self.session.busy:
            assert self.session.kv_length <= keep
        self.plan_name = plan if accepted else self.plan_name

    @rule(again=st.booleans())
    def come_back(self, again: bool) -> None:
        """The same device on a new stream, as after a cut; maybe it asks for the reply that it missed."""
        self.lose_stream()
        self.open(self.plan_name, 1, KEEP_ALL, 0)
        if again and self.step_before is not None:
            self.step_again(False)

    @precondition(lambda self: self.step_before is not None)
    @rule(fill=st.integers(0, 3))
    def another_step_of_that_number(self, fill: int) -> None:
        assert self.step_before is not None
        step = self.step_before
        self._give(replace(step, fence=self.session.fence, payload=bytes([fill]) * len(step.payload)))

    @rule(
        ahead=st.sampled_from([1, 1, 1, 1, 0, 2, -1]),
        shift=st.sampled_from([0, 0, 0, 0, 1, -1]),
        rows=st.integers(1, 6),
        fence=st.sampled_from([0, 0, 0, 0, 0, -1, 1]),
        fits=st.sampled_from([True, True, True, True, False]),
        reply=st.sampled_from(Reply),
        generate=st.sampled_from([0, 0, 1, 1, 3]),
        fill=st.integers(0, 3),
        kind=st.sampled_from(Rows),
        honest=st.sampled_from([True, True, True, False]),
    )
    def step(self, **made: Any) -> None:
        seq, length = self.session._end()
        plan = self.session.plan
        assert plan is not None
        if made["honest"]:  # what a device of this plan would ask for
            made["kind"] = Rows.IDS if plan.arm is Arm.CLOUD else Rows.HIDDEN
            hidden = made["reply"] in (Reply.ALL_HIDDEN, Reply.LAST_HIDDEN)
            if hidden is not (plan.arm is Arm.USHAPE):
                made["reply"] = Reply.ACK if made["generate"] == 0 or plan.arm is Arm.USHAPE else Reply.TOKEN
            asked = max(1, made["generate"]) if plan.arm is Arm.CLOUD else 1
            made["generate"] = asked if made["reply"] is Reply.TOKEN else 0
        step = Step(
            handle=1,
            fence=max(0, self.session.fence + made["fence"]),
            seq=max(0, seq + made["ahead"]),
            base=max(0, length + made["shift"]),
            rows_kind=made["kind"],
            rows=made["rows"],
            reply=made["reply"],
            generate=made["generate"],
            payload=bytes([made["fill"]]) * (4 * made["rows"] + (not made["fits"])),
        )
        self._give(step)

    @precondition(lambda self: self.step_before is not None)
    @rule(stale=st.booleans())
    def step_again(self, stale: bool) -> None:
        assert self.step_before is not None
        self._give(replace(self.step_before, fence=max(0, self.session.fence - stale)))

    def _give(self, step: Step) -> None:
        waiting = self.session.newest_fence != self.session.fence
        quiet = not self.session.busy and not self.session._queue
        end, last_seq = self.session._end(), self.session.last_seq
        actions = self.session.on_step(step)
        errors = self._errors(actions)
        if step.fence != self.session.fence or waiting:
            assert [error.code for error in errors] == [ErrorCode.FENCED], "I2"
        elif errors:
            assert len(actions) == 1
        elif quiet and step.seq == last_seq:
            parts = [a.frame for a in actions if isinstance(a, Send) and isinstance(a.frame, Result)]
            assert [part.payload for part in parts] == self.answer
            assert [part.last for part in parts] == [False] * (len(parts) - 1) + [True]
            assert self.step_before is not None
            assert step.payload == self.step_before.payload, "another step's reply"
        else:
            assert (step.seq - 1, step.base) == end, "I3"
            self.owed.append((step.fence, step.seq))
        self._act(actions)

    @rule(length=SMALL, fence=st.sampled_from([0, 0, -1, 1]))
    def truncate(self, length: int, fence: int) -> None:
        self._act(self.session.on_truncate(Truncate(handle=1, fence=self.session.fence + fence, length=length)))

    @rule(back=st.integers(-1, 3), fence=st.sampled_from([0, -1]))
    def cancel(self, back: int, fence: int) -> None:
        seq = self.session._end()[0]
        self._act(self.session.on_cancel(Cancel(handle=1, fence=self.session.fence + fence, seq=max(0, seq - back))))

    @rule(fence=st.sampled_from([-1, 1]))
    def close_of_another_stream(self, fence: int) -> None:
        frame = Close(handle=1, fence=self.session.newest_fence + fence)
        assert [e.code for e in self._errors(self.session.on_close(frame))] == [ErrorCode.FENCED]

    @rule()
    def lose_stream(self) -> None:
        self.owed.clear()
        self._act(self.session.on_stream_lost())
        if self.session.busy:
            assert self.running is not None

    @precondition(lambda self: self.running is not None)
    @rule(token=st.integers(0, 2**32 - 1), early=st.booleans())
    def compute(self, token: int, early: bool) -> None:
        step = self.running
        assert step is not None
        rows, payload, last = 0, b"", True
        if not self.tokens:
            assert self.kv == step.base, "I3: a step meets the cache where it begins"
            self.kv += step.rows
        else:
            self.kv += 1
        if step.reply is Reply.TOKEN:
            self.tokens += 1
            rows, payload = 1, token.to_bytes(4, "little")
            last = self.aborted or early or self.tokens >= step.generate
        elif step.reply is not Reply.ACK:
            rows = step.rows if step.reply is Reply.ALL_HIDDEN else 1
            payload = bytes(4 * rows)
        self.computed.append(payload)
        if last:
            self.step_before, self.running, self.answer = step, None, self.computed
        self._act(self.session.on_output(Output(step.seq, rows, payload, last)))

    @precondition(lambda self: self.running is not None)
    @rule(partly=st.booleans())
    def fail(self, partly: bool) -> None:
        step = self.running
        assert step is not None
        self.kv += step.rows if partly else 0
        self.step_before, self.running = None, None
        self._act(self.session.on_failure(step.seq, ErrorCode.INTERNAL, "no"))

    @rule(seq=SMALL)
    def output_of_nothing(self, seq: int) -> None:
        if self.running is None or self.running.seq != seq:
            assert self.session.on_output(Output(seq, 0, b"", True)) == []
            assert self.session.on_failure(seq, ErrorCode.INTERNAL, "no") == []

    def _errors(self, actions: list[Action]) -> list[Error]:
        return [a.frame for a in actions if isinstance(a, Send) and isinstance(a.frame, Error)]

    def _act(self, actions: list[Action]) -> None:
        for action in actions:
            match action:
                case Send():
                    self._sent(action.frame)
                case Configure():
                    self.kv = min(self.kv, action.keep)
                case Submit():
                    assert self.running is None, "one step of a session at a time"
                    self.running, self.tokens, self.aborted, self.computed = action.step, 0, False, []
                case Abort():
                    assert self.running is not None
                    self.aborted = self.aborted or action.seq == self.running.seq
                case Cut():
                    self.kv = min(self.kv, action.length)
                case Drop():
                    raise AssertionError("nobody closed the session")

    def _sent(self, frame: Opened | Result | Error | Ended) -> None:
        if isinstance(frame, Result):
            assert frame.fence == self.session.fence
            if frame.last and (frame.fence, frame.seq) in self.owed:
                self.owed.remove((frame.fence, frame.seq))
        elif isinstance(frame, Error) and frame.scope is Scope.STEP and (frame.fence, frame.seq) in self.owed:
            # Only a failure answers an accepted step with an error, and then in order.
            assert self.owed[0] == (frame.fence, frame.seq) or frame.code is not ErrorCode.INTERNAL
            if frame.code is ErrorCode.INTERNAL:
                self.owed.remove((frame.fence, frame.seq))

    @invariant()
    def the_queue_is_bounded(self) -> None:
        assert len(self.session._queue) <= MAX_QUEUED_STEPS
        assert len(self.owed) <= MAX_QUEUED_STEPS + 1

    @invariant()
    def both_know_what_runs_and_how_long_the_cache_is(self) -> None:
        assert self.session.busy == (self.running is not None)
        if self.running is None:
            assert self.session.kv_length == self.kv
            assert not self.session._queue, "something waits and nothing runs"
            assert not self.owed, "I5: accepted, never answered"

    @invariant()
    def the_fence_never_goes_back(self) -> None:
        assert self.session.fence >= self.fence
        self.fence = self.session.fence


CloudMachine.TestCase.settings = settings(max_examples=250, stateful_step_count=60, deadline=None)
TestCloudMachine = CloudMachine.TestCase


@pytest.mark.slow
def test_many_more_runs() -> None:
    class Longer(CloudMachine.TestCase):  # type: ignore[name-defined,misc]
        settings = settings(max_examples=5000, stateful_step_count=80, deadline=None)

    Longer("runTest").runTest()
