"""Intervals, curves and prediction errors of studies: by hand, by brute force, and for whatever numbers there are."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from splitglm_core.errors import InputError
from splitglm_sims.study.regret import SeedTotals, cheapest, cumulative_regret, regret, versus, versus_best
from splitglm_sims.study.statistics import distribution, prediction_error, quantiles, ratio_of_sums, resamples, thinned

POSITIVE = st.floats(1e-3, 1e3)
PAIRS = st.lists(st.tuples(POSITIVE, POSITIVE), min_size=1, max_size=4)
VALUES = st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=60)


def test_a_ratio_of_sums_is_of_the_sums_and_not_of_the_pairs() -> None:
    found = ratio_of_sums([1.0, 9.0], [2.0, 3.0])
    assert found.estimate == 2.0
    # The four equally likely samples have the ratios 1/2, 2, 2 and 3.
    assert (found.low, found.high) == tuple(np.quantile([0.5, 2.0, 2.0, 3.0], [0.025, 0.975]))


@given(PAIRS)
def test_an_interval_of_few_seeds_is_that_of_every_possible_sample(pairs: list[tuple[float, float]]) -> None:
    tops, bottoms = zip(*pairs, strict=True)
    every = [
        sum(tops[i] for i in pick) / sum(bottoms[i] for i in pick)
        for pick in product(range(len(pairs)), repeat=len(pairs))
    ]
    found = ratio_of_sums(tops, bottoms)
    assert found.estimate == pytest.approx(sum(tops) / sum(bottoms))
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(every, [0.025, 0.975])))
    slack = 1e-9 * found.estimate
    assert min(every) - slack <= found.low <= found.high <= max(every) + slack


@given(st.lists(POSITIVE, min_size=1, max_size=30), st.floats(0.1, 10.0))
def test_luck_that_both_share_cancels_out_of_a_paired_ratio(values: list[float], factor: float) -> None:
    found = ratio_of_sums([factor * value for value in values], values)
    assert (found.low, found.estimate, found.high) == pytest.approx((factor, factor, factor))


def test_more_seeds_are_resampled_alike_every_time_and_from_all_of_them() -> None:
    assert resamples(3).shape == (27, 3)
    many = resamples(12)
    assert many.shape == (4096, 12) and set(np.unique(many)) == set(range(12))
    assert (many == resamples(12)).all()


def test_an_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(5)
    covered = 0
    for _ in range(300):
        bottoms = rng.gamma(20.0, 1.0, 12)
        tops = 1.3 * bottoms * rng.lognormal(0.0, 0.2, 12)
        truth = 1.3 * math.exp(0.2**2 / 2)
        found = ratio_of_sums(tops, bottoms)
        covered += found.low <= truth <= found.high
    assert 0.86 <= covered / 300 <= 0.98  # percentile intervals of a dozen seeds are a little too narrow


@pytest.mark.parametrize(("tops", "bottoms"), [([1.0], [1.0, 2.0]), ([1.0], [0.0]), ([[1.0]], [[1.0]])])
def test_what_cannot_be_a_paired_ratio_is_refused(tops: list[float], bottoms: list[float]) -> None:
    with pytest.raises(InputError):
        ratio_of_sums(tops, bottoms)


def test_nothing_has_no_ratio() -> None:
    assert not ratio_of_sums([], []).known


@given(VALUES, st.integers(2, 50))
def test_a_distribution_says_the_share_of_values_not_above_each_point(values: list[float], points: int) -> None:
    curve = distribution(np.array(values), points)
    assert len(curve.x) <= points
    assert list(curve.y) == [sum(v <= x for v in values) / len(values) for x in curve.x]
    assert curve.x[-1] == max(values) and curve.y[-1] == 1.0 and curve.x[0] == min(values)
    assert list(curve.x) == sorted(set(curve.x)) or list(curve.x) == sorted(curve.x)


def test_unknown_values_are_left_out_of_distributions_and_quantiles() -> None:
    values = np.array([3.0, math.nan, 1.0, 2.0])
    assert distribution(values).x == (1.0, 2.0, 3.0)
    assert quantiles(values, (0.0, 0.5, 1.0)) == (1.0, 2.0, 3.0)
    assert all(map(math.isnan, quantiles(np.array([math.nan]), (0.5,))))
    assert distribution(np.array([])).x == ()


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=500), st.integers(2, 40))
def test_a_thinned_line_keeps_both_ends_and_only_true_points(values: list[float], points: int) -> None:
    curve = thinned(np.array(values), points)
    assert len(curve.x) <= points and curve.x[0] == 1.0 and curve.x[-1] == len(values)
    assert all(values[int(x) - 1] == y for x, y in zip(curve.x, curve.y, strict=True))


def test_prediction_errors_are_medians_of_what_could_be_compared() -> None:
    predicted = np.array([1.1, 0.8, 2.0, math.nan, 5.0])
    actual = np.array([1.0, 1.0, 1.0, 1.0, math.nan])
    error = prediction_error(predicted, actual)
    assert (error.count, error.median_abs, error.bias) == pytest.approx((3, 0.2, 0.1))
    assert prediction_error(np.array([1.0]), np.array([0.0])).count == 0


def test_regret_is_what_was_paid_above_the_best_over_the_best() -> None:
    found = regret(SeedTotals(np.array([11.0, 22.0]), np.array([10.0, 20.0])))
    assert (found.low, found.estimate, found.high) == pytest.approx((0.1, 0.1, 0.1))
    assert not regret(SeedTotals(np.array([11.0]))).known


@given(st.lists(st.tuples(POSITIVE, POSITIVE), min_size=1, max_size=50))
def test_cumulative_regret_ends_at_the_sum_of_all_regrets(pairs: list[tuple[float, float]]) -> None:
    value, best = np.array(pairs).T
    line = cumulative_regret(value, best)
    assert len(line) == len(pairs)
    assert line[-1] == pytest.approx(sum(v - b for v, b in pairs), abs=1e-9)
    assert line[0] == pairs[0][0] - pairs[0][1]


@settings(max_examples=60)
@given(
    st.dictionaries(st.text(min_size=1, max_size=3), st.lists(POSITIVE, min_size=3, max_size=3), min_size=1, max_size=5)
)
def test_the_best_in_hindsight_is_the_one_whose_whole_sum_is_least(sums: dict[str, list[float]]) -> None:
    among = {label: SeedTotals(np.array(values)) for label, values in sums.items()}
    best = cheapest(among)
    assert best is not None and sum(sums[best]) <= min(sum(values) for values in sums.values()) + 1e-9
    own = SeedTotals(np.array([1.0, 2.0, 3.0]))
    against = versus_best(own, among)
    assert against is not None and against.rival == best
    assert against.ratio.estimate == pytest.approx(6.0 / sum(sums[best]))
    assert against.worst_seed == pytest.approx(max(v / w for v, w in zip((1.0, 2.0, 3.0), sums[best], strict=True)))


def test_runs_of_other_seeds_are_not_compared() -> None:
    with pytest.raises(InputError, match="same seeds"):
        versus(SeedTotals(np.array([1.0])), "other", SeedTotals(np.array([1.0, 2.0])))
    assert versus_best(SeedTotals(np.array([1.0])), {}) is None
