"""Round trips: the RFC's arithmetic, roaming followed at once, and what a rest of the radio costs."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from splitglm_core.errors import InputError
from splitglm_partitioner.round_trips import Promotion, RttEstimator


def test_rtt_follows_the_arithmetic_of_rfc_6298() -> None:
    rtt = RttEstimator(start_s=9.0, start_var_s=9.0)
    rtt.observe(0.1)
    assert (rtt.srtt_s, rtt.var_s) == (0.1, 0.05)
    rtt.observe(0.15)
    assert rtt.var_s == pytest.approx(0.75 * 0.05 + 0.25 * 0.05)
    assert rtt.srtt_s == pytest.approx(0.875 * 0.1 + 0.125 * 0.15)


@given(st.lists(st.floats(0.001, 2.0), min_size=1, max_size=40))
def test_rtt_stays_within_what_was_seen(samples: list[float]) -> None:
    rtt = RttEstimator(start_s=50.0, start_var_s=0.0)
    for sample in samples:
        rtt.observe(sample)
    assert min(samples) * (1 - 1e-9) <= rtt.srtt_s <= max(samples) * (1 + 1e-9)
    assert rtt.var_s >= 0.0


@example([0.05078125, 0.0703125], 4.0)
@example([0.05078125, 0.0703125, 0.0703125], 4.0)
@example([0.05, 0.074, 0.074, 0.074], 4.0)
@given(
    st.lists(st.floats(0.05, 0.075), min_size=1, max_size=30),
    st.sampled_from([4.0, 0.25]),
)
def test_roaming_to_a_fourfold_round_trip_or_back_is_followed_within_three_samples(
    before: list[float], factor: float
) -> None:
    rtt = RttEstimator(start_s=0.05, start_var_s=0.0)
    for sample in before:
        rtt.observe(sample)
    then = rtt.srtt_s * factor
    changes = [rtt.observe(then) for _ in range(3)]
    assert any(changes)
    assert rtt.srtt_s == pytest.approx(then, rel=0.05)
    assert rtt.var_s <= then / 2


@given(st.floats(0.0, 10.0))
def test_one_late_answer_moves_the_round_trip_by_an_eighth_of_itself_at_most(late_s: float) -> None:
    rtt = RttEstimator(start_s=0.05, start_var_s=0.0)
    for _ in range(10):
        rtt.observe(0.05)
    assert not rtt.observe(late_s)
    assert abs(rtt.srtt_s - 0.05) <= abs(late_s - 0.05) / 8 + 1e-12


def test_jitter_below_a_millisecond_is_no_change() -> None:
    rtt = RttEstimator(start_s=1e-4, start_var_s=0.0)
    for _ in range(5):
        rtt.observe(1e-4)
    changes = [rtt.observe(3e-4) for _ in range(10)]
    assert not any(changes)


@pytest.mark.parametrize("seconds", [-1.0, float("nan"), float("inf")])
def test_no_duration_is_refused(seconds: float) -> None:
    rtt = RttEstimator(start_s=0.05, start_var_s=0.0)
    with pytest.raises(InputError):
        rtt.observe(seconds)
    assert (rtt.srtt_s, rtt.samples) == (0.05, 0)


def test_a_promotion_is_said_only_once_seen_and_for_rests_as_long_as_those_seen() -> None:
    promotion = Promotion()
    for idle_s in (2.0, 3.0, 6.0):
        promotion.observe(idle_s, 0.0, 0.05)
    assert promotion.seconds(1e5) == 0.0
    promotion.observe(12.0, 1.0, 0.05)
    assert promotion.seconds(1e5) == 0.0  # one may have met a queue
    promotion.observe(14.0, 1.2, 0.05)
    assert promotion.seconds(11.9) == 0.0
    assert promotion.seconds(12.0) == promotion.seconds(1e5) == pytest.approx(1.1)


def test_the_step_is_found_among_jitter_and_an_outlier() -> None:
    """Figures of a 4G phone: nothing up to 9 s of rest, about 1 s from 10 s on."""
    promotion = Promotion()
    rests = [(1.5, 0.02), (10.0, 0.9), (4.0, 0.1), (30.0, 1.1), (7.0, 3.0), (9.0, 0.08), (60.0, 1.0), (2.0, 0.0)]
    for idle_s, excess_s in rests:
        promotion.observe(idle_s, excess_s, 0.14)
    assert promotion.seconds(9.0) == 0.0
    assert promotion.seconds(10.0) == pytest.approx(1.0)


def test_a_radio_that_stopped_resting_is_believed_again() -> None:
    promotion = Promotion()
    for _ in range(4):
        promotion.observe(12.0, 1.0, 0.05)
    assert promotion.seconds(12.0) == pytest.approx(1.0)
    for _ in range(5):
        promotion.observe(12.0, 0.0, 0.05)
    assert promotion.seconds(12.0) == 0.0


@given(
    st.lists(st.tuples(st.floats(1.0, 100.0), st.floats(-1.0, 5.0)), max_size=30),
    st.floats(0.0, 200.0),
    st.floats(0.0, 200.0),
)
def test_a_promotion_never_falls_with_the_rest_and_lies_within_what_was_seen(
    rests: list[tuple[float, float]], a_s: float, b_s: float
) -> None:
    promotion = Promotion()
    for idle_s, excess_s in rests:
        promotion.observe(idle_s, excess_s, 0.05)
    assert promotion.seconds(min(a_s, b_s)) <= promotion.seconds(max(a_s, b_s))
    assert 0.0 <= promotion.seconds(max(a_s, b_s)) <= max([0.0, *(excess for _, excess in rests)])
    shortest = min([idle for idle, _ in rests], default=0.0)
    assert promotion.seconds(min(0.99, shortest)) == 0.0
