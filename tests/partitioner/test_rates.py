"""Rates: robust to outliers, quick after a change, and honest about their age."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from splitglm_core.errors import InputError
from splitglm_partitioner.rates import (
    MAX_AGE_S,
    MAX_STALE_REL_ERROR,
    MIN_TRANSFER_BYTES,
    OUTLIER_FACTOR,
    RECENCY_HALF_LIFE_S,
    STALE_REL_ERROR,
    WINDOW,
    RateEstimator,
)

KB64 = 64 << 10


def rate_estimator() -> RateEstimator:
    return RateEstimator(start_bytes_per_s=1e6, start_rel_error=0.5)


def steady(bytes_per_s: float, count: int) -> RateEstimator:
    rate = rate_estimator()
    for i in range(count):
        rate.observe(KB64, KB64 / bytes_per_s, float(i))
    return rate


def test_small_transfers_measure_the_round_trip_and_are_ignored() -> None:
    rate = rate_estimator()
    assert not rate.observe(MIN_TRANSFER_BYTES - 1, 1e-3, 0.0)
    assert rate.estimate(0.0) == (1e6, 0.5)
    assert rate.observe(MIN_TRANSFER_BYTES, 1e-3, 0.0)
    assert rate.estimate(0.0)[0] == pytest.approx(MIN_TRANSFER_BYTES / 1e-3)


def test_the_rate_predicts_the_time_of_the_observed_transfers() -> None:
    """Equal sizes at 1 and 3 MB/s take as long as at their harmonic mean, 1.5 MB/s, and not at 2."""
    rate = rate_estimator()
    rate.observe(KB64, KB64 / 1e6, 0.0)
    rate.observe(KB64, KB64 / 3e6, 0.0)
    assert rate.estimate(0.0)[0] == pytest.approx(1.5e6)


def test_younger_and_larger_transfers_weigh_more() -> None:
    younger, larger = rate_estimator(), rate_estimator()
    younger.observe(KB64, KB64 / 1e6, 0.0)
    younger.observe(KB64, KB64 / 3e6, RECENCY_HALF_LIFE_S)
    larger.observe(KB64, KB64 / 1e6, 0.0)
    larger.observe(4 * KB64, 4 * KB64 / 3e6, 0.0)
    # Weights 1/2 : 1 and 1 : 2 alike.
    assert younger.estimate(RECENCY_HALF_LIFE_S)[0] == pytest.approx(1.8e6)
    assert larger.estimate(0.0)[0] == pytest.approx(1.8e6)


@given(st.floats(1.0, 1e12), st.integers(3, 12))
def test_one_outlier_does_not_move_a_steady_rate(outlier: float, before: int) -> None:
    rate = steady(2e6, before)
    rate.observe(KB64, KB64 / outlier, float(before))
    value = rate.estimate(float(before))[0]
    if 2e6 / OUTLIER_FACTOR <= outlier <= 2e6 * OUTLIER_FACTOR:
        assert min(outlier, 2e6) * (1 - 1e-9) <= value <= max(outlier, 2e6) * (1 + 1e-9)
    else:
        assert value == pytest.approx(2e6)


def test_one_stall_does_not_ruin_the_promised_rate_for_long() -> None:
    rate = steady(2e6, 6)
    rate.observe(KB64, KB64 / 1e3, 6.0)
    assert rate.estimate(6.0)[1] == pytest.approx(0.0, abs=1e-9)


@given(st.floats(2.0, 1e4), st.booleans(), st.integers(3, 12))
def test_a_jump_is_followed_with_its_second_sample(factor: float, faster: bool, before: int) -> None:
    rate = steady(1e6, before)
    then = 1e6 * factor if faster else 1e6 / factor
    rate.observe(KB64, KB64 / then, float(before))
    assert rate.changed_s is None
    rate.observe(KB64, KB64 / then, before + 1.0)
    value, error = rate.estimate(before + 1.0)
    assert value == pytest.approx(then)
    assert error == pytest.approx(0.25)  # half the start's, and not the miss of what no longer holds
    assert rate.changed_s == before + 1.0


def test_the_error_is_that_of_the_estimators_own_predictions() -> None:
    rate = steady(2e6, 3)
    assert rate.estimate(2.0)[1] == pytest.approx(0.0, abs=1e-9)
    rate.observe(KB64, KB64 / 1e6, 3.0)
    assert rate.estimate(3.0)[1] == pytest.approx(1.0)


def test_a_single_sample_is_no_more_certain_than_the_start() -> None:
    assert steady(2e6, 1).estimate(0.0) == (pytest.approx(2e6), 0.5)


def test_the_error_grows_continuously_with_age_and_the_rate_stays() -> None:
    rate = steady(8e6, 4)
    assert rate.estimate(3.0)[1] == pytest.approx(0.0, abs=1e-9)
    assert rate.estimate(3.0 + MAX_AGE_S / 4) == (pytest.approx(8e6), pytest.approx(STALE_REL_ERROR / 2))
    assert rate.estimate(3.0 + MAX_AGE_S) == (pytest.approx(8e6), pytest.approx(STALE_REL_ERROR))
    assert rate.estimate(1e9) == (pytest.approx(8e6), MAX_STALE_REL_ERROR)


@given(st.floats(0.0, 1e4), st.floats(0.0, 1e4))
def test_age_never_makes_a_rate_more_certain(a_s: float, b_s: float) -> None:
    rate = steady(8e6, 4)
    assert rate.estimate(3.0 + min(a_s, b_s))[1] <= rate.estimate(3.0 + max(a_s, b_s))[1]


def test_old_samples_give_way_to_young_ones() -> None:
    rate = steady(8e6, 4)
    rate.observe(KB64, KB64 / 7e6, 4.0 + MAX_AGE_S)
    assert rate.estimate(4.0 + MAX_AGE_S)[0] == pytest.approx(7e6)


@given(
    st.lists(
        st.tuples(st.integers(MIN_TRANSFER_BYTES, 1 << 30), st.floats(1e-6, 1e3), st.floats(0, 30)),
        min_size=1,
        max_size=25,
    )
)
def test_an_estimate_is_always_valid_and_within_the_observed_rates(
    transfers: list[tuple[int, float, float]],
) -> None:
    rate, now_s = rate_estimator(), 0.0
    for size, seconds, pause_s in transfers:
        now_s += pause_s
        assert rate.observe(size, seconds, now_s)
    value, error = rate.estimate(now_s)
    rates = [min(max(size / seconds, 1.0), 1e12) for size, seconds, _ in transfers[-WINDOW:]]
    assert min(rates) <= value <= max(rates)
    assert 0.0 <= error < math.inf


@pytest.mark.parametrize(("size", "seconds"), [(-1, 1.0), (KB64, -1.0), (KB64, float("nan")), (KB64, float("inf"))])
def test_an_impossible_transfer_is_refused_and_changes_nothing(size: int, seconds: float) -> None:
    rate = rate_estimator()
    with pytest.raises(InputError):
        rate.observe(size, seconds, 0.0)
    assert rate.estimate(0.0) == (1e6, 0.5)
    with pytest.raises(InputError):
        RateEstimator(start_bytes_per_s=0.0, start_rel_error=0.5)
