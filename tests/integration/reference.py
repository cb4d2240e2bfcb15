"""The reference: one plan decoded token by token in one process, straightforwardly.

It shares the layers with the product and nothing of its loops: no sessions, no frames, no pipelining, no wire. What the
wire's codec does to hidden states is done here by hand, at the same cuts. So are the parts of at most
``MAX_WORK_ROWS`` positions in which the cloud computes a chunk longer than that.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from splitglm_cloud.engine.alone import Alone
from splitglm_cloud.engine.slots import MAX_WORK_ROWS
from splitglm_core.plan import Arm, SplitPlan
from splitglm_core.ranges import LayerRange
from splitglm_core.sampling import SamplingParams
from splitglm_glm.sampling import Sampler
from splitglm_glm.stack import LayerStack
from splitglm_wire import codec


@dataclass(frozen=True)
class Reference:
    """Decodes with the device's stack for its layers and the cloud's runner, nobody else aboard, for the cloud's."""

    device: LayerStack
    cloud: Alone

    def tokens(
        self,
        plan: SplitPlan,
        turns: list[list[int]],
        *,
        new: int,
        sampling: SamplingParams,
        stop_ids: tuple[int, ...] = (),
        capacity: int = 512,
    ) -> list[list[int]]:
        """The replies to each of ``turns``: a turn's ids are appended to the turns and replies before it."""
        run = _Run(self, plan, capacity)
        replies = []
        for ids in turns:
            sampler = Sampler(sampling)
            reply: list[int] = []
            pending = run.unrun + ids
            while len(reply) < new:
                for at in range(0, len(pending), plan.chunk_tokens):
                    last = run.forward(pending[at : at + plan.chunk_tokens])
                token = sampler.pick(run.logits(last), run.length)
                sampler.commit(token)
                reply.append(token)
                pending = [token]
                if token in stop_ids:
                    break
            run.unrun = pending
            replies.append(reply)
        return replies


class _Run:
    def __init__(self, reference: Reference, plan: SplitPlan, capacity: int) -> None:
        self._plan = plan
        self._device, self._cloud = reference.device, reference.cloud
        self._front = self._device.new_cache(plan.front, capacity)
        self._back = self._cloud.new_cache(plan.back, capacity)
        self._tail = self._device.new_cache(plan.tail, capacity)
        self.length = 0
        self.unrun: list[int] = []

    def forward(self, ids: list[int]) -> np.ndarray:
        """The last position's final hidden state, [1, hidden]."""
        plan, base = self._plan, self.length
        embedder = self._cloud if plan.arm is Arm.CLOUD else self._device
        hidden = embedder.embed(np.array(ids, np.int64))
        hidden = self._device.forward(hidden, self._front, plan.front)
        if plan.arm in (Arm.SPLIT, Arm.USHAPE):
            hidden = self._over_the_wire(hidden, base)
        # The cloud computes a long step in parts: other shapes, hence other roundings, than in one pass.
        parts = range(0, len(ids), MAX_WORK_ROWS)
        hidden = np.concatenate(
            [self._cloud.forward(hidden[at : at + MAX_WORK_ROWS], self._back, plan.back) for at in parts]
        )
        if plan.arm is Arm.USHAPE:
            if len(plan.tail):
                hidden = self._over_the_wire(hidden, base)
            else:
                hidden = self._over_the_wire(hidden[-1:], base + len(ids) - 1)
        hidden = self._device.forward(hidden, self._tail, LayerRange(plan.t, plan.layers))
        self.length += len(ids)
        return hidden[-1:]

    def logits(self, hidden: np.ndarray) -> np.ndarray:
        side = self._cloud if self._plan.head.value == "cloud" else self._device
        return side.logits(hidden)[0]

    def _over_the_wire(self, hidden: np.ndarray, base: int) -> np.ndarray:
        rows, width = hidden.shape
        payload = codec.encode(hidden, self._plan.codec, base=base)
        return codec.decode(payload, self._plan.codec, rows=rows, hidden=width, base=base)
