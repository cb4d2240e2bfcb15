"""The carousel: who boards, who waits, who alights, in worlds small enough to be told."""

from __future__ import annotations

import math

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from splitglm_cloud.engine.carousel import Carousel, SweepLimits
from splitglm_cloud.engine.work import Segment, Work
from splitglm_core.criticality import Criticality
from splitglm_core.errors import InputError, InternalError
from splitglm_core.ranges import LayerRange

LAYERS = 12


def work(
    session: int,
    start: int = 0,
    stop: int = LAYERS,
    *,
    rows: int = 1,
    decode: bool = True,
    tenant: str = "",
    weight: float = 1.0,
    criticality: Criticality = Criticality.CRITICAL,
    deadline_s: float = math.inf,
) -> Work:
    return Work(
        session=session,
        seq=1,
        layers=LayerRange(start, stop),
        base=0,
        rows=rows,
        decode=decode,
        tenant=tenant,
        weight=weight,
        criticality=criticality,
        deadline_s=deadline_s,
    )


def prompt(session: int, start: int = 0, stop: int = LAYERS, *, rows: int, **more: object) -> Work:
    return work(session, start, stop, rows=rows, decode=False, **more)  # type: ignore[arg-type]


def turn(carousel: Carousel, now_s: float = 0.0) -> Segment:
    segment = carousel.next_segment(now_s)
    assert segment is not None
    carousel.check_integrity()
    carousel.finished(segment)
    return segment


def sweep(carousel: Carousel, now_s: float = 0.0) -> dict[int, int]:
    """Run to the end of a sweep; rows of each session that rode."""
    rode: dict[int, int] = {}
    while True:
        rode.update((rider.session, rider.rows) for rider in turn(carousel, now_s).riders)
        begun = carousel.sweeps
        if not carousel.riding and (not len(carousel) or carousel.position >= LAYERS):
            assert carousel.sweeps == begun
            return rode


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


def test_works_of_different_depth_share_the_layers_they_have_in_common() -> None:
    carousel = Carousel(limits=SweepLimits(stride_layers=LAYERS))
    carousel.add(work(1, 0, 9), 0.0)
    carousel.add(work(2, 4, 12), 0.0)
    segments = [turn(carousel) for _ in range(3)]
    assert [str(segment.layers) for segment in segments] == ["[0, 4)", "[4, 9)", "[9, 12)"]
    assert [[rider.session for rider in segment.riders] for segment in segments] == [[1], [1, 2], [2]]
    assert carousel.sweeps == 1 and carousel.next_segment(0.0) is None


def test_work_that_arrives_during_a_sweep_boards_it_if_its_layer_is_still_ahead() -> None:
    carousel = Carousel(limits=SweepLimits(stride_layers=4))
    carousel.add(work(1), 0.0)
    first = carousel.next_segment(0.0)
    assert first is not None and first.layers == LayerRange(0, 4)
    carousel.add(work(2, 6), 0.0)
    carousel.add(work(3, 3), 0.0)
    carousel.finished(first)
    rides = [(turn(carousel).layers.start, carousel.riding) for _ in range(4)]
    assert [start for start, _ in rides] == [4, 6, 10, 3]
    assert carousel.sweeps == 2


def test_an_idle_carousel_begins_where_the_next_work_boards() -> None:
    carousel = Carousel()
    carousel.add(work(1, 0, 2), 0.0)
    turn(carousel)
    assert carousel.next_segment(0.0) is None
    carousel.add(work(1, 7), 0.0)
    carousel.add(work(2, 1, 2), 0.0)
    assert turn(carousel).layers == LayerRange(1, 2)
    assert turn(carousel).layers.start == 7


def test_a_prompt_boards_with_the_rows_that_find_room_and_a_token_whole_or_not_at_all() -> None:
    carousel = Carousel(limits=SweepLimits(max_rows=40, prefill_rows_beside_decode=20))
    carousel.add(prompt(1, rows=500), 0.0)
    assert sweep(carousel) == {1: 24}  # the rest of the sweep is kept for decode
    carousel.add(prompt(1, rows=500), 0.0)
    for session, rows in ((2, 9), (3, 8), (4, 8)):
        carousel.add(work(session, rows=rows), 0.0)
    assert sweep(carousel) == {2: 9, 3: 8, 1: 20}
    assert sweep(carousel) == {4: 8}


def test_a_decode_work_larger_than_a_sweep_is_cut_like_a_prompt() -> None:
    carousel = Carousel(limits=SweepLimits(max_rows=40))
    carousel.add(work(1, rows=200), 0.0)
    assert sweep(carousel) == {1: 24}


def test_a_removed_rider_is_skipped_and_its_session_may_ask_again_meanwhile() -> None:
    carousel = Carousel(limits=SweepLimits(stride_layers=LAYERS))
    carousel.add(work(1), 0.0)
    carousel.add(work(2), 0.0)
    segment = carousel.next_segment(0.0)
    assert segment is not None and carousel.remove(1)
    carousel.add(work(1, 3), 0.0)
    assert [rider.session for rider in carousel.finished(segment)] == [2]
    assert carousel.riding == 0 and len(carousel) == 1
    assert [rider.session for rider in turn(carousel).riders] == [1]


def test_work_whose_deadline_passed_is_never_computed() -> None:
    carousel = Carousel()
    carousel.add(work(1, deadline_s=1.0), 0.0)
    carousel.add(work(2, deadline_s=2.0), 0.0)
    carousel.add(work(3), 0.0)
    assert carousel.expire(1.0) == ()
    assert [late.session for late in carousel.expire(1.5)] == [1]
    assert sweep(carousel) == {2: 1, 3: 1}
    assert carousel.expire(math.inf) == ()


def test_what_waits_is_counted_by_class_and_age() -> None:
    carousel = Carousel()
    assert carousel.oldest_wait_s(5.0) == 0.0
    for session, criticality in enumerate([4, 4, 1, 3]):
        carousel.add(work(session, criticality=Criticality(criticality)), float(session))
    assert carousel.waiting_by_class() == (1, 0, 1, 2)
    assert carousel.oldest_wait_s(5.0) == 5.0


def test_misuse_is_refused() -> None:
    carousel = Carousel()
    for bad in (prompt(1, rows=0), work(1, 3, 3), work(1, weight=0.0), work(1, weight=math.inf)):
        with pytest.raises(InternalError):
            carousel.add(bad, 0.0)
    carousel.add(work(1), 0.0)
    segment = carousel.next_segment(0.0)
    assert segment is not None
    with pytest.raises(InternalError):
        carousel.next_segment(0.0)
    with pytest.raises(InternalError):
        carousel.finished(Segment(segment.layers, segment.riders))


@pytest.mark.parametrize(
    "limits",
    [
        {"max_rows": 31},
        {"min_prefill_rows": 0},
        {"min_decode_rows": 0},
        {"stride_layers": 0},
        {"max_wait_s": -1.0},
        {"max_wait_s": math.nan},
        {"prefill_rows_beside_decode": 15},
    ],
)
def test_limits_that_would_starve_somebody_are_refused(limits: dict[str, float]) -> None:
    with pytest.raises(InputError):
        SweepLimits(**limits)  # type: ignore[arg-type]


@pytest.mark.parametrize("break_it", ["rows", "kind", "stop", "both", "place", "budget"])
def test_broken_books_are_noticed(break_it: str) -> None:
    carousel = Carousel()
    carousel.add(work(1), 0.0)
    turn(carousel)
    carousel.add(work(2, 2), 0.0)
    carousel.check_integrity()
    if break_it == "rows":
        carousel._waiting_rows[True] += 1
    elif break_it == "kind":
        carousel._kinds[True].clear()
    elif break_it == "stop":
        carousel._stops.clear()
    elif break_it == "both":
        carousel._riders[2] = carousel._riders[1]
    elif break_it == "place":
        carousel._position = LAYERS
    else:
        carousel._riders[1] = work(1, rows=10_000), True
    with pytest.raises(InternalError):
        carousel.check_integrity()
