"""A cloud that takes a conversation and never finishes it: the device does, or the reply ends, in bounded time."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from running_cloud import RunningCloud, open_agent, running_cloud

from splitglm_cloud.engine.engine import Engine
from splitglm_cloud.gateway.sessions import SessionTable
from splitglm_core.errors import LinkError, PromptTooLong, ProtocolError, RemoteError
from splitglm_core.plan import Arm, Codec
from splitglm_edge import Agent, Generation
from splitglm_edge.timeouts import Timeouts
from splitglm_partitioner.observations import CloudStep
from splitglm_wire.actions import Output
from splitglm_wire.codec import max_rows
from splitglm_wire.frames import Error, ErrorCode, Scope, Step

Truth = tuple[list[int], str]
Ask = Callable[..., Generation]
PATIENT: dict[str, Any] = {"connect_s": 20.0, "silence_s": 20.0}
FAULTS: dict[str, dict[str, Any] | None] = {
    "forgets": {"code": ErrorCode.NO_SESSION, "scope": Scope.SESSION},
    "fails": {"code": ErrorCode.INTERNAL, "scope": Scope.STEP},
    "drains": {"code": ErrorCode.DRAINING, "scope": Scope.SESSION},
    "crashes": None,
}


@pytest.fixture
def sick(model: Path, home: Path) -> Iterator[RunningCloud]:
    """A cloud of one test."""
    with running_cloud(model, home) as cloud:
        yield cloud


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> list[float]:
    """Every step gets the fault named by the test's parameter; returns when each came."""
    fault, receive, came = FAULTS[request.param], SessionTable.receive, []

    def refuse(self: SessionTable, stream: Any, frame: Any) -> None:
        if not isinstance(frame, Step):
            receive(self, stream, frame)
            return
        came.append(time.monotonic())
        if fault is None:
            raise RuntimeError("for the test")
        where = {"handle": frame.handle, "fence": frame.fence, "seq": frame.seq, "have": 0}
        stream.send(Error(**where, **fault, resumable=False, retry_after_ms=0, text="sick"))

    monkeypatch.setattr(SessionTable, "receive", refuse)
    return came


@pytest.mark.usefixtures("loves_the_cloud")
@pytest.mark.parametrize("steps", FAULTS, indirect=True)
def test_the_device_finishes_what_the_cloud_never_will(
    model: Path, home: Path, sick: RunningCloud, ask: Ask, truth: Truth, steps: list[float]
) -> None:
    with open_agent(model, home, sick) as agent:
        generation = ask(agent, "split", fixed=None)
        assert generation.result() == truth[1] and generation.token_ids == truth[0]
        assert generation.stats is not None and generation.stats.plan.arm is Arm.DEVICE
        assert generation.stats.fallbacks
    assert 0 < len(steps) < 60


@pytest.mark.parametrize("steps", ["forgets", "crashes"], indirect=True)
@pytest.mark.parametrize("arm", ["cloud", "ushape"])
def test_a_reply_that_only_a_sick_cloud_could_finish_ends(
    model: Path, home: Path, sick: RunningCloud, ask: Ask, arm: str, steps: list[float]
) -> None:
    with open_agent(model, home, sick, timeouts=Timeouts(rejoin_s=0.0, **PATIENT)) as agent:
        generation = ask(agent, arm)
        with pytest.raises(LinkError, match="nothing else can finish"):
            generation.result()
        assert generation.stats is not None and generation.stats.finish == "error"
        # Once, once more at once, and then there is no time left.
        assert len(generation.stats.fallbacks) == 2


@pytest.mark.parametrize("steps", ["forgets"], indirect=True)
def test_attempts_without_a_token_between_come_ever_more_rarely(
    model: Path, home: Path, sick: RunningCloud, ask: Ask, steps: list[float]
) -> None:
    with open_agent(model, home, sick, timeouts=Timeouts(rejoin_s=2.0, **PATIENT)) as agent:
        generation = ask(agent, "ushape", prompt=[1, 2, 3])
        with pytest.raises(LinkError, match="nothing else can finish"):
            generation.result()
    assert 3 <= len(steps) <= 6
    pauses = [after - before for before, after in pairwise(steps[1:])]
    assert min(pauses) > 0.4


@pytest.mark.parametrize("steps", ["fails"], indirect=True)
def test_a_clouds_own_fault_is_told_at_once_when_nobody_else_can_finish(
    model: Path, home: Path, sick: RunningCloud, ask: Ask, steps: list[float]
) -> None:
    with open_agent(model, home, sick) as agent:
        generation = ask(agent, "split", prompt=[1, 2, 3])
        with pytest.raises(RemoteError, match="sick"):
            generation.result()
        assert generation.stats is not None and generation.stats.finish == "error"
    assert len(steps) == 1


@pytest.mark.usefixtures("loves_the_cloud")
def test_the_device_finishes_when_the_engine_is_stuck(
    model: Path, home: Path, sick: RunningCloud, ask: Ask, truth: Truth
) -> None:
    with open_agent(model, home, sick, timeouts=Timeouts(step_s=0.6, **PATIENT)) as agent:
        generation = ask(agent, "split", fixed=None)
        next(generation)
        go_on = threading.Event()
        sick.server.executor._commands.put(lambda _: go_on.wait(60) and None)
        try:
            generation.result()
        finally:
            go_on.set()
        assert generation.text == truth[1] and generation.token_ids == truth[0]
        assert generation.stats is not None and generation.stats.plan.arm is Arm.DEVICE
        # Asked once, not twice: a cloud that is stuck is not asked again while somebody else can finish.
        assert len(generation.stats.fallbacks) == 1 and "did not answer within" in generation.stats.fallbacks[0]


@pytest.mark.parametrize("arm", ["cloud", "split"])
def test_a_token_that_the_model_does_not_have_is_the_clouds_fault(
    model: Path, home: Path, sick: RunningCloud, ask: Ask, arm: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settle = Engine._settle

    def beyond(self: Engine, slot: Any, outcome: Any) -> None:
        token = isinstance(outcome, Output) and outcome.rows > 0
        settle(self, slot, replace(outcome, payload=(320).to_bytes(4, "little")) if token else outcome)

    monkeypatch.setattr(Engine, "_settle", beyond)
    with open_agent(model, home, sick) as agent:
        assert agent.checkpoint.config.shape.vocab == 320
        generation = ask(agent, arm)
        with pytest.raises(ProtocolError, match="token that the model does not have"):
            generation.result()
        assert generation.token_ids == [] and generation.text == ""


@pytest.mark.parametrize("arm", ["cloud", "split", "ushape"])
def test_a_cloud_with_a_smaller_context_serves_what_fits(
    model: Path, home: Path, ask: Ask, truth: Truth, arm: str
) -> None:
    with running_cloud(model, home, max_context=100) as cloud, open_agent(model, home, cloud) as agent:
        assert agent.context > 100
        assert ask(agent, arm).result() == truth[1]  # 80 positions
        with pytest.raises(PromptTooLong, match="100 positions that the cloud serves"):
            ask(agent, arm, max_tokens=61).result()
        # The device serves it alone and says why.
        longer = ask(agent, arm, fixed=None, max_tokens=61)
        longer.result()
        assert longer.token_ids[:40] == truth[0]
        assert longer.stats is not None and longer.stats.plan.arm is Arm.DEVICE
        assert "100 positions" in longer.stats.fallbacks[0]


@pytest.mark.parametrize("arm", ["cloud", "split", "ushape", "device"])
def test_any_chunk_size_is_served(agent: Agent, ask: Ask, arm: str) -> None:
    large = ask(agent, arm, chunk_tokens=70_000)
    assert large.result() == ask(agent, arm, chunk_tokens=512).result()
    most = max_rows(Codec.FP32, agent.checkpoint.config.shape.hidden)  # of the one codec that is allowed
    assert large.stats is not None and large.stats.plan.chunk_tokens == most < 4096


def test_a_reply_longer_than_one_step_may_generate_goes_on(
    agent: Agent, ask: Ask, truth: Truth, monkeypatch: pytest.MonkeyPatch
) -> None:
    from splitglm_edge import decoding_cloud

    monkeypatch.setattr(decoding_cloud, "MAX_GENERATE", 7)
    generation = ask(agent, "cloud")
    assert generation.result() == truth[1] and generation.token_ids == truth[0]
    assert generation.stats is not None and generation.stats.round_trips == 5 + 5  # 40 tokens by 7, after 5 chunks


def test_how_long_steps_wait_in_the_cloud_reaches_the_policy(
    model: Path, home: Path, sick: RunningCloud, ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    submit = Engine.submit

    def early(self: Engine, session: int, step: Any) -> None:
        submit(self, session, step)
        run = self._slots[session].run
        assert run is not None
        run.offered_s -= 3.0  # as if it had waited behind others

    monkeypatch.setattr(Engine, "submit", early)
    with open_agent(model, home, sick) as agent:
        stated = agent.link()[1].queue_s
        generation = ask(agent, "ushape")
        before = generation._reply._prepare(0, None, use_cloud=True).decision.breakdown.per_token_s
        generation.result()
        assert stated < 0.1 and 2.9 <= agent.link()[1].queue_s < 4.0
        after = ask(agent, "ushape")._reply._prepare(0, None, use_cloud=True).decision.breakdown.per_token_s
        assert 2.9 < after - before < 4.0


def test_what_waits_behind_our_own_steps_does_not_count_as_load(
    agent: Agent, cloud: RunningCloud, ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[CloudStep] = []
    observe = agent._advice.observe
    monkeypatch.setattr(
        agent._advice, "observe", lambda it: (observe(it), seen.append(it) if isinstance(it, CloudStep) else None)
    )
    ready, go_on = threading.Event(), threading.Event()
    cloud.server.executor._commands.put(lambda _: (ready.set(), go_on.wait(60))[0])
    assert ready.wait(30)
    generation = ask(agent, "cloud", chunk_tokens=4)  # ten chunks, none answered before all are sent
    reader = threading.Thread(target=generation.result)
    reader.start()
    conversation = generation._reply._conversation
    cloud.until(lambda: conversation.remote is not None and conversation.remote.in_flight == 10)
    go_on.set()
    reader.join(60)
    assert not reader.is_alive() and [step.alone for step in seen[:10]] == [True] + [False] * 9
    assert [(step.rows, step.context_tokens) for step in seen[8:12]] == [(4, 32), (4, 36), (1, 40), (1, 41)]
