"""What is dropped without ``close``: ended at once by reference counting, harmlessly by the cyclic collector."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from running_cloud import RunningCloud

from splitglm_core.errors import LinkError
from splitglm_core.plan import Arm, Codec, Privacy
from splitglm_edge import Agent, Generation
from splitglm_edge.advice import Advice
from splitglm_edge.closing import CLOSER
from splitglm_edge.timeouts import Timeouts
from splitglm_partitioner.link_estimator import PROBE_BYTES, Probing
from splitglm_partitioner.request import Fixed, Request
from splitglm_sims.link_emulator import LinkEmulator
from splitglm_wire.frames import Ping
from splitglm_wire.limits import MAX_SESSIONS_PER_STREAM

Truth = tuple[list[int], str]
Ask = Callable[..., Generation]
CUTS = {
    "device": Fixed(arm=Arm.DEVICE),
    "cloud": Fixed(arm=Arm.CLOUD),
    "split": Fixed(arm=Arm.SPLIT, s=1),
    "ushape": Fixed(arm=Arm.USHAPE, s=1, t=3),
}
ARMS = list(CUTS)


def options(arm: str, **changes: Any) -> dict[str, Any]:
    return {
        "max_tokens": 12,
        "fixed": CUTS[arm],
        "codecs": (Codec.FP32,),
        "privacy": Privacy.OPEN,
        "chunk_tokens": 16,
        "ignore_eos": True,
    } | changes


@pytest.fixture
def no_collector() -> Iterator[None]:
    """Nothing but reference counting frees anything."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.fixture
def eager_collector() -> Iterator[None]:
    """A collection at nearly every allocation of a container, in whichever thread makes it."""
    before = gc.get_threshold()
    yield
    gc.set_threshold(*before)


def until_free(cloud: RunningCloud) -> None:
    cloud.until(lambda: cloud.server.table.sweep(float("inf")) or len(cloud.server.table) == 0)
    cloud.until(
        lambda: cloud.server.executor.stats().sessions == 0 and cloud.server.executor.stats().kv_used_bytes == 0
    )


def in_a_thread(work: Callable[[], None]) -> None:
    """Run ``work``; fail, and do not hang, when it deadlocks."""
    errors: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(60)
    assert not thread.is_alive(), "deadlock"
    assert errors == []


@pytest.mark.usefixtures("no_collector")
@pytest.mark.parametrize("arm", ARMS)
def test_a_break_closes_the_reply_at_once_in_the_callers_thread(
    agent: Agent, cloud: RunningCloud, ask: Ask, arm: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[threading.Thread] = []
    end = agent.end_conversation
    monkeypatch.setattr(
        agent, "end_conversation", lambda talk: (threads.append(threading.current_thread()), end(talk))[1]
    )
    for _ in ask(agent, arm, max_tokens=400):
        break
    # No waiting: it is done when the loop is left.
    assert threads == [threading.current_thread()]
    assert list(agent._open) == [] and not CLOSER._held
    until_free(cloud)


@pytest.mark.usefixtures("no_collector")
def test_a_reply_that_was_never_read_is_freed_by_reference_counting_too(agent: Agent, ask: Ask) -> None:
    unread = ask(agent, "split")
    assert len(agent._open) == 1
    del unread
    assert list(agent._open) == []


@pytest.mark.usefixtures("no_collector")
@pytest.mark.parametrize("arm", ARMS)
def test_a_break_out_of_a_chats_reply_counts_what_was_heard(agent: Agent, arm: str) -> None:
    with agent.chat() as chat:
        heard = ""
        for piece in chat.say("hello", **options(arm)):
            heard += piece
            break
        assert [message.role for message in chat.messages] == ["user", "assistant"]
        assert chat.messages[-1].content.startswith(heard)
        "".join(chat.say("and now?", **options(arm)))  # the conversation is free for the next reply
        assert len(chat.messages) == 4


@pytest.mark.parametrize("arm", ["cloud", "split"])
def test_a_collection_inside_our_own_locks_finds_abandoned_replies(
    agent: Agent, cloud: RunningCloud, ask: Ask, truth: Truth, arm: str
) -> None:
    """Its user has put the reply into a cycle; the collector finds it where ``send`` allocates, under the seal lock."""
    assert agent._cloud is not None
    link = agent._cloud.link()
    generation = ask(agent, arm, max_tokens=400)
    next(generation)
    cycle: list[Any] = [generation]
    cycle.append(cycle)
    del generation, cycle

    def collect() -> None:
        with link._seal_lock, agent._lock:
            gc.collect()

    in_a_thread(collect)
    until_free(cloud)  # it was ended all the same
    in_a_thread(lambda: _equal(ask(agent, arm).result(), truth[1]))


def _equal(a: object, b: object) -> None:
    assert a == b


@pytest.mark.usefixtures("eager_collector")
def test_abandoned_replies_under_an_eager_collector(agent: Agent, cloud: RunningCloud, ask: Ask, truth: Truth) -> None:
    def abandon() -> None:
        gc.set_threshold(1, 1, 1)
        for count in range(12):
            arm = ("cloud", "split", "ushape")[count % 3]
            if count % 2:
                for _ in ask(agent, arm, max_tokens=100):
                    break
            else:
                generation = ask(agent, arm, max_tokens=100)
                next(generation)
                cycle: list[Any] = [generation]
                cycle.append(cycle)
                del generation, cycle
        for count in range(100):
            assert agent._cloud is not None
            agent._cloud.link().send(Ping(handle=0, nonce=1000 + count))
        assert ask(agent, "split").result() == truth[1]

    in_a_thread(abandon)
    gc.collect()
    until_free(cloud)
    assert agent._cloud is not None and agent._cloud.link().error is None


def test_an_agent_and_its_reply_lost_in_one_cycle_free_the_cloud(
    agent_over: Callable[..., Agent], cloud: RunningCloud, ask: Ask
) -> None:
    generation = ask(agent_over(), "split", max_tokens=400)
    next(generation)
    cycle: list[Any] = [generation]
    cycle.append(cycle)
    del generation, cycle
    in_a_thread(lambda: _equal(gc.collect() >= 0, True))
    until_free(cloud)


@pytest.mark.usefixtures("no_collector")
@pytest.mark.parametrize("arm", ["cloud", "ushape"])
def test_chats_that_are_dropped_unclosed_free_their_sessions(agent: Agent, cloud: RunningCloud, arm: str) -> None:
    """More of them than a connection may have sessions."""
    for _ in range(MAX_SESSIONS_PER_STREAM + 6):
        chat = agent.chat()
        "".join(chat.say("Hi", **options(arm, max_tokens=1)))
        del chat
    until_free(cloud)
    assert agent._cloud is not None and agent._cloud.link()._inboxes == {}


def test_a_dropped_chat_frees_its_session_even_if_the_collector_finds_it_inside_our_locks(
    agent: Agent, cloud: RunningCloud
) -> None:
    assert agent._cloud is not None
    link = agent._cloud.link()
    chat = agent.chat()
    "".join(chat.say("Hi", **options("split")))
    cycle: list[Any] = [chat]
    cycle.append(cycle)
    del chat, cycle

    def collect() -> None:
        with link._seal_lock, agent._lock:
            gc.collect()

    in_a_thread(collect)
    until_free(cloud)


def test_errors_that_are_kept_do_not_keep_what_their_callers_hold(
    agent_over: Callable[..., Agent], link: LinkEmulator
) -> None:
    """A kept and raised error would collect frames, and with them replies: freed under whichever lock replaces it."""
    agent = agent_over(timeouts=Timeouts(connect_s=1.0, silence_s=0.5, rejoin_s=0.0))
    assert agent._cloud is not None
    broken = agent._cloud.link()
    link.blackhole(next(iter(link._shapes)))
    link.reset_all()
    for _ in range(2):
        with pytest.raises(LinkError):
            agent.link()
        with pytest.raises(LinkError):
            broken.send(Ping(handle=1, nonce=1))
    assert agent._cloud._refused is not None and agent._cloud._refused[1].__traceback__ is None
    frames = []
    trace = None if broken.error is None else broken.error.__traceback__
    while trace is not None:
        frames.append(trace.tb_frame.f_code.co_name)
        trace = trace.tb_next
    assert "test_errors_that_are_kept_do_not_keep_what_their_callers_hold" not in frames
    link.blackhole(next(iter(link._shapes)), on=False)


@pytest.mark.filterwarnings("error")
def test_what_cannot_be_ended_does_not_stop_the_ending_of_others() -> None:
    done = threading.Event()

    def fail() -> None:
        raise LinkError("for the test")

    CLOSER.start()
    CLOSER.end_later(fail)
    CLOSER.end_later(done.set)
    assert done.wait(20)


def test_a_decision_asks_the_link_what_the_advisor_wants_to_know_and_nothing_else(
    agent_over: Callable[..., Agent], monkeypatch: pytest.MonkeyPatch
) -> None:
    agent, request = agent_over(), Request(prompt_tokens=20, expected_new_tokens=4)
    assert agent._cloud is not None
    live = agent._cloud.link()
    before = live.bytes_up
    agent.decide(request)
    assert live.bytes_up == before  # connecting measured it a moment ago
    for wanted, least in ((Probing.ROUND_TRIP, 64), (Probing.RATES, PROBE_BYTES)):
        before = live.bytes_up
        monkeypatch.setattr(Advice, "wants", lambda *_, wanted=wanted, **__: wanted)
        agent.decide(request)
        assert least <= live.bytes_up - before < least + 1024


def test_settling_waits_for_everything_dropped_before_it() -> None:
    ended: list[int] = []
    begin = threading.Event()
    CLOSER.start()
    CLOSER.end_later(lambda: begin.wait(20) and None)
    CLOSER.end_later(lambda: ended.append(1))
    threading.Thread(target=begin.set).start()
    CLOSER.settle(20)
    assert ended == [1]
