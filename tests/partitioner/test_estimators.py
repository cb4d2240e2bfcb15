"""Link estimators: the RFC's arithmetic, robustness to outliers, ageing, and honest uncertainty."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from partitioner_factory import make_link

from splitglm_core.errors import InputError
from splitglm_partitioner.estimators import (
    MAX_AGE_S,
    MIN_TRANSFER_BYTES,
    STALE_REL_ERROR,
    WINDOW,
    LinkEstimator,
    RateEstimator,
    RttEstimator,
)
from splitglm_partitioner.observations import Direction

KB64 = 64 << 10


def rate_estimator() -> RateEstimator:
    return RateEstimator(start_bytes_per_s=1e6, start_rel_error=0.5)


def test_before_any_observation_the_start_values_hold() -> None:
    start = make_link(uplink_rel_error=0.5, downlink_rel_error=0.3, rtt_var_s=0.02)
    assert LinkEstimator(start).estimate(0.0) == start


def test_rtt_follows_the_arithmetic_of_rfc_6298() -> None:
    rtt = RttEstimator(start_s=9.0, start_var_s=9.0)
    rtt.observe(0.1)
    assert (rtt.srtt_s, rtt.var_s) == (0.1, 0.05)
    rtt.observe(0.2)
    assert rtt.var_s == pytest.approx(0.75 * 0.05 + 0.25 * 0.1)
    assert rtt.srtt_s == pytest.approx(0.875 * 0.1 + 0.125 * 0.2)


@given(st.lists(st.floats(0.01, 2.0), min_size=1, max_size=40))
def test_rtt_stays_within_what_was_seen(samples: list[float]) -> None:
    rtt = RttEstimator(start_s=50.0, start_var_s=0.0)
    for sample in samples:
        rtt.observe(sample)
    assert min(samples) * (1 - 1e-9) <= rtt.srtt_s <= max(samples) * (1 + 1e-9)
    assert rtt.var_s >= 0.0


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
    rate.observe(KB64, KB64 / 3e6, 1.0)
    assert rate.estimate(1.0)[0] == pytest.approx(1.5e6)


def test_one_stall_and_one_burst_do_not_move_the_rate() -> None:
    rate = rate_estimator()
    for i in range(6):
        rate.observe(KB64, KB64 / 2e6, float(i))
    rate.observe(KB64, KB64 / 1e3, 6.0)
    rate.observe(KB64, KB64 / 1e9, 7.0)
    assert rate.estimate(7.0)[0] == pytest.approx(2e6)


def test_a_lasting_change_is_followed_within_a_window() -> None:
    rate = rate_estimator()
    for i in range(WINDOW):
        rate.observe(KB64, KB64 / 8e6, float(i))
    for i in range(WINDOW):
        rate.observe(KB64, KB64 / 1e6, float(WINDOW + i))
    assert rate.estimate(2.0 * WINDOW)[0] == pytest.approx(1e6)


def test_the_error_is_that_of_the_estimators_own_predictions() -> None:
    rate = rate_estimator()
    for i in range(3):
        rate.observe(KB64, KB64 / 2e6, float(i))
    assert rate.estimate(2.0)[1] == pytest.approx(0.0, abs=1e-12)
    rate.observe(KB64, KB64 / 1e6, 3.0)
    assert rate.estimate(3.0)[1] == pytest.approx(1.0)


def test_a_single_sample_is_no_more_certain_than_the_start() -> None:
    rate = rate_estimator()
    rate.observe(KB64, KB64 / 2e6, 0.0)
    assert rate.estimate(0.0) == (pytest.approx(2e6), 0.5)


def test_old_samples_give_way_to_young_ones_and_alone_they_are_uncertain() -> None:
    rate = rate_estimator()
    for i in range(4):
        rate.observe(KB64, KB64 / 8e6, float(i))
    later = 4.0 + MAX_AGE_S
    assert rate.estimate(later) == (pytest.approx(8e6), STALE_REL_ERROR)
    rate.observe(KB64, KB64 / 1e6, later)
    assert rate.estimate(later)[0] == pytest.approx(1e6)


@given(st.lists(st.tuples(st.integers(MIN_TRANSFER_BYTES, 1 << 30), st.floats(1e-6, 1e3)), min_size=1, max_size=20))
def test_an_estimate_is_always_valid_and_within_the_observed_rates(transfers: list[tuple[int, float]]) -> None:
    link = LinkEstimator(make_link())
    for i, (size, seconds) in enumerate(transfers):
        link.observe_transfer(size, seconds, Direction.UP, float(i))
    estimate = link.estimate(float(len(transfers)))
    rates = [min(max(size / seconds, 1.0), 1e12) for size, seconds in transfers[-WINDOW:]]
    assert min(rates) * (1 - 1e-9) <= estimate.uplink_bytes_per_s <= max(rates) * (1 + 1e-9)
    assert estimate.pessimistic().uplink_bytes_per_s <= estimate.uplink_bytes_per_s


def test_directions_and_round_trips_are_kept_apart() -> None:
    link = LinkEstimator(make_link())
    link.observe_transfer(KB64, KB64 / 3e6, Direction.DOWN, 0.0)
    link.observe_rtt(0.5, 0.0)
    estimate = link.estimate(0.0)
    assert estimate.downlink_bytes_per_s == pytest.approx(3e6)
    assert estimate.uplink_bytes_per_s == make_link().uplink_bytes_per_s
    assert (estimate.rtt_s, estimate.overhead_s) == (0.5, make_link().overhead_s)


@pytest.mark.parametrize(("size", "seconds"), [(-1, 1.0), (KB64, -1.0), (KB64, float("nan")), (KB64, float("inf"))])
def test_an_impossible_transfer_is_refused_and_changes_nothing(size: int, seconds: float) -> None:
    link = LinkEstimator(make_link())
    with pytest.raises(InputError):
        link.observe_transfer(size, seconds, Direction.UP, 0.0)
    with pytest.raises(InputError):
        link.observe_rtt(-1.0, 0.0)
    assert link.estimate(0.0) == make_link()
