"""The carousel under any order of calls, against books kept beside it."""

from __future__ import annotations

import math

import pytest
from carousel_works import LAYERS, work
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from splitglm_cloud.engine.carousel import Carousel, SweepLimits
from splitglm_cloud.engine.work import Segment, Work
from splitglm_core.criticality import Criticality
from splitglm_core.errors import InternalError


class Rides(RuleBasedStateMachine):
    """Any order of adding, running, removing and expiring."""

    def __init__(self) -> None:
        super().__init__()
        self.limits = SweepLimits(
            max_rows=8,
            prefill_rows_beside_decode=3,
            min_prefill_rows=2,
            min_decode_rows=2,
            stride_layers=3,
            max_wait_s=9,
        )
        self.carousel = Carousel(limits=self.limits)
        self.now_s = 0.0
        self.waiting: dict[int, Work] = {}
        self.riders: dict[int, tuple[Work, int]] = {}  # with the layer each needs next
        self.out: Segment | None = None

    @rule(
        session=st.integers(0, 7),
        start=st.integers(0, LAYERS - 1),
        depth=st.integers(1, LAYERS),
        rows=st.integers(1, 20),
        decode=st.booleans(),
        tenant=st.sampled_from("ab"),
        criticality=st.sampled_from(Criticality),
        patience=st.sampled_from([3.0, math.inf]),
    )
    def add(self, session, start, depth, rows, decode, tenant, criticality, patience) -> None:  # type: ignore[no-untyped-def]
        added = work(
            session,
            start,
            min(LAYERS, start + depth),
            rows=rows,
            decode=decode,
            tenant=tenant,
            criticality=criticality,
            deadline_s=self.now_s + patience,
        )
        if session in self.waiting or session in self.riders:
            with pytest.raises(InternalError):
                self.carousel.add(added, self.now_s)
        else:
            self.carousel.add(added, self.now_s)
            self.waiting[session] = added

    @rule(session=st.integers(0, 7))
    def remove(self, session: int) -> None:
        known = self.waiting.pop(session, None) or self.riders.pop(session, None)
        assert self.carousel.remove(session) is (known is not None)

    @rule(seconds=st.sampled_from([0.5, 4.0, 20.0]))
    def time_passes(self, seconds: float) -> None:
        self.now_s += seconds
        late = {session for session, one in self.waiting.items() if one.deadline_s < self.now_s}
        assert {one.session for one in self.carousel.expire(self.now_s)} == late
        for session in late:
            del self.waiting[session]

    @precondition(lambda self: self.out is None)
    @rule()
    def begin(self) -> None:
        self.out = self.carousel.next_segment(self.now_s)
        if self.out is None:
            assert not self.waiting and not self.riders
            return
        for rider in self.out.riders:
            boarded = self.waiting.pop(rider.session, None)
            if boarded is not None:
                assert boarded.layers.start == self.out.layers.start
                assert rider.rows == boarded.rows or (
                    rider.rows < boarded.rows and not (boarded.decode and boarded.rows <= 6)
                )
                self.riders[rider.session] = rider, boarded.layers.start
            assert self.riders[rider.session] == (rider, self.out.layers.start)
            assert rider.layers.covers(self.out.layers)
        assert {rider.session for rider in self.out.riders} == self.riders.keys()
        assert 0 < len(self.out.layers) <= self.limits.stride_layers and 0 < self.out.rows <= self.limits.max_rows

    @precondition(lambda self: self.out is not None)
    @rule()
    def finish(self) -> None:
        segment, self.out = self.out, None
        assert segment is not None
        expected = []
        for rider in segment.riders:
            if self.riders.get(rider.session, (None, 0))[0] is rider:
                self.riders[rider.session] = rider, segment.layers.stop
                if rider.layers.stop == segment.layers.stop:
                    del self.riders[rider.session]
                    expected.append(rider)
        assert list(self.carousel.finished(segment)) == expected

    @invariant()
    def books_agree(self) -> None:
        if self.out is None:
            self.carousel.check_integrity()
        assert len(self.carousel) == len(self.waiting) and self.carousel.riding == len(self.riders)
        assert sum(self.carousel.waiting_by_class()) == len(self.waiting)

    def teardown(self) -> None:
        if self.out is not None:
            self.finish()
        for _ in range(20 * LAYERS):
            self.begin()
            if self.out is None:
                break
            self.finish()
        assert not self.waiting and not self.riders


Rides.TestCase.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
TestRides = Rides.TestCase
