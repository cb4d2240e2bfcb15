"""What steps and their answers show of the link and of the cloud."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from splitglm_core.plan import Arm, Codec, HeadSide, SplitPlan
from splitglm_edge import Agent, Generation
from splitglm_edge.watching import StepWatch, Traffic
from splitglm_partitioner.link_estimator import ORDINARY_LINK
from splitglm_partitioner.observations import CloudStep, Direction, Observation, RoundTrip, Transfer
from splitglm_partitioner.profiles import CloudProfile
from splitglm_partitioner.request import Fixed
from splitglm_sims.link_emulator import LinkEmulator
from splitglm_sims.shaper import LinkShape
from splitglm_wire.events import StepDone, TokenArrived
from splitglm_wire.frames import Reply, Rows, Step

PLAN = SplitPlan(layers=4, s=1, t=4, head=HeadSide.DEVICE, codec=Codec.FP32)
LINK = replace(ORDINARY_LINK, rtt_s=0.04, rtt_var_s=0.0005, overhead_s=0.0)


@dataclass
class World:
    """A link of a known rate, a cloud of a known pace, and a watch that sees a pipeline of steps go through both."""

    bytes_per_s: float
    compute_s: float = 0.002
    queue_s: float = 0.0
    seen: list[Observation] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.watch = StepWatch(self.seen.append, lambda: LINK, lambda: None, Traffic())
        self.watch.begin(PLAN)

    def run(self, sizes: list[int], *, every_s: float = 0.0, reply: Reply = Reply.ACK) -> None:
        """Hand over steps of these sizes, ``every_s`` apart; what comes of it is told in the order of time."""
        calls: list[tuple[float, int, Callable[[], None]]] = []
        left_s = done_s = 0.0
        answers: list[float] = []
        for ticket, size in enumerate(sizes):
            sent_s = ticket * every_s
            left_s = max(left_s, sent_s) + size / self.bytes_per_s
            done_s = max(done_s, left_s + LINK.rtt_s / 2) + self.queue_s + self.compute_s
            answered_s = done_s + LINK.rtt_s / 2
            alone = all(at_s <= sent_s for at_s in answers)
            answers.append(answered_s)
            step = Step(
                handle=1, fence=1, seq=ticket + 1, base=16 * ticket, rows_kind=Rows.HIDDEN, rows=16, reply=reply,
                generate=0, payload=bytes(size),
            )  # fmt: skip
            done = StepDone(ticket, 0, 0, self.queue_s, 0.0, self.compute_s)
            calls.append((sent_s, 0, lambda t=ticket, s=step, at=sent_s, a=alone: self._sent(t, s, at, a)))
            calls.append((answered_s, 1, lambda d=done, at=answered_s: self.watch.done(d, at)))
        for _, _, call in sorted(calls, key=lambda entry: entry[:2]):
            call()

    def _sent(self, ticket: int, step: Step, at_s: float, alone: bool) -> None:
        self.watch.sent(ticket, step, at_s=at_s, idle_s=0.0, alone=alone)

    def rates(self) -> list[float]:
        return [it.transfer_bytes / it.seconds for it in self.seen if isinstance(it, Transfer)]


@given(
    bytes_per_s=st.floats(5e4, 5e6),
    sizes=st.lists(st.integers(16 << 10, 256 << 10), min_size=1, max_size=8),
    every_s=st.sampled_from([0.0, 0.005, 0.05, 0.5, 8.0]),
    compute_s=st.sampled_from([0.0005, 0.005, 0.05]),
    queue_s=st.sampled_from([0.0, 0.02]),
)
def test_every_sample_of_a_pipeline_is_the_rate_of_the_link(
    bytes_per_s: float, sizes: list[int], every_s: float, compute_s: float, queue_s: float
) -> None:
    """Whatever else is in the way, queued on the device, in the cloud or both: what is told is right, or nothing is."""
    world = World(bytes_per_s, compute_s, queue_s)
    world.run(sizes, every_s=every_s)
    assert all(rate == pytest.approx(bytes_per_s, rel=0.01) for rate in world.rates())


def test_back_to_back_chunks_on_a_slow_link_all_count() -> None:
    world = World(2e5)
    world.run([64 << 10] * 6)
    assert len(world.rates()) == 6


def test_chunks_that_wait_for_a_slow_cloud_do_not_count() -> None:
    world = World(1e6, compute_s=0.2)
    world.run([64 << 10] * 6)
    assert len(world.rates()) == 1  # only the first one found the cloud idle


def test_what_was_on_the_wire_too_shortly_to_be_timed_tells_no_rate() -> None:
    world = World(1e7)
    world.run([64 << 10] * 6, every_s=0.5)
    assert world.rates() == []


def test_small_steps_and_steps_with_big_answers_tell_no_rate() -> None:
    world = World(2e5)
    world.run([(16 << 10) - 1] * 4)
    world.watch.begin(PLAN)
    world.run([64 << 10] * 4, reply=Reply.ALL_HIDDEN)
    assert world.rates() == []


def test_a_small_step_alone_is_a_round_trip() -> None:
    world = World(1e6, compute_s=0.03, queue_s=0.01)
    world.run([512] * 3, every_s=1.0)
    trips = [it.seconds for it in world.seen if isinstance(it, RoundTrip)]
    assert trips == [pytest.approx(LINK.rtt_s, rel=0.01)] * 3


def test_the_head_is_not_taken_for_layers(agent: Agent) -> None:
    """A pass as long as the profile says is told with the layers' part of it."""
    profile: CloudProfile = agent.link()[1]
    seen: list[Observation] = []
    watch = StepWatch(seen.append, lambda: LINK, lambda: profile, Traffic())
    watch.begin(SplitPlan.cloud_only(4))
    step = Step(
        handle=1, fence=1, seq=1, base=0, rows_kind=Rows.IDS, rows=1, reply=Reply.TOKEN, generate=3, payload=bytes(4)
    )
    watch.sent(7, step, at_s=0.0, idle_s=0.0, alone=True)
    layers_s, head_s = sum(profile.times.decode_s), profile.head_s
    assert head_s is not None
    for index in range(3):
        watch.token(TokenArrived(7, index, 5, 0.25, 0.125, layers_s + head_s), float(index))
    watch.token(TokenArrived(7, 3, 5), 3.0)  # out of the cloud's cache
    steps = [it for it in seen if isinstance(it, CloudStep)]
    assert [(it.rows, it.context_tokens, it.queue_s, it.sweep_s) for it in steps] == [
        (1, context, 0.25, 0.125) for context in (0, 1, 2)
    ]
    assert steps[0].compute_s == pytest.approx(layers_s, rel=0.1)


def test_what_is_sent_again_is_not_timed() -> None:
    world = World(2e5)
    step = Step(
        handle=1, fence=1, seq=1, base=0, rows_kind=Rows.HIDDEN, rows=16, reply=Reply.ACK, generate=0,
        payload=bytes(64 << 10),
    )  # fmt: skip
    world.watch.sent(1, step, at_s=0.0, idle_s=0.0, alone=True)
    world.watch.forget()
    world.watch.done(StepDone(1, 16, 0, 0.0, 0.0, 0.1), 9.0)
    assert world.seen == []


def one_step(size: int, *, reply: Reply = Reply.ACK, generate: int = 0) -> Step:
    return Step(
        handle=1, fence=1, seq=1, base=0, rows_kind=Rows.HIDDEN, rows=1, reply=reply, generate=generate,
        payload=bytes(size),
    )  # fmt: skip


def test_a_step_behind_another_conversations_upload_tells_nothing_of_the_link() -> None:
    """A token's step that waits for the 512 KiB before it is no round trip of half a second."""
    seen: list[Observation] = []
    traffic = Traffic()
    first, second = (StepWatch(seen.append, lambda: LINK, lambda: None, traffic) for _ in range(2))
    for watch in (first, second):
        watch.begin(PLAN)
    first.sent(1, one_step(512 << 10), at_s=0.0, idle_s=0.0, alone=True)
    second.sent(1, one_step(1000), at_s=0.001, idle_s=0.0, alone=True)
    second.done(StepDone(1, 1, 0, 0.0, 0.0, 0.005), 0.6)
    assert [type(it) for it in seen] == [CloudStep] and not seen[0].alone  # type: ignore[union-attr]
    first.done(StepDone(1, 1, 0, 0.0, 0.0, 0.005), 0.6)
    assert any(isinstance(it, Transfer) for it in seen), "the upload itself was first and is timed"
    seen.clear()
    second.sent(2, one_step(1000), at_s=1.0, idle_s=0.4, alone=True)
    second.done(StepDone(2, 2, 0, 0.0, 0.0, 0.005), 1.05)
    assert any(isinstance(it, RoundTrip) for it in seen), "with nothing in its way it tells the round trip"


def test_what_is_under_way_leaves_in_the_order_in_which_it_was_handed_over() -> None:
    traffic = Traffic()
    first, second = (StepWatch(lambda it: None, lambda: LINK, lambda: None, traffic) for _ in range(2))
    for watch in (first, second):
        watch.begin(PLAN)
    assert traffic.leaves_s(1e5) is None
    for ticket in (1, 2):
        first.sent(ticket, one_step(100_000), at_s=0.0, idle_s=0.0, alone=ticket == 1)
    second.sent(1, one_step(50_000), at_s=0.5, idle_s=0.0, alone=True)
    assert traffic.leaves_s(1e5) == pytest.approx(2.5)
    first.done(StepDone(1, 1, 0, 0.0, 0.0, 0.01), 1.0 + LINK.rtt_s + 0.01)
    assert traffic.leaves_s(1e5) == pytest.approx(2.5), "the second one began when the first had left, not at 0"
    second.sent(2, one_step(10_000), at_s=9.0, idle_s=0.0, alone=False)
    assert traffic.leaves_s(1e5) == pytest.approx(9.1), "what was handed over later waits for nothing"
    first.forget()
    second.forget()
    assert traffic.leaves_s(1e5) is None


def test_another_conversations_generation_is_in_the_cloud_but_not_on_the_link() -> None:
    seen: list[Observation] = []
    traffic = Traffic()
    first, second = (StepWatch(seen.append, lambda: LINK, lambda: None, traffic) for _ in range(2))
    for watch in (first, second):
        watch.begin(PLAN)
    first.sent(1, one_step(400, reply=Reply.TOKEN, generate=9), at_s=0.0, idle_s=0.0, alone=True)
    first.token(TokenArrived(1, 0, 7, 0.0, 0.0, 0.005), 0.05)
    seen.clear()
    second.sent(1, one_step(1000), at_s=0.06, idle_s=0.0, alone=True)
    second.done(StepDone(1, 1, 0, 0.0, 0.0, 0.005), 0.11)
    assert {type(it) for it in seen} == {CloudStep, RoundTrip}
    assert all(not it.alone for it in seen if isinstance(it, CloudStep))
    first.forget()  # the reader left: what is still generated is in nobody's way
    seen.clear()
    second.sent(2, one_step(1000), at_s=0.2, idle_s=0.0, alone=True)
    second.done(StepDone(2, 2, 0, 0.0, 0.0, 0.005), 0.25)
    assert all(it.alone for it in seen if isinstance(it, CloudStep))


def test_a_reply_that_was_left_is_in_no_other_ones_way(agent: Agent, ask: Callable[..., Generation]) -> None:
    talk = agent.new_conversation()
    generation = ask(agent, "cloud", conversation=talk)
    next(generation)
    assert talk.remote is not None and talk.remote._watch is not None and talk.remote._watch.waiting
    generation.close()
    assert not talk.remote._watch.waiting
    agent.end_conversation(talk)


@pytest.mark.parametrize("rate", [1e5, 3e5])
def test_uploads_of_a_reply_tell_the_rate_of_a_real_link(
    agent_over: Callable[..., Agent],
    link: LinkEmulator,
    ask: Callable[..., Generation],
    monkeypatch: pytest.MonkeyPatch,
    rate: float,
) -> None:
    """Within 15 % of what the emulator lets through, headers included, from the chunks of one prompt."""
    shape = LinkShape(delay_s=0.01, rate_bytes_per_s=rate)
    for direction in list(link._shapes):
        link.set_shape(direction, shape)
    agent = agent_over()
    seen: list[Transfer] = []
    observe = agent._advice.observe
    agent.link()
    monkeypatch.setattr(
        agent._advice, "observe", lambda it: (observe(it), seen.append(it) if isinstance(it, Transfer) else None)
    )
    prompt = [1 + i % 250 for i in range(240)]
    fixed = Fixed(arm=Arm.USHAPE, s=1, t=4)
    ask(agent, "ushape", fixed=fixed, prompt=prompt, chunk_tokens=120, max_tokens=2).result()
    assert seen and all(it.direction is Direction.UP for it in seen)
    measured = sum(it.transfer_bytes for it in seen) / sum(it.seconds for it in seen)
    assert measured == pytest.approx(rate, rel=0.15)
