"""The scheduler: everything that was added runs once, in its class's order, and neither class starves the other."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from splitglm_cloud.engine.scheduler import Batch, Scheduler, Work
from splitglm_core.errors import InternalError
from splitglm_core.ranges import LayerRange


def work(session: int, rows: int = 1, seq: int = 1) -> Work:
    return Work(session=session, seq=seq, layers=LayerRange(2, 5), base=0, rows=rows)


class Schedule(RuleBasedStateMachine):
    """Any order of adding, running, finishing and removing."""

    def __init__(self) -> None:
        super().__init__()
        self.scheduler = Scheduler(max_decode_burst=3)
        self.waiting: dict[int, Work] = {}
        self.order: list[int] = []
        self.running: list[Batch] = []
        self.seq = 0
        self.burst = 0

    @rule(session=st.integers(0, 9), rows=st.sampled_from([1, 1, 2, 7, 64]))
    def add(self, session: int, rows: int) -> None:
        self.seq += 1
        one = work(session, rows, self.seq)
        if session in self.waiting or any(w.session == session for batch in self.running for w in batch.works):
            with pytest.raises(InternalError):
                self.scheduler.add(one)
            return
        self.scheduler.add(one)
        self.waiting[session] = one
        self.order.append(session)

    @rule()
    def take(self) -> None:
        batch = self.scheduler.next_batch()
        if not self.waiting:
            assert batch is None
            return
        assert batch is not None
        decodes = [s for s in self.order if self.waiting[s].decode]
        prefills = [s for s in self.order if not self.waiting[s].decode]
        for one in batch.works:
            assert self.waiting.pop(one.session) is one  # what was added, once
            self.order.remove(one.session)
            assert one.session == (decodes if one.decode else prefills)[0]  # first come, first served
        is_decode = batch.works[0].decode
        self.burst = self.burst + 1 if is_decode and prefills else 0
        assert self.burst <= 3  # a waiting prefill chunk is overtaken by at most a burst
        self.running.append(batch)

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def finish(self, data: st.DataObject) -> None:
        batch = self.running.pop(data.draw(st.integers(0, len(self.running) - 1)))
        self.scheduler.finished(batch)
        with pytest.raises(InternalError):
            self.scheduler.finished(batch)

    @rule(session=st.integers(0, 9))
    def remove(self, session: int) -> None:
        assert self.scheduler.remove(session) is (session in self.waiting)
        if self.waiting.pop(session, None) is not None:
            self.order.remove(session)

    @invariant()
    def integrity(self) -> None:
        self.scheduler.check_integrity()
        assert len(self.scheduler) == len(self.waiting)


Schedule.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestSchedule = Schedule.TestCase


@given(st.lists(st.sampled_from([1, 1, 1, 8]), min_size=1, max_size=40), st.integers(1, 5))
@settings(deadline=None)
def test_every_added_work_runs_exactly_once(rows: list[int], burst: int) -> None:
    scheduler = Scheduler(max_decode_burst=burst)
    for session, count in enumerate(rows):
        scheduler.add(work(session, count))
    ran = []
    while (batch := scheduler.next_batch()) is not None:
        ran += [one.session for one in batch.works]
        scheduler.finished(batch)
    assert sorted(ran) == list(range(len(rows)))


@pytest.mark.parametrize("burst", [1, 8])
def test_sessions_that_always_decode_do_not_starve_a_prefill(burst: int) -> None:
    scheduler = Scheduler(max_decode_burst=burst)
    for session in range(3):
        scheduler.add(work(session))
    scheduler.add(work(99, rows=128))
    for batches in range(burst + 1):
        batch = scheduler.next_batch()
        assert batch is not None
        scheduler.finished(batch)
        one = batch.works[0]
        if one.session == 99:
            assert batches == burst
            return
        scheduler.add(work(one.session, seq=one.seq + 1))
    pytest.fail("the prefill chunk never ran")


def test_prefills_that_never_end_do_not_starve_a_decode() -> None:
    scheduler = Scheduler()
    for session in range(4):
        scheduler.add(work(session, rows=128))
    for _ in range(10):
        scheduler.add(work(50))
        batch = scheduler.next_batch()
        assert batch is not None and batch.works[0].session == 50  # somebody waits for this token
        scheduler.finished(batch)
        chunk = scheduler.next_batch()
        assert chunk is not None and not chunk.works[0].decode
        scheduler.finished(chunk)
        scheduler.add(work(chunk.works[0].session, rows=128))


def test_a_batch_counts_its_rows() -> None:
    scheduler = Scheduler()
    scheduler.add(work(1, rows=17))
    batch = scheduler.next_batch()
    assert batch is not None and batch.rows == 17
