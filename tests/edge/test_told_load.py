"""What a cloud tells of its load reaches the device's advisor before a request is planned."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from running_cloud import RunningCloud, open_agent, running_cloud

from splitglm_cloud.gateway.recent_load import FORGOTTEN_S, RecentLoad
from splitglm_core.plan import SplitPlan
from splitglm_core.ranges import LayerRange
from splitglm_edge.advice import LinkAdvice
from splitglm_edge.connection import CloudAddress, CloudConnection
from splitglm_partitioner.layer_times import LayerTimes
from splitglm_partitioner.link_estimator import Probing
from splitglm_partitioner.observations import CloudHint, Observation
from splitglm_partitioner.profiles import CloudProfile
from splitglm_wire.actions import Output
from splitglm_wire.frames import Reply, Rows, Step

LAYERS, LAYER_S = 4, 1e-3
ELSEWHERE = 10**9
"""A session of another device."""


class Busy:
    """A cloud whose other devices' steps wait 40 ms, then 9 ms for the sweep, and take three times as long as alone."""

    def __init__(self, cloud: RunningCloud) -> None:
        self.cloud = cloud
        self._table = cloud.server.table
        self._now_s = 1000.0
        self._table._clock = lambda: self._now_s
        profile = CloudProfile(
            layers=LAYERS, served=LayerRange(0, LAYERS), has_embedding=True, has_head=False, head_s=None, queue_s=0.0,
            times=LayerTimes.uniform(LAYERS, decode_s=LAYER_S, prefill_s_per_token=1e-4), codecs=(),
        )  # fmt: skip
        self._table._load = RecentLoad(profile)

    def serve_others(self) -> None:
        self.cloud.now(self._serve)

    def _serve(self) -> None:
        step = Step(
            handle=1, fence=1, seq=1, base=0, rows_kind=Rows.HIDDEN, rows=1, reply=Reply.LAST_HIDDEN, generate=0,
            payload=b"",
        )  # fmt: skip
        took_us = round(3e6 * LAYERS * LAYER_S)
        self._table._load.submitted(ELSEWHERE, SplitPlan.cloud_only(LAYERS), step)
        self._table._load.answered(ELSEWHERE, Output(1, 1, b"", True, 40_000, 9_000, took_us), self._now_s)

    def rest(self) -> None:
        self._now_s += 2 * FORGOTTEN_S


@pytest.fixture
def busy(model: Path, home: Path) -> Iterator[Busy]:
    with running_cloud(model, home) as cloud:
        yield Busy(cloud)


def test_an_agent_knows_the_load_when_it_has_connected_and_learns_of_its_end(
    busy: Busy, model: Path, home: Path
) -> None:
    busy.serve_others()
    with open_agent(model, home, busy.cloud) as agent:
        _, cloud = agent.link()
        assert (cloud.queue_s, cloud.sweep_s, cloud.slowdown) == pytest.approx((0.04, 0.009, 3.0), rel=1e-3)
        busy.rest()
        _, cloud = agent.link()
        assert (cloud.queue_s, cloud.sweep_s, cloud.slowdown) == (0.0, 0.0, 1.0)
        busy.serve_others()
        assert agent.link()[1].queue_s == pytest.approx(0.04, rel=1e-3)


class Heard(LinkAdvice):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Observation] = []

    def observe(self, observation: Observation) -> None:
        self.seen.append(observation)
        super().observe(observation)


@pytest.mark.parametrize("wanted", [Probing.ROUND_TRIP, Probing.RATES])
def test_every_ping_of_a_probe_tells_the_load(busy: Busy, wanted: Probing) -> None:
    heard = Heard()
    where = CloudAddress(address=busy.cloud.address, key=busy.cloud.key)
    connection = CloudConnection(where, busy.cloud.server.manifest.fingerprint, heard)
    try:
        connection.link()
        busy.serve_others()
        heard.seen.clear()
        connection.probe(wanted)
    finally:
        connection.close()
    hints = [it for it in heard.seen if isinstance(it, CloudHint)]
    assert len(hints) == len(heard.seen) - len(hints) == (3 if wanted is Probing.RATES else 1)
    for hint in hints:
        assert (hint.queue_s, hint.sweep_s, hint.slowdown) == pytest.approx((0.04, 0.009, 3.0))
