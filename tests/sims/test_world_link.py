"""A simulated way is byte-serial, keeps order, is never faster than its trace, and starts slowly only after a rest."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from world_scenes import link_scene

from splitglm_sims.traces import RateTrace
from splitglm_sims.world.draws import Draws, What
from splitglm_sims.world.link import Link, Way
from splitglm_sims.world.scene import LinkScene

traces = st.builds(
    lambda rates: RateTrace(tuple(float(i) for i in range(len(rates))), tuple(rates), float(len(rates))),
    st.lists(st.floats(0.0, 1e6), min_size=1, max_size=5).filter(lambda rates: max(rates) > 1e3),
)
messages = st.lists(st.tuples(st.floats(0.0, 3.0), st.integers(1, 200_000)), min_size=1, max_size=12)


@given(trace=traces, sends=messages, window=st.sampled_from([None, 14_600]), offset_s=st.floats(0.0, 10.0))
def test_a_way_carries_no_more_than_its_trace_and_in_order(
    trace: RateTrace, sends: list[tuple[float, int]], window: int | None, offset_s: float
) -> None:
    scene = LinkScene(up=trace, down=trace, rtt_s=0.05, offset_s=offset_s, window_bytes=window)
    way, now_s, before_s = Way(trace, scene), 0.0, -1.0
    first_s = sends[0][0]
    total = 0
    for pause_s, size in sends:
        now_s += pause_s
        began_s, left_s = way.send(now_s, size)
        total += size
        assert now_s <= began_s <= left_s and before_s <= left_s
        # What has left since the beginning is no more than the trace let through.
        carried = trace.bytes_before(left_s + offset_s) - trace.bytes_before(first_s + offset_s)
        assert total <= carried + 1.0 + 1e-6 * total
        if window is None:
            # Work conservation: the bytes of this message alone kept the way busy from its beginning to its end.
            busy = trace.bytes_before(left_s + offset_s) - trace.bytes_before(began_s + offset_s)
            assert busy == pytest.approx(size, abs=1.0, rel=1e-6)
        before_s = left_s


def test_slow_start_waits_for_acknowledgements_only_after_a_rest() -> None:
    scene = link_scene(up=1e6, rtt_s=0.1, window_bytes=10_000)
    way = Way(scene.up, scene)
    # Rounds of 10, 20 and 40 kB a round trip each, then 80 kB and more: the window fills the link (100 kB a trip).
    assert way.send(0.0, 150_000)[1] == pytest.approx(0.3 + 0.08)
    _, warm_s = way.send(0.4, 150_000)
    assert warm_s == pytest.approx(0.55)
    assert way.send(60.0, 150_000)[1] == pytest.approx(60.38)


def test_a_radio_rests_only_when_nothing_was_carried_for_so_long() -> None:
    link = Link(link_scene(rest_after_s=5.0, promotion_s=0.4))
    assert link.wake_s(0.0) == 0.4
    link.used_s = 10.0
    assert (link.wake_s(14.9), link.wake_s(15.0), link.idle_s(12.5)) == (0.0, 0.4, 2.5)
    twin = link.copy()
    twin.up.send(0.0, 1000)
    assert link.up.free_s < twin.up.free_s


@given(seed=st.integers(0, 2**64 - 1), job=st.integers(0, 10_000), order=st.permutations(range(6)))
def test_a_draw_does_not_depend_on_what_was_drawn_before(seed: int, job: int, order: list[int]) -> None:
    one, other = Draws(seed, job), Draws(seed, job)
    forward = {place: one.uniform(What.ACCEPTANCE, 30 * place) for place in range(6)}
    other.half_normal(What.ACCEPTANCE, 3)
    other.exponential(What.DECODE_QUEUE, 70)
    assert {place: other.uniform(What.ACCEPTANCE, 30 * place) for place in order} == forward
    assert Draws(seed, job + 1).uniform(What.ACCEPTANCE, 0) != forward[0]
    assert Draws(seed, job, 1).uniform(What.ACCEPTANCE, 0) != forward[0]


def test_draws_have_the_moments_they_state() -> None:
    draws, many = Draws(5, 0), 20_000
    waits = [draws.exponential(What.DECODE_QUEUE, i) for i in range(many)]
    delays = [draws.half_normal(What.DECODE_DELAY, i) for i in range(many)]
    factors = [draws.log_normal(What.DECODE_COMPUTE, i, 0.3) for i in range(many)]
    assert sum(waits) / many == pytest.approx(1.0, abs=0.03)
    mean = sum(delays) / many
    assert min(delays) >= 0.0
    assert sum((delay - mean) ** 2 for delay in delays) / many == pytest.approx(1.0, abs=0.05)
    assert sum(factors) / many == pytest.approx(1.0, abs=0.01)
