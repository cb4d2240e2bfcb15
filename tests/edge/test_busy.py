"""A cloud without room: it is asked again when it said, a few times, and then somebody else answers."""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from running_cloud import open_agent, running_cloud

from splitglm_cloud.gateway.held import Held
from splitglm_cloud.gateway.load import LoadGate
from splitglm_cloud.gateway.refusal import Refusal
from splitglm_cloud.gateway.sessions import SessionTable
from splitglm_core.criticality import Criticality
from splitglm_core.errors import InputError, LinkError, Overloaded, Unavailable
from splitglm_core.plan import Arm
from splitglm_edge import Agent, Generation
from splitglm_edge.patience import MAX_TRIES, Patience, reconnect_pauses_s
from splitglm_edge.timeouts import Timeouts
from splitglm_sims.link_emulator import LinkEmulator
from splitglm_wire.frames import ErrorCode, Frame, Open, Step

Truth = tuple[list[int], str]
Ask = Callable[..., Generation]
ARMS = ("cloud", "split", "ushape")


class Mood:
    """What the gate refuses: the n-th open, the n-th attempt at a step of this number."""

    def __init__(self) -> None:
        self.opens: Callable[[int], bool] = lambda n: False
        self.steps: Callable[[int, int], bool] = lambda number, n: False
        self.retry_after_s = 0.02
        self.opens_asked = self.steps_asked = 0
        self.attempts: defaultdict[tuple[bytes, int], set[int]] = defaultdict(set)  # fences by step

    def refusal(self) -> Refusal:
        return Refusal(ErrorCode.OVERLOADED, "too much work is waiting", self.retry_after_s)


@pytest.fixture
def mood(monkeypatch: pytest.MonkeyPatch) -> Mood:
    one = Mood()

    def judge_open(self: LoadGate, *values: Any, **named: Any) -> Refusal | None:
        one.opens_asked += 1
        return one.refusal() if one.opens(one.opens_asked) else None

    def judge_step(self: SessionTable, held: Held, step: Step) -> Refusal | None:
        one.steps_asked += 1
        fences = one.attempts[held.session.session_id, step.seq]
        fences.add(step.fence)
        return one.refusal() if one.steps(step.seq, len(fences)) else None

    monkeypatch.setattr(LoadGate, "judge_open", judge_open)
    monkeypatch.setattr(SessionTable, "_judge", judge_step)
    return one


@pytest.fixture
def opens(monkeypatch: pytest.MonkeyPatch) -> list[Open]:
    """Every open frame that the cloud receives."""
    seen: list[Open] = []
    receive = SessionTable.receive

    def watch(self: SessionTable, stream: Any, frame: Frame) -> None:
        if isinstance(frame, Open):
            seen.append(frame)
        receive(self, stream, frame)

    monkeypatch.setattr(SessionTable, "receive", watch)
    return seen


@pytest.mark.parametrize("arm", ARMS)
@pytest.mark.parametrize("which", ["first", "second", "every other", "all twice"])
def test_refused_steps_come_again_and_change_no_token(
    agent: Agent, ask: Ask, truth: Truth, mood: Mood, arm: str, which: str
) -> None:
    mood.steps = {
        "first": lambda number, n: number == n == 1,
        "second": lambda number, n: number == 2 and n == 1,
        "every other": lambda number, n: number % 2 == 1 and n == 1,
        "all twice": lambda number, n: n <= 2,
    }[which]
    mood.retry_after_s = 0.002
    generation = ask(agent, arm, max_tokens=8)
    assert truth[1].startswith(generation.result()) and generation.token_ids == truth[0][:8]
    assert generation.stats is not None
    assert (generation.stats.fallbacks, generation.stats.reconnects) == ((), 0)
    assert generation.stats.plan.arm.value == arm


@pytest.mark.parametrize("arm", ARMS)
def test_a_session_that_is_refused_at_first_is_opened_later(
    agent: Agent, ask: Ask, truth: Truth, mood: Mood, arm: str
) -> None:
    mood.opens = lambda n: n < 3
    generation = ask(agent, arm)
    assert generation.result() == truth[1] and generation.token_ids == truth[0]
    assert generation.stats is not None and generation.stats.fallbacks == () and mood.opens_asked == 3


@pytest.mark.parametrize("what", ["opens", "steps"])
@pytest.mark.parametrize("arm", ARMS)
def test_a_cloud_that_stays_busy_is_asked_a_few_times_and_then_the_app_is_told_when(
    agent: Agent, ask: Ask, mood: Mood, arm: str, what: str
) -> None:
    setattr(mood, what, lambda *_: True)
    generation = ask(agent, arm, prompt=[1, 2, 3])
    with pytest.raises(Overloaded, match="busy") as error:
        generation.result()
    assert error.value.retry_after_s == pytest.approx(0.02)
    asked = mood.opens_asked if what == "opens" else mood.steps_asked
    assert asked == 1 + MAX_TRIES
    assert generation.stats is not None and generation.stats.finish == "error"


@pytest.mark.usefixtures("loves_the_cloud")
@pytest.mark.parametrize("what", ["opens", "steps"])
def test_the_device_answers_alone_when_the_cloud_stays_busy(
    agent: Agent, ask: Ask, truth: Truth, mood: Mood, what: str
) -> None:
    setattr(mood, what, lambda first, *_: what == "opens" or first > 3)
    generation = ask(agent, "split", fixed=None)
    assert generation.result() == truth[1] and generation.token_ids == truth[0]
    assert generation.stats is not None and generation.stats.plan.arm is Arm.DEVICE
    assert len(generation.stats.fallbacks) == 1 and "busy" in generation.stats.fallbacks[0]


@pytest.mark.usefixtures("loves_the_cloud")
def test_nobody_waits_for_room_that_comes_after_the_deadline(agent: Agent, ask: Ask, mood: Mood) -> None:
    mood.steps, mood.retry_after_s = lambda number, n: True, 60.0
    generation = ask(agent, "split", fixed=None, deadline_s=30.0)
    started_s = time.monotonic()
    generation.result()
    assert time.monotonic() - started_s < 20.0
    # The chunks that were on their way were judged too; none came a second time.
    assert mood.opens_asked == 1 and mood.steps_asked <= 5
    assert generation.stats is not None and generation.stats.plan.arm is Arm.DEVICE


@pytest.mark.parametrize("what", ["opens", "steps"])
@pytest.mark.parametrize("arm", ARMS)
def test_who_cancels_does_not_wait_for_a_busy_cloud_and_does_not_ask_it_again(
    agent: Agent, ask: Ask, mood: Mood, arm: str, what: str
) -> None:
    setattr(mood, what, lambda *_: True)
    mood.retry_after_s = 3.9  # with its spread still inside what a device waits
    generation = ask(agent, arm, prompt=[1, 2, 3])
    refused = threading.Event()

    def cancel() -> None:
        assert refused.wait(60.0)
        generation.cancel()

    pause_s = Patience.pause_s

    def watched(*values: Any, **named: Any) -> float | None:
        refused.set()
        return pause_s(*values, **named)

    canceller = threading.Thread(target=cancel)
    canceller.start()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Patience, "pause_s", watched)
        started_s = time.monotonic()
        assert generation.result() == ""
    canceller.join()
    assert time.monotonic() - started_s < 3.0
    assert (mood.opens_asked if what == "opens" else mood.steps_asked) == 1
    assert generation.stats is not None and generation.stats.finish == "cancelled"


def test_the_next_turn_after_refusals_keeps_what_was_cached(agent: Agent, ask: Ask, mood: Mood) -> None:
    talk = agent.new_conversation()
    first = ask(agent, "split", conversation=talk, max_tokens=5)
    mood.steps = lambda number, n: n == 1
    first.result()
    again = ask(agent, "split", conversation=talk, max_tokens=5, prompt=[*first.prompt, *first.token_ids, 7])
    again.result()
    assert again.stats is not None and again.stats.kept_tokens >= len(first.prompt)
    agent.end_conversation(talk)


def test_without_a_worker_the_device_is_told_unavailable_and_not_busy(model: Path, home: Path, ask: Ask) -> None:
    with (
        running_cloud(model, home) as cloud,
        open_agent(model, home, cloud, timeouts=Timeouts(rejoin_s=0.0)) as agent,
    ):
        agent.link()
        executor = cloud.server.table._executor
        cloud.server.table._executor = _NotReady(executor)  # type: ignore[assignment]
        generation = ask(agent, "split", prompt=[1, 2, 3])
        with pytest.raises(LinkError, match="nothing else can finish") as error:
            generation.result()
        assert isinstance(error.value.__cause__, Unavailable) and error.value.__cause__.retry_after_s is not None
        cloud.server.table._executor = executor


class _NotReady:
    """An executor whose workers are all being replaced."""

    ready = False

    def __init__(self, executor: Any) -> None:
        self._executor = executor

    def __getattr__(self, name: str) -> Any:
        return getattr(self._executor, name)


@pytest.mark.parametrize("criticality", list(Criticality))
def test_criticality_travels_with_the_request(
    agent: Agent, ask: Ask, opens: list[Open], criticality: Criticality
) -> None:
    ask(agent, "ushape", criticality=criticality, max_tokens=2).result()
    assert [frame.criticality for frame in opens] == [criticality]
    ask(agent, "cloud", max_tokens=2).result()
    assert opens[-1].criticality is Criticality.CRITICAL


def test_a_reopened_session_has_what_is_left_of_its_time(
    agent_over: Callable[..., Agent], link: LinkEmulator, ask: Ask, opens: list[Open]
) -> None:
    agent = agent_over()
    generation = ask(agent, "split", deadline_s=300.0, criticality=Criticality.SHEDDABLE_PLUS)
    for _ in range(3):
        next(generation)
    time.sleep(0.05)  # time that has passed, not a synchronisation
    link.reset_all()
    generation.result()
    first, *later = opens
    assert later and 0 < first.deadline_ms <= 300_000
    assert all(frame.deadline_ms <= first.deadline_ms - 50 for frame in later)
    assert {frame.criticality for frame in opens} == {Criticality.SHEDDABLE_PLUS}


def test_a_retry_tells_what_is_left_of_the_time(agent: Agent, ask: Ask, mood: Mood, opens: list[Open]) -> None:
    mood.steps, mood.retry_after_s = lambda number, n: n == 1, 0.2
    ask(agent, "split", deadline_s=300.0, max_tokens=1, prompt=[1, 2, 3]).result()
    first, second = opens
    assert 0 < second.deadline_ms <= first.deadline_ms - 200


@given(
    st.lists(st.tuples(st.one_of(st.just(0.0), st.floats(0.001, 20)), st.floats(0, 1, exclude_max=True))),
    st.floats(0.01, 100),
    st.floats(0, 20),
)
def test_patience_is_bounded_in_tries_and_in_time(
    refusals: list[tuple[float, float]], left_s: float, budget_s: float
) -> None:
    patience, waited_s, tries = Patience(budget_s), 0.0, 0
    for hint_s, chance in refusals:
        pause_s = patience.pause_s(hint_s, left_s=left_s, chance=chance)
        if pause_s is None:
            continue
        assert hint_s <= pause_s < left_s  # never sooner than the cloud said
        waited_s, tries = waited_s + pause_s, tries + 1
    assert tries <= MAX_TRIES and waited_s <= budget_s + 1e-9


def test_patience_begins_anew_with_progress() -> None:
    patience = Patience(100.0)
    for _ in range(3):
        assert [patience.pause_s(1.0, left_s=1e9, chance=0.0) for _ in range(MAX_TRIES + 1)] == [1.0] * MAX_TRIES + [
            None
        ]
        patience.progressed()
    assert [patience.pause_s(0.0, left_s=1e9, chance=0.0) for _ in range(3)] == pytest.approx([0.1, 0.2, 0.4])


def test_devices_that_lost_a_cloud_together_do_not_come_back_together() -> None:
    middle, early, late = ([*reconnect_pauses_s(iter([chance] * 9).__next__)] for chance in (0.5, 0.0, 0.999))
    assert middle == [0.0, 0.05, 0.3, 1.0]
    assert early == [pause_s / 2 for pause_s in middle] and late[-1] == pytest.approx(1.5, rel=1e-2)


@pytest.mark.parametrize("busy_s", [-1.0, 1e9])
def test_patience_without_sense_is_refused(busy_s: float) -> None:
    with pytest.raises(InputError, match="busy_s"):
        Timeouts(busy_s=busy_s)
