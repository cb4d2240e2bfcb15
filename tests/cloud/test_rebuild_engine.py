"""The real engine is thrown away, or takes memory from its sessions, while they generate: their tokens are the same."""

from __future__ import annotations

from collections import deque
from typing import Any

import numpy as np
import pytest
from engine_bench import CLOUD, CONTEXT, PROMPT, SAMPLED, SPLIT, Bench, Kind, hidden_step, ids_step

from splitglm_cloud.engine.events import Event, Owner
from splitglm_cloud.gateway.back import Back
from splitglm_cloud.gateway.reaction import Rebuild
from splitglm_cloud.gateway.rebuild import Rebuilder
from splitglm_cloud.gateway.received import ReceivedLog
from splitglm_core.clock import ManualClock
from splitglm_core.plan import SplitPlan
from splitglm_core.ranges import LayerRange
from splitglm_core.sampling import SamplingParams
from splitglm_wire.actions import Configure, Output
from splitglm_wire.frames import Reply

TOKENS = 12


class Surviving:
    """An engine that can be lost, its rebuilder, and what the sessions heard."""

    def __init__(self, kind: Kind, pages: int = 512) -> None:
        self.kind, self.pages = kind, pages
        self.events: deque[tuple[int, Event]] = deque()
        self.heard: dict[int, list[int]] = {}
        self.rebuilds: list[Rebuild] = []
        self.ended: set[int] = set()
        self._replace()
        log = ReceivedLog(budget_bytes=1 << 24, hidden=kind.runner.shape.hidden)
        self.rebuilder = Rebuilder(log=log, clock=ManualClock())
        self.back = Back(
            rebuilder=self.rebuilder,
            executor=self,  # type: ignore[arg-type]  # its commands are all that is used
            tell=self._tell,
            soon=lambda call: call(),
            watch=lambda session, rebuild: self.rebuilds.append(rebuild),
        )

    def _replace(self) -> None:
        bench = Bench(self.kind, self.pages)
        self.engine, self.engine_clock = bench.engine, bench.clock
        self.engine._emit = self.engine._residency._emit = lambda session, event: self.events.append((session, event))

    def __getattr__(self, command: str) -> Any:
        return getattr(self.engine, command)  # the executor's commands are the engine's

    def lose(self) -> None:
        """The engine is gone, with events of its last batch still on their way."""
        keys = self.engine.session_keys()
        self.engine.close()
        self._replace()
        while self.events:
            self.back.on_event(*self.events.popleft())
        self.back.on_lost(keys)

    def turn(self) -> None:
        self.engine_clock.time_s += 0.01
        self.engine.turn()
        while self.events:
            self.back.on_event(*self.events.popleft())

    def run(self, *sessions: int) -> None:
        for _ in range(10_000):
            if self.ended.issuperset(sessions):
                return
            self.turn()
        raise AssertionError("a step never ended")

    def configure_back(self, session: int, plan: SplitPlan, sampling: SamplingParams) -> None:
        self.back.configure(
            session,
            Configure(plan=plan, sampling=sampling, generated=(), stop_ids=(), context=CONTEXT, keep=0, deadline_ms=0),
            Owner(),
        )

    def _tell(self, session: int, event: Event) -> None:
        assert isinstance(event, Output), f"session {session} heard {event}"
        if event.rows:
            self.heard.setdefault(session, []).append(int.from_bytes(event.payload, "little"))
        if event.last:
            self.ended.add(session)


@pytest.mark.parametrize("sampling", [SamplingParams(), SAMPLED], ids=["greedy", "sampled"])
def test_a_reply_of_the_cloud_arm_outlives_its_engine(kind: Kind, sampling: SamplingParams) -> None:
    truth = Bench(kind).expected_tokens(PROMPT, TOKENS, sampling)
    for losses in ([0], [3], [11], [2, 5, 9]):
        world = Surviving(kind)
        world.configure_back(1, CLOUD, sampling)
        world.back.submit(1, ids_step(PROMPT, generate=TOKENS))
        for said in losses:
            while len(world.heard.get(1, [])) < said:
                world.turn()
            world.lose()
        world.run(1)
        assert world.heard[1] == truth
        assert world.rebuilder.rebuilds == len(losses)
        assert world.rebuilds == [Rebuild.FAILED, Rebuild.BEGAN, Rebuild.OK] * len(losses)  # each loss voids what was
        world.engine.close()


@pytest.mark.parametrize("sampling", [SamplingParams(), SAMPLED], ids=["greedy", "sampled"])
def test_a_reply_of_the_split_arm_outlives_its_engine(kind: Kind, sampling: SamplingParams) -> None:
    bench = Bench(kind)
    truth = bench.expected_tokens(PROMPT, TOKENS, sampling)
    cache, front = bench.alone.new_cache(LayerRange(0, 1), CONTEXT), LayerRange(0, 1)
    world, base, seq = Surviving(kind), 0, 0

    def step(ids: list[int], reply: Reply, *, lost: str) -> None:
        nonlocal base, seq
        seq += 1
        hidden = bench.alone.forward(bench.alone.embed(np.array(ids, np.int64)), cache, front)
        if lost == "idle":
            world.lose()
        world.back.submit(1, hidden_step(hidden, reply=reply, seq=seq, base=base))
        if lost == "running":
            world.lose()
        world.ended.clear()
        world.run(1)
        base += len(ids)

    world.configure_back(1, SPLIT, sampling)
    step(PROMPT[:16], Reply.ACK, lost="running")
    step(PROMPT[16:], Reply.TOKEN, lost="idle")
    for token in range(1, TOKENS):
        step(world.heard[1][-1:], Reply.TOKEN, lost={3: "idle", 4: "running", 8: "idle"}.get(token, ""))
    assert world.heard[1] == truth
    world.back.drop(1)
    assert len(world.rebuilder) == 0 and world.engine.stats().sessions == 0


def test_sessions_that_compete_for_memory_all_end_with_their_own_tokens(kind: Kind) -> None:
    bench, count = Bench(kind), 60
    world = Surviving(kind, pages=10)  # one session needs eight in the end
    prompts = {session: PROMPT[session:] for session in (1, 2, 3)}
    for session, prompt in prompts.items():
        world.configure_back(session, CLOUD, SAMPLED)
        world.back.submit(session, ids_step(prompt, generate=count))
    world.run(*prompts)
    for session, prompt in prompts.items():
        assert world.heard[session] == bench.expected_tokens(prompt, count)
    assert world.rebuilder.rebuilds > 0 and world.engine.stats().preemptions > 0
    for session in prompts:
        world.back.drop(session)
    assert world.engine.stats().kv_used_bytes == 0
