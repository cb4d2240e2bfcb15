"""One reply: how it ends, who may end it, and that it leaves nothing behind."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from running_cloud import RunningCloud

from splitglm_core.errors import InputError, LinkError, NoFeasiblePlan, PromptTooLong
from splitglm_core.plan import Privacy
from splitglm_edge import Agent, Generation
from splitglm_edge.conversation import Prepared
from splitglm_edge.decoding import Decoder
from splitglm_edge.remote import SessionLost
from splitglm_edge.timeouts import Timeouts
from splitglm_sims.link_emulator import LinkEmulator

Truth = tuple[list[int], str]
Ask = Callable[..., Generation]
AgentOver = Callable[..., Agent]
ARMS = ["device", "cloud", "split", "ushape"]


def sessions(cloud: RunningCloud) -> int:
    return int(cloud.now(lambda: len(cloud.server.table)))


@pytest.fixture(autouse=True)
def nothing_is_left_behind(agent: Agent, cloud: RunningCloud) -> Any:
    yield
    agent.link()
    # Sessions of links that tests have broken wait for their device; those of a living link must have been closed.
    cloud.until(lambda: cloud.server.table.sweep(float("inf")) or len(cloud.server.table) == 0)
    cloud.until(
        lambda: cloud.server.executor.stats().sessions == 0 and cloud.server.executor.stats().kv_used_bytes == 0
    )
    assert list(agent._open) == []


@pytest.mark.parametrize("arm", ARMS)
def test_a_stop_string_ends_the_reply_and_is_not_part_of_it(agent: Agent, ask: Ask, truth: Truth, arm: str) -> None:
    stop = truth[1][12:15]
    expected = truth[1][: truth[1].index(stop)]
    generation = ask(agent, arm, stop=(stop, "never said"))
    pieces = list(generation)
    assert "".join(pieces) == generation.text == expected
    assert generation.stats is not None and generation.stats.finish == "stop"
    assert len(generation.token_ids) < 40
    assert generation.token_ids == truth[0][: len(generation.token_ids)]


@pytest.mark.parametrize("arm", ARMS)
def test_the_pieces_are_the_text_and_the_account_adds_up(agent: Agent, ask: Ask, truth: Truth, arm: str) -> None:
    generation = ask(agent, arm)
    assert generation.stats is None
    assert "".join(generation) == truth[1] == generation.text
    stats = generation.stats
    assert stats is not None
    assert (stats.prompt_tokens, stats.new_tokens, stats.kept_tokens) == (40, 40, 0)
    assert stats.finish == "length" and stats.plan.arm.value == arm and stats.why
    assert 0 < stats.ttft_s <= stats.total_s and stats.tokens_per_s > 0
    assert (stats.bytes_up > 0) is (stats.bytes_down > 0) is (stats.round_trips > 0) is (arm != "device")
    if arm != "device":
        assert stats.cloud_compute_s > 0
        # Five chunks of 8 tokens, then one step per token, or one step for all of them.
        assert stats.round_trips == (5 if arm == "cloud" else 5 + 39)
    assert set(stats.as_dict()) >= {"plan", "ttft_s", "fallbacks", "stage_s", "finish"}


@pytest.mark.parametrize("arm", ARMS)
def test_cancel_ends_the_reply_after_the_present_token(agent: Agent, ask: Ask, truth: Truth, arm: str) -> None:
    generation = ask(agent, arm)
    while len(generation.token_ids) < 5:
        next(generation)
    generation.cancel()
    list(generation)
    assert generation.token_ids == truth[0][: len(generation.token_ids)] and len(generation.token_ids) <= 6
    assert generation.stats is not None and generation.stats.finish == "cancelled"


def test_a_reply_cancelled_before_it_began_says_nothing(agent: Agent, ask: Ask) -> None:
    generation = ask(agent, "device")
    generation.cancel()
    assert generation.result() == "" and generation.token_ids == []
    assert generation.stats is not None and generation.stats.finish == "cancelled"


@pytest.mark.parametrize("arm", ARMS)
def test_close_in_the_middle_frees_what_only_this_reply_holds(
    agent: Agent, cloud: RunningCloud, ask: Ask, truth: Truth, arm: str
) -> None:
    generation = ask(agent, arm)
    for _ in range(3):
        next(generation)
    generation.close()
    generation.close()
    assert list(generation) == []
    assert generation.stats is not None and generation.stats.finish == "cancelled"
    assert truth[1].startswith(generation.text)
    cloud.until(lambda: len(cloud.server.table) == 0)


@pytest.mark.parametrize("arm", ARMS)
def test_after_a_close_the_conversation_goes_on_from_what_was_said(
    agent: Agent, ask: Ask, truth: Truth, arm: str
) -> None:
    talk = agent.new_conversation()
    first = ask(agent, arm, conversation=talk)
    while len(first.token_ids) < 8:
        next(first)
    first.close()
    again = ask(agent, arm, conversation=talk)
    assert again.result() == truth[1] and again.token_ids == truth[0]
    assert again.stats is not None and again.stats.kept_tokens == 39
    agent.end_conversation(talk)


@pytest.mark.parametrize("arm", ARMS)
def test_a_reply_that_is_dropped_unread_is_freed(agent: Agent, ask: Ask, arm: str) -> None:
    generation = ask(agent, arm)
    next(generation)
    del generation  # the fixture looks for what is left


def test_a_reply_that_nobody_reads_claims_nothing(agent: Agent, ask: Ask, truth: Truth) -> None:
    talk = agent.new_conversation()
    unread = ask(agent, "device", conversation=talk)
    assert ask(agent, "device", conversation=talk).result() == truth[1]
    unread.close()
    agent.end_conversation(talk)


def test_one_reply_at_a_time_in_one_conversation(agent: Agent, ask: Ask, truth: Truth) -> None:
    talk = agent.new_conversation()
    first = ask(agent, "device", conversation=talk)
    next(first)
    second = ask(agent, "device", conversation=talk)
    with pytest.raises(InputError, match="still replying"):
        second.result()
    # The refused reply has not released what the other holds.
    with pytest.raises(InputError, match="still replying"):
        ask(agent, "device", conversation=talk).result()
    assert "".join(first) and first.text == truth[1]
    assert ask(agent, "device", conversation=talk).result() == truth[1]
    agent.end_conversation(talk)
    with pytest.raises(InputError, match="has ended"):
        ask(agent, "device", conversation=talk).result()


def test_a_plan_that_cannot_be_made_releases_the_conversation(agent: Agent, ask: Ask, truth: Truth) -> None:
    talk = agent.new_conversation()
    with pytest.raises(NoFeasiblePlan):
        ask(agent, "cloud", privacy=Privacy.LOCAL, conversation=talk).result()
    assert ask(agent, "cloud", conversation=talk).result() == truth[1]
    agent.end_conversation(talk)
    with pytest.raises(NoFeasiblePlan):  # with a conversation of its own, which must not stay behind
        ask(agent, "cloud", privacy=Privacy.LOCAL).result()


class Fault(Exception):
    pass


@pytest.mark.parametrize("arm", ARMS)
def test_an_error_in_the_middle_forgets_the_caches_and_releases_the_conversation(
    agent: Agent, ask: Ask, truth: Truth, arm: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    talk = agent.new_conversation()
    generation = ask(agent, arm, conversation=talk)
    next(generation)
    monkeypatch.setattr(generation._reply, "_decoder_text", None)  # the next token cannot become text
    with pytest.raises(AttributeError):
        generation.result()
    assert generation.stats is not None and generation.stats.finish == "error"
    assert talk.decoder is None
    assert ask(agent, arm, conversation=talk).result() == truth[1]
    agent.end_conversation(talk)


def test_an_error_of_the_layers_reaches_the_caller(agent: Agent, ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_values: object, **_names: object) -> Any:
        raise Fault

    with monkeypatch.context() as patch:
        patch.setattr(Decoder, "generate", broken)
        with pytest.raises(Fault):
            ask(agent, "device").result()


def test_async_iteration_gives_the_same_pieces(agent: Agent, ask: Ask, truth: Truth) -> None:
    async def run() -> str:
        return "".join([piece async for piece in ask(agent, "split")])

    assert asyncio.run(run()) == truth[1]


def test_a_cancelled_task_ends_its_reply(agent: Agent, ask: Ask, truth: Truth) -> None:
    async def run() -> None:
        heard = asyncio.Event()
        talk = agent.new_conversation()

        async def listen() -> None:
            async for _ in ask(agent, "split", conversation=talk):
                heard.set()

        task = asyncio.create_task(listen())
        await heard.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await asyncio.to_thread(ask(agent, "split", conversation=talk).result) == truth[1]
        agent.end_conversation(talk)

    asyncio.run(run())


def test_close_from_another_thread_waits_for_the_step_and_ends_the_reply(
    agent: Agent, cloud: RunningCloud, ask: Ask, truth: Truth
) -> None:
    generation = ask(agent, "split")
    next(generation)
    go_on = threading.Event()
    cloud.server.executor._commands.put(lambda _: go_on.wait(30) and None)
    reader = threading.Thread(target=lambda: list(generation))
    reader.start()
    closer = threading.Thread(target=generation.close)
    closer.start()
    go_on.set()
    reader.join(30)
    closer.join(30)
    assert not reader.is_alive() and not closer.is_alive()
    assert generation.stats is not None and generation.stats.finish == "cancelled"
    assert truth[1].startswith(generation.text)


def until_reachable(generation: Generation) -> None:
    """Read it whole; right after a failure the cloud counts as gone for as long as it took to fail."""
    prepare = generation._reply._prepare

    def patient(*values: Any, **names: Any) -> Any:
        deadline_s = time.monotonic() + 20
        while True:
            try:
                return prepare(*values, **names)
            except LinkError:
                if time.monotonic() > deadline_s:
                    raise
                time.sleep(0.02)

    generation._reply._prepare = patient
    generation.result()


@pytest.mark.parametrize("arm", ["cloud", "split"])
def test_closing_a_reply_whose_link_is_dead_raises_nothing_and_the_next_one_starts_afresh(
    agent_over: AgentOver, link: LinkEmulator, ask: Ask, truth: Truth, arm: str
) -> None:
    agent = agent_over(timeouts=Timeouts(silence_s=0.5, rejoin_s=0.0))
    talk = agent.new_conversation()
    generation = ask(agent, arm, conversation=talk)
    next(generation)
    for direction in link._shapes:
        link.blackhole(direction)
    generation.close()
    assert generation.stats is not None and generation.stats.finish == "cancelled"
    for direction in link._shapes:
        link.blackhole(direction, on=False)
    again = ask(agent, arm, conversation=talk)
    until_reachable(again)
    assert again.token_ids == truth[0]
    agent.end_conversation(talk)


def test_max_tokens_stay_within_the_context(model: Any, home: Any) -> None:
    from running_cloud import open_agent

    with open_agent(model, home, context=64) as small:
        ids = list(range(60))
        generation = small.generate(ids, max_tokens=1000, ignore_eos=True)
        generation.result()
        assert len(generation.token_ids) == 4
        with pytest.raises(PromptTooLong):
            small.generate(list(range(64)), max_tokens=1)
    with open_agent(model, home) as whole:  # up to the model's own limit, where the policy has one as well
        generation = whole.generate([1] * 500, max_tokens=1000, ignore_eos=True)
        generation.result()
        assert len(generation.token_ids) == 12


@pytest.mark.parametrize("before", ["cloud", "split", "ushape"])
def test_the_noise_stays_aligned_when_the_device_takes_over(
    agent: Agent, ask: Ask, truth: Truth, before: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same seed, positions and history on the device as in the cloud: the reply does not change."""
    first, second = ask(agent, before), ask(agent, "device", conversation=(talk := agent.new_conversation()))
    kept, then = first._reply._prepare, second._reply._prepare

    def prepare(done: int, left_s: float | None, *, use_cloud: bool) -> Prepared:
        return kept(done, left_s, use_cloud=use_cloud) if done == 0 else then(done, left_s, use_cloud=False)

    monkeypatch.setattr(first._reply, "_prepare", prepare)
    pieces = []
    while len(first.token_ids) < 7:
        pieces.append(next(first))
    with monkeypatch.context() as patch:
        remote = first._reply._conversation.remote
        patch.setattr(type(remote), "wait", _lost)
        patch.setattr(type(remote), "poll", _lost)
        pieces += list(first)
    assert "".join(pieces) == truth[1] and first.token_ids == truth[0]
    assert first.stats is not None and first.stats.plan.arm.value == "device"
    assert first.stats.fallbacks == (f"{before}: lost for the test",)
    agent.end_conversation(talk)


def _lost(_self: object) -> None:
    raise SessionLost("lost for the test")


def test_a_lost_cloud_with_nothing_else_is_a_clear_error(agent_over: AgentOver, link: LinkEmulator, ask: Ask) -> None:
    agent = agent_over(timeouts=Timeouts(silence_s=0.5, rejoin_s=0.0))
    generation = ask(agent, "split")
    next(generation)
    for direction in link._shapes:
        link.blackhole(direction)
    with pytest.raises(LinkError, match="nothing else can finish") as error:
        generation.result()
    assert error.value.hint
    link.reset_all()
