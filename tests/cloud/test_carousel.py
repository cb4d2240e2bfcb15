"""The carousel: who boards, who waits, who alights, in worlds small enough to be told."""

from __future__ import annotations

import math

import pytest
from carousel_works import LAYERS, prompt, work

from splitglm_cloud.engine.carousel import Carousel, SweepLimits
from splitglm_cloud.engine.work import Segment
from splitglm_core.criticality import Criticality
from splitglm_core.errors import InputError, InternalError
from splitglm_core.ranges import LayerRange


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


def test_more_critical_work_boards_first_and_within_a_class_whoever_had_least() -> None:
    carousel = Carousel(limits=SweepLimits(max_rows=48, max_wait_s=math.inf))
    for session, criticality in enumerate([4, 3, 2, 1]):
        carousel.add(work(session, rows=30, criticality=Criticality(criticality)), 0.0)
    assert [sweep(carousel) for _ in range(4)] == [{3: 30}, {2: 30}, {1: 30}, {0: 30}]
    for session, tenant in enumerate("aab"):
        carousel.add(work(session, rows=30, tenant=tenant), 0.0)
    assert [sweep(carousel) for _ in range(3)] == [{0: 30}, {2: 30}, {1: 30}]


def test_prompts_take_what_tokens_leave() -> None:
    carousel = Carousel(limits=SweepLimits(max_rows=64))
    carousel.add(prompt(0, rows=500), 0.0)
    for session in range(1, 41):
        carousel.add(work(session, criticality=Criticality.SHEDDABLE), 0.0)
    assert sweep(carousel) == {0: 24} | dict.fromkeys(range(1, 41), 1)


def test_what_the_overdue_get_counts_as_service_of_their_tenant() -> None:
    carousel = Carousel(limits=SweepLimits(max_rows=48, max_wait_s=5.0))
    carousel.add(prompt(1, rows=500, tenant="a"), 0.0)
    carousel.add(prompt(2, rows=500, tenant="b"), 3.0)
    assert sweep(carousel, 6.0) == {1: 16, 2: 16}


def test_an_overdue_prompt_boards_although_decode_has_come_since_the_sweep_began() -> None:
    carousel = Carousel(limits=SweepLimits(max_wait_s=5.0))
    carousel.add(prompt(1, 8, rows=40), 0.0)
    carousel.add(prompt(2, rows=60), 6.0)
    assert [rider.session for rider in turn(carousel, 6.0).riders] == [2]
    carousel.add(work(3, 4), 6.0)
    assert sweep(carousel, 6.0) == {1: 16, 2: 60, 3: 1}


def test_those_who_were_there_when_the_sweep_began_keep_their_places() -> None:
    carousel = Carousel(limits=SweepLimits(max_rows=48))
    carousel.add(work(1), 0.0)
    carousel.add(work(2, 8, rows=30), 0.0)
    turn(carousel)
    for session in range(3, 6):
        carousel.add(work(session, 4, rows=10, criticality=Criticality.CRITICAL_PLUS), 0.0)
    assert sweep(carousel) == {1: 1, 3: 10, 2: 30}
    assert carousel.sweeps == 1


def test_a_place_that_becomes_free_is_taken_in_the_same_sweep_and_one_that_is_not_costs_no_stop() -> None:
    carousel = Carousel(limits=SweepLimits(max_rows=48, stride_layers=LAYERS))
    carousel.add(work(1), 0.0)
    carousel.add(work(2, 0, rows=30), 0.0)
    carousel.add(work(3, 6, rows=30), 0.0)
    assert turn(carousel).layers == LayerRange(0, LAYERS)
    assert sweep(carousel) == {3: 30}
    carousel.add(work(1, 0, 4), 0.0)
    for session, start in ((2, 0), (3, 2), (4, 6)):
        carousel.add(work(session, start, rows=30), 0.0)
    assert turn(carousel).layers == LayerRange(0, 4)
    carousel.remove(2)
    begun = carousel.sweeps
    assert turn(carousel).layers == LayerRange(6, LAYERS) and carousel.sweeps == begun


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
