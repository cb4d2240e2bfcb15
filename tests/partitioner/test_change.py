"""Change points: two samples that agree tell a jump, one never does, and noise rarely does."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from splitglm_partitioner.change import ChangeDetector, RecentRatio, median


@given(st.floats(-50, 50), st.integers(0, 20))
def test_one_outlier_is_never_a_change(outlier: float, before: int) -> None:
    detector = ChangeDetector()
    for value in [0.0] * before + [outlier] + [0.0] * 20:
        assert detector.add(value) == 0


@given(st.floats(math.log(2), 50), st.sampled_from([-1, 1]), st.integers(0, 20))
def test_a_lasting_factor_of_two_is_known_after_two_samples(size: float, sign: int, before: int) -> None:
    detector = ChangeDetector()
    for _ in range(before):
        assert detector.add(0.0) == 0
    assert detector.add(sign * size) == 0
    assert detector.add(sign * size) == 2


@given(st.lists(st.floats(-0.5, 0.5), max_size=30), st.sampled_from([-1, 1]))
def test_a_lasting_factor_of_four_is_known_soon_on_any_noise(noise: list[float], sign: int) -> None:
    detector = ChangeDetector()
    for value in noise:
        detector.add(value)
    assert any(detector.add(sign * math.log(4)) for _ in range(6))


@pytest.mark.parametrize("sigma", [0.05, 0.2])
def test_noise_of_the_usual_spread_seldom_looks_like_a_change(sigma: float) -> None:
    draw = random.Random(1)
    detector = ChangeDetector()
    alarms = sum(detector.add(draw.gauss(0.0, sigma)) > 0 for _ in range(4000))
    assert alarms <= 8


def test_the_count_returned_is_that_of_the_samples_since_the_change_began() -> None:
    detector = ChangeDetector()
    slow = math.log(1.65)  # between noise and a sure jump
    found = [detector.add(value) for value in [0.0] * 8 + [slow] * 4]
    assert found == [0] * 10 + [3, 0]


def test_after_a_change_the_detector_begins_anew() -> None:
    detector = ChangeDetector()
    detector.add(1.0)
    assert detector.add(1.0) == 2
    assert detector.add(1.0) == 0


@given(st.lists(st.floats(0.05, 100.0), min_size=1, max_size=40))
def test_a_recent_ratio_lies_within_what_was_seen(ratios: list[float]) -> None:
    recent = RecentRatio(9)
    for ratio in ratios:
        recent.add(ratio)
    assert recent.value is not None
    assert min(ratios) <= recent.value <= max(ratios)
    assert 1 <= recent.count <= 9


def test_a_recent_ratio_follows_a_doubling_with_its_second_sample() -> None:
    recent = RecentRatio(9)
    for _ in range(9):
        recent.add(1.0)
    assert not recent.add(2.0)
    assert recent.value == 1.0
    assert recent.add(2.0)
    assert recent.value == 2.0


def test_there_is_no_median_of_nothing() -> None:
    assert RecentRatio(3).value is None
    with pytest.raises(ValueError, match="nothing"):
        median([])
