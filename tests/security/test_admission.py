"""Strangers cost little: rates, places, deadlines."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from splitglm_core.errors import Overloaded, SecurityError, VersionMismatch
from splitglm_security.admission import Admission, Ticket, TokenBuckets, peer_name
from splitglm_security.handshake import Hello, Initiator, Suite

MESSAGE = Initiator(Hello(suite=Suite.NX, model_fingerprint=bytes(32))).first_message()


def test_a_peer_gets_its_burst_and_then_its_rate() -> None:
    buckets = TokenBuckets(rate_per_s=20.0, burst=5)
    assert [buckets.take("a", 0.0) for _ in range(5)] == [0.0] * 5
    assert buckets.take("a", 0.0) == pytest.approx(0.05)
    assert buckets.take("b", 0.0) == 0.0
    assert buckets.take("a", 0.0501) == 0.0
    assert buckets.take("a", 0.0502) > 0.0
    assert sum(buckets.take("a", 1000.0) == 0.0 for _ in range(100)) == 5


@given(st.lists(st.floats(0, 0.2), min_size=1, max_size=200))
def test_no_pattern_of_arrivals_beats_the_rate(gaps_s: list[float]) -> None:
    buckets, now_s, passed = TokenBuckets(rate_per_s=20.0, burst=5), 0.0, 0
    for gap_s in gaps_s:
        now_s += gap_s
        passed += buckets.take("a", now_s) == 0.0
    assert passed <= 5 + 20.0 * now_s + 1e-6


def test_a_clock_that_goes_back_makes_no_tokens() -> None:
    buckets = TokenBuckets(rate_per_s=1.0, burst=1)
    assert buckets.take("a", 100.0) == 0.0
    assert all(0.0 < buckets.take("a", now_s) <= 1.0 for now_s in (0.0, 100.5, 0.0, 100.9))


def test_the_table_of_peers_is_bounded() -> None:
    buckets = TokenBuckets(entries=100)
    for number in range(10_000):
        buckets.take(str(number), 0.0)
    assert len(buckets) == 100


@pytest.mark.parametrize(
    "message", [b"", MESSAGE[:-1], MESSAGE + b"\0", b"X" + MESSAGE[1:], b"GET / HTTP/1.1\r\n" * 90]
)
def test_what_is_no_first_message_takes_no_token_and_no_place(message: bytes) -> None:
    admission = Admission()
    for _ in range(50):
        with pytest.raises(SecurityError):
            admission.admit("a", message, 0.0)
    assert admission.half_open == 0
    assert admission.admit("a", MESSAGE, 0.0).hello.suite is Suite.NX


def test_another_version_is_named_before_anything_is_spent() -> None:
    with pytest.raises(VersionMismatch):
        Admission().admit("a", MESSAGE[:4] + b"\x09" + MESSAGE[5:], 0.0)


def test_a_hasty_peer_is_told_when_to_come_back() -> None:
    admission = Admission()
    for _ in range(5):
        admission.abandon(admission.admit("a", MESSAGE, 10.0))
    with pytest.raises(Overloaded) as refused:
        admission.admit("a", MESSAGE, 10.0)
    assert refused.value.retry_after_s == pytest.approx(0.05)
    admission.admit("a", MESSAGE, 10.0 + 0.051)


def test_places_are_bounded_and_come_back() -> None:
    admission = Admission(half_open=3)
    tickets = [admission.admit(f"p{i}", MESSAGE, float(i)) for i in range(3)]
    with pytest.raises(Overloaded) as refused:
        admission.admit("p9", MESSAGE, 3.0)
    assert refused.value.retry_after_s == pytest.approx(2.0)  # the first place is lost at 5 s
    admission.complete(tickets[0], 3.5)
    admission.abandon(tickets[1])
    admission.abandon(tickets[1])  # harmless
    assert admission.half_open == 1
    admission.admit("p9", MESSAGE, 3.6)
    assert admission.half_open == 2


def test_one_peer_cannot_hold_every_place() -> None:
    admission = Admission(buckets=TokenBuckets(rate_per_s=1e6, burst=10_000), half_open=64, half_open_per_peer=16)
    held = 0
    for step in range(200):
        try:
            admission.admit("greedy", MESSAGE, step * 1e-3)
            held += 1
        except Overloaded:
            pass
    assert held == admission.half_open == 16
    admission.admit("patient", MESSAGE, 0.2)


def test_a_slow_peer_loses_its_place_at_the_deadline() -> None:
    admission = Admission(half_open=1, deadline_s=5.0)
    slow = admission.admit("slow", MESSAGE, 0.0)
    assert admission.expire(4.999) == ()
    assert admission.expire(5.0) == (slow,)
    assert admission.expire(6.0) == ()
    with pytest.raises(SecurityError):
        admission.complete(slow, 6.0)
    other = admission.admit("other", MESSAGE, 6.0)
    with pytest.raises(SecurityError):
        admission.complete(other, 11.0)
    assert admission.half_open == 0


@given(st.lists(st.tuples(st.sampled_from("acx"), st.integers(0, 3), st.floats(0, 3)), max_size=80))
def test_places_never_leak(events: list[tuple[str, int, float]]) -> None:
    admission = Admission(half_open=4, half_open_per_peer=2)
    held: list[Ticket] = []
    now_s = 0.0
    for action, number, gap_s in events:
        now_s += gap_s
        if action == "a":
            try:
                held.append(admission.admit(f"p{number}", MESSAGE, now_s))
            except Overloaded:
                pass
        elif held and action == "c":
            try:
                admission.complete(held.pop(0), now_s)
            except SecurityError:
                pass
        elif held:
            admission.abandon(held.pop())
        admission.expire(now_s)
        alive = [ticket for ticket in held if ticket.deadline_s > now_s]
        assert admission.half_open == len(alive) <= 4
        assert all(sum(t.peer == ticket.peer for t in alive) <= 2 for ticket in alive)
    admission.expire(now_s + 100.0)
    assert admission.half_open == 0 and not admission._of_peer


@pytest.mark.parametrize("written", ["{}", "ipv6:[{}]"], ids=["plain", "as gRPC writes it"])
def test_a_network_of_ipv6_addresses_is_one_peer(written: str) -> None:
    admission = Admission()
    for number in range(5):
        admission.admit(written.format(f"2001:db8:1:2::{number:x}"), MESSAGE, 0.0)
    with pytest.raises(Overloaded):
        admission.admit(written.format("2001:db8:1:2:ffff::9"), MESSAGE, 0.0)
    admission.admit(written.format("2001:db8:1:3::1"), MESSAGE, 0.0)


@pytest.mark.parametrize(
    ("address", "name"),
    [
        ("10.1.2.3", "10.1.2.3"),
        ("ipv4:10.1.2.3", "10.1.2.3"),
        ("ipv6:[2001:db8:1:2:3:4:5:9]", "2001:db8:1:2::/64"),
        ("ipv6:[2001:db8:1:2:3::9]", "2001:db8:1:2::/64"),
        ("ipv6:[::ffff:10.1.2.3]", "10.1.2.3"),
        ("ipv6:[fe80::1%eth0]", "fe80::/64"),
        ("::ffff:10.1.2.3", "10.1.2.3"),
        ("[fe80::1%eth0]", "fe80::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("unix:/run/x", "unix:/run/x"),
        ("x" * 1000, "x" * 255),
    ],
)
def test_names_of_peers(address: str, name: str) -> None:
    assert peer_name(address) == name
