"""The link generator: equal seeds give equal links, shares of time are the chain's, statistics do not drift."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from splitglm_core.errors import InputError
from splitglm_sims.links.markov import LinkState, MarkovLink, generate, quantile, stationary
from splitglm_sims.links.statistics import binned, compared, statistics, statistics_of
from splitglm_sims.traces import RateTrace


def state(name: str, down: tuple[float, ...], up: tuple[float, ...], *chances: float) -> LinkState:
    return LinkState(name=name, down_bytes_per_s=down, up_bytes_per_s=up, next=chances)


LINK = MarkovLink(
    states=(
        state("bad", (2e4, 4e4, 8e4), (1e4, 2e4), 0.9, 0.08, 0.02),
        state("good", (4e5, 8e5, 1.6e6), (2e5, 3e5), 0.05, 0.94, 0.01),
        state("out", (0.0,), (0.0,), 0.5, 0.0, 0.5),
    ),
    rtt_quantiles_s=(0.02, 0.04, 0.08),
    jitter_s=0.003,
    rest_after_s=10.0,
    promotion_s=0.4,
)


@given(seed=st.integers(0, 2**63 - 1), seconds=st.integers(1, 400))
@settings(max_examples=60, deadline=None)
def test_every_seed_gives_a_valid_link_of_that_length_that_begins_connected(seed: int, seconds: int) -> None:
    scene = generate(LINK, seed=seed, seconds=seconds)
    assert scene == generate(LINK, seed=seed, seconds=seconds)
    assert scene.down.period_s == scene.up.period_s == seconds
    assert scene.down.rate_at(0.0) > 0.0 and scene.up.rate_at(0.0) > 0.0
    assert 0.02 <= scene.rtt_s <= 0.08
    assert (scene.jitter_s, scene.rest_after_s, scene.promotion_s) == (0.003, 10.0, 0.4)
    for down, up in zip(scene.down.bytes_per_s, scene.up.bytes_per_s, strict=True):
        good, bad, out = down >= 4e5 and 2e5 <= up <= 3e5, 2e4 <= down <= 8e4 and 1e4 <= up <= 2e4, down == up == 0.0
        assert good or bad or out  # both directions follow the one state


def test_other_seeds_give_other_links() -> None:
    assert generate(LINK, seed=1, seconds=60) != generate(LINK, seed=2, seconds=60)


def test_shares_of_time_are_those_of_the_chain() -> None:
    occupancy = LINK.occupancy
    chances = np.array([s.next for s in LINK.states])
    assert occupancy @ chances == pytest.approx(occupancy)
    made = generate(LINK, seed=5, seconds=100_000).down
    rates = np.array(made.bytes_per_s)
    shares = [((rates > 0) & (rates <= 8e4)).mean(), (rates >= 4e5).mean(), (rates == 0).mean()]
    assert shares == pytest.approx(occupancy.tolist(), abs=0.015)


@pytest.mark.parametrize("memory", [0.0, 0.7])
def test_statistics_do_not_drift_and_memory_changes_persistence_alone(memory: float) -> None:
    link = replace(LINK, memory=memory)
    rates = np.array(generate(link, seed=9, seconds=200_000).down.bytes_per_s)
    first, second = (statistics_of(part) for part in np.split(rates, 2))
    assert first.mean == pytest.approx(second.mean, rel=0.04)
    assert first.p50 == pytest.approx(second.p50, rel=0.05)
    assert first.autocorrelation == pytest.approx(second.autocorrelation, abs=0.03)
    good = rates[rates >= 4e5]
    assert np.percentile(good, [25, 50, 75]) == pytest.approx([4e5 * 2**0.5, 8e5, 8e5 * 2**0.5], rel=0.02)


def test_memory_makes_neighbours_alike() -> None:
    one_state = MarkovLink(states=(state("only", (1e5, 1e6), (1e5,), 1.0),), rtt_quantiles_s=(0.01,))
    plain = statistics(generate(one_state, seed=1, seconds=5000).down)
    sticky = statistics(generate(replace(one_state, memory=0.8), seed=1, seconds=5000).down)
    assert plain.autocorrelation[0] == pytest.approx(0.0, abs=0.05)
    assert sticky.autocorrelation[0] == pytest.approx(0.8, abs=0.05)


def test_quantiles_are_interpolated_on_a_logarithmic_scale_and_zeros_stay_zero() -> None:
    assert quantile((100.0, 10000.0), np.array([0.0, 0.5, 1.0])) == pytest.approx([100.0, 1000.0, 10000.0])
    assert quantile((0.0, 0.0, 50.0), np.array([0.1, 0.99, 1.0])) == pytest.approx([0.0, 0.0, 50.0])
    assert quantile((0.0,), np.array([0.3])) == pytest.approx([0.0])


@pytest.mark.parametrize(
    ("build", "said"),
    [
        (lambda: state("s", (2.0, 1.0), (1.0,), 1.0), "never fall"),
        (lambda: state("s", (1.0,), (), 1.0), "number of up_bytes_per_s"),
        (lambda: state("s", (1.0,), (1.0,), 0.5, 0.4), "sum to 0.9"),
        (lambda: state("s", (1e99,), (1.0,), 1.0), "outside"),
        (lambda: replace(LINK, states=LINK.states[:2]), "one chance for each of the 2"),
        (lambda: replace(LINK, states=()), "states = 0"),
        (lambda: replace(LINK, rtt_quantiles_s=()), "rtt_quantiles_s"),
        (lambda: replace(LINK, memory=1.0), "memory"),
        (lambda: generate(LINK, seed=0, seconds=0.2), "seconds"),
        (lambda: generate(LINK, seed=0, seconds=1e9), "seconds"),
        (lambda: generate(LINK, seed=-1, seconds=10), "seed"),
        (
            lambda: MarkovLink(states=(state("out", (0.0,), (1.0,), 1.0),), rtt_quantiles_s=(0.01,)),
            "carries data both ways",
        ),
    ],
)
def test_impossible_parameters_are_refused(build: object, said: str) -> None:
    with pytest.raises(InputError, match=said):
        build()  # type: ignore[operator]


def test_a_chain_that_cannot_return_is_refused() -> None:
    with pytest.raises(InputError, match="never be reached"):
        stationary(np.array([[1.0, 0.0], [0.5, 0.5]]))


def test_a_chain_that_alternates_still_has_its_shares() -> None:
    assert stationary(np.array([[0.0, 1.0], [1.0, 0.0]])) == pytest.approx([0.5, 0.5])


def test_bins_carry_what_the_trace_carries() -> None:
    trace = RateTrace((0.0, 0.25, 2.5), (100.0, 400.0, 0.0), 3.0)
    rates = binned(trace)
    assert rates == pytest.approx([325.0, 400.0, 200.0])
    assert rates.sum() == pytest.approx(trace.mean_bytes_per_s * 3.0)


def test_statistics_of_a_known_series() -> None:
    series = np.tile([0.0, 2e6], 500)
    found = statistics_of(series)
    assert (found.mean, found.outage_share) == (1e6, 0.5)
    assert found.autocorrelation == pytest.approx((-1.0, -1.0, 1.0))
    assert "| mean Mbit/s | 8.00 | 8.00 |" in compared(found, found)
    assert statistics_of(np.full(3, 7.0)).autocorrelation == (0.0, 0.0, 0.0)
