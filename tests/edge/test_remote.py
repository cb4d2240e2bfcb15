"""A session over a link that breaks: whatever breaks wherever, the reply is the one that an unbroken link gives."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest
from running_cloud import RunningCloud

from splitglm_core.errors import (
    BadTensor,
    DeadlineExceeded,
    InputError,
    InternalError,
    LinkError,
    Overloaded,
    PromptTooLong,
    RemoteError,
    SecurityError,
    SplitGlmError,
    Unavailable,
)
from splitglm_edge import Agent, Generation
from splitglm_edge.remote import SessionLost, from_error_frame
from splitglm_edge.timeouts import Timeouts
from splitglm_sims.link_emulator import LinkEmulator
from splitglm_sims.shaper import Direction, LinkShape
from splitglm_wire.frames import Error, ErrorCode, Scope

Truth = tuple[list[int], str]
AgentOver = Callable[..., Agent]
Ask = Callable[..., Generation]
REMOTE = ["cloud", "split", "ushape"]


@pytest.mark.parametrize("arm", REMOTE)
def test_a_stream_that_is_reset_again_and_again_costs_no_token(
    agent_over: AgentOver, link: LinkEmulator, ask: Ask, truth: Truth, arm: str
) -> None:
    generation = ask(agent_over(), arm)
    pieces = []
    for count in (1, 10, 11, 25):
        while len(generation.token_ids) < count:
            pieces.append(next(generation))
        link.reset_all()
    pieces += list(generation)
    assert generation.token_ids == truth[0] and "".join(pieces) == truth[1]
    assert generation.stats is not None
    assert generation.stats.fallbacks == ()  # the cloud still had everything
    assert generation.stats.reconnects >= 1


@pytest.mark.parametrize("arm", REMOTE)
@pytest.mark.parametrize("way", Direction)
@pytest.mark.parametrize("size", [0, 200, 2_000, 5_000, 11_000])
def test_a_cut_after_any_number_of_bytes_costs_no_token(
    agent_over: AgentOver, link: LinkEmulator, ask: Ask, truth: Truth, arm: str, way: Direction, size: int
) -> None:
    agent = agent_over()
    agent.link()  # connected: the cut comes in the prompt or in the reply
    link.cut_after(way, size)
    generation = ask(agent, arm)
    assert generation.result() == truth[1] and generation.token_ids == truth[0]


@pytest.mark.parametrize("arm", REMOTE)
def test_a_session_that_the_cloud_forgot_is_rebuilt(
    agent_over: AgentOver, cloud: RunningCloud, link: LinkEmulator, ask: Ask, truth: Truth, arm: str
) -> None:
    generation = ask(agent_over(), arm)
    while len(generation.token_ids) < 3:
        next(generation)
    # Forgotten while it is attached: what an eviction between two streams looks like to the device.
    cloud.now(lambda: [cloud.server.table._forget(held) for held in list(cloud.server.table._by_id.values())])
    link.reset_all()
    assert generation.result() == truth[1] and generation.token_ids == truth[0]
    assert generation.stats is not None
    assert arm == "cloud" or generation.stats.fallbacks  # the cloud arm may have had every token already


def test_a_link_that_died_between_two_turns_is_no_matter(
    agent_over: AgentOver, link: LinkEmulator, ask: Ask, truth: Truth
) -> None:
    agent = agent_over()
    for arm in REMOTE:
        talk = agent.new_conversation()
        ask(agent, arm, conversation=talk).result()
        link.reset_all()
        again = ask(agent, arm, conversation=talk)
        assert again.result() == truth[1] and again.token_ids == truth[0]
        agent.end_conversation(talk)


def test_a_stuck_engine_is_an_error_of_the_step_when_nothing_else_can_finish(
    agent_over: AgentOver, cloud: RunningCloud, ask: Ask, truth: Truth
) -> None:
    agent = agent_over(timeouts=Timeouts(step_s=0.6, silence_s=20.0, rejoin_s=0.0))
    agent.link()
    go_on = threading.Event()
    cloud.server.executor._commands.put(lambda _: go_on.wait(30) and None)
    try:
        with pytest.raises(LinkError, match="nothing else can finish") as error:
            ask(agent, "split").result()
        assert "did not answer within" in error.value.hint
    finally:
        go_on.set()
    assert ask(agent, "split").result() == truth[1]


@pytest.mark.parametrize("arm", ["cloud", "split", "ushape", "device"])
def test_the_deadline_of_a_reply_is_kept(agent_over: AgentOver, cloud: RunningCloud, ask: Ask, arm: str) -> None:
    agent = agent_over()
    agent.link()
    go_on = threading.Event()
    if arm == "device":
        generation = ask(agent, arm, deadline_s=30.0)
        next(generation)
        generation._reply._meter.started_s -= 60.0  # as if it had been asked long ago
    else:
        cloud.server.executor._commands.put(lambda _: go_on.wait(30) and None)
        generation = ask(agent, arm, deadline_s=0.7)
    started_s = time.monotonic()
    try:
        with pytest.raises(DeadlineExceeded, match=r"deadline|within"):
            generation.result()
    finally:
        go_on.set()
    assert time.monotonic() - started_s < 10.0


@pytest.mark.parametrize("way", Direction)
def test_a_slow_link_is_not_taken_for_a_dead_cloud(
    agent_over: AgentOver, link: LinkEmulator, ask: Ask, way: Direction
) -> None:
    """75 KB of hidden states at 50 KB/s take longer than the silence that is allowed, and a ping waits behind them."""
    link.set_shape(way, LinkShape(delay_s=0.01, rate_bytes_per_s=50_000))
    agent = agent_over(timeouts=Timeouts(silence_s=0.6))
    generation = ask(agent, "ushape", prompt=[7] * 300, max_tokens=2, chunk_tokens=300)
    generation.result()
    assert generation.stats is not None
    assert generation.stats.bytes_down > 75_000 and generation.stats.ttft_s > 1.2
    assert (generation.stats.reconnects, generation.stats.fallbacks) == (0, ())


def test_a_security_fault_is_never_papered_over_by_trying_again(
    agent_over: AgentOver, cloud: RunningCloud, ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    from splitglm_security.channel import Channel

    agent = agent_over()
    generation = ask(agent, "split")
    next(generation)
    seal = Channel.seal

    def forge(self: Channel, *values: object) -> bytes:
        record = seal(self, *values)  # type: ignore[arg-type]
        ours = threading.current_thread().name != "test-cloud"
        return record if ours else record[:-1] + bytes([record[-1] ^ 1])

    monkeypatch.setattr(Channel, "seal", forge)
    with pytest.raises(SecurityError):
        generation.result()
    assert generation.stats is not None
    assert (generation.stats.finish, generation.stats.reconnects, generation.stats.fallbacks) == ("error", 0, ())


CODES: dict[ErrorCode, type[SplitGlmError]] = {
    ErrorCode.OVERLOADED: Overloaded,
    ErrorCode.UNAVAILABLE: Unavailable,
    ErrorCode.DRAINING: Unavailable,
    ErrorCode.NO_SESSION: SessionLost,
    ErrorCode.KV_GAP: SessionLost,
    ErrorCode.FENCED: SessionLost,
    ErrorCode.SEQ_CONFLICT: InternalError,
    ErrorCode.DEADLINE: DeadlineExceeded,
    ErrorCode.BAD_TENSOR: BadTensor,
    ErrorCode.TOO_LARGE: PromptTooLong,
    ErrorCode.BAD_REQUEST: InputError,
    ErrorCode.MODEL: RemoteError,
    ErrorCode.INTERNAL: RemoteError,
}


@pytest.mark.parametrize("code", ErrorCode)
def test_every_error_code_becomes_one_error_of_ours(code: ErrorCode) -> None:
    frame = Error(
        handle=1, fence=1, seq=1, code=code, scope=Scope.STEP, resumable=False, retry_after_ms=250, have=0, text="x"
    )
    error = from_error_frame(frame)
    assert type(error) is CODES[code]
    if isinstance(error, Overloaded):
        assert error.retry_after_s == 0.25
    assert isinstance(SessionLost("x"), LinkError)
