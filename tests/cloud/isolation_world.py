"""Random schedules of sessions in one engine, each compared with itself alone (goal R10).

Sessions of every arm and cut come and go, are cut back, aborted, dropped, evicted and rebuilt while others compute.
One of them shouts: its hidden states are a thousand times everybody else's, a canary that would show in any row that
it touched. One sends rows that are not finite. What every other session is told must be what it is told alone.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import numpy as np
from engine_bench import CONTEXT, LAYERS, Bench, Kind, ids_step

from splitglm_cloud.engine.events import Evicted, Failure
from splitglm_core.plan import Codec, HeadSide, SplitPlan
from splitglm_core.ranges import LayerRange
from splitglm_core.sampling import SamplingParams
from splitglm_wire import codec
from splitglm_wire.cloud import Output
from splitglm_wire.frames import ErrorCode, Reply, Rows, Step

GREEDY = SamplingParams()
LOUD = 1000.0


@dataclass
class Verdict:
    """What schedules have shown.

    Attributes:
        rows: hidden states compared; max_error: largest difference over the largest magnitude of the row.
        tokens: compared; flips: that differ.
    """

    schedules: int = 0
    sessions: int = 0
    rows: int = 0
    max_error: float = 0.0
    tokens: int = 0
    flips: int = 0
    refused: int = 0
    rebuilt: int = 0
    mixed_batches: int = 0


@dataclass
class Speaker:
    """One session: its inputs, and what it was told."""

    key: int
    plan: SplitPlan
    rows: np.ndarray  # all inputs: ids [n] or hidden states [n, hidden]
    poisoned: bool
    done: int = 0  # inputs that were answered
    pending: int = 0  # inputs of the step under way
    seq: int = 0
    told: dict[int, np.ndarray | int] = field(default_factory=dict)  # by position of the last input

    @property
    def finished(self) -> bool:
        return self.done >= len(self.rows)

    def step(self, count: int) -> Step:
        self.seq += 1
        self.pending = count
        part = self.rows[self.done : self.done + count]
        if self.plan.s == 0:
            return ids_step([int(i) for i in part], seq=self.seq, base=self.done, generate=1)
        payload = part.astype("<f4").tobytes() if self.poisoned else codec.encode(part, Codec.FP32, base=self.done)
        reply = Reply.TOKEN if self.plan.head is HeadSide.CLOUD else Reply.ALL_HIDDEN
        return Step(
            handle=1, fence=1, seq=self.seq, base=self.done, rows_kind=Rows.HIDDEN, rows=count, reply=reply,
            generate=int(reply is Reply.TOKEN), payload=payload,
        )  # fmt: skip


class IsolationWorld:
    """One schedule."""

    def __init__(self, kind: Kind, seed: int) -> None:
        self.rng = random.Random(seed)
        self.kind = kind
        self.bench = Bench(kind, pages=self.rng.choice([2, 3, 4, 4000]) * LAYERS)
        hidden = kind.runner.shape.hidden
        noise = np.random.default_rng(seed)
        self.speakers: dict[int, Speaker] = {}
        self.rebuilt = self.refused = self.mixed = 0
        for key in range(self.rng.randint(3, 9)):
            s = self.rng.randrange(LAYERS)
            t = self.rng.randint(s + 1, LAYERS) if s else LAYERS
            head = HeadSide.CLOUD if t == LAYERS and self.rng.random() < 0.6 else HeadSide.DEVICE
            plan = SplitPlan.cloud_only(LAYERS)
            if s:
                plan = SplitPlan(layers=LAYERS, s=s, t=t, head=head, codec=Codec.FP32)
            count = self.rng.randint(2, 90)
            rows = noise.integers(0, 256, count) if s == 0 else noise.standard_normal((count, hidden), np.float32)
            poisoned = key == 1 and s > 0
            if key == 0 and s:
                rows *= LOUD
            if poisoned:
                rows[self.rng.randrange(count) :] = self.rng.choice([np.nan, np.inf, 1e30])
            self.speakers[key] = Speaker(key, plan, rows, poisoned)

    def run(self) -> None:
        for key, speaker in self.speakers.items():
            self.bench.configure(key, speaker.plan, GREEDY)
        for _ in range(20_000):
            for _ in range(self.rng.choice([1, 4, 12])):
                self._act()
            if not self.bench.engine.turn():
                self.bench.clock.time_s += 1.1
                if all(speaker.finished for speaker in self.speakers.values()):
                    break
            self._listen()
        self._listen()
        stuck = [speaker.key for speaker in self.speakers.values() if not speaker.finished]
        if stuck:
            raise AssertionError(f"sessions {stuck} never finished")
        self.bench.engine.close()
        if self.bench.ledger.used:
            raise AssertionError(f"{self.bench.ledger.used} pages were never given back")

    def _act(self) -> None:
        speaker = self.rng.choice(list(self.speakers.values()))
        if speaker.pending or speaker.finished:
            return
        chance = self.rng.random()
        if chance < 0.08 and speaker.done and not speaker.poisoned:  # a device takes drafts back
            speaker.done = self.rng.randrange(speaker.done)
            self.bench.engine.cut(speaker.key, speaker.done)
        elif chance < 0.12:  # and one begins anew
            self._begin_again(speaker)
        left = len(speaker.rows) - speaker.done
        self.bench.engine.submit(speaker.key, speaker.step(min(left, self.rng.choice([1, 1, 1, 2, 7, 40]))))

    def _begin_again(self, speaker: Speaker) -> None:
        self.bench.engine.drop(speaker.key)
        self.bench.configure(speaker.key, speaker.plan, GREEDY)
        speaker.done = speaker.pending = 0

    def _listen(self) -> None:
        for key, events in self.bench.results.items():
            speaker = self.speakers[key]
            for event in events:
                if isinstance(event, Evicted):
                    self.rebuilt += 1
                    if not speaker.finished:
                        speaker.done = speaker.pending = 0
                elif isinstance(event, Failure):
                    self._refused(speaker, event)
                elif event.seq == speaker.seq and speaker.pending:
                    self._answered(speaker, event)
            events.clear()

    def _refused(self, speaker: Speaker, failure: Failure) -> None:
        """Only poison is refused, or what began where an eviction has left nothing (its device begins again)."""
        speaker.pending = 0
        if speaker.poisoned and failure.code is ErrorCode.BAD_TENSOR:
            self.refused += 1
            speaker.done = len(speaker.rows)
        elif failure.code is not ErrorCode.INTERNAL or not self.rebuilt:
            raise AssertionError(f"session {speaker.key}: {failure}")

    def _answered(self, speaker: Speaker, output: Output) -> None:
        at = speaker.done + speaker.pending
        if speaker.plan.head is HeadSide.CLOUD:
            speaker.told[at - 1] = int.from_bytes(output.payload, "little")
        else:
            rows = np.frombuffer(output.payload, "<f4").reshape(output.rows, -1)
            speaker.told.update((at - output.rows + i, row) for i, row in enumerate(rows))
        speaker.done, speaker.pending = at, 0

    def compare(self, verdict: Verdict) -> None:
        """With the same layers, nobody else aboard, all inputs in one pass."""
        verdict.schedules += 1
        verdict.refused += self.refused
        verdict.rebuilt += self.rebuilt
        stats = self.bench.engine.stats()
        verdict.mixed_batches += sum(stats.batches_by_layer)
        for speaker in self.speakers.values():
            if speaker.poisoned:
                continue
            verdict.sessions += 1
            alone, plan = self.kind.alone, speaker.plan
            rows = alone.embed(speaker.rows) if plan.s == 0 else speaker.rows
            cache = alone.new_cache(plan.back, CONTEXT)
            wanted = alone.forward(rows, cache, LayerRange(plan.s, plan.t))
            logits = alone.logits(wanted) if plan.head is HeadSide.CLOUD else None
            alone.close(cache)
            for at, got in speaker.told.items():
                if logits is not None:
                    verdict.tokens += 1
                    verdict.flips += int(logits[at].argmax()) != got
                else:
                    error = float(np.abs(wanted[at] - got).max() / np.abs(wanted[at]).max())
                    verdict.rows += 1
                    verdict.max_error = max(verdict.max_error, error)
