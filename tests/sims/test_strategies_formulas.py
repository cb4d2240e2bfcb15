"""The formulas of the baselines on cases computed by hand or by brute force."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strategy_worlds import LAYERS, LINK, make_cloud, make_device, make_situation

from splitglm_core.errors import InputError
from splitglm_core.plan import Arm, Codec, Privacy
from splitglm_partitioner.arms import enumerate_arms
from splitglm_partitioner.cost import cost_of
from splitglm_sims.strategies.change_points import MAX_RUN, ChangePoints
from splitglm_sims.strategies.draft_lengths import LowestCost
from splitglm_sims.strategies.dynasplit import front_of, pareto_front
from splitglm_sims.strategies.edgent import rate_of, state_of
from splitglm_sims.strategies.edgeshard import line_of
from splitglm_sims.strategies.exponential_weights import ExponentialWeights
from splitglm_sims.strategies.linear_bandit import LinearBandit
from splitglm_sims.strategies.mu_linucb import terms_of
from splitglm_sims.strategies.reply_seconds import ReplySeconds
from splitglm_sims.strategies.stage_plans import Line, least_bottleneck, least_latency

INF = math.inf


def test_the_confidence_width_of_one_sample_is_the_textbooks() -> None:
    """V = ridge I + x x'; theta = start + V^-1 b; width = sqrt(x' V^-1 x)."""
    bandit = LinearBandit(np.array([1.0, 0.0]), ridge=2.0)
    bandit.observe(np.array([1.0, 1.0]), 4.0)
    # V = [[3, 1], [1, 3]], V^-1 = [[3, -1], [-1, 3]] / 8, residual 3, V^-1 (3, 3) = (0.75, 0.75)
    assert bandit.theta == pytest.approx([1.75, 0.75])
    rows = np.array([[1.0, 1.0], [1.0, 0.0], [0.0, 0.0]])
    assert bandit.width(rows) == pytest.approx([math.sqrt(4 / 8), math.sqrt(3 / 8), 0.0])
    assert bandit.expected(rows) == pytest.approx([2.5, 1.75, 0.0])


def test_discounting_weighs_a_sample_by_its_age_and_keeps_the_ridge() -> None:
    bandit = LinearBandit(np.zeros(1), ridge=1.0, discount=0.5)
    for cost in (8.0, 2.0):
        bandit.observe(np.array([1.0]), cost)
    # V = 0.5 * 1 + 1 + ridge = 2.5, b = 0.5 * 8 + 2 = 6, W = 0.25 * 1 + 1 + ridge = 2.25
    assert bandit.theta == pytest.approx([2.4])
    assert bandit.width(np.array([[1.0]])) == pytest.approx([math.sqrt(2.25) / 2.5])


@given(st.lists(st.tuples(st.floats(-1, 1), st.floats(-1, 1), st.floats(-5, 5)), min_size=1, max_size=20))
def test_a_window_forgets_what_has_left_it(samples: list[tuple[float, float, float]]) -> None:
    sliding, fresh = LinearBandit(np.zeros(2), window=3), LinearBandit(np.zeros(2))
    for a, b, cost in samples:
        sliding.observe(np.array([a, b]), cost)
    for a, b, cost in samples[-3:]:
        fresh.observe(np.array([a, b]), cost)
    assert sliding.theta == pytest.approx(fresh.theta, abs=1e-9)


def test_exp3_mixes_weights_with_uniform_exploration_and_rewards_the_one_drawn() -> None:
    weights: ExponentialWeights[str] = ExponentialWeights(gamma=0.3, seed=0)
    assert weights.chances("abc") == pytest.approx([1 / 3] * 3)
    weights.reward("b", chance=1 / 3, arms=3, reward=0.5)
    # w_b = exp(gamma * 0.5 / (1/3) / 3) = exp(0.15)
    b = math.exp(0.15)
    total = 2.0 + b
    expected = [0.7 / total + 0.1, 0.7 * b / total + 0.1, 0.7 / total + 0.1]
    assert weights.chances("abc") == pytest.approx(expected)
    # a sleeping arm keeps its weight, the others share its chance
    assert weights.chances("ab") == pytest.approx([0.7 / (1 + b) + 0.15, 0.7 * b / (1 + b) + 0.15])
    with pytest.raises(InputError):
        weights.reward("a", chance=0.5, arms=3, reward=1.5)


def test_exp3_draws_with_the_chances_that_it_states() -> None:
    weights: ExponentialWeights[str] = ExponentialWeights(gamma=0.2, seed=7)
    weights.reward("a", chance=0.5, arms=2, reward=1.0)
    weights.reward("a", chance=0.5, arms=2, reward=1.0)
    chances = weights.chances("ab")
    drawn = [weights.draw("ab") for _ in range(4000)]
    share = sum(arm == "a" for arm, _, _ in drawn) / len(drawn)
    assert share == pytest.approx(chances[0], abs=0.03)
    assert {round(chance, 9) for _, chance, _ in drawn} == {round(float(c), 9) for c in chances}


def test_the_run_length_posterior_of_one_number_is_the_papers() -> None:
    """Every run length predicts alike before the first number, so it only splits the chance by the hazard."""
    detector = ChangePoints(expected_run=10.0, mean=0.0)
    detector.observe(3.0)
    assert detector.posterior == pytest.approx([0.1, 0.9])

    # After (3.0): run 1 has mean 1.5, strength 2, shape 1.5, scale 1 + 9/4 = 3.25. Student's t densities of 2.0:
    # prior t_2(0, 2): scale 1 * 2 / (1 * 1); run 1 t_3(1.5, 3.25 * 3 / (1.5 * 2) = 3.25).
    def student(x: float, mean: float, degrees: float, spread: float) -> float:
        constant = math.gamma((degrees + 1) / 2) / math.gamma(degrees / 2) / math.sqrt(degrees * math.pi * spread)
        return constant * (1 + (x - mean) ** 2 / (degrees * spread)) ** (-(degrees + 1) / 2)

    new, old = 0.1 * student(2.0, 0.0, 2.0, 2.0), 0.9 * student(2.0, 1.5, 3.0, 3.25)
    detector.observe(2.0)
    assert detector.posterior == pytest.approx([0.1, 0.9 * new / (new + old), 0.9 * old / (new + old)])


def test_a_step_is_found_within_a_few_numbers_and_the_level_follows() -> None:
    noise = np.random.default_rng(3).normal(0.0, 0.2, 80)
    detector = ChangePoints(expected_run=50.0, mean=float(noise[0]), strength=0.1, scale=0.05)
    runs = []
    for i, value in enumerate(noise):
        detector.observe(float(value) + (4.0 if i >= 50 else 0.0))
        runs.append(detector.run)
        assert detector.posterior.sum() == pytest.approx(1.0)
    assert runs[49] >= 45 and runs[53] <= 5 and 25 <= runs[79] <= 31
    assert detector.level == pytest.approx(4.0, abs=0.2)


def test_run_lengths_are_bounded() -> None:
    detector = ChangePoints(expected_run=1000.0, mean=0.0)
    for value in np.random.default_rng(1).normal(0.0, 1.0, MAX_RUN + 50):
        detector.observe(float(value))
    assert len(detector.posterior) == MAX_RUN and detector.posterior.sum() == pytest.approx(1.0)
    detector.observe(1e100)
    assert np.isfinite(detector.posterior).all()
    with pytest.raises(InputError):
        detector.observe(math.nan)


@given(st.floats(1e3, 1e9), st.integers(1, 20))
def test_a_bandwidth_state_is_the_nearest_level(rate: float, per_decade: int) -> None:
    back = rate_of(state_of(rate, per_decade), per_decade)
    assert abs(math.log10(back / rate)) <= 0.5 / per_decade + 1e-9


seconds = st.floats(0.0, 10.0)


@st.composite
def lines(draw: st.DrawFn) -> Line:
    layers, stages = draw(st.integers(1, 6)), draw(st.integers(1, 3))
    cell = st.one_of(seconds, seconds, seconds, st.just(INF))
    compute = [[draw(cell) for _ in range(stages)] for _ in range(layers)]
    entry = [draw(cell) for _ in range(stages)]
    move = [draw(cell) for _ in range(stages - 1)]
    leave = [draw(cell) for _ in range(stages)]
    return Line(np.array(compute), np.array(entry), np.array(move), np.array(leave))


def assignments(line: Line) -> list[tuple[int, ...]]:
    """Every way to give consecutive layers to consecutive stages."""
    layers, stages = line.compute.shape
    out: list[tuple[int, ...]] = [(k,) for k in range(stages)]
    for _ in range(layers - 1):
        out = [(*before, k) for before in out for k in (before[-1], before[-1] + 1) if k < stages]
    return out


def latency(line: Line, stages: tuple[int, ...]) -> float:
    moved = sum(float(line.move[a]) for a, b in pairwise(stages) if b > a)
    worked = sum(float(line.compute[i, k]) for i, k in enumerate(stages))
    return float(line.entry[stages[0]]) + worked + moved + float(line.leave[stages[-1]])


def bottleneck(line: Line, stages: tuple[int, ...]) -> float:
    loads = [sum(float(line.compute[i, k]) for i, at in enumerate(stages) if at == k) for k in set(stages)]
    links = [float(line.entry[stages[0]]), *(float(line.move[a]) for a, b in pairwise(stages) if b > a)]
    worst = max(*loads, *links)
    leave = float(line.leave[stages[-1]])
    return worst + leave if stages[-1] == 0 else max(worst, leave)


@given(lines())
def test_the_dynamic_programmes_find_what_brute_force_finds(line: Line) -> None:
    for solve, value in ((least_latency, latency), (least_bottleneck, bottleneck)):
        best = min(value(line, stages) for stages in assignments(line))
        found, stages = solve(line)
        assert found == pytest.approx(best)
        assert (stages == ()) == math.isinf(best)
        if stages:
            assert value(line, stages) == pytest.approx(best)


@pytest.mark.parametrize("privacy", [Privacy.OPEN, Privacy.NO_TEXT])
@pytest.mark.parametrize("rate", [1e4, 1e6, 1e8])
def test_the_line_of_a_plan_costs_what_the_cost_model_says_without_overlap(privacy: Privacy, rate: float) -> None:
    """One chunk and no codec: nothing overlaps, so latency must be that of the product's own cost model."""
    link = LINK.__class__(uplink_bytes_per_s=rate, downlink_bytes_per_s=rate, rtt_s=0.03, overhead_s=1e-3)
    situation = make_situation(link=link, privacy=privacy, prompt_tokens=60, cloud=make_cloud(queue_s=0.004))
    cost_seconds = ReplySeconds(situation)
    x = situation
    for block in enumerate_arms(situation).blocks:
        line = line_of(block, Codec.BF16, situation, cost_seconds)
        for s in range(block.s_start, block.s_stop):
            plan = next(p for p in enumerate_arms(situation).plans() if (p.arm, p.s, p.t) == (block.arm, s, block.t))
            stages = tuple([0] * s + [1] * (block.t - s) + [2] * (LAYERS - block.t))
            if block.arm is Arm.DEVICE:
                stages = (0,) * LAYERS
            if plan.codec is not Codec.BF16 and block.arm is not Arm.CLOUD:
                line = line_of(block, plan.codec, situation, cost_seconds)
            priced = cost_of(plan, x.request, x.model, x.device, x.link, x.cloud).total_s
            assert latency(line, stages) == pytest.approx(priced, rel=0.05), plan


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=30))
def test_a_pareto_front_holds_exactly_the_rows_that_nothing_dominates(rows: list[tuple[int, int, int]]) -> None:
    costs = np.array(rows, dtype=np.float64)

    def dominated(row: tuple[int, ...]) -> bool:
        return any(other != row and all(a <= b for a, b in zip(other, row, strict=True)) for other in rows)

    front = front_of(costs)
    assert {rows[i] for i in front} == {row for row in rows if not dominated(row)}
    assert len({rows[i] for i in front}) == len(front)


def test_dynasplits_front_trades_latency_against_price() -> None:
    cloud = make_cloud(price_per_layer_token=1e-6)
    situation = make_situation(cloud=cloud, device=make_device())
    front = pareto_front(situation, cuts=4)
    assert len(front) >= 3
    assert all(a.total_s <= b.total_s and a.price >= b.price for a, b in pairwise(front))
    assert front[-1].plan.arm is Arm.DEVICE and front[-1].price == 0.0


@settings(max_examples=30)
@given(rate=st.floats(1e5, 1e8), rtt_s=st.floats(1e-3, 0.3), index=st.integers(0, 1000), tokens=st.integers(2, 60))
def test_known_and_unknown_terms_add_up_to_the_cost_model_where_nothing_overlaps(
    rate: float, rtt_s: float, index: int, tokens: int
) -> None:
    link = LINK.__class__(uplink_bytes_per_s=rate, downlink_bytes_per_s=rate, rtt_s=rtt_s, overhead_s=1e-3)
    x = make_situation(link=link, prompt_tokens=60, expected_new_tokens=tokens)
    plans = list(enumerate_arms(x).plans())
    plan = plans[index % len(plans)]
    terms = terms_of(plan, x, ReplySeconds(x), x.request.objective)
    priced = cost_of(plan, x.request, x.model, x.device, x.link, x.cloud).total_s
    assert terms.known + terms.features.sum() == pytest.approx(priced, rel=0.02)
    assert (terms.features == 0.0).all() == (plan.arm is Arm.DEVICE)


def test_ucb1_bounds_are_mean_less_width_and_every_length_is_tried_first() -> None:
    bandit = LowestCost(3, width=0.5)
    for expected, cost in ((0, 1.0), (1, 0.4), (2, 0.8)):
        assert bandit.choose() == expected
        bandit.observe(expected, cost)
    bandit.observe(1, 0.6)
    assert bandit.bound(1) == pytest.approx(0.5 - 0.5 * math.sqrt(2 * math.log(4) / 2))
    assert bandit.choose() == min(range(3), key=bandit.bound)
