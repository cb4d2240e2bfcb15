"""Slow start: its arithmetic inverts itself, it is believed on evidence only, and both ways."""

from __future__ import annotations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from splitglm_partitioner.observations import Direction, Transfer
from splitglm_partitioner.slow_start import INITIAL_WINDOW_BYTES, SlowStart, corrected_s, rest_s, stalled_s

RTT_S = 0.1
RATE = 5e6
BIG = 400_000


def transfer(
    at_s: float, *, size: int = BIG, slow: bool, rate: float = RATE, way: Direction = Direction.UP
) -> Transfer:
    lost_s = stalled_s(size, rate, RTT_S, INITIAL_WINDOW_BYTES) if slow else 0.0
    return Transfer(at_s=at_s, direction=way, transfer_bytes=size, seconds=size / rate + lost_s)


def after_rests(count: int, *, slow: bool, detector: SlowStart | None = None) -> SlowStart:
    """``count`` large transfers, each after a rest, each followed by one that finds its window open."""
    detector = detector or SlowStart()
    for i in range(count):
        detector.rested()
        detector.observe(transfer(10.0 * i, slow=slow), RTT_S)
        detector.observe(transfer(10.0 * i + 1, size=4 * BIG, slow=False), RTT_S)
        detector.observe(transfer(10.0 * i + 2, slow=False), RTT_S)
    return detector


def test_the_loss_is_that_of_windows_that_double() -> None:
    """10 kB at once, 20, 40: 70 kB take two waits of what a round trip leaves after each window."""
    assert stalled_s(70_000, 1e6, 0.1, 10_000) == pytest.approx((0.1 - 0.01) + (0.1 - 0.02))
    assert stalled_s(10_000, 1e6, 0.1, 10_000) == 0.0
    assert stalled_s(10**9, 1e5, 0.1, 10_000) == 0.0  # the window fills the link from the beginning


@given(
    st.integers(1 << 14, 1 << 30), st.floats(1e4, 1e9), st.floats(0.0, 2.0), st.integers(INITIAL_WINDOW_BYTES, 1 << 22)
)
def test_what_slow_start_adds_is_taken_off_again(size: int, rate: float, rtt_s: float, window: int) -> None:
    seconds = size / rate + stalled_s(size, rate, rtt_s, window)
    assume(size / rate > 1e-6 * seconds)  # otherwise the rate is lost in rounding
    assert corrected_s(size, seconds, rtt_s, window) == pytest.approx(size / rate, rel=1e-6)


@given(st.integers(1 << 14, 1 << 30), st.floats(1e-6, 1e3), st.floats(0.0, 2.0))
def test_a_correction_never_makes_a_transfer_slower(size: int, seconds: float, rtt_s: float) -> None:
    corrected = corrected_s(size, seconds, rtt_s, INITIAL_WINDOW_BYTES)
    assert corrected is None or 0.0 < corrected <= seconds * (1 + 1e-9)


def test_waiting_alone_says_nothing_about_the_rate() -> None:
    """15 and 30 kB before 40 kB are through: one wait of 0.1 s is the least, however fast the link."""
    assert corrected_s(40_000, 0.0999, 0.1, INITIAL_WINDOW_BYTES) is None
    assert corrected_s(40_000, 0.1001, 0.1, INITIAL_WINDOW_BYTES) is not None


def test_slow_start_is_seen_where_it_is_and_not_where_it_is_not() -> None:
    assert after_rests(4, slow=True).seen
    assert not after_rests(4, slow=False).seen


def test_one_slow_transfer_is_no_evidence() -> None:
    detector = after_rests(1, slow=False)
    detector.rested()
    detector.observe(transfer(20.0, slow=True), RTT_S)
    assert not detector.seen


def test_a_link_that_is_slow_altogether_gives_no_verdict() -> None:
    """Every transfer follows a rest: without one that did not start slowly, a slow rate looks the same."""
    detector = SlowStart()
    for i in range(8):
        detector.rested()
        detector.observe(transfer(10.0 * i, slow=True), RTT_S)
    assert not detector.seen


def test_a_stall_that_no_slow_start_explains_is_something_else() -> None:
    detector = after_rests(1, slow=False)
    for i in range(8):
        detector.rested()
        detector.observe(Transfer(at_s=20.0 + i, direction=Direction.UP, transfer_bytes=BIG, seconds=10.0), RTT_S)
    assert not detector.seen


def test_evidence_against_is_believed_too() -> None:
    detector = after_rests(4, slow=True)
    after_rests(8, slow=False, detector=detector)
    assert not detector.seen


def test_once_seen_its_loss_is_taken_off_and_a_grown_window_has_none() -> None:
    detector = after_rests(4, slow=True)
    detector.rested()
    assert detector.window_bytes(Direction.UP) == INITIAL_WINDOW_BYTES
    assert detector.observe(transfer(60.0, slow=True), RTT_S) == pytest.approx(BIG / RATE)
    assert detector.window_bytes(Direction.UP) == INITIAL_WINDOW_BYTES + BIG
    assert detector.window_bytes(Direction.DOWN) == INITIAL_WINDOW_BYTES
    second = transfer(60.5, slow=False)
    assert detector.observe(second, RTT_S) == pytest.approx(second.seconds, rel=0.2)


def test_a_rest_outlasts_a_retransmission_timeout() -> None:
    assert rest_s(0.05) == 1.0
    assert rest_s(0.6) == pytest.approx(2.4)
