"""Calibration: a lasting bias is learnt slowly and within bounds; what estimators explain is not learnt again."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from splitglm_core.errors import InputError
from splitglm_core.plan import Arm, SplitPlan
from splitglm_partitioner.calibration import EVENT_RATIO, EVENTS_IN_A_ROW, HALF_LIFE_S, KEPT_S, Calibration, Residuals
from splitglm_partitioner.factors import MAX_FACTOR, ArmFactors
from splitglm_partitioner.observations import Outcome, ReplyEnded

DEVICE, CLOUD = SplitPlan.device_only(4), SplitPlan.cloud_only(4)


def ended(
    ttft: float = 1.0,
    per_token: float = 1.0,
    *,
    plan: SplitPlan = DEVICE,
    predicted_ttft_s: float = 0.5,
    predicted_per_token_s: float = 0.05,
    bare: tuple[float, float] = (0.5, 0.05),
    tokens: int = 11,
) -> ReplyEnded:
    """A reply that took ``ttft`` and ``per_token`` times what the bare model says."""
    first_s = ttft * bare[0]
    outcome = Outcome(
        ttft_s=first_s,
        total_s=first_s + (tokens - 1) * per_token * bare[1],
        new_tokens=tokens,
        uplink_bytes=0,
        downlink_bytes=0,
    )
    return ReplyEnded(
        at_s=0.0,
        plan=plan,
        genre="chat",
        max_new_tokens=tokens,
        predicted_ttft_s=predicted_ttft_s,
        predicted_per_token_s=predicted_per_token_s,
        outcome=outcome,
    )


def test_before_any_reply_the_model_is_believed() -> None:
    assert Calibration().factors(Arm.CLOUD, 0.0) == ArmFactors(arm=Arm.CLOUD)
    assert Calibration().learnt(0.0) == ()
    assert Calibration().residuals(Arm.CLOUD) == (Residuals(), Residuals())


@pytest.mark.parametrize("bias", [0.7, 1.3, 1.6])
def test_a_lasting_bias_is_learnt_from_bare_predictions(bias: float) -> None:
    calibration = Calibration()
    for _ in range(80):
        calibration.observe(ended(bias, 1.0))
    factors = calibration.factors(Arm.DEVICE, 0.0)
    assert factors.ttft == pytest.approx(bias, rel=0.05)
    assert factors.per_token == pytest.approx(1.0)


@pytest.mark.parametrize("bias", [0.7, 1.3, 1.6])
def test_applying_the_factors_removes_the_bias_and_does_not_compound_it(bias: float) -> None:
    calibration = Calibration()
    for _ in range(80):
        applied = calibration.factors(Arm.DEVICE, 0.0)
        stated = ended(bias, bias, predicted_ttft_s=0.5 * applied.ttft, predicted_per_token_s=0.05 * applied.per_token)
        calibration.observe(stated, applied=applied)
    assert calibration.factors(Arm.DEVICE, 0.0).ttft == pytest.approx(bias, rel=0.05)
    assert calibration.factors(Arm.DEVICE, 0.0).per_token == pytest.approx(bias, rel=0.05)


def test_few_replies_are_believed_little_and_one_outlier_hardly() -> None:
    calibration = Calibration()
    calibration.observe(ended(2.0))
    assert 1.0 < calibration.factors(Arm.DEVICE, 0.0).ttft < 1.03
    steady = Calibration()
    for _ in range(30):
        steady.observe(ended(1.0))
    steady.observe(ended(2.0))
    assert 1.0 < steady.factors(Arm.DEVICE, 0.0).ttft < 1.03


@pytest.mark.parametrize("ratio", [EVENT_RATIO * 1.01, 6.0, 0.99 / EVENT_RATIO])
def test_events_that_no_factor_explains_are_counted_and_not_learnt_from(ratio: float) -> None:
    """As when a radio is asleep whenever the user has thought for a while: most replies, and still no bias."""
    calibration = Calibration()
    for index in range(40):
        applied = calibration.factors(Arm.DEVICE, 0.0)
        calibration.observe(
            ended(1.2 if index % 4 == 0 else ratio, predicted_ttft_s=0.5 * applied.ttft), applied=applied
        )
    assert calibration.residuals(Arm.DEVICE)[0].count == 40
    assert 1.1 < calibration.factors(Arm.DEVICE, 0.0).ttft <= 1.21


@pytest.mark.parametrize("ratio", [16.0, 1 / 5])
def test_what_happens_every_time_is_no_event(ratio: float) -> None:
    calibration = Calibration()
    for index in range(EVENTS_IN_A_ROW):
        assert calibration.factors(Arm.DEVICE, 0.0).ttft == 1.0, index
        calibration.observe(ended(ratio), settled=False)
    learnt = calibration.factors(Arm.DEVICE, 0.0).ttft
    assert math.log(learnt) / math.log(ratio) > 0.7
    assert calibration.factors(Arm.DEVICE, KEPT_S + HALF_LIFE_S).ttft == pytest.approx(math.sqrt(learnt))


def test_a_reply_in_which_an_estimator_found_a_change_is_counted_but_not_learnt_from() -> None:
    calibration = Calibration()
    for _ in range(20):
        calibration.observe(ended(2.0, 2.0), settled=False)
    assert calibration.factors(Arm.DEVICE, 0.0) == ArmFactors(arm=Arm.DEVICE)
    ttft, per_token = calibration.residuals(Arm.DEVICE)
    assert ttft.count == per_token.count == 20
    assert ttft.mean_abs_pct_error == pytest.approx(50.0)
    assert ttft.mean_log_ratio == pytest.approx(math.log(2.0))


def test_a_load_that_the_estimators_follow_leaves_hardly_a_trace() -> None:
    """The first reply under a double load slips through; from then on predictions contain the load."""
    calibration = Calibration()
    for _ in range(20):
        calibration.observe(ended(1.0, 1.0))
    calibration.observe(ended(2.0, 2.0))
    assert calibration.factors(Arm.DEVICE, 0.0).ttft > 1.015
    for _ in range(10):
        calibration.observe(ended(2.0, 2.0, predicted_ttft_s=1.0, predicted_per_token_s=0.1))
    assert calibration.factors(Arm.DEVICE, 0.0).ttft == pytest.approx(1.0, abs=0.01)


def test_arms_are_kept_apart() -> None:
    calibration = Calibration()
    for _ in range(10):
        calibration.observe(ended(1.5, plan=CLOUD))
    assert calibration.factors(Arm.CLOUD, 0.0).ttft > 1.1
    assert calibration.factors(Arm.DEVICE, 0.0) == ArmFactors(arm=Arm.DEVICE)


def test_the_error_that_is_exported_is_relative_to_what_happened() -> None:
    calibration = Calibration()
    calibration.observe(ended(2.0, 1.0))
    calibration.observe(ended(1.0, 0.5))
    ttft, per_token = calibration.residuals(Arm.DEVICE)
    assert (ttft.count, ttft.mean_abs_pct_error) == (2, pytest.approx(25.0))
    assert per_token.mean_abs_pct_error == pytest.approx(50.0)
    assert per_token.mean_log_ratio == pytest.approx(-math.log(2.0) / 2)


def test_a_reply_of_one_token_says_nothing_on_further_ones() -> None:
    calibration = Calibration()
    calibration.observe(ended(tokens=1))
    ttft, per_token = calibration.residuals(Arm.DEVICE)
    assert (ttft.count, per_token.count) == (1, 0)


@given(st.lists(st.tuples(st.floats(0.0, 1e3), st.floats(0.0, 1e3), st.booleans()), max_size=60))
def test_whatever_happens_factors_stay_within_their_bounds(replies: list[tuple[float, float, bool]]) -> None:
    calibration = Calibration()
    for ttft, per_token, settled in replies:
        calibration.observe(ended(ttft, per_token), settled=settled)
        calibration.factors(Arm.DEVICE, 0.0)  # ArmFactors checks its own range


@given(st.lists(st.tuples(st.floats(0.45, 2.4), st.booleans()), max_size=60))
def test_without_events_factors_move_little_at_a_time(replies: list[tuple[float, bool]]) -> None:
    calibration, before = Calibration(), ArmFactors(arm=Arm.DEVICE)
    for ttft, settled in replies:
        calibration.observe(ended(ttft), settled=settled)
        now = calibration.factors(Arm.DEVICE, 0.0)
        assert abs(math.log(now.ttft / before.ttft)) < 0.15
        before = now


def test_factors_out_of_range_are_refused() -> None:
    with pytest.raises(InputError):
        ArmFactors(arm=Arm.CLOUD, ttft=MAX_FACTOR * 1.01)
