"""What the engine keeps of a session, and of the step it computes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from splitglm_cloud.engine.events import Owner
from splitglm_cloud.engine.runner import Cache, Hidden, Rows
from splitglm_cloud.engine.work import Work
from splitglm_core.errors import BadTensor
from splitglm_core.plan import Codec
from splitglm_core.shapes import ModelShape
from splitglm_glm.sampling import Sampler
from splitglm_wire import codec
from splitglm_wire.cloud import Configure
from splitglm_wire.frames import Reply, Step
from splitglm_wire.frames import Rows as RowsKind

MAX_WORK_ROWS: Final = 256
"""A longer step is computed in parts of as many rows, so that others' tokens wait for one part and not for all."""
DECODE_ROWS: Final = 8
"""A step of so few rows (a token, or a token and its drafts) counts as decoding: somebody waits for its answer. One
that is only acknowledged does not, or a prompt in small pieces would go before others' prompts."""


@dataclass(slots=True)
class Run:
    """The step a session is computing.

    Attributes:
        offered_s: when its next part was handed to the scheduler.
        queue_s: waiting until the sweep began in which it rode; 0 when it boarded the one under way.
        sweep_s: waiting from then (or from its arrival, if that came later) for that sweep to reach its first layer.
        compute_s: riding.
        inputs: all rows of the step, token ids or hidden states; decoded when the first part boards.
        done: rows that have passed every layer.
        part: rows that are aboard now; 0 while the step waits.
        base: position of the first of them.
        rows: these rows, between two segments.
        outputs: of finished parts, when the device wants all of them.
        generated: tokens of this step so far.
    """

    step: Step
    offered_s: float
    inputs: NDArray[Any] | None = None
    done: int = 0
    part: int = 0
    base: int = 0
    rows: Rows = None
    outputs: list[Hidden] = field(default_factory=list)
    generated: int = 0
    aborted: bool = False
    queue_s: float = 0.0
    sweep_s: float = 0.0
    compute_s: float = 0.0

    @property
    def next_rows(self) -> int:
        """Rows of the step's next part; after the last part, the one row of the token generated last."""
        return min(MAX_WORK_ROWS, self.step.rows - self.done) or 1

    @property
    def decode(self) -> bool:
        few = self.step.rows <= DECODE_ROWS and self.step.reply is not Reply.ACK
        return few or self.generated > 0

    def boarded(self, now_s: float, sweep_began_s: float) -> None:
        """The wait of the next part is over: split it at the time when the sweep began in which it rides."""
        left_s = max(self.offered_s, sweep_began_s)
        self.queue_s += left_s - self.offered_s
        self.sweep_s += now_s - left_s

    def times_us(self) -> tuple[int, int, int]:
        """Queue, sweep and compute time since they were last told: a device adds up the parts of a reply."""
        queue_us, sweep_us, compute_us = (int(1e6 * s) for s in (self.queue_s, self.sweep_s, self.compute_s))
        self.queue_s = self.sweep_s = self.compute_s = 0.0
        return queue_us, sweep_us, compute_us


@dataclass(slots=True, eq=False)
class Slot:
    """A session's state.

    Attributes:
        born: order among sessions: where memory is short, older ones matter more.
        used_s: when its last step ended.
    """

    key: int
    config: Configure
    owner: Owner
    cache: Cache
    sampler: Sampler
    deadline_s: float
    born: int
    used_s: float
    run: Run | None = None
    next_ids: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))


def latest_s(slot: Slot, run: Run, max_wait_s: float) -> float:
    """When a step is given up. What was begun is finished; only what nobody has begun may be too old."""
    return slot.deadline_s if run.done else min(slot.deadline_s, run.offered_s + max_wait_s)


def work_of(slot: Slot, run: Run, deadline_s: float) -> Work:
    """The next part of a session's step, or its next token, as the scheduler sees it."""
    return Work(
        session=slot.key,
        seq=run.step.seq,
        layers=slot.cache.layers,
        base=slot.cache.length,
        rows=run.next_rows,
        decode=run.decode,
        tenant=slot.owner.tenant,
        weight=slot.owner.weight,
        criticality=slot.config.criticality,
        deadline_s=deadline_s,
    )


def decoded(step: Step, coded: Codec, shape: ModelShape) -> NDArray[Any]:
    """Rows of a step as they came: token ids [n] int64 or hidden states [n, hidden] float32.

    Raises:
        BadTensor: an id outside the vocabulary; malformed, non-finite or absurdly large values.
    """
    if step.rows_kind is RowsKind.HIDDEN:
        return codec.decode(step.payload, coded, rows=step.rows, hidden=shape.hidden, base=step.base)
    ids: NDArray[np.int64] = np.frombuffer(step.payload, "<u4").astype(np.int64)
    if int(ids.max()) >= shape.vocab:
        raise BadTensor("a token id is outside the vocabulary")
    return ids
