"""Seeded worlds: owners that do all that sessions do, over an executor that loses all that it can lose."""

from __future__ import annotations

import random
import struct
from typing import Any

import pytest
from losing_executor import HIDDEN, LosingExecutor, rows_of, run, tokens_of

from splitglm_cloud.engine.events import Event, Evicted, Failure, Owner
from splitglm_cloud.gateway.back import Back
from splitglm_cloud.gateway.rebuild import Rebuilder
from splitglm_cloud.gateway.received import ReceivedLog
from splitglm_core.clock import ManualClock
from splitglm_core.criticality import Criticality
from splitglm_core.plan import Codec, HeadSide, SplitPlan
from splitglm_core.sampling import SamplingParams
from splitglm_wire.actions import Configure
from splitglm_wire.codec import payload_bytes
from splitglm_wire.frames import Reply, Rows, Step

LAYERS = 4
WORLDS = 600
BATCH = 150
FAULTY_MOVES = 500


class Talker:
    """Owns one session: asks at random and checks every answer against what a lone machine would say."""

    def __init__(self, world: World, session: int) -> None:
        self.world, self.session = world, session
        self.states: list[int] = []  # after each position
        self.history: list[int] = []
        self.seq = 0
        self.step: Step | None = None
        self.config: Configure | None = None
        self.truth: list[int] = []
        self.after: list[int] = []  # ``states`` when the step has run to its end
        self.heard: list[int] = []
        self.aborted = False
        rng = world.rng
        self.hidden = rng.random() < 0.5
        self.criticality = rng.choice(list(Criticality))

    def act(self) -> None:
        rng, back = self.world.rng, self.world.back
        if self.step is not None:
            if rng.random() < 0.05:
                self.aborted = True
                back.abort(self.session, self.step.seq)
            return
        what = rng.random()
        if self.config is None or what < 0.15:
            self._configure(rng.choice((0, len(self.states), rng.randint(0, len(self.states)))))
        elif what < 0.2:
            del self.states[rng.randint(0, len(self.states)) :]
            back.cut(self.session, len(self.states))
            self.config = None  # a device cuts between replies
        else:
            self._step(self.config)

    def _configure(self, keep: int) -> None:
        rng = self.world.rng
        plan = SplitPlan.cloud_only(LAYERS)
        if self.hidden:
            plan = SplitPlan(layers=LAYERS, s=1, t=LAYERS, head=HeadSide.CLOUD, codec=rng.choice(list(Codec)))
        del self.states[keep:]
        self.history = [rng.randrange(100) for _ in range(rng.choice((0, 3)))]
        self.config = Configure(
            plan=plan,
            sampling=SamplingParams(seed=rng.randrange(9), temperature=1.0, presence_penalty=rng.choice((0.0, 0.5))),
            generated=tuple(self.history),
            stop_ids=tuple(range(200)),
            context=1000,
            keep=keep,
            deadline_ms=0,
            criticality=self.criticality,
        )
        self.world.back.configure(self.session, self.config, Owner())

    def _step(self, config: Configure) -> None:
        rng, base, rows = self.world.rng, len(self.states), self.world.rng.randint(1, 9)
        self.seq += 1
        reply = rng.choice((Reply.ACK, Reply.TOKEN, Reply.TOKEN))
        generate = 0 if reply is Reply.ACK else rng.randint(1, 12)
        size = 4 * rows
        if self.hidden:
            reply = rng.choice(list(Reply))
            generate = int(reply is Reply.TOKEN)
            size = payload_bytes(config.plan.codec, rows, HIDDEN, base)
        self.step = step = Step(
            handle=1, fence=1, seq=self.seq, base=base, rows_kind=Rows.HIDDEN if self.hidden else Rows.IDS, rows=rows,
            reply=reply, generate=generate, payload=rng.randbytes(size),
        )  # fmt: skip
        self.after = list(self.states)
        run(self.after, rows_of(step, config.plan.codec))
        match reply:
            case Reply.ACK:
                self.truth = []
            case Reply.TOKEN:
                self.truth = tokens_of(self.after, self.history, config, generate)
            case Reply.LAST_HIDDEN:
                self.truth = self.after[-1:]
            case Reply.ALL_HIDDEN:
                self.truth = self.after[base:]
        self.heard, self.aborted = [], False
        self.world.back.submit(self.session, step)

    def hear(self, event: Event) -> None:
        if isinstance(event, Evicted):
            self.world.evicted += 1
            assert self.world.tight, "nothing else than the budget is a reason to ask the device"
            # A step that crossed the news on its way is told twice that the positions are gone.
            assert event.seq is None or self.step is None or event.seq == self.step.seq
            if self.step is not None:
                self.world.back.cut(self.session, 0)  # as the session does when its step fails
            self.step, self.states, self.config = None, [], None
            return
        step = self.step
        assert not isinstance(event, Failure), f"session {self.session} heard {event}"
        assert step is not None and event.seq == step.seq, "an answer that nobody awaits"
        self.heard += struct.unpack(f"<{event.rows}I", event.payload)
        assert self.heard == self.truth[: len(self.heard)], "not what a lone machine says"
        if not event.last:
            assert step.reply is Reply.TOKEN and event.rows == 1
            return
        self.world.answered += 1
        if step.reply is not Reply.TOKEN:
            assert self.heard == self.truth
            self.states = self.after
        else:
            assert self.heard and (self.aborted or self.heard == self.truth)
            self.states = self.after[: step.base + step.rows + len(self.heard) - 1]
            self.history += self.heard
        self.step = None


class World:
    def __init__(self, seed: int) -> None:
        self.rng = rng = random.Random(seed)
        self.executor = LosingExecutor()
        self.executor.portion = rng.choice((1, 4, 50))
        self.tight = rng.random() < 0.3
        self.log = ReceivedLog(budget_bytes=rng.choice((0, 600, 2000)) if self.tight else 1 << 20, hidden=HIDDEN)
        # Nobody here kills workers, however often they die; where they die rarely the suspects' rules apply too.
        self.deadly = rng.random() < 0.5
        self.rebuilder = Rebuilder(
            log=self.log,
            clock=ManualClock(),
            at_once=rng.choice((1, 2, 4)),
            max_losses=1_000_000 if self.deadly else 3,
        )
        self.answered = self.evicted = self.crashes = 0
        self.talkers: dict[int, Talker] = {}
        self._later: list[Any] = []
        self.back = Back(
            rebuilder=self.rebuilder,
            executor=self.executor,  # type: ignore[arg-type]  # its commands are all that is used
            tell=self._tell,
            soon=self._later.append,
        )
        self._sessions = 0
        for _ in range(rng.randint(1, 6)):
            self._arrive()

    def run(self) -> None:
        for _ in range(FAULTY_MOVES):
            self._move(self.rng.random())
        for _ in range(100_000):
            self._tick()
            if not (self.executor.hear() or self._deliver() or self._work()):
                break
        assert not self._later and not any(talker.step for talker in self.talkers.values()), "a step never ended"
        self.log.check_integrity()
        for session in list(self.talkers):
            self._leave(session)
        while self.executor.hear():
            pass
        assert not self.executor.slots
        assert len(self.rebuilder) == len(self.log) == self.log.used_bytes == 0
        assert self.rebuilder.rebuilding == self.rebuilder.waiting == 0

    def _move(self, what: float) -> None:
        rng = self.rng
        if what < 0.2:
            rng.choice(list(self.talkers.values())).act()
        elif what < 0.45:
            self.executor.hear()
        elif what < 0.65:
            self._deliver()
        elif what < 0.92:
            self._work()
        elif what < 0.95:
            self._tick()
        elif what < 0.98:
            full = [session for session, slot in self.executor.slots.items() if slot.states or slot.step]
            if full:
                self.executor.evict(rng.choice(full))
        elif what < 0.99:
            if self.deadly or self.crashes < 2:
                self.crashes += 1
                self.executor.crash()
        elif rng.random() < 0.3:
            self._leave(rng.choice(list(self.talkers)))
            self._arrive()

    def _arrive(self) -> None:
        self._sessions += 1
        self.talkers[self._sessions] = Talker(self, self._sessions)

    def _leave(self, session: int) -> None:
        del self.talkers[session]
        self.back.drop(session)

    def _tell(self, session: int, event: Event) -> None:
        if session in self.talkers:
            self.talkers[session].hear(event)

    def _tick(self) -> None:
        calls, self._later[:] = list(self._later), []
        for call in calls:
            call()

    def _deliver(self) -> bool:
        if not self.executor.events:
            return False
        event = self.executor.events.popleft()
        if isinstance(event, frozenset):
            self.back.on_lost(sorted(event))
        else:
            self.back.on_event(*event)
        return True

    def _work(self) -> bool:
        busy = self.executor.busy
        if busy:
            self.executor.work(self.rng.choice(busy))
        return bool(busy)


@pytest.mark.parametrize("first", range(0, WORLDS, BATCH))
def test_whatever_is_lost_every_session_hears_what_a_lone_machine_says(first: int) -> None:
    rebuilds = evicted = answered = 0
    for seed in range(first, first + BATCH):
        world = World(seed)
        try:
            world.run()
        except Exception as error:
            raise AssertionError(f"world {seed}: {error}") from error
        rebuilds, evicted = rebuilds + world.rebuilder.rebuilds, evicted + world.evicted
        answered += world.answered
    # The worlds are worth something only if things happen in them.
    assert rebuilds > 2 * BATCH and evicted > BATCH // 4 and answered > 10 * BATCH


@pytest.mark.slow
def test_many_more_worlds() -> None:
    for seed in range(WORLDS, WORLDS + 5_000):
        try:
            World(seed).run()
        except Exception as error:
            raise AssertionError(f"world {seed}: {error}") from error
