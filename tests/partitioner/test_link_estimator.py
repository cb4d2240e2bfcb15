"""The link estimator: what exchanges say is combined, and only what nobody measured is asked."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from partitioner_factory import make_link

from splitglm_core.errors import InputError
from splitglm_partitioner.link_estimator import (
    FRESH_S,
    ORDINARY_LINK,
    PROBE_BYTES,
    PROBE_SHARE,
    RATES_FRESH_S,
    LinkEstimator,
    Probing,
)
from splitglm_partitioner.observations import CloudStep, DevicePass, Direction, RoundTrip, Transfer
from splitglm_partitioner.rates import STALE_REL_ERROR
from splitglm_partitioner.slow_start import INITIAL_WINDOW_BYTES, stalled_s

KB64 = 64 << 10


def trip(at_s: float, seconds: float = 0.05, idle_s: float = 0.0) -> RoundTrip:
    return RoundTrip(at_s=at_s, seconds=seconds, idle_s=idle_s)


def moved(
    at_s: float, way: Direction = Direction.UP, rate: float = 2e6, size: int = KB64, idle_s: float = 0.0
) -> Transfer:
    return Transfer(at_s=at_s, direction=way, transfer_bytes=size, seconds=size / rate, idle_s=idle_s)


def probed(link: LinkEstimator, at_s: float, rate: float = 2e6, rtt_s: float = 0.05) -> None:
    link.observe(trip(at_s, rtt_s))
    for way in Direction:
        link.observe(moved(at_s, way, rate, PROBE_BYTES))


def test_before_any_observation_the_start_values_hold() -> None:
    start = make_link(uplink_rel_error=0.5, downlink_rel_error=0.3, rtt_var_s=0.02)
    assert LinkEstimator(start).estimate(0.0) == start
    assert LinkEstimator().estimate(1e9) == ORDINARY_LINK
    link = LinkEstimator()
    link.start(start)
    assert link.estimate(0.0) == start


def test_a_new_connection_does_not_undo_what_was_measured() -> None:
    link = LinkEstimator()
    link.observe(trip(0.0, 0.2))
    link.observe(moved(0.0, Direction.UP, 3e6))
    start = make_link()
    link.start(start)
    estimate = link.estimate(0.0)
    assert (estimate.rtt_s, estimate.uplink_bytes_per_s) == (0.2, pytest.approx(3e6))
    assert estimate.downlink_bytes_per_s == start.downlink_bytes_per_s
    assert estimate.overhead_s == start.overhead_s


def test_directions_and_round_trips_are_kept_apart() -> None:
    link = LinkEstimator(make_link())
    link.observe(moved(0.0, Direction.DOWN, 3e6))
    link.observe(trip(0.0, 0.5))
    estimate = link.estimate(0.0)
    assert estimate.downlink_bytes_per_s == pytest.approx(3e6)
    assert estimate.uplink_bytes_per_s == make_link().uplink_bytes_per_s
    assert (estimate.rtt_s, estimate.overhead_s) == (0.5, make_link().overhead_s)


def test_what_is_not_of_the_link_changes_nothing() -> None:
    link = LinkEstimator(make_link())
    link.observe(DevicePass(at_s=1.0, rows=1, layers=4, context_tokens=0, seconds=0.1))
    assert link.estimate(1.0) == make_link()


def test_a_fresh_link_is_blind_for_rates_and_says_why() -> None:
    probing, reason = LinkEstimator().blindness(0.0)
    assert (probing, reason) == (Probing.RATES, "the uplink rate was never measured")
    assert LinkEstimator().blind(0.0) is Probing.RATES


def test_after_a_probe_nothing_is_asked_until_it_is_old() -> None:
    link = LinkEstimator()
    probed(link, 0.0)
    assert link.blindness(FRESH_S) == (Probing.NONE, "")
    assert link.blind(FRESH_S + 0.1) is Probing.ROUND_TRIP
    assert "5 s ago" in link.blindness(FRESH_S + 0.1).reason
    assert link.blind(RATES_FRESH_S) is Probing.ROUND_TRIP
    assert link.blind(RATES_FRESH_S + 0.1) is Probing.RATES


def test_a_link_in_use_is_never_asked() -> None:
    link = LinkEstimator()
    now_s = 0.0
    probed(link, now_s)
    for step in range(200):
        now_s += 1.0
        assert link.blind(now_s) is Probing.NONE
        link.observe(trip(now_s))
        if step % 20 == 0:
            link.observe(moved(now_s, Direction.UP))
            link.observe(moved(now_s, Direction.DOWN))


def test_questions_take_a_bounded_share_of_the_time_on_a_slow_link() -> None:
    """At 20 kB/s a probe of the rates takes over 3 s: it is asked every 170 s, not every minute."""
    link, spent_s, now_s = LinkEstimator(), 0.0, 0.0
    probed(link, now_s, rate=2e4, rtt_s=0.6)
    while now_s < 3600.0:
        now_s += 1.0
        asked = link.blind(now_s)
        if asked is Probing.ROUND_TRIP:
            spent_s += 0.6
            link.observe(trip(now_s, 0.6))
        elif asked is Probing.RATES:
            spent_s += 0.6 + 2 * PROBE_BYTES / 2e4
            probed(link, now_s, rate=2e4, rtt_s=0.6)
    assert 0.0 < spent_s <= 2 * PROBE_SHARE * 3600.0


def test_after_a_change_of_the_round_trip_the_rates_are_asked_again_and_doubted() -> None:
    link = LinkEstimator()
    for i in range(5):
        probed(link, float(i))
    link.observe(trip(8.0, 0.25))
    link.observe(trip(9.0, 0.25))
    assert link.changed_s == 9.0
    assert link.blindness(9.0) == (Probing.RATES, "the link changed after the uplink rate was measured")
    assert link.estimate(9.0).uplink_rel_error >= STALE_REL_ERROR
    probed(link, 9.5, rtt_s=0.25)
    assert link.blind(9.5) is Probing.NONE


def test_the_first_exchange_after_a_rest_is_dearer_and_leaves_the_round_trip_alone() -> None:
    link = LinkEstimator()
    now_s = 0.0
    for _ in range(4):
        link.observe(trip(now_s))
        now_s += 20.0
        link.observe(trip(now_s, 1.05, idle_s=20.0))
    estimate = link.estimate(now_s + 20.0)
    assert estimate.rtt_s == pytest.approx(0.05)
    assert estimate.promotion_s == pytest.approx(1.0)
    assert link.estimate(now_s + 19.0).promotion_s == 0.0


def test_using_the_link_ends_its_rest() -> None:
    link = LinkEstimator()
    for i in range(3):
        link.observe(trip(40.0 * i))
        link.observe(trip(40.0 * i + 20.0, 1.05, idle_s=20.0))
    assert link.estimate(130.0).promotion_s > 0.0
    step = CloudStep(
        at_s=129.0, rows=1, start=0, stop=4, context_tokens=0, queue_s=0.0, sweep_s=0.0, compute_s=0.01, alone=True
    )
    link.observe(step)
    assert link.idle_s(130.0) == 1.0
    assert link.estimate(130.0).promotion_s == 0.0


def test_what_was_handed_over_is_a_queue_until_it_has_left() -> None:
    link = LinkEstimator()
    link.queued(12.0)
    assert link.estimate(10.0).uplink_queue_s == pytest.approx(2.0)
    assert link.estimate(13.0).uplink_queue_s == 0.0
    assert link.idle_s(13.0) == pytest.approx(1.0)
    with pytest.raises(InputError):
        link.queued(float("nan"))


def slow_starting(count: int) -> tuple[LinkEstimator, float]:
    """A link of 100 ms and 5 MB/s whose sender starts slowly after each rest of 30 s."""
    link, now_s, rate, size = LinkEstimator(), 0.0, 5e6, 600_000
    for _ in range(count):
        now_s += 30.0
        link.observe(trip(now_s, 0.1))
        lost_s = stalled_s(size, rate, 0.1, INITIAL_WINDOW_BYTES)
        link.observe(
            Transfer(at_s=now_s, direction=Direction.UP, transfer_bytes=size, seconds=size / rate + lost_s, idle_s=30.0)
        )
        for i in (1, 2):
            link.observe(moved(now_s + i / 10, Direction.UP, rate, 2 * size))
    return link, now_s + 0.2


def test_a_window_is_said_only_of_a_link_that_starts_slowly_and_while_it_rests() -> None:
    link, now_s = slow_starting(6)
    assert link.estimate(now_s).window_bytes is None
    assert link.estimate(now_s + 0.9).window_bytes is None
    assert link.estimate(now_s + 1.1).window_bytes == INITIAL_WINDOW_BYTES
    plain = LinkEstimator()
    for i in range(6):
        plain.observe(moved(30.0 * i, rate=5e6, size=400_000, idle_s=30.0))
    assert plain.estimate(500.0).window_bytes is None


def test_slow_starts_do_not_lower_the_rate() -> None:
    link, now_s = slow_starting(8)
    assert link.estimate(now_s).uplink_bytes_per_s == pytest.approx(5e6, rel=0.02)


class AnyLink(RuleBasedStateMachine):
    """Whatever is observed in whatever order, the estimate is one and what it says was seen."""

    def __init__(self) -> None:
        super().__init__()
        self.link, self.now_s = LinkEstimator(), 0.0
        self.trips: list[float] = []

    @rule(pause_s=st.floats(0.0, 200.0), seconds=st.floats(0.0, 20.0), idle_s=st.floats(0.0, 200.0))
    def round_trip(self, pause_s: float, seconds: float, idle_s: float) -> None:
        self.now_s += pause_s
        self.trips.append(seconds)
        self.link.observe(trip(self.now_s, seconds, idle_s))

    @rule(
        pause_s=st.floats(0.0, 200.0),
        size=st.integers(0, 1 << 24),
        seconds=st.floats(0.0, 100.0),
        idle_s=st.floats(0.0, 200.0),
        way=st.sampled_from(Direction),
    )
    def transfer(self, pause_s: float, size: int, seconds: float, idle_s: float, way: Direction) -> None:
        self.now_s += pause_s
        self.link.observe(Transfer(at_s=self.now_s, direction=way, transfer_bytes=size, seconds=seconds, idle_s=idle_s))

    @rule(ahead_s=st.floats(-5.0, 5.0))
    def queued(self, ahead_s: float) -> None:
        self.link.queued(self.now_s + ahead_s)

    @invariant()
    def the_estimate_is_valid(self) -> None:
        estimate = self.link.estimate(self.now_s)  # LinkEstimate checks its own ranges
        careful = estimate.pessimistic()
        assert careful.uplink_bytes_per_s <= estimate.uplink_bytes_per_s
        assert careful.rtt_s >= estimate.rtt_s
        assert estimate.window_bytes is None or estimate.window_bytes >= INITIAL_WINDOW_BYTES
        if self.trips:
            assert min(self.trips) - 1e-9 <= estimate.rtt_s <= max(self.trips) + 1e-9
            assert estimate.promotion_s <= max(self.trips)
        probing, reason = self.link.blindness(self.now_s)
        assert (probing is Probing.NONE) == (reason == "")


TestAnyLink = AnyLink.TestCase


@given(st.lists(st.floats(0.02, 0.08), min_size=1, max_size=20), st.floats(0.0, 1e6))
def test_idle_time_alone_never_changes_rate_or_round_trip(trips: list[float], later_s: float) -> None:
    link = LinkEstimator()
    for i, seconds in enumerate(trips):
        link.observe(trip(float(i), seconds))
    link.observe(moved(20.0))
    now, then = link.estimate(20.0), link.estimate(20.0 + later_s)
    assert (now.rtt_s, now.uplink_bytes_per_s) == (then.rtt_s, then.uplink_bytes_per_s)
    assert now.uplink_rel_error <= then.uplink_rel_error
