"""An engine on the tiny model with what surrounds it, for tests of what it computes and of whom it serves."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from splitglm_cloud.engine.alone import Alone
from splitglm_cloud.engine.carousel import Carousel
from splitglm_cloud.engine.engine import Engine
from splitglm_cloud.engine.events import Event, Owner
from splitglm_cloud.engine.kv_pages import KvPages
from splitglm_cloud.engine.runner import Runner
from splitglm_core.plan import Codec, HeadSide, SplitPlan
from splitglm_core.ranges import LayerRange
from splitglm_core.sampling import SamplingParams
from splitglm_glm.sampling import Sampler
from splitglm_wire import codec
from splitglm_wire.cloud import Configure, Output
from splitglm_wire.frames import Reply, Rows, Step

LAYERS, CONTEXT = 4, 256
SAMPLED = SamplingParams(temperature=0.8, top_p=0.95, seed=3, presence_penalty=0.4)
CLOUD = SplitPlan.cloud_only(LAYERS)
SPLIT = SplitPlan(layers=LAYERS, s=1, t=LAYERS, head=HeadSide.CLOUD, codec=Codec.FP32)
USHAPE = SplitPlan(layers=LAYERS, s=1, t=3, head=HeadSide.DEVICE, codec=Codec.FP32)
PROMPT = [int(i) for i in np.random.default_rng(0).integers(0, 256, 21)]
POOL_PAGES = 4096
OWNER = Owner()


class HandClock:
    def __init__(self) -> None:
        self.time_s = 100.0

    def now_s(self) -> float:
        return self.time_s


@dataclass(frozen=True)
class Kind:
    """A runner for engines and, on pages of its own, the same layers for expectations."""

    runner: Runner
    alone: Alone

    @classmethod
    def of(cls, runner: Runner, reference: Runner) -> Kind:
        """Both must be new: a runner's pool has one owner."""
        one = runner.shape.kv_bytes_per_token(layers=1)
        runner.reserve(POOL_PAGES)
        reference.reserve(POOL_PAGES)
        return cls(runner, Alone(reference, KvPages.for_budget(64 * one * POOL_PAGES, one)))


@dataclass
class Bench:
    """An engine; ``results`` collects what each session was told."""

    kind: Kind
    pages: int = POOL_PAGES
    clock: HandClock = field(default_factory=HandClock)
    results: dict[int, list[Event]] = field(default_factory=dict)
    faults: Any = None
    max_wait_s: float = 1e9

    def __post_init__(self) -> None:
        self.alone = self.kind.alone
        self.ledger = KvPages(pages=self.pages, page_bytes=1)
        runner = self.kind.runner if self.faults is None else self.faults(self.kind.runner)
        self.engine = Engine(runner, Carousel(), self.ledger, self.clock, self._emit, max_wait_s=self.max_wait_s)
        self.runner = runner

    def _emit(self, session: int, event: Event) -> None:
        self.results.setdefault(session, []).append(event)

    def configure(
        self, session: int, plan: SplitPlan, sampling: SamplingParams = SAMPLED, owner: Owner = OWNER, **other: Any
    ) -> None:
        values = {"generated": (), "stop_ids": (), "context": CONTEXT, "keep": 0, "deadline_ms": 0} | other
        self.engine.configure(session, Configure(plan=plan, sampling=sampling, **values), owner)

    def run(self) -> None:
        while self.engine.turn():
            pass

    def last(self, session: int) -> Event:
        return self.results[session][-1]

    def tokens(self, session: int) -> list[int]:
        outputs = [o for o in self.results.get(session, []) if isinstance(o, Output)]
        return [struct.unpack("<I", o.payload)[0] for o in outputs if o.rows and len(o.payload) == 4]

    def expected_tokens(self, ids: list[int], count: int, sampling: SamplingParams = SAMPLED) -> list[int]:
        """What the layers say, one token at a time, nobody else there."""
        everything = LayerRange(0, LAYERS)
        cache, sampler, out = self.alone.new_cache(everything, CONTEXT), Sampler(sampling), []
        while len(out) < count:
            hidden = self.alone.forward(self.alone.embed(np.array(ids, np.int64)), cache, everything)
            ids = [sampler.pick(self.alone.logits(hidden[-1:])[0], cache.length)]
            sampler.commit(ids[0])
            out += ids
        return out

    def front(self, ids: list[int], layers: LayerRange = LayerRange(0, 1)) -> np.ndarray:
        """Hidden states as a device sends them."""
        hidden = self.alone.embed(np.array(ids, np.int64))
        return self.alone.forward(hidden, self.alone.new_cache(layers, CONTEXT), layers)


def ids_step(ids: list[int], *, seq: int = 1, base: int = 0, generate: int = 8, reply: Reply = Reply.TOKEN) -> Step:
    payload = np.array(ids, "<u4").tobytes()
    return Step(
        handle=1, fence=1, seq=seq, base=base, rows_kind=Rows.IDS, rows=len(ids), reply=reply,
        generate=generate if reply is Reply.TOKEN else 0, payload=payload,
    )  # fmt: skip


def hidden_step(hidden: np.ndarray, *, reply: Reply, seq: int = 1, base: int = 0) -> Step:
    return Step(
        handle=1, fence=1, seq=seq, base=base, rows_kind=Rows.HIDDEN, rows=len(hidden), reply=reply,
        generate=1 if reply is Reply.TOKEN else 0, payload=codec.encode(hidden, Codec.FP32, base=base),
    )  # fmt: skip
