"""What a worker loses is rebuilt and nobody notices: no token lost, repeated or changed, whenever it happens."""

from __future__ import annotations

import random
import struct
from dataclasses import replace
from typing import Any

import pytest
from losing_executor import HIDDEN, LosingExecutor, rows_of, run, tokens_of

from splitglm_cloud.engine.events import Event, Evicted, Failure, Owner
from splitglm_cloud.gateway.back import Back
from splitglm_cloud.gateway.rebuild import FIRST_NUMBER, Rebuilder
from splitglm_cloud.gateway.received import ReceivedLog
from splitglm_core.clock import ManualClock
from splitglm_core.criticality import Criticality
from splitglm_core.plan import Codec, HeadSide, SplitPlan
from splitglm_core.sampling import SamplingParams
from splitglm_wire.actions import Configure, Output, Submit
from splitglm_wire.codec import payload_bytes
from splitglm_wire.frames import ErrorCode, Reply, Rows, Step
from splitglm_wire.limits import MAX_ROWS

LAYERS = 4
CLOUD = SplitPlan.cloud_only(LAYERS)
PENALTY = SamplingParams(temperature=1.0, frequency_penalty=0.5, seed=5)


def split_plan(codec: Codec) -> SplitPlan:
    return SplitPlan(layers=LAYERS, s=1, t=LAYERS, head=HeadSide.CLOUD, codec=codec)


def configured(plan: SplitPlan = CLOUD, **changes: Any) -> Configure:
    values: dict[str, Any] = {
        "plan": plan, "sampling": PENALTY, "generated": (), "stop_ids": (), "context": 100_000, "keep": 0,
        "deadline_ms": 0,
    }  # fmt: skip
    return Configure(**(values | changes))


def ids_step(ids: list[int], *, seq: int = 1, base: int = 0, generate: int = 0) -> Step:
    return Step(
        handle=1, fence=1, seq=seq, base=base, rows_kind=Rows.IDS, rows=len(ids), generate=generate,
        reply=Reply.TOKEN if generate else Reply.ACK, payload=struct.pack(f"<{len(ids)}I", *ids),
    )  # fmt: skip


class Bench:
    """A back over an executor that loses; ``told`` is what each session heard."""

    def __init__(self, *, budget_bytes: int = 1 << 20, **options: Any) -> None:
        self.clock = ManualClock()
        self.executor = LosingExecutor()
        self.log = ReceivedLog(budget_bytes=budget_bytes, hidden=HIDDEN)
        self.rebuilder = Rebuilder(log=self.log, clock=self.clock, **options)
        self.told: dict[int, list[Event]] = {}
        self._later: list[Any] = []
        self.back = Back(
            rebuilder=self.rebuilder,
            executor=self.executor,  # type: ignore[arg-type]  # its commands are all that is used
            tell=lambda session, event: self.told.setdefault(session, []).append(event),
            soon=self._later.append,
        )

    def deliver(self) -> bool:
        """One event, or the loss of a worker, reaches the back."""
        if not self.executor.events:
            return False
        event = self.executor.events.popleft()
        if isinstance(event, frozenset):
            self.back.on_lost(sorted(event))
        else:
            self.back.on_event(*event)
        return True

    def tick(self) -> None:
        """The event loop comes round."""
        for call in self._later:
            call()
        self._later.clear()

    def settle(self, *, works: int = 10_000) -> None:
        """Go on until nothing is left to do, or so many pieces of work were done."""
        while True:
            self.tick()
            if self.executor.hear() or self.deliver():
                continue
            busy = self.executor.busy
            if not busy or works == 0:
                return
            self.executor.work(busy[works % len(busy)])
            works -= 1

    def tokens(self, session: int = 1) -> list[int]:
        parts = [e for e in self.told.get(session, []) if isinstance(e, Output) and e.rows]
        return [struct.unpack("<I", part.payload)[0] for part in parts]

    def check_empty(self) -> None:
        for session in range(100):
            self.back.drop(session)
        self.settle()
        assert len(self.rebuilder) == len(self.log) == self.log.used_bytes == 0
        assert self.rebuilder.rebuilding == self.rebuilder.waiting == 0
        assert not self.executor.slots


def expected(prompt: list[int], generate: int, config: Configure, *, history: tuple[int, ...] = ()) -> list[int]:
    states: list[int] = []
    run(states, [struct.pack("<I", token) for token in prompt])
    return tokens_of(states, [*config.generated, *history], config, generate)


def lose(bench: Bench, how: str) -> None:
    if how == "crash":
        bench.executor.crash()
    else:
        for session in list(bench.executor.slots):
            bench.executor.evict(session)


@pytest.mark.parametrize("how", ["evict", "crash"])
@pytest.mark.parametrize("sampling", [SamplingParams(seed=1, temperature=1.0), PENALTY], ids=["plain", "penalty"])
def test_a_generation_goes_on_wherever_it_was_lost(how: str, sampling: SamplingParams) -> None:
    config, prompt = configured(sampling=sampling), list(range(10, 21))
    truth = expected(prompt, 8, config)
    for works in range(13):
        bench = Bench()
        bench.back.configure(1, config, Owner())
        bench.back.submit(1, ids_step(prompt, generate=8))
        bench.settle(works=works)
        lose(bench, how)
        bench.settle()
        assert bench.tokens() == truth
        assert [e.last for e in bench.told[1] if isinstance(e, Output)] == [False] * 7 + [True]
        assert {e.seq for e in bench.told[1] if isinstance(e, Output)} == {1}
        # What was said is a part of the session: the next turn goes on from it, also after another loss.
        lose(bench, how)
        bench.back.submit(1, ids_step([truth[-1], 7], seq=2, base=len(prompt) + 7, generate=3))
        bench.settle()
        assert bench.tokens()[8:] == expected([*prompt, *truth, 7], 3, config, history=tuple(truth))
        bench.check_empty()


@pytest.mark.parametrize("codec", Codec)
@pytest.mark.parametrize("reply", [Reply.ALL_HIDDEN, Reply.LAST_HIDDEN, Reply.TOKEN, Reply.ACK])
def test_a_step_of_hidden_states_is_repeated_behind_the_rows_before_it(codec: Codec, reply: Reply) -> None:
    def steps() -> list[Step]:
        out = []
        for seq, (base, rows) in enumerate([(0, 5), (5, 4), (9, 1)], 1):
            out.append(
                Step(
                    handle=1, fence=1, seq=seq, base=base, rows_kind=Rows.HIDDEN, rows=rows, reply=reply,
                    generate=int(reply is Reply.TOKEN),
                    payload=random.Random(seq).randbytes(payload_bytes(codec, rows, HIDDEN, base)),
                )
            )  # fmt: skip
        return out

    def outcome(faults: bool) -> list[Event]:
        bench = Bench()
        bench.back.configure(1, configured(split_plan(codec)), Owner())
        for step in steps():
            bench.back.submit(1, step)
            if faults:
                bench.settle(works=1)
                lose(bench, "crash" if step.seq % 2 else "evict")
            bench.settle()
        told = bench.told[1]
        bench.check_empty()
        return told

    assert outcome(True) == outcome(False)


def test_rows_that_were_sent_in_another_codec_are_replayed_in_it() -> None:
    bench = Bench()
    sent, states = 0, list[int]()
    for seq, codec in enumerate([Codec.INT8, Codec.FP32, Codec.FP32, Codec.BF16], 1):
        bench.back.configure(1, configured(split_plan(codec), keep=sent), Owner())
        payload = random.Random(seq).randbytes(payload_bytes(codec, 4, HIDDEN, sent))
        step = Step(
            handle=1, fence=1, seq=seq, base=sent, rows_kind=Rows.HIDDEN, rows=4, reply=Reply.LAST_HIDDEN, generate=0,
            payload=payload,
        )  # fmt: skip
        lose(bench, "evict")
        bench.back.submit(1, step)
        bench.settle()
        run(states, rows_of(step, codec))
        sent += 4
        assert bench.told[1][-1] == Output(seq, 1, struct.pack("<I", states[-1]), True)


def test_a_reply_longer_than_a_step_may_be_is_rebuilt_in_several() -> None:
    bench, config = Bench(), configured()
    bench.executor.portion = 500
    bench.back.configure(1, config, Owner())
    bench.back.submit(1, ids_step([1, 2], generate=MAX_ROWS + 40))
    bench.settle(works=MAX_ROWS + 20)
    bench.executor.crash()
    bench.settle()
    assert bench.tokens() == expected([1, 2], MAX_ROWS + 40, config)


def test_an_idle_session_is_rebuilt_in_front_of_its_next_step_and_not_before() -> None:
    bench = Bench()
    bench.back.configure(1, configured(), Owner())
    bench.back.submit(1, ids_step([1, 2, 3]))
    bench.settle()
    bench.executor.crash()
    bench.settle()
    assert not bench.executor.slots and bench.rebuilder.rebuilds == 0
    bench.back.configure(1, configured(keep=2), Owner())
    bench.settle()
    assert not bench.executor.slots
    bench.back.submit(1, ids_step([9], seq=2, base=2, generate=2))
    bench.settle()
    assert bench.tokens() == expected([1, 2, 9], 2, configured()) and bench.rebuilder.rebuilds == 1


def test_without_a_log_the_owner_is_told_that_the_positions_are_gone() -> None:
    bench = Bench(budget_bytes=0)
    bench.back.configure(1, configured(), Owner())
    bench.back.submit(1, ids_step([1, 2, 3]))
    bench.settle()
    bench.back.submit(1, ids_step([4], seq=2, base=3, generate=4))
    bench.settle(works=2)
    bench.executor.crash()
    bench.settle()
    assert bench.told[1][-1] == Evicted(2)
    bench.back.cut(1, 0)
    bench.back.configure(1, configured(), Owner())
    bench.back.submit(1, ids_step([1, 2, 3, 4], seq=2, generate=1))
    bench.settle()
    assert bench.tokens()[-1:] == expected([1, 2, 3, 4], 1, configured())
    lose(bench, "evict")
    bench.settle()
    assert bench.told[1][-1] == Evicted(None)
    bench.check_empty()


def test_a_first_step_needs_no_log_to_be_repeated() -> None:
    bench = Bench(budget_bytes=0)
    bench.back.configure(1, configured(), Owner())
    bench.back.submit(1, ids_step([1, 2, 3], generate=5))
    bench.settle(works=3)
    bench.executor.crash()
    bench.settle()
    assert bench.tokens() == expected([1, 2, 3], 5, configured())


def test_who_loses_both_keys_and_log_is_told_at_once() -> None:
    bench = Bench(budget_bytes=700)
    for session in (1, 2):
        bench.back.configure(session, configured(), Owner())
    bench.back.submit(1, ids_step(list(range(50))))
    bench.settle()
    bench.executor.evict(1)
    bench.settle()
    assert not any(isinstance(event, Evicted) for event in bench.told[1])
    bench.back.submit(2, ids_step(list(range(100))))
    bench.settle()
    assert bench.told[1][-1] == Evicted(None) and not any(isinstance(event, Evicted) for event in bench.told[2])


def test_an_eviction_that_crosses_the_next_step_on_its_way_is_no_failure() -> None:
    bench = Bench()
    bench.back.configure(1, configured(), Owner())
    bench.back.submit(1, ids_step([1, 2, 3]))
    bench.settle()
    bench.executor.evict(1)  # not yet known above
    bench.back.submit(1, ids_step([4], seq=2, base=3, generate=2))
    bench.settle()
    assert bench.tokens() == expected([1, 2, 3, 4], 2, configured())
    assert not any(isinstance(event, Failure) for event in bench.told[1])


def test_an_echo_of_a_step_that_was_given_back_is_not_taken_for_the_same_step_sent_again() -> None:
    """A device numbers its next step as the one that was refused, and the executor may still speak of that one."""
    bench = Bench(budget_bytes=0)
    bench.back.configure(1, configured(), Owner())
    bench.back.submit(1, ids_step([1, 2, 3]))
    bench.settle()
    bench.executor.evict(1)
    bench.back.submit(1, ids_step([4], seq=2, base=3, generate=2))
    assert bench.deliver() and bench.told[1][-1] == Evicted(2)
    bench.back.cut(1, 0)
    bench.back.configure(1, configured(), Owner())
    bench.back.submit(1, ids_step([1, 2, 3, 4], seq=2, generate=2))
    bench.settle()
    assert bench.tokens() == expected([1, 2, 3, 4], 2, configured())
    assert not any(isinstance(event, Failure) for event in bench.told[1])
    bench.check_empty()


@pytest.mark.parametrize("code", [ErrorCode.OVERLOADED, ErrorCode.DEADLINE])
def test_a_refusal_while_rebuilding_is_the_steps_own_and_the_log_stays(code: ErrorCode) -> None:
    bench = Bench()
    bench.back.configure(1, configured(), Owner())
    bench.back.submit(1, ids_step([1, 2, 3]))
    bench.settle()
    bench.executor.crash()
    bench.back.submit(1, ids_step([4], seq=2, base=3, generate=2))
    bench.executor.portion = 1
    bench.settle(works=1)
    assert bench.executor.slots[1].states
    bench.executor.refuse = code
    bench.settle()
    assert bench.told[1][-1] == Failure(2, code, "refused", retry_after_s=0.25)
    assert not bench.executor.slots[1].states
    bench.back.cut(1, 3)
    bench.back.submit(1, ids_step([4], seq=2, base=3, generate=2))
    bench.settle()
    assert bench.tokens() == expected([1, 2, 3, 4], 2, configured())


def test_a_cancelled_generation_is_not_rebuilt_and_ends_with_what_it_has() -> None:
    bench = Bench()
    bench.back.configure(1, configured(), Owner())
    bench.back.submit(1, ids_step([1, 2, 3], generate=9))
    bench.settle(works=4)
    said = bench.tokens()
    assert 0 < len(said) < 9
    bench.executor.crash()
    bench.deliver()
    rows = bench.executor.rows_run
    bench.back.abort(1, 1)
    bench.settle()
    assert bench.told[1][-1] == Output(1, 0, b"", True) and bench.executor.rows_run == rows
    # The positions it has are those that were told: three rows, and every token but the newest.
    bench.back.submit(1, ids_step([said[-1]], seq=2, base=3 + len(said) - 1, generate=2))
    bench.settle()
    assert bench.tokens()[len(said) :] == expected([1, 2, 3, *said], 2, configured(), history=tuple(said))


def test_a_step_cancelled_before_its_first_token_still_says_one() -> None:
    bench = Bench()
    bench.back.configure(1, configured(), Owner())
    bench.back.submit(1, ids_step([1, 2, 3, 4, 5], generate=9))
    bench.settle(works=1)
    bench.executor.crash()
    bench.back.abort(1, 1)
    bench.settle()
    assert bench.tokens() == expected([1, 2, 3, 4, 5], 1, configured())


@pytest.mark.parametrize("works", [0, 1, 2])
def test_what_is_dropped_while_it_is_rebuilt_leaves_nothing(works: int) -> None:
    bench = Bench(at_once=1)
    for session in (1, 2):
        bench.back.configure(session, configured(), Owner())
        bench.back.submit(session, ids_step(list(range(9)), generate=9))
    bench.settle(works=8)
    bench.executor.crash()
    bench.settle(works=works)
    heard = len(bench.told[1])
    bench.back.drop(1)
    bench.settle()
    assert len(bench.told[1]) == heard
    assert bench.tokens(2) == expected(list(range(9)), 9, configured())
    bench.check_empty()


@pytest.mark.parametrize("works", [0, 1, 2, 3])
def test_a_cut_or_a_new_reply_ends_the_step_that_is_rebuilt(works: int) -> None:
    for again in ("cut", "configure"):
        bench = Bench()
        bench.back.configure(1, configured(), Owner())
        bench.back.submit(1, ids_step([1, 2, 3, 4]))
        bench.settle()
        bench.back.submit(1, ids_step([5], seq=2, base=4, generate=9))
        bench.settle(works=1)
        bench.executor.crash()
        bench.settle(works=works)
        if again == "cut":
            bench.back.cut(1, 2)
        bench.back.configure(1, configured(keep=2), Owner())
        bench.settle()
        assert isinstance(bench.told[1][-1], Failure) and bench.told[1][-1].seq == 2
        before = len(bench.tokens())
        bench.back.submit(1, ids_step([8], seq=2, base=2, generate=2))
        bench.settle()
        assert bench.tokens()[before:] == expected([1, 2, 8], 2, configured())
        bench.check_empty()


def test_no_more_rebuilds_at_once_than_allowed_in_the_order_of_their_classes() -> None:
    bench = Bench(at_once=2)
    order = [Criticality.SHEDDABLE, Criticality.CRITICAL, Criticality.SHEDDABLE_PLUS, Criticality.CRITICAL] * 3
    for session, criticality in enumerate(order, 1):
        bench.back.configure(session, configured(criticality=criticality), Owner())
        bench.back.submit(session, ids_step([session] * 6))
    bench.settle()
    for session in range(1, len(order) + 1):
        bench.back.submit(session, ids_step([1], seq=2, base=6, generate=1))
    bench.settle(works=0)
    bench.executor.crash()
    bench.deliver()
    bench.back.configure(50, configured(), Owner())
    bench.back.submit(50, ids_step([1], generate=1000))
    bench.told.clear()
    began: list[int] = []
    for _ in range(100_000):
        bench.tick()
        if bench.executor.hear() or bench.deliver():
            continue
        rebuilt = [session for session in bench.executor.busy if session != 50]
        assert bench.rebuilder.rebuilding <= 2
        if not rebuilt:
            break
        assert 50 in bench.executor.busy  # who lost nothing is not held up
        bench.executor.work(50)
        for session in rebuilt:
            began += [session] if session not in began else []
            bench.executor.work(session)
    classes = [order[session - 1] for session in began]
    assert classes == sorted(classes)
    assert all(isinstance(bench.told[session][-1], Output) for session in began) and len(began) == len(order)


def test_the_next_rebuild_begins_when_the_one_before_it_has_said_something() -> None:
    bench = Bench(at_once=1)
    for session in (1, 2):
        bench.back.configure(session, configured(), Owner())
        bench.back.submit(session, ids_step([1, 2, 3], generate=20))
    bench.settle(works=6)
    bench.executor.crash()
    bench.settle(works=0)
    assert bench.executor.busy == [1] and bench.rebuilder.waiting == 1
    said = len(bench.tokens(1))
    while len(bench.tokens(1)) == said:
        bench.settle(works=1)
    assert sorted(bench.executor.busy) == [1, 2] and bench.rebuilder.waiting == 0


def test_suspects_are_tried_one_at_a_time() -> None:
    bench = Bench(at_once=9)
    for session in (1, 2, 3):
        bench.back.configure(session, configured(), Owner())
        bench.back.submit(session, ids_step([session] * 3))
    bench.settle()
    for session in (1, 2):
        bench.back.submit(session, ids_step([4], seq=2, base=3, generate=3))
    for _ in range(2):
        bench.settle(works=0)
        bench.executor.crash()
    bench.back.submit(3, ids_step([4], seq=2, base=3, generate=3))
    bench.settle(works=0)
    assert sorted(bench.executor.busy) == [1, 3]  # 3 lost no worker
    bench.settle()
    for session in (1, 2, 3):
        assert bench.tokens(session) == expected([session] * 3 + [4], 3, configured())


def test_a_suspect_that_is_evicted_while_it_waits_is_rebuilt_in_its_turn() -> None:
    bench = Bench(at_once=9)
    for session in (1, 2):
        bench.back.configure(session, configured(), Owner())
        bench.back.submit(session, ids_step([session] * 3))
    bench.settle()
    for session in (1, 2):
        bench.back.submit(session, ids_step([4], seq=2, base=3, generate=3))
    for _ in range(2):
        bench.settle(works=0)
        bench.executor.crash()
    for session in (1, 2):
        bench.settle(works=1)  # rebuilt
        bench.executor.refuse = ErrorCode.OVERLOADED
        bench.settle(works=1)
        assert isinstance(bench.told[session][-1], Failure)
    for session in (1, 2):
        bench.back.submit(session, ids_step([4], seq=2, base=3, generate=3))
    bench.settle(works=0)
    assert bench.executor.busy == [1] and len(bench.executor.slots[2].states) == 3
    bench.executor.evict(2)
    bench.settle()
    for session in (1, 2):
        assert bench.tokens(session) == expected([session] * 3 + [4], 3, configured())
    bench.check_empty()


@pytest.mark.parametrize("logged", [False, True])
def test_a_suspect_whose_worker_is_lost_while_it_waits_is_rebuilt_or_given_back(logged: bool) -> None:
    bench = Bench(max_losses=1)  # everybody is a suspect
    for session in (1, 2):
        bench.back.configure(session, configured(), Owner())
        bench.back.submit(session, ids_step([session] * 3))
        bench.settle()
    if not logged:
        bench.log.cut(2, 0)  # another's needs took it while the session rested
    for session in (1, 2):
        bench.back.submit(session, ids_step([4], seq=2, base=3, generate=3))
    bench.settle(works=0)
    assert bench.executor.busy == [1] and bench.rebuilder.waiting == 1
    bench.executor.crash()
    bench.settle()
    if logged:
        assert bench.tokens(2) == expected([2] * 3 + [4], 3, configured())
    else:
        assert bench.told[2][-1] == Evicted(2)
    bench.check_empty()


def test_positions_that_were_cut_off_are_not_replayed() -> None:
    bench = Bench()
    bench.back.configure(1, configured(), Owner())
    bench.back.submit(1, ids_step([1, 2, 3, 4]))
    bench.settle()
    bench.back.cut(1, 2)
    lose(bench, "crash")
    bench.settle()
    bench.back.submit(1, ids_step([9], seq=2, base=2, generate=2))
    bench.settle()
    assert bench.tokens() == expected([1, 2, 9], 2, configured())


def test_a_step_that_crosses_the_news_of_a_loss_is_part_of_the_loss() -> None:
    bench = Bench(budget_bytes=700)
    for session in (1, 2):
        bench.back.configure(session, configured(), Owner())
    bench.back.submit(1, ids_step(list(range(50))))
    bench.settle()
    bench.back.submit(2, ids_step(list(range(100)), generate=5))
    bench.settle(works=36)
    assert bench.tokens(2)
    bench.executor.evict(1)
    bench.deliver()
    bench.executor.crash()
    bench.deliver()
    bench.back.abort(2, 1)  # it ends at once, its log takes the other's place, and the news is on its way
    assert not any(isinstance(event, Evicted) for event in bench.told[1])
    bench.back.configure(1, configured(keep=50), Owner())
    bench.back.submit(1, ids_step([3], seq=2, base=50, generate=1))
    bench.settle()
    assert bench.told[1][-2:] == [Evicted(None), Evicted(2)]


def test_low_classes_that_rebuild_do_not_hold_up_a_higher_one() -> None:
    bench = Bench(at_once=1)
    classes = {1: Criticality.SHEDDABLE, 2: Criticality.SHEDDABLE, 3: Criticality.CRITICAL}
    for session, criticality in classes.items():
        bench.back.configure(session, configured(criticality=criticality), Owner())
        bench.back.submit(session, ids_step([1, 2, 3]))
    bench.settle()
    bench.executor.crash()
    bench.deliver()
    for session in classes:
        bench.back.submit(session, ids_step([4], seq=2, base=3, generate=1))
    while bench.executor.hear():
        pass
    assert bench.executor.busy == [1, 3]


def test_whoever_kills_its_worker_three_times_is_refused_and_the_others_go_on() -> None:
    bench, killer = Bench(), 3
    sessions = range(1, 7)
    for session in sessions:
        bench.back.configure(session, configured(), Owner())
        bench.back.submit(session, ids_step([session] * 4, generate=30))
    crashes, turn = 0, 0
    while True:
        bench.tick()
        if bench.executor.hear() or bench.deliver():
            continue
        if not bench.executor.busy:
            break
        turn += 1
        victim = bench.executor.busy[turn % len(bench.executor.busy)]
        if victim == killer and not bench.executor.slots[killer].rows[3:]:
            bench.executor.crash()  # whenever it comes to its last rows
            crashes += 1
            continue
        bench.executor.work(victim)
    assert crashes == 3
    failure = bench.told[killer][-1]
    assert isinstance(failure, Failure) and failure.code is ErrorCode.INTERNAL and failure.seq == 1
    for session in sessions:
        if session != killer:
            assert bench.tokens(session) == expected([session] * 4, 30, configured())
    # It is still under suspicion: once more is enough.
    bench.back.submit(killer, ids_step([1], seq=1, generate=3))
    bench.settle(works=0)
    bench.executor.crash()
    bench.settle()
    assert isinstance(bench.told[killer][-1], Failure) and len(bench.told[killer]) == 2
    bench.back.submit(killer, ids_step([1], seq=1, generate=3))
    bench.settle()
    assert bench.tokens(killer) == expected([1], 3, configured())
    bench.check_empty()


def test_the_time_that_is_left_is_what_remains_of_the_deadline() -> None:
    bench = Bench()
    bench.back.configure(1, configured(deadline_ms=10_000), Owner("ann", 2.0))
    bench.back.submit(1, ids_step([1, 2, 3]))
    bench.settle()
    bench.clock.advance(4.0)
    bench.executor.crash()
    bench.deliver()
    bench.back.submit(1, ids_step([4], seq=2, base=3, generate=3))
    bench.settle()
    assert bench.executor.slots[1].config.deadline_ms == 6000
    bench.executor.crash()
    bench.deliver()
    bench.clock.advance(7.0)
    bench.back.submit(1, ids_step([4], seq=3, base=6, generate=1))
    bench.settle()
    failure = bench.told[1][-1]
    assert isinstance(failure, Failure) and failure.code is ErrorCode.DEADLINE


def test_the_wait_for_a_rebuild_is_told_as_waiting() -> None:
    bench = Bench()
    bench.back.configure(1, configured(), Owner())
    bench.back.submit(1, ids_step([1, 2, 3], generate=5))
    bench.settle(works=2)
    bench.executor.crash()
    bench.deliver()
    bench.clock.advance(0.0)
    bench.settle()
    assert all(e.queue_us == 0 for e in bench.told[1] if isinstance(e, Output))
    bench.executor.crash()
    bench.deliver()
    bench.back.submit(1, ids_step([4], seq=2, base=7, generate=2))
    bench.clock.advance(1.5)
    bench.settle()
    assert [e.queue_us for e in bench.told[1] if isinstance(e, Output)][-2:] == [1_500_000, 0]


def test_submissions_without_a_loss_go_through_with_a_number_of_their_own() -> None:
    rebuilder = Rebuilder(log=ReceivedLog(budget_bytes=1000, hidden=HIDDEN), clock=ManualClock())
    (order,) = rebuilder.configure(1, configured(), Owner("ann")).orders
    assert (order.action, order.owner) == (configured(), Owner("ann"))
    step = ids_step([1, 2], seq=7, generate=1)
    assert [order.action for order in rebuilder.submit(1, step).orders] == [Submit(replace(step, seq=FIRST_NUMBER))]
    assert rebuilder.on_event(1, Output(7, 1, bytes(4), True)).events == []
    output = Output(FIRST_NUMBER, 1, bytes(4), True, 3, 4, 5)
    assert rebuilder.on_event(1, output).events == [(1, Output(7, 1, bytes(4), True, 3, 4, 5))]
    assert rebuilder.on_event(1, output).events == []
    assert rebuilder.on_event(2, output).events == []
    assert rebuilder.submit(2, step).events[0][1] == Failure(
        7, ErrorCode.INTERNAL, "the session cannot take this step now"
    )
    assert FIRST_NUMBER > 0xFFFFFFFF
