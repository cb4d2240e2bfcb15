"""Acceptance: survival never rises, censored drafts do not bias it, and genres borrow from each other."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from splitglm_core.errors import InputError
from splitglm_partitioner.acceptance import MAX_GENRES, PRIOR_ROUNDS, Acceptance
from splitglm_partitioner.drafts import DraftStatistics
from splitglm_partitioner.observations import DraftRound

LOOKUP = DraftStatistics(name="lookup", s_per_token=1e-5, survival=(0.2, 0.1, 0.05, 0.02))
EDITING = DraftStatistics(name="lookup", s_per_token=1e-5, survival=(0.5, 0.3, 0.2, 0.1))
EXIT = DraftStatistics(name="exit12", s_per_token=1e-3, survival=(0.4, 0.1), front_layers=12, shares_front=True)


def drafted(proposed: int, accepted: int, *, genre: str = "chat", drafter: str = "lookup") -> DraftRound:
    return DraftRound(at_s=0.0, drafter=drafter, genre=genre, proposed=proposed, accepted=accepted)


def shipped() -> Acceptance:
    return Acceptance({"chat": (LOOKUP, EXIT), "edit": (EDITING,)})


def test_before_any_round_the_shipped_statistics_hold() -> None:
    acceptance = shipped()
    assert acceptance.of("lookup", "chat") == LOOKUP
    assert acceptance.of("lookup", "edit") == EDITING
    assert acceptance.of("lookup", "poem").survival == pytest.approx((0.35, 0.2, 0.125, 0.06))
    assert acceptance.statistics("edit") == (EDITING, EXIT)
    assert acceptance.drafters == ("lookup", "exit12")


def test_the_empty_genre_is_what_is_shipped_for_any_other() -> None:
    acceptance = Acceptance({"": (LOOKUP,), "edit": (EDITING,)})
    assert acceptance.of("lookup", "poem") == LOOKUP
    assert acceptance.of("lookup", "") == LOOKUP
    assert acceptance.of("lookup", "edit") == EDITING
    acceptance.observe(drafted(2, 2, genre=""))
    assert acceptance.of("lookup", "").survival[0] > LOOKUP.survival[0]


def test_a_short_draft_says_nothing_on_the_chances_beyond_it() -> None:
    acceptance = shipped()
    for _ in range(50):
        acceptance.observe(drafted(1, 1))
    first, second, third, _ = acceptance.of("lookup", "chat").survival
    assert first > 0.8
    assert second / first == pytest.approx(0.1 / 0.2)
    assert third / second == pytest.approx(0.05 / 0.1)


def test_a_rejected_prefix_counts_against_every_longer_one() -> None:
    acceptance = shipped()
    acceptance.observe(drafted(1, 0))
    after = acceptance.of("lookup", "chat").survival
    shrunk = PRIOR_ROUNDS / (PRIOR_ROUNDS + 1)
    assert after == pytest.approx(tuple(value * shrunk for value in LOOKUP.survival))


@pytest.mark.parametrize("lengths", [(4,), (1, 2, 3, 4), (1, 1, 1, 4)])
def test_survival_is_learnt_whatever_lengths_were_drafted(lengths: tuple[int, ...]) -> None:
    """True chances 0.8, then 0.5, 0.9, 0.6 of what is left: far from the shipped ones, and not independent."""
    draw, acceptance, chances = random.Random(5), shipped(), (0.8, 0.5, 0.9, 0.6)
    sums = [0.0] * 4
    rounds = 1500
    for i in range(rounds):
        kept = next((j for j, chance in enumerate(chances) if draw.random() > chance), 4)
        proposed = lengths[i % len(lengths)]
        acceptance.observe(drafted(proposed, min(kept, proposed)))
        if i >= rounds - 500:  # one look would see the noise of the last hundred rounds
            sums = [a + b for a, b in zip(sums, acceptance.of("lookup", "chat").survival, strict=True)]
    assert [value / 500 for value in sums] == pytest.approx([0.8, 0.4, 0.36, 0.216], abs=0.08)


def test_a_change_of_the_text_is_followed_within_a_few_hundred_rounds() -> None:
    acceptance = shipped()
    for _ in range(400):
        acceptance.observe(drafted(4, 4))
    assert acceptance.of("lookup", "chat").survival[3] > 0.7
    for _ in range(300):
        acceptance.observe(drafted(4, 0))
    assert acceptance.of("lookup", "chat").survival[0] < 0.12


def test_an_unseen_genre_has_the_statistics_of_all_genres() -> None:
    acceptance = shipped()
    for _ in range(200):
        acceptance.observe(drafted(4, 4, genre="code"))
    unseen, seen = acceptance.of("lookup", "poem").survival, acceptance.of("lookup", "code").survival
    assert unseen[0] > 0.85
    assert seen[0] >= unseen[0]
    assert acceptance.of("lookup", "chat") == LOOKUP  # a shipped genre is believed until it is seen itself


def test_drafters_are_kept_apart() -> None:
    acceptance = shipped()
    acceptance.observe(drafted(2, 2, drafter="exit12"))
    assert acceptance.of("lookup", "chat") == LOOKUP
    assert acceptance.of("exit12", "chat").survival[1] > EXIT.survival[1]
    assert acceptance.of("exit12", "chat").front_layers == 12


def test_an_unknown_drafter_is_left_out_and_refused_by_name() -> None:
    acceptance = shipped()
    acceptance.observe(drafted(2, 2, drafter="oracle"))
    with pytest.raises(InputError, match="oracle"):
        acceptance.of("oracle", "chat")
    assert Acceptance({}).statistics("chat") == ()


def test_names_of_genres_cannot_fill_the_memory() -> None:
    acceptance = shipped()
    for i in range(3 * MAX_GENRES):
        acceptance.observe(drafted(4, 4, genre=f"g{i}"))
    late = acceptance.of("lookup", f"g{3 * MAX_GENRES - 1}")
    assert late == acceptance.of("lookup", "never seen")
    assert late.survival[0] > LOOKUP.survival[0]
    assert len(acceptance._by_genre) == MAX_GENRES


@given(
    st.lists(st.floats(0.0, 1.0), min_size=1, max_size=16),
    st.lists(st.tuples(st.integers(1, 20), st.integers(0, 20), st.sampled_from(["chat", "edit", "code"])), max_size=60),
    st.sampled_from(["chat", "edit", "code", "new"]),
)
def test_survival_never_rises_and_is_a_chance(
    prior: list[float], rounds: list[tuple[int, int, str]], genre: str
) -> None:
    entry = DraftStatistics(name="lookup", s_per_token=0.0, survival=tuple(sorted(prior, reverse=True)))
    acceptance = Acceptance({"chat": (entry,)})
    for proposed, accepted, where in rounds:
        acceptance.observe(drafted(proposed, min(accepted, proposed), genre=where))
    learnt = acceptance.of("lookup", genre)  # DraftStatistics refuses a rise and anything outside [0, 1]
    assert len(learnt.survival) == len(prior)
    assert 1.0 <= learnt.tokens_per_round(len(prior)) <= 1.0 + len(prior)


@given(st.integers(1, 4), st.integers(0, 4), st.lists(st.integers(0, 4), max_size=20))
def test_a_round_that_kept_more_never_lowers_survival(proposed: int, accepted: int, before: list[int]) -> None:
    worse, better = shipped(), shipped()
    for kept in before:
        worse.observe(drafted(4, kept))
        better.observe(drafted(4, kept))
    less = min(accepted, proposed)
    worse.observe(drafted(proposed, max(0, less - 1)))
    better.observe(drafted(proposed, less))
    pairs = zip(better.of("lookup", "chat").survival, worse.of("lookup", "chat").survival, strict=True)
    assert all(a >= b - 1e-12 for a, b in pairs)
