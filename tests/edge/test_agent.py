"""The agent: what it accepts, whom it talks to, many replies at once, and a clean end."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from running_cloud import RunningCloud, open_agent, running_cloud

from splitglm_core.errors import (
    DeviceError,
    InputError,
    LinkError,
    ModelNotFound,
    NoFeasiblePlan,
    PeerUntrusted,
    PromptTooLong,
    SplitGlmError,
)
from splitglm_core.plan import Arm, Privacy
from splitglm_edge import Agent, CloudAddress, Generation
from splitglm_edge.timeouts import Timeouts
from splitglm_glm.chat import Message
from splitglm_glm.config import load_config
from splitglm_glm.store import ModelStore
from splitglm_partitioner.request import Fixed, Objective, Request
from splitglm_security.keys import NodeKey
from splitglm_sims.link_emulator import LinkEmulator

Truth = tuple[list[int], str]
Ask = Callable[..., Generation]
AgentOver = Callable[..., Agent]
ARMS = ["device", "cloud", "split", "ushape"]


def test_replies_of_many_threads_do_not_mix(agent: Agent, ask: Ask, truth: Truth) -> None:
    arms = ARMS * 4
    with ThreadPoolExecutor(8) as pool:
        for arm, generation in pool.map(lambda arm: (arm, _read(ask(agent, arm))), arms):
            assert generation.token_ids == truth[0], arm
            assert generation.stats is not None and generation.stats.plan.arm.value == arm


def _read(generation: Generation) -> Generation:
    generation.result()
    return generation


@pytest.mark.parametrize(
    "prompt",
    ["", [], [""], [1, "two"], [-1], [320], [1.5], [Message(role="user", content="x"), 3]],
    ids=repr,
)
def test_what_is_no_prompt_is_refused(agent: Agent, prompt: Any) -> None:
    with pytest.raises(InputError):
        agent.generate(prompt)


@pytest.mark.parametrize(
    "bad", [{"max_tokens": 0}, {"max_tokens": -1}, {"stop": ("",)}, {"stop": "abc"}, {"chunk_tokens": 0}]
)
def test_parameters_out_of_range_are_refused(agent: Agent, bad: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        agent.generate([1, 2, 3], **bad).result()


def test_a_prompt_beyond_the_context_is_refused_at_once(agent: Agent) -> None:
    with pytest.raises(PromptTooLong):
        agent.generate([1] * 512)


def test_text_messages_and_ids_are_one_prompt(agent: Agent) -> None:
    ids = agent.encode("hello")
    assert agent.encode([Message(role="user", content="hello")]) == ids == agent.encode(ids)
    assert agent.encode("hello", raw=True) != ids


def test_control_tokens_in_text_stay_text(agent: Agent) -> None:
    control = agent.tokenizer.control_tokens["<|user|>"]
    assert agent.encode("say <|user|>").count(control) == agent.encode("say nothing").count(control)


def test_without_a_cloud_only_the_device_answers(model: Path, home: Path, ask: Ask, truth: Truth) -> None:
    with open_agent(model, home) as alone:
        assert ask(alone, "device", fixed=None).result() == truth[1]
        with pytest.raises(NoFeasiblePlan):
            ask(alone, "cloud").result()
        with pytest.raises(InputError, match="no cloud"):
            alone.link()


def test_a_cloud_that_cannot_be_reached_is_left_out_and_noted(model: Path, home: Path, ask: Ask, truth: Truth) -> None:
    where = CloudAddress(address="127.0.0.1:1", key=NodeKey.load_or_create(home / "node.key").text)
    store = ModelStore(home)
    from splitglm_core.plan import Precision

    with Agent.open(str(model), cloud=where, precision=Precision.FP32, threads=1, store=store) as agent:
        generation = ask(agent, "device", fixed=None)
        assert generation.result() == truth[1]
        assert generation.stats is not None and "without the cloud" in generation.stats.fallbacks[0]
        with pytest.raises(LinkError, match="no splitglm cloud answers"):
            ask(agent, "split").result()


def test_the_wrong_cloud_is_never_passed_over_in_silence(
    model: Path, home: Path, cloud: RunningCloud, ask: Ask, tmp_path: Path
) -> None:
    """Even though the device could answer alone: who answers there is a matter for a person."""
    from splitglm_core.plan import Precision

    where = CloudAddress(address=cloud.address, key=NodeKey.load_or_create(tmp_path / "k").text)
    with Agent.open(
        str(model), cloud=where, precision=Precision.FP32, threads=1, store=ModelStore(home)
    ) as agent, pytest.raises(PeerUntrusted):  # fmt: skip
        ask(agent, "device", fixed=None).result()


def test_a_local_request_talks_to_nobody(agent_over: AgentOver, link: LinkEmulator, ask: Ask, truth: Truth) -> None:
    agent = agent_over()
    assert ask(agent, "device", fixed=None, privacy=Privacy.LOCAL).result() == truth[1]
    assert link.counters.connections_accepted == 0


def test_a_decision_runs_nothing(agent: Agent) -> None:
    decision = agent.decide(Request(prompt_tokens=10, expected_new_tokens=5, privacy=Privacy.OPEN))
    assert decision.plan.arm in Arm and decision.why


@pytest.mark.parametrize("bad", [{"context": -1}, {"context": 10_000}])
def test_a_context_that_the_model_does_not_have_is_refused(model: Path, home: Path, bad: dict[str, int]) -> None:
    with pytest.raises(InputError):
        open_agent(model, home, **bad)


def test_an_unknown_model_or_address_is_a_clear_error(model: Path, home: Path) -> None:
    with pytest.raises(ModelNotFound):
        Agent.open("no-such-model", store=ModelStore(home))
    with pytest.raises(SplitGlmError):
        open_agent(model, home, timeouts=Timeouts(silence_s=-1.0))


def test_a_cloud_that_drains_is_left_for_the_device(model: Path, home: Path, ask: Ask, truth: Truth) -> None:
    with running_cloud(model, home) as cloud, open_agent(model, home, cloud) as agent:
        generation = ask(agent, "split")
        next(generation)
        cloud.now(lambda: setattr(cloud.server.table, "draining", True))
        assert generation.result() == truth[1]  # an open session goes on
        other = agent.generate([1, 2, 3], max_tokens=3, privacy=Privacy.OPEN, fixed=None, ignore_eos=True)
        other.result()
        assert len(other.token_ids) == 3
        with pytest.raises(LinkError, match="nothing else can finish"):
            impatient = ask(agent, "split")
            impatient._reply._rejoin_s = 0.0
            impatient.result()
        cloud.now(lambda: setattr(cloud.server.table, "draining", False))


def test_a_full_cloud_is_an_overload_error_that_says_when_to_come_back(model: Path, home: Path, ask: Ask) -> None:
    from splitglm_core.errors import Overloaded

    with running_cloud(model, home, max_sessions=1) as cloud, open_agent(model, home, cloud) as agent:
        talk = agent.new_conversation()
        ask(agent, "split", conversation=talk).result()  # stays attached: the only place is taken
        with pytest.raises(Overloaded) as error:
            ask(agent, "split").result()
        assert error.value.retry_after_s is not None
        agent.end_conversation(talk)


def test_a_cloud_serves_no_longer_context_than_its_memory_holds(model: Path, home: Path, ask: Ask) -> None:
    shape = load_config(model).shape
    page = 64 * shape.kv_bytes_per_token(layers=shape.layers)
    with running_cloud(model, home, kv_budget_bytes=page) as cloud, open_agent(model, home, cloud) as agent:
        assert cloud.server.manifest.max_context == 64
        with pytest.raises(PromptTooLong, match="64 positions that the cloud serves"):
            ask(agent, "split").result()
        request = Request(
            prompt_tokens=40, expected_new_tokens=5, max_new_tokens=30, privacy=Privacy.OPEN, fixed=Fixed(arm=Arm.CLOUD)
        )
        with pytest.raises(PromptTooLong, match="40 prompt tokens and up to 30 new ones"):
            agent.decide(request)


def test_a_clouds_price_is_weighed_and_told_of_each_reply(model: Path, home: Path, ask: Ask) -> None:
    with (
        running_cloud(model, home, price_per_million_tokens=4e6) as cloud,
        open_agent(model, home, cloud) as agent,
    ):
        _, profile = agent.link()
        assert profile.price_per_layer_token == pytest.approx(4.0 / profile.layers)
        ask(agent, "cloud", max_tokens=5, objective=Objective(latency=1.0, cloud_cost=0.5)).result()
        told = agent.predictions()[-1]
        assert told.measured["price"] == told.predicted["price"] == pytest.approx(4.0 * (40 + 4))
        request = Request(
            prompt_tokens=40,
            expected_new_tokens=5,
            privacy=Privacy.OPEN,
            objective=Objective(latency=0.0, cloud_cost=1.0),
        )
        assert agent.decide(request).plan.arm is Arm.DEVICE


@pytest.mark.parametrize("arm", ["device", "cloud", "split", "ushape"])
def test_closing_the_agent_while_a_reply_runs_ends_it_and_everything_else(
    model: Path, home: Path, cloud: RunningCloud, ask: Ask, truth: Truth, arm: str
) -> None:
    agent = open_agent(model, home, cloud)
    generation = ask(agent, arm, max_tokens=400)
    running = threading.Event()
    errors: list[BaseException] = []

    def read() -> None:
        try:
            for _ in generation:
                running.set()
        except SplitGlmError as error:
            errors.append(error)

    reader = threading.Thread(target=read)
    reader.start()
    assert running.wait(30)
    agent.close()
    reader.join(30)
    assert not reader.is_alive() and errors == []
    assert generation.stats is not None and generation.stats.finish in ("cancelled", "length")
    assert generation.token_ids[:40] == truth[0][: len(generation.token_ids)]
    agent.close()
    for late in (lambda: ask(agent, arm).result(), agent.new_conversation):
        with pytest.raises(InputError, match="closed"):
            late()
    cloud.until(lambda: all(held.stream is not None for held in cloud.server.table._by_id.values()))


def test_closing_the_agent_inside_the_loop_ends_the_loop(
    model: Path, home: Path, cloud: RunningCloud, ask: Ask
) -> None:
    agent = open_agent(model, home, cloud)
    pieces = 0
    for _ in ask(agent, "split"):
        pieces += 1
        agent.close()
    assert pieces == 1


def test_nothing_stays_behind_when_agents_come_and_go(model: Path, home: Path, cloud: RunningCloud, ask: Ask) -> None:
    def threads() -> int:
        return sum(thread.name.startswith(("splitglm-link", "Thread-")) for thread in threading.enumerate())

    def one() -> None:
        with open_agent(model, home, cloud) as agent:
            for arm in ARMS:
                ask(agent, arm, max_tokens=3).result()

    one()
    gc.collect()
    before, streams = threads(), cloud.now(lambda: len(cloud.server.table.streams))
    for _ in range(5):
        one()
    deadline_s = time.monotonic() + 20
    while threads() > before and time.monotonic() < deadline_s:
        gc.collect()
        time.sleep(0.01)  # grpc's own threads end when they notice, not when they are told
    assert threads() <= before
    cloud.until(lambda: len(cloud.server.table.streams) <= streams)


def test_links_that_died_are_closed_and_not_collected(
    agent_over: AgentOver, link: LinkEmulator, ask: Ask, truth: Truth
) -> None:
    agent = agent_over()
    for _ in range(4):
        assert ask(agent, "split").result() == truth[1]
        link.reset_all()
    assert agent._cloud is not None and len(agent._cloud._retired) <= 1


def test_after_a_slow_failure_the_cloud_is_not_asked_again_at_once(
    agent_over: AgentOver, link: LinkEmulator, ask: Ask, truth: Truth
) -> None:
    agent = agent_over(timeouts=Timeouts(connect_s=1.0, silence_s=0.5, rejoin_s=0.0))
    agent.link()
    for direction in link._shapes:
        link.blackhole(direction)
    link.reset_all()
    started_s = time.monotonic()
    for _ in range(5):
        assert ask(agent, "device", fixed=None).result() == truth[1]
    assert time.monotonic() - started_s < 6.0
    for direction in link._shapes:
        link.blackhole(direction, on=False)


def test_a_port_that_is_no_address_is_refused(model: Path, home: Path) -> None:
    with pytest.raises((InputError, LinkError, DeviceError)):
        where = CloudAddress(address="not an address", key=None)
        with Agent.open(str(model), cloud=where, threads=1, store=ModelStore(home)) as agent:
            agent.link()
