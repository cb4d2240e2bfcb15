"""The device's pace: load is followed at once, forgotten slowly, and measured against the profile."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from partitioner_factory import make_device

from splitglm_partitioner.device_pace import HALF_LIFE_S, DevicePace, predicted_s
from splitglm_partitioner.layer_times import LayerTimes
from splitglm_partitioner.observations import DevicePass
from splitglm_partitioner.profiles import MAX_SLOWDOWN, MIN_SLOWDOWN

TIMES = LayerTimes.uniform(
    12,
    decode_s=4e-3,
    prefill_s_per_token=1e-3,
    chunk_tokens=64,
    decode_s_per_1k_context=1e-3,
    prefill_s_per_token_per_1k_context=1e-4,
)
DEVICE = make_device(12, times=TIMES)


def run(pace: DevicePace, at_s: float, slowdown: float, *, rows: int = 1, layers: int = 6, context: int = 500) -> None:
    seconds = slowdown * predicted_s(TIMES, rows, 0, layers, context)
    pace.observe(DevicePass(at_s=at_s, rows=rows, layers=layers, context_tokens=context, seconds=seconds))


def test_the_prediction_is_that_of_the_profile() -> None:
    assert predicted_s(TIMES, 1, 2, 5, 1000) == pytest.approx(3 * (4e-3 + 1e-3))
    assert predicted_s(TIMES, 64, 0, 12, 0) == pytest.approx(12 * 64 * 1e-3)
    assert predicted_s(TIMES, 64, 0, 12, 2000) == pytest.approx(12 * 64 * (1e-3 + 2e-4))


@given(st.floats(MIN_SLOWDOWN, MAX_SLOWDOWN), st.integers(1, 128), st.integers(1, 12), st.integers(0, 4000))
def test_a_pass_as_long_as_the_profile_says_times_a_factor_has_that_slowdown(
    factor: float, rows: int, layers: int, context: int
) -> None:
    pace = DevicePace(DEVICE)
    run(pace, 1.0, factor, rows=rows, layers=layers, context=context)
    assert pace.slowdown(1.0) == pytest.approx(factor)


def test_before_any_pass_the_profile_holds() -> None:
    assert DevicePace(DEVICE).slowdown(1e9) == 1.0


def test_load_is_followed_with_its_second_pass_and_its_end_too() -> None:
    pace = DevicePace(DEVICE)
    for i in range(20):
        run(pace, float(i), 1.0)
    run(pace, 20.0, 3.0)
    assert (pace.slowdown(20.0), pace.changed_s) == (pytest.approx(1.0), None)
    run(pace, 21.0, 3.0)
    assert (pace.slowdown(21.0), pace.changed_s) == (pytest.approx(3.0), 21.0)
    run(pace, 22.0, 1.0)
    run(pace, 23.0, 1.0)
    assert pace.slowdown(23.0) == pytest.approx(1.0)


@given(st.floats(1e-4, 1e4))
def test_one_hiccup_changes_nothing(factor: float) -> None:
    pace = DevicePace(DEVICE)
    for i in range(6):
        run(pace, float(i), 1.5)
    run(pace, 6.0, factor)
    assert pace.slowdown(6.0) == pytest.approx(1.5)


def test_without_evidence_half_of_a_slowdown_is_forgotten_in_two_minutes() -> None:
    pace = DevicePace(DEVICE)
    run(pace, 0.0, 4.0)
    assert pace.slowdown(HALF_LIFE_S) == pytest.approx(2.0)
    assert pace.slowdown(2 * HALF_LIFE_S) == pytest.approx(2.0**0.5)
    assert pace.slowdown(1e6) == pytest.approx(1.0)


@given(st.floats(0.05, 100.0), st.floats(0.0, 1e5), st.floats(0.0, 1e5))
def test_forgetting_leads_to_one_and_never_past_it(factor: float, a_s: float, b_s: float) -> None:
    pace = DevicePace(DEVICE)
    run(pace, 0.0, factor)
    early, late = pace.slowdown(min(a_s, b_s)), pace.slowdown(max(a_s, b_s))
    assert abs(late - 1.0) <= abs(early - 1.0) + 1e-9
    assert (late - 1.0) * (factor - 1.0) >= -1e-9


@given(st.lists(st.tuples(st.floats(0.0, 1e5), st.integers(1, 300), st.integers(1, 40)), max_size=20))
def test_whatever_is_observed_the_slowdown_is_one_that_a_profile_allows(
    passes: list[tuple[float, int, int]],
) -> None:
    pace = DevicePace(DEVICE)
    for i, (seconds, rows, layers) in enumerate(passes):
        pace.observe(DevicePass(at_s=float(i), rows=rows, layers=layers, context_tokens=0, seconds=seconds))
    assert MIN_SLOWDOWN <= pace.slowdown(float(len(passes))) <= MAX_SLOWDOWN


def test_passes_too_short_to_time_or_of_another_model_say_nothing() -> None:
    quick = make_device(12, times=LayerTimes.uniform(12, decode_s=1e-6, prefill_s_per_token=1e-6))
    pace = DevicePace(quick)
    pace.observe(DevicePass(at_s=0.0, rows=1, layers=12, context_tokens=0, seconds=1.0))
    assert pace.slowdown(0.0) == 1.0
    other = DevicePace(DEVICE)
    other.observe(DevicePass(at_s=0.0, rows=1, layers=13, context_tokens=0, seconds=1.0))
    assert other.slowdown(0.0) == 1.0
