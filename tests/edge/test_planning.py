"""From a request to a plan: what is noted, and what is asked of the link."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from running_cloud import RunningCloud, open_agent

from splitglm_core.errors import LinkError, NoFeasiblePlan
from splitglm_core.plan import Arm, Privacy
from splitglm_edge import Agent, Generation
from splitglm_edge.link import CloudLink
from splitglm_partitioner.governor import Vitals
from splitglm_partitioner.link_estimator import Probing
from splitglm_partitioner.request import Fixed, Request
from splitglm_sims.link_emulator import LinkEmulator
from splitglm_sims.shaper import LinkShape

REQUEST = Request(prompt_tokens=20, expected_new_tokens=8)


def decided(agent: Agent, monkeypatch: pytest.MonkeyPatch, vitals: Vitals) -> tuple[str, ...]:
    with monkeypatch.context() as patch:
        patch.setattr(agent._planner, "vitals", lambda: vitals)
        return agent.decide(REQUEST).notes


def test_memory_that_others_need_is_noted_only_where_a_plan_could_feel_it(
    model: Path, home: Path, agent: Agent, cloud: RunningCloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    profile = agent.profile
    need = profile.memory_bytes(profile.layers, REQUEST.positions, embedding=True, head=True)
    reserve = 256 << 20
    with open_agent(model, home) as alone:
        assert decided(alone, monkeypatch, Vitals(memory_bytes_available=reserve + need)) == ()
        (heat,) = decided(alone, monkeypatch, Vitals(memory_bytes_available=reserve + need, temperature_c=95.0))
        assert "degC" in heat, "what heat forbids is noted as before"
    with open_agent(model, home) as alone, pytest.raises(NoFeasiblePlan, match="memory"):
        decided(alone, monkeypatch, Vitals(memory_bytes_available=reserve + need - 1))
    with open_agent(model, home, cloud) as shared:
        (memory,) = decided(shared, monkeypatch, Vitals(memory_bytes_available=reserve + need - 1))
        assert "of memory may be used" in memory


def test_an_upload_of_another_conversation_is_in_the_way_and_nothing_is_asked_behind_it(
    agent_over: Callable[..., Agent],
    link: LinkEmulator,
    ask: Callable[..., Generation],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """60 kB on a link of 40 kB/s: whoever asks meanwhile waits for them, and is told so without a probe."""
    for direction in list(link._shapes):
        link.set_shape(direction, LinkShape(delay_s=0.005, rate_bytes_per_s=4e4))
    agent = agent_over()
    agent.link()
    pings = _counted_pings(monkeypatch)
    request = Request(prompt_tokens=20, expected_new_tokens=8, privacy=Privacy.OPEN, fixed=Fixed(arm=Arm.CLOUD))
    monkeypatch.setattr(agent._advice, "wants", lambda *_, **__: Probing.RATES)
    observe_sent, handed_over = agent._cloud.watch, threading.Event()  # type: ignore[union-attr]

    def watch() -> Any:
        one = observe_sent()
        sent = one.sent

        def heard(ticket: int, step: Any, **at: Any) -> None:
            sent(ticket, step, **at)
            handed_over.set()

        one.sent = heard  # type: ignore[method-assign]
        return one

    with ThreadPoolExecutor(1) as pool:
        with monkeypatch.context() as patch:
            patch.setattr(agent._advice, "wants", lambda *_, **__: Probing.NONE)
            patch.setattr(agent._cloud, "watch", watch)
            fixed = Fixed(arm=Arm.SPLIT, s=1)
            upload = ask(
                agent, "split", fixed=fixed, prompt=[1 + i % 250 for i in range(240)], chunk_tokens=240, max_tokens=2
            )
            reply = pool.submit(upload.result)
            assert handed_over.wait(20)
        there = agent.decide(request).situation.link
        asked = list(pings)
        reply.result(30)
    assert there is not None and 0.0 < there.uplink_queue_s < 4.0
    assert asked == []
    monkeypatch.setattr(agent._advice, "wants", lambda *_, **__: Probing.ROUND_TRIP)
    after = agent.decide(request).situation.link
    assert after is not None and after.uplink_queue_s == 0.0
    assert pings, "the link is asked again when nothing is in the way"


def _counted_pings(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    pings: list[int] = []
    ping = CloudLink.ping

    def counted(self: CloudLink, *, size: int = 0, reply_size: int = 0, **times: Any) -> float:
        pings.append(size + reply_size)
        return ping(self, size=size, reply_size=reply_size, **times)

    monkeypatch.setattr(CloudLink, "ping", counted)
    return pings


@pytest.mark.parametrize("lost", [False, True])
def test_of_two_who_ask_at_once_one_asks_and_both_know(
    agent_over: Callable[..., Agent], monkeypatch: pytest.MonkeyPatch, lost: bool
) -> None:
    agent = agent_over()
    agent.link()
    connection = agent._cloud
    assert connection is not None
    asking, joined = threading.Event(), threading.Event()
    pings = _counted_pings(monkeypatch)
    ping = CloudLink.ping

    def held(self: CloudLink, **sizes: Any) -> float:
        asking.set()
        assert joined.wait(20)
        if lost:
            raise LinkError("lost for the test")
        return ping(self, **sizes)

    monkeypatch.setattr(CloudLink, "ping", held)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(connection.probe, Probing.RATES)
        assert asking.wait(20)
        question = connection._question
        assert question is not None
        result = question.result
        monkeypatch.setattr(question, "result", lambda: (joined.set(), result(20))[1])
        second = pool.submit(connection.probe, Probing.RATES)
        for outcome in (first, second):
            if lost:
                with pytest.raises(LinkError, match="lost for the test"):
                    outcome.result(20)
            else:
                outcome.result(20)
    assert sum(size > 0 for size in pings) == (0 if lost else 2), "each way once"
    monkeypatch.undo()
    connection.probe(Probing.ROUND_TRIP)
