"""A language model in integer arithmetic, so that both ends of the session protocol can run without tensors.

Every position's state depends on all tokens before it, every token on its position and on the tokens of the reply
before it (as with penalties): a lost, repeated or misplaced row, or a sampler with the wrong history, gives other
tokens. One hidden state is one u32, which is what codec FP32 at width 1 carries.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from splitglm_core.plan import Arm, Codec, HeadSide, SplitPlan
from splitglm_wire.actions import Configure, Output
from splitglm_wire.frames import ErrorCode, Reply, Rows, Step

LAYERS = 4
HIDDEN = 1
CONTEXT = 200
VOCAB = 1009
STOPS = tuple(range(25))
PRIME = 2**31 - 1

PLANS = {
    "cloud": SplitPlan(layers=LAYERS, s=0, t=LAYERS, head=HeadSide.CLOUD, codec=Codec.FP32),
    "split": SplitPlan(layers=LAYERS, s=2, t=LAYERS, head=HeadSide.CLOUD, codec=Codec.FP32),
    "ushape": SplitPlan(layers=LAYERS, s=1, t=3, head=HeadSide.DEVICE, codec=Codec.FP32),
    "ushape-no-tail": SplitPlan(layers=LAYERS, s=1, t=LAYERS, head=HeadSide.DEVICE, codec=Codec.FP32),
}


def front(token: int, position: int) -> int:
    return (token * 31 + position * 7 + 1) % PRIME


def back(state: int, hidden: int) -> int:
    return (state * 131 + hidden) % PRIME


def sample(state: int, position: int, history: Sequence[int], seed: int) -> int:
    said = sum((i + 1) * token for i, token in enumerate(history))
    return (state * 48271 + position * 97 + said * 13 + seed) % VOCAB


def states(tokens: Iterable[int], first: int = 0, state: int = 0) -> list[int]:
    """The state after each of ``tokens``, the first of which is at position ``first``."""
    out = []
    for position, token in enumerate(tokens, first):
        state = back(state, front(token, position))
        out.append(state)
    return out


def reference(prompt: Sequence[int], max_tokens: int, seed: int) -> list[int]:
    """The reply as one machine alone gives it."""
    reply: list[int] = []
    state = states(prompt)[-1]
    position = len(prompt)
    while True:
        token = sample(state, position, reply, seed)
        reply.append(token)
        if token in STOPS or len(reply) == max_tokens:
            return reply
        state = back(state, front(token, position))
        position += 1


def pack(values: Iterable[int]) -> bytes:
    return b"".join(struct.pack("<I", value) for value in values)


def unpack(payload: bytes | memoryview) -> list[int]:
    return list(struct.unpack(f"<{len(payload) // 4}I", payload))


@dataclass(frozen=True, slots=True)
class Failure:
    seq: int
    code: ErrorCode


@dataclass(slots=True)
class _Slot:
    config: Configure
    history: list[int]
    kv: list[int] = field(default_factory=list)
    run: Step | None = None
    generated: int = 0
    aborted: bool = False


class Engine:
    """The cloud's compute, with the commands of the product's executor. One part of a step per ``advance``."""

    def __init__(self) -> None:
        self.slots: dict[int, _Slot] = {}

    def configure(self, key: int, config: Configure) -> None:
        slot = self.slots.get(key)
        if slot is None or slot.config.plan.back != config.plan.back:
            self.slots[key] = _Slot(config, list(config.generated))
            return
        assert slot.run is None, "configured while a step runs"
        slot.config, slot.history = config, list(config.generated)
        self.cut(key, config.keep)

    def submit(self, key: int, step: Step) -> None:
        slot = self.slots[key]
        assert slot.run is None, "two steps of one session at a time"
        slot.run, slot.generated, slot.aborted = step, 0, False

    def abort(self, key: int, seq: int) -> None:
        slot = self.slots.get(key)
        if slot is not None and slot.run is not None and slot.run.seq == seq:
            slot.aborted = True

    def cut(self, key: int, length: int) -> None:
        del self.slots[key].kv[length:]

    def drop(self, key: int) -> None:
        self.slots.pop(key, None)

    def evict(self, key: int) -> None:
        slot = self.slots[key]
        slot.kv.clear()
        slot.run = None

    def advance(self, key: int, fail: ErrorCode | None = None) -> Output | Failure | None:
        """The next part of the running step; with ``fail`` the step fails after its rows went into the cache."""
        slot = self.slots.get(key)
        if slot is None or slot.run is None:
            return None
        step = slot.run
        if slot.generated:
            rows = [front(slot.history[-1], len(slot.kv))]
        else:
            assert len(slot.kv) == step.base, f"I3: step at {step.base} reached a cache of {len(slot.kv)}"
            rows = unpack(step.payload)
            if step.rows_kind is Rows.IDS:
                rows = [front(token, step.base + i) for i, token in enumerate(rows)]
        for row in rows:
            slot.kv.append(back(slot.kv[-1] if slot.kv else 0, row))
        assert len(slot.kv) <= slot.config.context, "the cache is larger than its context"
        if fail is not None:
            slot.run = None
            return Failure(step.seq, fail)
        last, out = True, b""
        if step.reply is Reply.TOKEN:
            token = sample(slot.kv[-1], len(slot.kv), slot.history, slot.config.sampling.seed)
            slot.history.append(token)
            slot.generated += 1
            last = slot.aborted or token in slot.config.stop_ids or slot.generated >= step.generate
            out = pack([token])
        elif step.reply is Reply.ALL_HIDDEN:
            out = pack(slot.kv[step.base :])
        elif step.reply is Reply.LAST_HIDDEN:
            out = pack(slot.kv[-1:])
        if last:
            slot.run = None
        return Output(step.seq, len(out) // 4, out, last, queue_us=2, sweep_us=4, compute_us=3)


def samples_on_device(plan: SplitPlan) -> bool:
    return plan.arm is Arm.USHAPE
