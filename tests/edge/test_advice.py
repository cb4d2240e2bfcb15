"""One advisor for the whole agent: what its sensors say reaches the plan, and nobody waits for another's I/O."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from running_cloud import RunningCloud, open_agent

from splitglm_cli.plan_facts import plan_facts
from splitglm_core.plan import Privacy
from splitglm_edge import Agent, Generation
from splitglm_edge.advice import Advice
from splitglm_edge.link import CloudLink
from splitglm_edge.vitals import Sensors
from splitglm_partitioner.governor import Vitals
from splitglm_partitioner.observations import CloudStep, DevicePass
from splitglm_partitioner.request import Request

REQUEST = Request(prompt_tokens=40, expected_new_tokens=20)


def feel(monkeypatch: pytest.MonkeyPatch, vitals: Vitals) -> None:
    monkeypatch.setattr(Sensors, "read", lambda self: vitals)


def test_a_hot_device_runs_fewer_layers_and_says_so(
    model: Any, home: Any, cloud: RunningCloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_agent(model, home, cloud) as agent:
        feel(monkeypatch, Vitals(temperature_c=60.0))
        assert agent.decide(REQUEST).situation.device.max_layers == 4
        feel(monkeypatch, Vitals(temperature_c=80.0))
        hot = agent.decide(REQUEST)
        assert hot.situation.device.max_layers < 4 and hot.plan.s + 4 - hot.plan.t <= hot.situation.device.max_layers
        facts = dict(plan_facts(hot, agent.profile, agent.vitals()))
        assert "the governor allows 3 of 4 layers" in facts["device"] and facts["sensors"] == "80 degC"
        alone = agent.decide(replace(REQUEST, privacy=Privacy.LOCAL))
        assert alone.plan.s == 4, "a warm device that answers is better than none"


def test_memory_that_the_model_holds_may_go_on_being_used(
    agent: Agent, ask: Callable[..., Generation], monkeypatch: pytest.MonkeyPatch
) -> None:
    ask(agent, "device", max_tokens=1).result()
    feel(monkeypatch, Vitals(memory_bytes_available=1 << 30))
    assert agent.resident_weight_bytes > 0
    assert agent.vitals().memory_bytes_available == 1 << 30
    assert agent.vitals().memory_bytes_held == agent.resident_weight_bytes


def test_nobody_talks_to_the_cloud_or_computes_while_holding_the_advisors_lock(
    model: Any, home: Any, cloud: RunningCloud, ask: Callable[..., Generation], monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_agent(model, home, cloud) as agent:
        lock = agent._advice._lock
        holders: list[int | None] = [None]

        class Watched:
            def __enter__(self) -> None:
                lock.acquire()
                holders[0] = threading.get_ident()

            def __exit__(self, *_: object) -> None:
                holders[0] = None
                lock.release()

        monkeypatch.setattr(agent._advice, "_lock", Watched())
        for name in ("ping", "send", "receive"):
            plain = getattr(CloudLink, name)

            def watched(self: CloudLink, *arguments: Any, plain: Any = plain, **options: Any) -> Any:
                assert holders[0] != threading.get_ident()
                return plain(self, *arguments, **options)

            monkeypatch.setattr(CloudLink, name, watched)
        forward = type(agent._stack).forward

        def watched_forward(self: Any, *arguments: Any) -> Any:
            assert holders[0] != threading.get_ident()
            return forward(self, *arguments)

        monkeypatch.setattr(type(agent._stack), "forward", watched_forward)
        for arm in ("device", "cloud", "split", "ushape"):
            ask(agent, arm, max_tokens=4).result()


@pytest.mark.parametrize(("arm", "layers"), [("device", {4}), ("cloud", set()), ("split", {1}), ("ushape", {1})])
def test_every_pass_and_every_step_of_a_reply_is_told(
    agent: Agent, ask: Callable[..., Generation], monkeypatch: pytest.MonkeyPatch, arm: str, layers: set[int]
) -> None:
    """40 prompt tokens in chunks of 8, then 5 more passes of one row, each at the context that it met."""
    passes: list[DevicePass] = []
    steps: list[CloudStep] = []

    def tell(it: object) -> None:
        if isinstance(it, DevicePass):
            passes.append(it)
        elif isinstance(it, CloudStep):
            steps.append(it)

    monkeypatch.setattr(agent._advice, "observe", tell)
    monkeypatch.setattr(agent._front, "_observe", tell)
    ask(agent, arm, max_tokens=6).result()
    met = [(8, context) for context in range(0, 40, 8)] + [(1, context) for context in range(40, 45)]
    assert {it.layers for it in passes} == layers
    front = [(it.rows, it.context_tokens) for it in passes]
    assert front == (met if arm in ("device", "split") else [] if arm == "cloud" else front)
    assert sorted(set(front)) == (sorted(met) if layers else [])
    cut = {"cloud": (0, 4), "split": (1, 4), "ushape": (1, 3)}.get(arm)
    assert [(it.rows, it.context_tokens) for it in steps] == (met if cut else [])
    assert {(it.start, it.stop) for it in steps} == ({cut} if cut else set())


def test_what_is_on_its_way_is_a_wait_and_what_has_left_is_none(agent: Agent) -> None:
    at_s = [1000.0]
    advice = Advice(agent._shape, agent.profile, lambda: at_s[0])
    advice.queued(None)
    assert advice.link().uplink_queue_s == 0.0
    advice.queued(1003.0)
    assert advice.link().uplink_queue_s == pytest.approx(3.0)
    at_s[0] = 1001.0
    assert advice.link().uplink_queue_s == pytest.approx(2.0)
    advice.queued(None)  # it was answered sooner than thought
    assert advice.link().uplink_queue_s == 0.0
