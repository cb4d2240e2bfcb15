"""The length of replies: never above the bound, right where nothing was cut short, and fair to what was."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from splitglm_core.errors import InputError
from splitglm_core.plan import SplitPlan
from splitglm_partitioner.observations import Outcome, ReplyEnded
from splitglm_partitioner.reply_length import MAX_GENRES, WINDOW, ReplyLength


def ended(tokens: int, bound: int = 4096, genre: str = "chat") -> ReplyEnded:
    return ReplyEnded(
        at_s=0.0,
        plan=SplitPlan.device_only(4),
        genre=genre,
        max_new_tokens=max(bound, tokens),
        predicted_ttft_s=0.1,
        predicted_per_token_s=0.1,
        outcome=Outcome(ttft_s=0.1, total_s=1.0, new_tokens=tokens, uplink_bytes=0, downlink_bytes=0),
    )


def after(*tokens: int, bound: int = 4096) -> ReplyLength:
    lengths = ReplyLength()
    for count in tokens:
        lengths.observe(ended(count, bound))
    return lengths


def test_before_any_reply_the_bound_is_expected() -> None:
    assert ReplyLength().expected("chat", 256) == 256


def test_one_reply_shares_its_say_with_the_bound() -> None:
    assert after(100).expected("chat", 400) == 200  # (100 + 400 / 2) / (1 + 1 / 2)


def test_equal_replies_are_expected_again() -> None:
    assert after(*[100] * WINDOW).expected("chat", 4096) in range(100, 360)
    assert after(*[100] * WINDOW).expected("chat", 200) in range(100, 109)


def test_the_mean_is_that_of_the_replies() -> None:
    draw = random.Random(2)
    tokens = [draw.randint(50, 150) for _ in range(WINDOW)]
    assert after(*tokens).expected("chat", 200) == pytest.approx(sum(tokens) / WINDOW, rel=0.1)


def test_one_endless_reply_is_left_out() -> None:
    usual = after(*[100] * (WINDOW - 1)).expected("chat", 1000)
    assert after(*[100] * (WINDOW - 1), 1000).expected("chat", 1000) <= usual


def test_replies_cut_at_a_bound_are_expected_to_go_on_to_a_larger_one() -> None:
    cut = after(*[64] * WINDOW, bound=64)
    assert cut.expected("chat", 64) == 64
    assert cut.expected("chat", 256) == 256
    ended_there = after(*[64] * WINDOW, bound=65)
    assert ended_there.expected("chat", 256) < 80


def test_half_of_the_replies_cut_short_do_not_halve_the_expectation() -> None:
    """True lengths uniform in [1, 200]; every other caller allows 50 tokens only."""
    draw, total = random.Random(7), 0.0
    for _ in range(200):
        lengths = ReplyLength()
        for i in range(WINDOW):
            tokens, bound = draw.randint(1, 200), 50 if i % 2 else 1000
            lengths.observe(ended(min(tokens, bound), bound))
        total += lengths.expected("chat", 200)
    assert total / 200 == pytest.approx(100, rel=0.12)


def test_genres_are_kept_apart_and_cannot_fill_the_memory() -> None:
    lengths = after(*[10] * WINDOW)
    assert lengths.expected("edit", 300) == 300
    for i in range(MAX_GENRES):
        lengths.observe(ended(10, genre=f"g{i}"))
    assert lengths.expected("chat", 300) == 300  # forgotten: it was not used for longest
    assert lengths.expected("g0", 300) < 300


@given(st.lists(st.tuples(st.integers(1, 5000), st.integers(1, 5000)), max_size=40), st.integers(1, 5000))
def test_it_is_never_above_the_bound_nor_below_the_shortest_reply(seen: list[tuple[int, int]], bound: int) -> None:
    lengths = ReplyLength()
    for tokens, allowed in seen:
        lengths.observe(ended(min(tokens, allowed), allowed))
    expected = lengths.expected("chat", bound)
    shortest = min((min(pair) for pair in seen), default=bound)
    assert min(shortest, bound) <= expected <= bound


@given(st.lists(st.integers(1, 500), max_size=20), st.integers(1, 500), st.integers(1, 500))
def test_a_larger_bound_never_shortens_the_expectation(seen: list[int], a: int, b: int) -> None:
    lengths = after(*seen, bound=300)
    assert lengths.expected("chat", min(a, b)) <= lengths.expected("chat", max(a, b))


@pytest.mark.parametrize("bound", [0, -1])
def test_a_bound_that_allows_nothing_is_refused(bound: int) -> None:
    with pytest.raises(InputError):
        ReplyLength().expected("chat", bound)
