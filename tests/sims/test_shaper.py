"""The pure shaper: an absolute schedule, one queue, order kept, whatever arrives when."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from splitglm_core.errors import InputError
from splitglm_sims.shaper import LinkShape, Shaper
from splitglm_sims.traces import RateTrace

shapes = st.builds(
    lambda delay_s, share, rate, queue: LinkShape(
        delay_s=delay_s, jitter_s=delay_s * share, rate_bytes_per_s=rate, queue_bytes=queue
    ),
    st.floats(0.0, 0.5),
    st.floats(0.0, 1.0),
    st.one_of(st.none(), st.floats(1e3, 1e8)),
    st.integers(1500, 200_000),
)
offers = st.lists(st.tuples(st.floats(0.0, 0.2), st.integers(1, 70_000)), min_size=1, max_size=40)


@given(shape=shapes, offers=offers, seed=st.integers(0, 2**32))
def test_departures_follow_the_rate_and_arrivals_the_delay_without_reordering(
    shape: LinkShape, offers: list[tuple[float, int]], seed: int
) -> None:
    shaper = Shaper(shape, random.Random(seed))
    now_s = free_s = last_arrival_s = 0.0
    for gap_s, size in offers:
        now_s += gap_s
        passage = shaper.offer(now_s, size)
        service_s = 0.0 if shape.rate_bytes_per_s is None else size / shape.rate_bytes_per_s
        assert passage.departure_s == max(now_s, free_s) + service_s  # work-conserving and never faster than the rate
        assert passage.arrival_s >= passage.departure_s + shape.delay_s - shape.jitter_s
        latest = max(last_arrival_s, passage.departure_s + shape.delay_s + shape.jitter_s)
        assert last_arrival_s <= passage.arrival_s <= latest
        free_s, last_arrival_s = passage.departure_s, passage.arrival_s


@given(shape=shapes, offers=offers, seed=st.integers(0, 2**32))
def test_a_sender_that_waits_for_room_never_fills_the_queue_beyond_its_size(
    shape: LinkShape, offers: list[tuple[float, int]], seed: int
) -> None:
    shaper = Shaper(shape, random.Random(seed))
    now_s = 0.0
    for gap_s, size in offers:
        now_s = shaper.room_at_s(now_s + gap_s, size)
        alone = shaper.waiting_bytes(now_s) == 0
        shaper.offer(now_s, size)
        assert shaper.waiting_bytes(now_s) <= shape.queue_bytes or alone


@given(offers=offers, rate=st.floats(1e3, 1e7))
def test_a_constant_trace_is_a_constant_rate(offers: list[tuple[float, int]], rate: float) -> None:
    traced = Shaper(LinkShape(trace=RateTrace.constant(rate)), random.Random(0))
    steady = Shaper(LinkShape(rate_bytes_per_s=rate), random.Random(0))
    now_s = 0.0
    for gap_s, size in offers:
        now_s += gap_s
        # the trace may be a millibyte early per slice
        slack = 2e-3 * len(offers) / rate + 1e-6
        assert traced.offer(now_s, size).departure_s == pytest.approx(steady.offer(now_s, size).departure_s, abs=slack)


def test_an_outage_in_the_trace_holds_data_until_it_ends() -> None:
    shaper = Shaper(LinkShape(delay_s=0.1, trace=RateTrace((0.0, 1.0), (1000.0, 0.0), 5.0)), random.Random(0))
    assert shaper.offer(0.5, 400).arrival_s == pytest.approx(1.0, abs=1e-4)
    assert shaper.offer(0.6, 200).departure_s == pytest.approx(5.1, abs=1e-4)


def test_the_same_seed_gives_the_same_jitter_and_another_seed_another() -> None:
    shape = LinkShape(delay_s=0.05, jitter_s=0.02)

    def arrivals(seed: int) -> list[float]:
        shaper = Shaper(shape, random.Random(seed))
        return [shaper.offer(second, 100).arrival_s for second in range(20)]

    assert arrivals(1) == arrivals(1)
    assert arrivals(1) != arrivals(2)
    assert len({round(a % 1, 6) for a in arrivals(1)}) > 10


def test_a_new_shape_never_lets_new_data_overtake_old() -> None:
    shaper = Shaper(LinkShape(delay_s=1.0, rate_bytes_per_s=1000.0), random.Random(0))
    slow = shaper.offer(0.0, 1000)
    shaper.reshape(LinkShape(delay_s=0.0))
    assert shaper.offer(0.1, 10).arrival_s == slow.arrival_s


def test_slices_last_about_a_millisecond_and_never_exceed_the_queue() -> None:
    assert LinkShape(rate_bytes_per_s=12.5e6).slice_bytes == 12_000
    assert LinkShape(rate_bytes_per_s=1e5).slice_bytes == 1500
    assert LinkShape().slice_bytes == 64_500
    assert LinkShape(queue_bytes=4000).slice_bytes == 4000


@pytest.mark.parametrize(
    "wrong",
    [
        {"delay_s": -1.0},
        {"delay_s": float("inf")},
        {"delay_s": float("nan")},
        {"delay_s": 0.01, "jitter_s": 0.02},
        {"rate_bytes_per_s": 0.0},
        {"rate_bytes_per_s": float("nan")},
        {"rate_bytes_per_s": 1e12},
        {"queue_bytes": 100},
        {"rate_bytes_per_s": 1e6, "trace": RateTrace.constant(1e6)},
    ],
)
def test_an_impossible_shape_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(InputError):
        LinkShape(**wrong)  # type: ignore[arg-type]
