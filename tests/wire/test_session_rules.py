"""Rule by rule, each machine alone: what is refused, how, and that a refusal changes nothing."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import integer_model as model
import pytest

from splitglm_core.criticality import Criticality
from splitglm_core.errors import InternalError, ProtocolError
from splitglm_core.sampling import SamplingParams
from splitglm_wire.cloud import Abort, Action, CloudSession, Configure, Cut, Drop, Output, Send, Submit
from splitglm_wire.device import Attached, DeviceSession, Gap, HiddenArrived, Refused, State, StepDone, TokenArrived
from splitglm_wire.frames import (
    KEEP_ALL,
    Cancel,
    Close,
    Ended,
    Error,
    ErrorCode,
    Frame,
    Open,
    Opened,
    Pong,
    Reply,
    Result,
    Rows,
    Scope,
    Step,
    Truncate,
)
from splitglm_wire.limits import MAX_CONTEXT, MAX_GENERATE, MAX_QUEUED_STEPS, MAX_ROWS

SPLIT, CLOUD, USHAPE = model.PLANS["split"], model.PLANS["cloud"], model.PLANS["ushape"]
OPENING: dict[str, Any] = {"sampling": SamplingParams(), "context": model.CONTEXT}


def opening(fence: int = 1, *, handle: int = 1, **changes: Any) -> Open:
    base: dict[str, Any] = {"plan": SPLIT, "keep": 0, "request": 1, **OPENING}
    return Open(handle=handle, session_id=bytes(16), fence=fence, **(base | changes))


def a_step(seq: int, base: int, rows: int = 2, *, fence: int = 1, **changes: Any) -> Step:
    fields: dict[str, Any] = {
        "handle": 1,
        "fence": fence,
        "seq": seq,
        "base": base,
        "rows_kind": Rows.HIDDEN,
        "rows": rows,
        "reply": Reply.ACK,
        "generate": 0,
        "payload": bytes([seq]) * 4 * rows,
    }
    return Step(**(fields | changes))


def cloud(frame: Open | None = None) -> CloudSession:
    session = CloudSession(session_id=bytes(16), hidden=1)
    session.on_open(frame or opening())
    return session


def ran(session: CloudSession, step: Step, payload: bytes = b"", rows: int = 0) -> list[Action]:
    assert session.on_step(step) == [Submit(step)]
    return session.on_output(Output(step.seq, rows, payload, True))


def error_of(actions: list[Action]) -> Error:
    assert [type(action) for action in actions] == [Send]
    frame = actions[0].frame  # type: ignore[union-attr]
    assert isinstance(frame, Error)
    return frame


def device(*, plan: Any = SPLIT, keep: int = 0) -> DeviceSession:
    machine = DeviceSession(handle=1, session_id=bytes(16))
    machine.open(plan=plan, keep=keep, **OPENING)
    machine.receive(Opened(handle=1, fence=1, request=1, have=0, last_seq=0))
    return machine


def ack(machine: DeviceSession, rows: int = 2) -> tuple[int, Step]:
    return machine.step(rows_kind=Rows.HIDDEN, rows=rows, payload=bytes(4 * rows), reply=Reply.ACK)


def result(
    step: Step, *, index: int = 0, last: bool = True, payload: bytes = b"", rows: int = 0, tokens: int = 0
) -> Result:
    length = step.base + step.rows + max(0, tokens - 1)
    return Result(
        handle=step.handle,
        fence=step.fence,
        seq=step.seq,
        index=index,
        last=last,
        reply=step.reply,
        kv_length=length,
        rows=rows,
        queue_us=0,
        compute_us=0,
        payload=payload,
    )


def refusal(seq: int, fence: int = 1, code: ErrorCode = ErrorCode.INTERNAL, **changes: Any) -> Error:
    fields: dict[str, Any] = {"scope": Scope.STEP, "resumable": False, "retry_after_ms": 0, "have": 0, "text": "no"}
    return Error(handle=1, fence=fence, seq=seq, code=code, **(fields | changes))


# The cloud


@pytest.mark.parametrize(
    ("step", "code", "scope"),
    [
        (a_step(3, 2), ErrorCode.SEQ_CONFLICT, Scope.STEP),
        (a_step(0, 0), ErrorCode.SEQ_CONFLICT, Scope.STEP),
        (a_step(2, 3), ErrorCode.KV_GAP, Scope.STEP),
        (a_step(2, 1), ErrorCode.KV_GAP, Scope.STEP),
        (a_step(2, 2, fence=2), ErrorCode.FENCED, Scope.SESSION),
        (a_step(2, 2, fence=0), ErrorCode.FENCED, Scope.SESSION),
        (a_step(2, 2, model.CONTEXT - 1), ErrorCode.TOO_LARGE, Scope.STEP),
        (a_step(2, 2, payload=bytes(7)), ErrorCode.BAD_TENSOR, Scope.STEP),
        (a_step(2, 2, payload=b""), ErrorCode.BAD_TENSOR, Scope.STEP),
        (a_step(2, 2, rows_kind=Rows.IDS), ErrorCode.BAD_REQUEST, Scope.STEP),
        (a_step(2, 2, reply=Reply.ALL_HIDDEN), ErrorCode.BAD_REQUEST, Scope.STEP),
        (a_step(2, 2, reply=Reply.LAST_HIDDEN), ErrorCode.BAD_REQUEST, Scope.STEP),
        (a_step(2, 2, reply=Reply.TOKEN, generate=2), ErrorCode.BAD_REQUEST, Scope.STEP),
        (a_step(2, 2, reply=Reply.TOKEN, generate=0), ErrorCode.BAD_REQUEST, Scope.STEP),
        (a_step(2, 2, generate=1), ErrorCode.BAD_REQUEST, Scope.STEP),
        (a_step(1, 0, payload=b"otherrow"), ErrorCode.SEQ_CONFLICT, Scope.SESSION),
        (a_step(1, 0, 1), ErrorCode.SEQ_CONFLICT, Scope.SESSION),
        (a_step(1, 0, reply=Reply.TOKEN, generate=1), ErrorCode.SEQ_CONFLICT, Scope.SESSION),
    ],
)
def test_a_step_that_does_not_follow_is_refused_and_changes_nothing(step: Step, code: ErrorCode, scope: Scope) -> None:
    session = cloud()
    first = a_step(1, 0)
    done = ran(session, first)
    before = copy.deepcopy(vars(session))
    error = error_of(session.on_step(step))
    assert (error.code, error.scope) == (code, scope)
    assert error.fence == step.fence
    assert vars(session) == before
    assert session.on_step(first) == done, "the cached reply of the last step is still there"


def test_a_generating_step_must_fit_the_context_with_all_it_may_generate() -> None:
    ids = {"rows_kind": Rows.IDS, "reply": Reply.TOKEN}
    session = cloud(opening(plan=CLOUD))
    room = model.CONTEXT - 2 + 1
    assert error_of(session.on_step(a_step(1, 0, generate=room + 1, **ids))).code is ErrorCode.TOO_LARGE
    assert error_of(session.on_step(a_step(1, 0, generate=MAX_GENERATE + 1, **ids))).code is ErrorCode.BAD_REQUEST
    step = a_step(1, 0, generate=room, **ids)
    assert session.on_step(step) == [Submit(step)]
    assert error_of(session.on_step(a_step(2, 2, **ids, generate=1))).code is ErrorCode.KV_GAP, "its length is open"


def test_a_reply_that_would_not_fit_a_record_is_refused_before_it_is_computed() -> None:
    rows, hidden = 64, 4096
    session = CloudSession(session_id=bytes(16), hidden=hidden)
    session.on_open(opening(plan=USHAPE))
    step = a_step(1, 0, rows, reply=Reply.ALL_HIDDEN, payload=bytes(4 * rows * hidden))
    assert error_of(session.on_step(step)).code is ErrorCode.TOO_LARGE


def test_the_queue_is_bounded_and_a_full_queue_is_told_as_busy() -> None:
    session = cloud()
    for seq in range(1, MAX_QUEUED_STEPS + 2):
        assert session.on_step(a_step(seq, 2 * (seq - 1))) in ([], [Submit(a_step(1, 0))])
    error = error_of(session.on_step(a_step(MAX_QUEUED_STEPS + 2, 2 * (MAX_QUEUED_STEPS + 1))))
    assert (error.code, error.resumable) == (ErrorCode.OVERLOADED, True)
    assert error.retry_after_ms > 0


def test_a_failure_answers_every_accepted_step_and_cuts_the_cache_back() -> None:
    session = cloud()
    ran(session, a_step(1, 0))
    for seq in (2, 3, 4):
        session.on_step(a_step(seq, 2 * (seq - 1)))
    actions = session.on_failure(2, ErrorCode.BAD_TENSOR, "bad")
    assert actions[0] == Cut(2)
    errors = [action.frame for action in actions[1:] if isinstance(action, Send)]
    assert [(e.seq, e.code) for e in errors] == [(seq, ErrorCode.BAD_TENSOR) for seq in (2, 3, 4)]  # type: ignore[union-attr]
    assert not session.busy
    assert error_of(session.on_step(a_step(5, 8))).code is ErrorCode.SEQ_CONFLICT, "it was on the wire"
    assert session.on_step(a_step(2, 2)) == [Submit(a_step(2, 2))]


@pytest.mark.parametrize("fence", [0, 1, 2])
def test_an_open_that_is_not_newer_is_fenced(fence: int) -> None:
    session = cloud(opening(2))
    before = copy.deepcopy(vars(session))
    assert error_of(session.on_open(opening(fence, handle=7))).code is ErrorCode.FENCED
    assert vars(session) == before


def test_frames_of_an_older_stream_change_nothing() -> None:
    session = cloud()
    ran(session, a_step(1, 0))
    session.on_open(opening(2, keep=1))
    before = copy.deepcopy(vars(session))
    assert error_of(session.on_step(a_step(2, 1))).code is ErrorCode.FENCED
    assert error_of(session.on_truncate(Truncate(handle=1, fence=1, length=0))).code is ErrorCode.FENCED
    assert error_of(session.on_close(Close(handle=1, fence=1))).code is ErrorCode.FENCED
    assert session.on_cancel(Cancel(handle=1, fence=1, seq=1)) == []
    assert vars(session) == before


def test_of_two_streams_that_wait_for_a_running_step_the_newest_gets_the_session() -> None:
    session = cloud()
    session.on_step(a_step(1, 0))
    assert session.on_open(opening(3, handle=3)) == [Abort(1)]
    assert error_of(session.on_open(opening(2, handle=2))).code is ErrorCode.FENCED, "overtaken on its way"
    assert session.newest_fence == 3
    assert session.on_open(opening(4, handle=4)) == [Abort(1)]
    actions = session.on_output(Output(1, 0, b"", True))
    assert [type(action) for action in actions] == [Configure, Send]
    assert actions[1] == Send(Opened(handle=4, fence=4, request=1, have=0, last_seq=1, step_fence=1))


def test_a_step_on_a_session_that_waits_for_another_stream_is_fenced() -> None:
    session = cloud()
    session.on_step(a_step(1, 0))
    session.on_open(opening(2, handle=2))
    for fence in (1, 2):
        assert error_of(session.on_step(a_step(2, 2, fence=fence))).code is ErrorCode.FENCED
        assert error_of(session.on_truncate(Truncate(handle=1, fence=fence, length=0))).code is ErrorCode.FENCED


def test_a_failure_that_a_new_stream_waits_for_is_not_sent_to_it() -> None:
    session = cloud()
    session.on_step(a_step(1, 0))
    session.on_open(opening(2, handle=2))
    actions = session.on_failure(1, ErrorCode.INTERNAL, "no")
    assert [type(action) for action in actions] == [Cut, Configure, Send]
    assert isinstance(actions[2], Send)
    assert isinstance(actions[2].frame, Opened)


def test_truncate_while_a_step_runs_ends_the_session() -> None:
    session = cloud()
    session.on_step(a_step(1, 0))
    error = error_of(session.on_truncate(Truncate(handle=1, fence=1, length=0)))
    assert (error.code, error.scope) == (ErrorCode.BAD_REQUEST, Scope.SESSION)


def test_a_truncated_step_is_not_answered_from_the_cache() -> None:
    session = cloud()
    step = a_step(1, 0)
    ran(session, step)
    assert session.on_truncate(Truncate(handle=1, fence=1, length=5)) == [Cut(2)]
    assert len(session.on_step(step)) == 1
    assert session.on_truncate(Truncate(handle=1, fence=1, length=1)) == [Cut(1)]
    assert error_of(session.on_step(step)).code is ErrorCode.SEQ_CONFLICT


def test_another_cut_or_a_longer_context_begins_with_an_empty_cache() -> None:
    for changes in ({"plan": USHAPE}, {"context": model.CONTEXT + 1}):
        session = cloud()
        ran(session, a_step(1, 0))
        actions = session.on_open(opening(2, keep=2, **changes))
        assert isinstance(actions[0], Configure)
        assert actions[0].keep == session.kv_length == 0


def test_another_reply_never_gets_the_cached_one() -> None:
    session = cloud()
    step = a_step(1, 0, reply=Reply.TOKEN, generate=1)
    ran(session, step, model.pack([5]), 1)
    session.on_open(opening(2, keep=2, request=2))
    assert error_of(session.on_step(replace(step, fence=2))).code is ErrorCode.SEQ_CONFLICT


def test_a_reply_of_positions_that_were_cut_is_not_kept() -> None:
    session = cloud()
    step = a_step(1, 0)
    ran(session, step)
    session.on_open(opening(2, keep=1))
    assert error_of(session.on_step(replace(step, fence=2))).code is ErrorCode.SEQ_CONFLICT


def test_nothing_more_is_computed_for_a_stream_that_died() -> None:
    session = cloud()
    for seq in (1, 2, 3):
        session.on_step(a_step(seq, 2 * (seq - 1)))
    assert session.on_stream_lost() == [Abort(1)]
    assert [type(action) for action in session.on_output(Output(1, 0, b"", True))] == [Send]
    assert not session.busy


def test_a_new_open_voids_what_is_queued() -> None:
    session = cloud()
    for seq in (1, 2, 3):
        session.on_step(a_step(seq, 2 * (seq - 1)))
    session.on_open(opening(2, keep=99))
    session.on_output(Output(1, 0, b"", True))
    step = a_step(2, 2, fence=2, payload=b"otherrow")
    assert session.on_step(step) == [Submit(step)]


def test_outputs_of_a_step_that_does_not_run_are_ignored() -> None:
    session = cloud()
    assert session.on_output(Output(1, 0, b"", True)) == []
    assert session.on_failure(1, ErrorCode.INTERNAL, "no") == []
    session.on_step(a_step(1, 0))
    before = copy.deepcopy(vars(session))
    assert session.on_output(Output(2, 0, b"", True)) == []
    assert session.on_failure(2, ErrorCode.INTERNAL, "no") == []
    assert vars(session) == before


def test_a_cancel_of_a_step_behind_a_failed_one_does_not_hit_the_next_step_of_that_number() -> None:
    ids = {"rows_kind": Rows.IDS}
    session = cloud(opening(plan=CLOUD))
    session.on_step(a_step(1, 0, **ids))
    session.on_step(a_step(2, 2, **ids, reply=Reply.TOKEN, generate=9))
    assert session.on_cancel(Cancel(handle=1, fence=1, seq=2)) == []
    session.on_failure(1, ErrorCode.INTERNAL, "no")
    session.on_open(opening(2, plan=CLOUD, request=2))
    ran(session, a_step(1, 0, fence=2, **ids))
    step = a_step(2, 2, fence=2, **ids, reply=Reply.TOKEN, generate=9)
    assert session.on_step(step) == [Submit(step)]


def test_closing_frees_the_session() -> None:
    assert cloud().on_close(Close(handle=1, fence=1)) == [Drop(), Send(Ended(handle=1))]


# The device

ILLEGAL_CALLS: dict[str, tuple[State | None, Callable[[DeviceSession], object]]] = {
    "step before open": (State.NEW, ack),
    "step while broken": (State.BROKEN, ack),
    "step while opening anew": (State.REOPENING, ack),
    "step after a refusal": (State.STALLED, ack),
    "step after close": (State.CLOSED, ack),
    "step of no rows": (State.OPEN, lambda m: ack(m, 0)),
    "step of too many rows": (State.OPEN, lambda m: ack(m, MAX_ROWS + 1)),
    "token step of no tokens": (
        State.OPEN,
        lambda m: m.step(rows_kind=Rows.IDS, rows=1, payload=bytes(4), reply=Reply.TOKEN),
    ),
    "ack that generates": (
        State.OPEN,
        lambda m: m.step(rows_kind=Rows.IDS, rows=1, payload=bytes(4), reply=Reply.ACK, generate=1),
    ),
    "step of too many tokens": (
        State.OPEN,
        lambda m: m.step(rows_kind=Rows.IDS, rows=1, payload=b"", reply=Reply.TOKEN, generate=MAX_GENERATE + 1),
    ),
    "truncate to more": (State.OPEN, lambda m: m.truncate(3)),
    "truncate to less than nothing": (State.OPEN, lambda m: m.truncate(-1)),
    "truncate while broken": (State.BROKEN, lambda m: m.truncate(0)),
    "keep more than confirmed": (State.OPEN, lambda m: m.open(plan=SPLIT, keep=3, **OPENING)),
    "keep less than nothing": (State.OPEN, lambda m: m.open(plan=SPLIT, keep=-1, **OPENING)),
    "open while broken": (State.BROKEN, lambda m: m.open(plan=SPLIT, keep=0, **OPENING)),
    "open after close": (State.CLOSED, lambda m: m.open(plan=SPLIT, keep=0, **OPENING)),
    "reopen while open": (State.OPEN, lambda m: m.reopen(handle=2, generated=())),
    "reopen twice": (State.REOPENING, lambda m: m.reopen(handle=2, generated=())),
    "reopen after close": (State.CLOSED, lambda m: m.reopen(handle=2, generated=())),
    "reopen before open": (State.NEW, lambda m: m.reopen(handle=2, generated=())),
}


def device_in(state: State | None) -> DeviceSession:
    """A device in ``state`` with two confirmed positions (but for NEW)."""
    if state is State.NEW:
        return DeviceSession(handle=1, session_id=bytes(16))
    machine = device()
    machine.receive(result(ack(machine)[1]))
    if state is State.STALLED:
        machine.receive(refusal(ack(machine)[1].seq))
    elif state in (State.BROKEN, State.REOPENING):
        machine.broke()
        if state is State.REOPENING:
            machine.reopen(handle=2, generated=())
    elif state is State.CLOSED:
        machine.close()
    assert machine.state is state
    return machine


@pytest.mark.parametrize("name", ILLEGAL_CALLS)
def test_an_illegal_call_raises_and_leaves_the_state_as_it_was(name: str) -> None:
    state, call = ILLEGAL_CALLS[name]
    machine = device_in(state)
    before = copy.deepcopy(vars(machine))
    with pytest.raises(InternalError):
        call(machine)
    assert vars(machine) == before


@pytest.mark.parametrize("call", ["open", "truncate", "step"])
def test_with_a_step_open_nothing_is_cut_and_with_a_generation_open_nothing_is_sent(call: str) -> None:
    machine = device(plan=CLOUD)
    machine.step(rows_kind=Rows.IDS, rows=1, payload=bytes(4), reply=Reply.TOKEN, generate=5)
    before = copy.deepcopy(vars(machine))
    with pytest.raises(InternalError):
        if call == "open":
            machine.open(plan=CLOUD, keep=0, **OPENING)
        elif call == "truncate":
            machine.truncate(0)
        else:
            ack(machine)
    assert vars(machine) == before


def hostile(step: Step) -> dict[str, Frame]:
    """Frames that break the rules while ``step`` (a hidden reply for two rows) is pending."""
    good = result(step, payload=bytes(8), rows=2)
    return {
        "part out of order": replace(good, index=1),
        "another step's part": replace(good, seq=step.seq + 1),
        "another kind of reply": replace(good, reply=Reply.ACK, rows=0, payload=b""),
        "hidden reply in two parts": replace(good, last=False),
        "too few rows": replace(good, rows=1),
        "too many rows": replace(good, rows=3),
        "no rows": replace(good, rows=0, payload=b""),
        "a cache too long": replace(good, kv_length=good.kv_length + 1),
        "a cache too short": replace(good, kv_length=good.kv_length - 1),
        "opened again": Opened(handle=1, fence=1, request=1, have=0, last_seq=0),
        "ended unasked": Ended(handle=1),
        "a pong": Pong(handle=1, nonce=1),
        "a device's frame": Cancel(handle=1, fence=1, seq=1),
    }


@pytest.mark.parametrize("name", hostile(a_step(1, 0)))
def test_a_hostile_frame_raises_and_leaves_the_state_as_it_was(name: str) -> None:
    machine = device(plan=USHAPE)
    _, step = machine.step(rows_kind=Rows.HIDDEN, rows=2, payload=bytes(8), reply=Reply.ALL_HIDDEN)
    before = copy.deepcopy(vars(machine))
    with pytest.raises(ProtocolError):
        machine.receive(hostile(step)[name])
    assert vars(machine) == before
    events, _ = machine.receive(result(step, payload=bytes(8), rows=2))
    assert [type(event) for event in events] == [HiddenArrived, StepDone]


def test_a_generation_is_checked_part_by_part() -> None:
    machine = device(plan=CLOUD)
    ticket, step = machine.step(rows_kind=Rows.IDS, rows=1, payload=bytes(4), reply=Reply.TOKEN, generate=2)
    one = result(step, last=False, payload=model.pack([7]), rows=1, tokens=1)
    assert machine.receive(one)[0] == [TokenArrived(ticket, 0, 7)]
    assert machine.receive(one)[0] == [], "I1: a part twice is delivered once"
    for bad in (
        replace(one, index=1, payload=b"abc"),
        replace(one, index=1, rows=2, payload=bytes(8)),
        replace(one, index=1, rows=0, payload=b""),
        replace(one, last=True),
        replace(one, index=2),
    ):
        before = copy.deepcopy(vars(machine))
        with pytest.raises(ProtocolError):
            machine.receive(bad)
        assert vars(machine) == before
    two = result(step, index=1, last=False, payload=model.pack([8]), rows=1, tokens=2)
    machine.receive(two)
    with pytest.raises(ProtocolError):
        machine.receive(replace(two, index=2))
    end = replace(two, index=2, last=True, rows=0, payload=b"")
    assert machine.receive(end)[0] == [StepDone(ticket, step.base + 2, 2, 0.0, 0.0, 0.0)]


@pytest.mark.parametrize("state", [State.BROKEN, State.CLOSED, State.REOPENING])
def test_what_a_dead_stream_still_says_is_not_heard(state: State) -> None:
    machine = device()
    _, step = ack(machine)
    machine.broke() if state is not State.CLOSED else machine.close()
    if state is State.REOPENING:
        machine.reopen(handle=2, generated=())
    before = copy.deepcopy(vars(machine))
    for frame in (result(step), refusal(step.seq), Opened(handle=1, fence=1, request=1, have=0, last_seq=0)):
        assert machine.receive(frame) == ([], [])
    assert vars(machine) == before


@pytest.mark.parametrize("early", ["result", "more kept than asked"])
def test_a_cloud_that_answers_before_it_opened_or_kept_too_much_breaks_the_rules(early: str) -> None:
    machine = DeviceSession(handle=1, session_id=bytes(16))
    machine.open(plan=SPLIT, keep=0, **OPENING)
    _, step = ack(machine)
    with pytest.raises(ProtocolError):
        if early == "result":
            machine.receive(result(step))
        else:
            machine.receive(Opened(handle=1, fence=1, request=1, have=1, last_seq=0))


def test_a_refused_step_voids_those_behind_it_and_no_other() -> None:
    machine = device()
    sent = [ack(machine) for _ in range(4)]
    events, _ = machine.receive(refusal(sent[2][1].seq, code=ErrorCode.OVERLOADED, resumable=True))
    assert [type(event) for event in events] == [Refused]
    assert events[0].ticket == sent[2][0]  # type: ignore[union-attr]
    assert machine.in_flight == 2
    assert machine.length == 4
    assert machine.receive(refusal(sent[3][1].seq, code=ErrorCode.SEQ_CONFLICT)) == ([], []), "its echo"
    for _, step in sent[:2]:
        machine.receive(result(step))
    assert (machine.confirmed, machine.state, machine.idle) == (4, State.STALLED, True)
    frame = machine.open(plan=SPLIT, keep=4, **OPENING)
    assert (frame.fence, frame.keep) == (2, 4)
    _, step = ack(machine)
    assert (step.seq, step.base) == (3, 4)
    assert machine.receive(refusal(3, fence=1)) == ([], []), "an echo of the old step 3 is not the new step's"
    machine.receive(Opened(handle=1, fence=2, request=2, have=4, last_seq=2, step_fence=1))
    assert [type(event) for event in machine.receive(result(step))[0]] == [StepDone]


@pytest.mark.parametrize(("resumable", "state"), [(True, State.BROKEN), (False, State.CLOSED)])
def test_an_error_of_the_session_voids_every_step(resumable: bool, state: State) -> None:
    machine = device()
    ack(machine)
    ack(machine)
    error = refusal(0, scope=Scope.SESSION, resumable=resumable, code=ErrorCode.OVERLOADED)
    assert machine.receive(error)[0] == [Refused(None, error)]
    assert (machine.state, machine.idle, machine.length) == (state, True, 0)
    assert machine.receive(error) == ([], []), "only the first counts"


def test_a_cloud_that_forgot_the_session_on_a_living_stream_is_a_gap() -> None:
    """Even where nothing was to be kept: the numbering is another one."""
    for keep in (0, 2):
        machine = device_in(State.OPEN)
        machine.open(plan=SPLIT, keep=keep, **OPENING)
        ack(machine)
        assert machine.receive(Opened(handle=1, fence=2, request=2, have=0, last_seq=0))[0] == [Gap(0)]
        assert (machine.state, machine.idle, machine.confirmed) == (State.STALLED, True, 0)
        machine.open(plan=SPLIT, keep=0, **OPENING)
        assert ack(machine)[1].seq == 1


def test_a_kv_gap_below_what_was_confirmed_is_told_as_a_gap() -> None:
    machine = device_in(State.OPEN)
    _, step = ack(machine)
    assert machine.receive(refusal(step.seq, code=ErrorCode.KV_GAP, have=1))[0] == [Gap(1)]
    assert machine.confirmed == 1
    machine = device_in(State.OPEN)
    _, step = ack(machine)
    assert isinstance(machine.receive(refusal(step.seq, code=ErrorCode.KV_GAP, have=2))[0][0], Refused)


def test_a_cached_reply_is_asked_for_only_where_the_step_was_applied() -> None:
    """Same number, but applied under another fence: another replica's step, or another one of the past."""
    for step_fence, replayed in ((1, True), (2, False)):
        machine = device_in(State.OPEN)
        _, step = ack(machine)
        machine.broke()
        machine.reopen(handle=2, generated=())
        machine.fence = 3
        opened = Opened(handle=2, fence=3, request=1, have=4, last_seq=step.seq, step_fence=step_fence)
        events, frames = machine.receive(opened)
        assert events == [Attached(4, replayed)]
        assert [type(frame) for frame in frames] == ([Step] if replayed else [Truncate, Step])


def test_a_stream_that_broke_before_the_first_open_leaves_a_new_session() -> None:
    machine = DeviceSession(handle=1, session_id=bytes(16))
    machine.broke()
    assert machine.state is State.NEW
    machine.open(plan=SPLIT, keep=0, **OPENING)


def test_a_goodbye_is_heard_only_after_closing() -> None:
    machine = device()
    assert machine.close() == Close(handle=1, fence=1)
    assert machine.receive(Ended(handle=1)) == ([], [])


def test_limits_of_steps_and_contexts_agree() -> None:
    assert MAX_ROWS <= MAX_CONTEXT
    assert MAX_GENERATE <= MAX_CONTEXT


def test_evicted_while_idle_the_session_says_so_when_it_is_opened_again() -> None:
    session = cloud()
    ran(session, a_step(1, 0))
    assert session.on_evicted() == []
    assert session.kv_length == 0
    refused = session.on_step(a_step(2, 2))
    assert [(a.frame.code, a.frame.have) for a in refused if isinstance(a, Send) and isinstance(a.frame, Error)] == [
        (ErrorCode.KV_GAP, 0)
    ]
    _, opened = session.on_open(opening(2, keep=2))
    assert isinstance(opened, Send) and isinstance(opened.frame, Opened) and opened.frame.have == 0


def test_evicted_while_a_step_runs_every_accepted_step_ends_as_a_gap() -> None:
    session = cloud()
    ran(session, a_step(1, 0))
    session.on_step(a_step(2, 2))
    session.on_step(a_step(3, 4))
    cut, *errors = session.on_evicted()
    assert cut == Cut(0) and not session.busy
    frames = [action.frame for action in errors if isinstance(action, Send)]
    assert [(f.seq, f.code, f.have) for f in frames if isinstance(f, Error)] == [
        (2, ErrorCode.KV_GAP, 0),
        (3, ErrorCode.KV_GAP, 0),
    ]
    session.on_open(opening(2, keep=0))
    assert session.on_step(a_step(2, 0, fence=2)) == [Submit(a_step(2, 0, fence=2))]


def test_evicted_the_last_reply_is_still_given_to_a_device_that_lost_it() -> None:
    session = cloud(opening(plan=CLOUD))
    step = a_step(1, 0, rows_kind=Rows.IDS, reply=Reply.TOKEN, generate=1)
    ran(session, step, bytes(4), 1)
    session.on_evicted()
    session.on_open(opening(2, plan=CLOUD, keep=KEEP_ALL))
    again = session.on_step(replace(step, fence=2))
    assert [a.frame.last for a in again if isinstance(a, Send) and isinstance(a.frame, Result)] == [True]


def test_a_lost_answer_late_in_a_reply_is_fetched_as_it_was() -> None:
    """A reply of several steps: the cached part begins behind the tokens that are known."""
    session = cloud(opening(plan=CLOUD, generated=(7, 8)))
    step = a_step(1, 0, 1, rows_kind=Rows.IDS, payload=bytes(4), reply=Reply.TOKEN, generate=3)
    assert session.on_step(step) == [Submit(step)]
    for at, token in enumerate((4, 5, 6)):
        session.on_output(Output(1, 1, token.to_bytes(4, "little"), at == 2))
    session.on_stream_lost()
    session.on_open(opening(2, handle=9, plan=CLOUD, keep=100, generated=(7, 8)))
    actions = session.on_step(replace(step, handle=9, fence=2))
    sent = [action.frame for action in actions if isinstance(action, Send)]
    assert [(frame.index, bytes(frame.payload)[0], frame.last) for frame in sent] == [  # type: ignore[union-attr]
        (0, 4, False),
        (1, 5, False),
        (2, 6, True),
    ]


def turned_away(*, behind: int = 2, before: int = 1) -> tuple[DeviceSession, list[tuple[int, Step]]]:
    """A device of whose steps a busy cloud refused all but the first ``before``."""
    machine = device()
    sent = [ack(machine) for _ in range(before + behind)]
    machine.receive(refusal(sent[before][1].seq, code=ErrorCode.OVERLOADED, resumable=True))
    return machine, sent


def test_what_a_busy_cloud_refused_is_asked_for_again_when_the_rest_is_answered() -> None:
    machine, sent = turned_away()
    assert (machine.in_flight, machine.put_off, machine.may_retry) == (1, 2, False)
    with pytest.raises(InternalError):  # the first step is still being computed
        machine.reopen(handle=1, generated=())
    machine.receive(result(sent[0][1]))
    assert machine.may_retry
    frame = machine.reopen(handle=1, generated=(), deadline_ms=77)
    assert (frame.fence, frame.keep, frame.request, frame.deadline_ms) == (2, KEEP_ALL, 1, 77)
    assert (machine.in_flight, machine.put_off, machine.length) == (2, 0, 6)
    assert machine.receive(refusal(3, fence=1, code=ErrorCode.SEQ_CONFLICT)) == ([], []), "an echo of before"
    events, frames = machine.receive(Opened(handle=1, fence=2, request=1, have=2, last_seq=1, step_fence=1))
    assert events == [Attached(2, False)]
    assert frames == [replace(step, fence=2) for _, step in sent[1:]]
    done = [event for step in frames for event in machine.receive(result(step))[0]]  # type: ignore[arg-type]
    assert [event.ticket for event in done if isinstance(event, StepDone)] == [ticket for ticket, _ in sent[1:]]


def test_a_session_refused_by_a_busy_cloud_is_asked_for_with_all_its_steps() -> None:
    machine = DeviceSession(handle=1, session_id=bytes(16))
    machine.open(plan=SPLIT, keep=0, criticality=Criticality.SHEDDABLE, **OPENING)
    sent = [ack(machine) for _ in range(3)]
    busy = refusal(0, scope=Scope.SESSION, resumable=True, code=ErrorCode.OVERLOADED)
    assert machine.receive(busy)[0] == [Refused(None, busy)]
    for _ in sent:  # the cloud knows no session that they could belong to
        assert machine.receive(refusal(0, scope=Scope.SESSION, code=ErrorCode.NO_SESSION)) == ([], [])
    assert machine.may_retry and machine.put_off == 3
    frame = machine.reopen(handle=1, generated=())
    assert frame.criticality is Criticality.SHEDDABLE
    _, frames = machine.receive(Opened(handle=1, fence=2, request=1, have=0, last_seq=0))
    assert frames == [replace(step, fence=2) for _, step in sent]


def test_a_stream_that_breaks_meanwhile_takes_nothing_of_what_was_put_off() -> None:
    machine, sent = turned_away()
    machine.broke()
    machine.reopen(handle=2, generated=())
    _, frames = machine.receive(Opened(handle=2, fence=2, request=1, have=0, last_seq=0))
    assert frames == [replace(step, handle=2, fence=2) for _, step in sent]


def test_a_cancel_waits_with_the_step_that_was_put_off() -> None:
    machine, sent = turned_away(before=0, behind=1)
    assert machine.cancel(sent[0][0]) is None
    machine.reopen(handle=1, generated=())
    _, frames = machine.receive(Opened(handle=1, fence=2, request=1, have=0, last_seq=0))
    assert frames == [replace(sent[0][1], fence=2), Cancel(handle=1, fence=2, seq=1)]


@pytest.mark.parametrize("how", ["a new reply", "a failure before it", "positions are gone"])
def test_what_was_put_off_is_void_when_something_else_happens(how: str) -> None:
    machine, sent = turned_away()
    if how == "a new reply":
        machine.receive(result(sent[0][1]))
        machine.open(plan=SPLIT, keep=2, **OPENING)
    elif how == "a failure before it":
        machine.receive(refusal(1, code=ErrorCode.INTERNAL))
    else:
        machine.broke()
        machine.reopen(handle=1, generated=())
        machine._answered_fence = 1
        machine.confirmed = 2
        assert machine.receive(Opened(handle=1, fence=2, request=1, have=0, last_seq=0))[0] == [Gap(0)]
    assert (machine.put_off, machine.may_retry, machine.idle) == (0, False, True)


def test_a_reopen_tells_what_is_left_of_the_time_and_not_what_there_was() -> None:
    machine = DeviceSession(handle=1, session_id=bytes(16))
    assert machine.open(plan=SPLIT, keep=0, deadline_ms=9000, **OPENING).deadline_ms == 9000
    machine.broke()
    assert machine.reopen(handle=2, generated=(), deadline_ms=1234).deadline_ms == 1234


@pytest.mark.parametrize("criticality", list(Criticality))
def test_criticality_reaches_the_engine(criticality: Criticality) -> None:
    session = CloudSession(session_id=bytes(16), hidden=1)
    actions = session.on_open(opening(criticality=criticality))
    assert [action.criticality for action in actions if isinstance(action, Configure)] == [criticality]


def test_rows_held_are_those_still_to_be_computed() -> None:
    session = cloud(opening(plan=CLOUD))
    ids: dict[str, Any] = {"rows_kind": Rows.IDS}
    session.on_step(a_step(1, 0, 3, payload=bytes(12), **ids))
    session.on_step(a_step(2, 3, 5, payload=bytes(20), reply=Reply.TOKEN, generate=9, **ids))
    assert session.held_rows == 8
    session.on_output(Output(1, 0, b"", True))
    assert session.held_rows == 5
    session.on_output(Output(2, 1, bytes(4), False))
    assert session.held_rows == 1
    session.on_output(Output(2, 1, bytes(4), True))
    assert session.held_rows == 0
