"""The log of received rows gives back what was put in, keeps to its budget, and says what it no longer has."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from splitglm_cloud.gateway.received import PART_BYTES, Entry, ReceivedLog
from splitglm_core.errors import InternalError
from splitglm_core.plan import Codec
from splitglm_wire.codec import max_rows, payload_bytes
from splitglm_wire.frames import Rows
from splitglm_wire.limits import MAX_RECORD_BYTES, MAX_ROWS

HIDDEN = 3


def entry(base: int, rows: int, kind: Rows = Rows.HIDDEN, codec: Codec = Codec.BF16, *, fill: int = 1) -> Entry:
    size = 4 * rows if kind is Rows.IDS else payload_bytes(codec, rows, HIDDEN, base)
    return Entry(base, rows, kind, codec, bytes([fill]) * size)


def replayed(log: ReceivedLog, session: int) -> list[Entry]:
    entries: list[Entry] = []
    while (at := entries[-1].stop if entries else 0) < log.length(session):
        entries.append(log.entry(session, at))
    return entries


def test_adjacent_rows_are_given_back_in_few_entries() -> None:
    log = ReceivedLog(budget_bytes=1 << 20, hidden=HIDDEN)
    for position in range(100):
        assert log.append(1, entry(position, 1, fill=position)) == ()
    (whole,) = replayed(log, 1)
    assert (whole.base, whole.rows) == (0, 100)
    assert bytes(whole.payload) == b"".join(bytes([i]) * 6 for i in range(100))


@pytest.mark.parametrize("codec", Codec)
def test_no_entry_is_larger_than_a_step_may_be(codec: Codec) -> None:
    hidden = 4096
    log = ReceivedLog(budget_bytes=1 << 30, hidden=hidden)
    for base in range(0, 700, 7):
        log.append(1, Entry(base, 7, Rows.HIDDEN, codec, bytes(payload_bytes(codec, 7, hidden, base))))
    entries = replayed(log, 1)
    assert sum(e.rows for e in entries) == 700
    assert max(len(e.payload) for e in entries) <= MAX_RECORD_BYTES
    assert len(entries) <= 2 + 700 // (max_rows(codec, hidden) - 7)


def test_ids_are_given_back_in_steps_of_as_many_rows_as_a_step_may_have() -> None:
    log = ReceivedLog(budget_bytes=1 << 20, hidden=HIDDEN)
    for base in range(0, 3 * MAX_ROWS, 512):
        log.append(1, entry(base, 512, Rows.IDS))
    assert [e.rows for e in replayed(log, 1)] == [MAX_ROWS] * 3


def test_rows_in_another_codec_or_of_another_kind_are_not_mixed() -> None:
    log = ReceivedLog(budget_bytes=1 << 20, hidden=HIDDEN)
    log.append(1, entry(0, 2, codec=Codec.INT8))
    log.append(1, entry(2, 2, codec=Codec.INT8))
    log.append(1, entry(4, 2, codec=Codec.FP32))
    log.append(1, entry(6, 2, Rows.IDS))
    assert [(e.base, e.rows, e.kind, e.codec) for e in replayed(log, 1)] == [
        (0, 4, Rows.HIDDEN, Codec.INT8),
        (4, 2, Rows.HIDDEN, Codec.FP32),
        (6, 2, Rows.IDS, Codec.BF16),
    ]


def test_rows_of_a_received_record_are_copied_out_of_it() -> None:
    log = ReceivedLog(budget_bytes=1 << 20, hidden=HIDDEN)
    record = bytearray(b"\1" * 12)
    log.append(1, Entry(0, 2, Rows.HIDDEN, Codec.BF16, memoryview(record)))
    record[:] = b"\2" * 12
    assert bytes(log.entry(1, 0).payload) == b"\1" * 12


def test_the_longest_unused_sessions_lose_their_logs_first_and_those_at_work_never() -> None:
    one = PART_BYTES + 6 * 100
    log = ReceivedLog(budget_bytes=3 * one, hidden=HIDDEN)
    for session in (1, 2, 3):
        assert log.append(session, entry(0, 100)) == ()
    log.hold(1)  # the longest unused, but at work
    assert log.append(4, entry(0, 100)) == (2,)
    log.rest(1)
    log.hold(3)
    log.rest(3)
    assert log.append(5, entry(0, 100)) == (1,)
    assert [log.covers(session, 100) for session in (1, 2, 3, 4, 5)] == [False, False, True, True, True]
    log.check_integrity()


def test_a_session_is_used_when_it_is_added_to() -> None:
    log = ReceivedLog(budget_bytes=3 * (PART_BYTES + 60), hidden=HIDDEN)
    for session in (1, 2):
        log.append(session, entry(0, 9))
    log.append(1, entry(9, 1))
    assert log.append(3, entry(0, 20)) == (2,)


def test_a_session_that_finds_no_room_keeps_no_part_of_its_log() -> None:
    log = ReceivedLog(budget_bytes=PART_BYTES + 600, hidden=HIDDEN)
    log.append(1, entry(0, 50))
    log.hold(1)
    assert log.append(2, entry(0, 100)) == (2,)
    assert log.append(2, entry(100, 1)) == ()  # what came before is lost, so this alone is of no use
    assert not log.covers(2, 1) and log.covers(2, 0) and log.covers(1, 50)
    assert log.append(1, entry(50, 51)) == (1,)
    assert log.used_bytes == 0


def test_a_log_without_a_budget_keeps_nothing() -> None:
    log = ReceivedLog(budget_bytes=0, hidden=HIDDEN)
    assert log.append(1, entry(0, 1)) == (1,)
    assert len(log) == 0 and log.used_bytes == 0


def test_reading_where_nothing_begins_is_a_fault_of_ours() -> None:
    log = ReceivedLog(budget_bytes=1 << 20, hidden=HIDDEN)
    log.append(1, entry(0, 4))
    for session, position in ((1, 1), (1, 4), (2, 0)):
        with pytest.raises(InternalError):
            log.entry(session, position)


class LogMachine(RuleBasedStateMachine):
    """Beside a list of single rows."""

    def __init__(self) -> None:
        super().__init__()
        self.log = ReceivedLog(budget_bytes=4000, hidden=HIDDEN)
        self.truth: dict[int, list[tuple[Rows, Codec, bytes]]] = {}
        self.at_work: set[int] = set()
        self.count = 0

    @rule(
        session=st.integers(1, 4),
        rows=st.integers(1, 60),
        back=st.integers(0, 3),
        kind=st.sampled_from(Rows),
        codec=st.sampled_from(Codec),
    )
    def append(self, session: int, rows: int, back: int, kind: Rows, codec: Codec) -> None:
        truth = self.truth.setdefault(session, [])
        base = max(0, len(truth) - back)
        del truth[base:]
        added = []
        for position in range(base, base + rows):
            self.count += 1
            size = 4 if kind is Rows.IDS else payload_bytes(codec, 1, HIDDEN, position)
            added.append((kind, codec, self.count.to_bytes(4, "little") + bytes(size - 4)))
        truth += added
        for loser in self.log.append(session, Entry(base, rows, kind, codec, b"".join(row for _, _, row in added))):
            assert loser == session or loser not in self.at_work
            self.truth[loser] = []

    @rule(session=st.integers(1, 4), length=st.integers(0, 100))
    def cut(self, session: int, length: int) -> None:
        self.log.cut(session, length)
        del self.truth.setdefault(session, [])[length:]

    @rule(session=st.integers(1, 4))
    def forget(self, session: int) -> None:
        self.log.forget(session)
        self.truth[session] = []
        self.at_work.discard(session)

    @rule(session=st.integers(1, 4), works=st.booleans())
    def work(self, session: int, works: bool) -> None:
        (self.log.hold if works else self.log.rest)(session)
        (self.at_work.add if works else self.at_work.discard)(session)

    @invariant()
    def gives_back_what_was_put_in(self) -> None:
        self.log.check_integrity()
        for session, truth in self.truth.items():
            assert self.log.length(session) == len(truth)
            rows = [(e.kind, e.codec, row) for e in replayed(self.log, session) for row in split(e)]
            assert rows == truth

    def teardown(self) -> None:
        for session in self.truth:
            self.log.forget(session)
        assert self.log.used_bytes == 0 and len(self.log) == 0


def split(e: Entry) -> list[bytes]:
    """An entry's payload row by row."""
    rows, at = [], 0
    for position in range(e.base, e.stop):
        size = 4 if e.kind is Rows.IDS else payload_bytes(e.codec, 1, HIDDEN, position)
        rows.append(bytes(e.payload[at : at + size]))
        at += size
    assert at == len(e.payload)
    return rows


TestLogMachine = LogMachine.TestCase
TestLogMachine.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
