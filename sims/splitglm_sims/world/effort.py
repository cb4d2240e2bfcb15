"""Undisturbed seconds and bytes of every pass of a plan, from the product's own profiles and lanes

The cost model adds these up; the simulated world lets them happen one by one. Nothing is scaled here: what slows a
machine down is multiplied where the pass runs.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Final, NamedTuple

import numpy as np

from splitglm_core.plan import Arm, SplitPlan
from splitglm_core.shapes import ModelShape
from splitglm_partitioner.lanes import lane_of
from splitglm_partitioner.layer_times import LayerTimes
from splitglm_partitioner.profiles import CloudProfile, DeviceProfile
from splitglm_wire import codec
from splitglm_wire.limits import MAX_ROWS

_KEPT_PREFILLS: Final = 64


class Line(NamedTuple):
    """Seconds that grow with the context: ``base_s + per_token_s * context``."""

    base_s: float
    per_token_s: float

    def at(self, context_tokens: float) -> float:
        return self.base_s + self.per_token_s * context_tokens


class Chunk(NamedTuple):
    """One prefill step.

    Attributes:
        context: positions cached before it.
        device_s: front, embedding and codec on the device; of that, ``front_s`` in the layers alone.
        seal_s, open_s: the record that goes up, and the one that comes back.
        back_s: its layers in the cloud.
        tail_s: what the device does when its answer is there, layers and codec.
        up_bytes, down_bytes: payload.
    """

    rows: int
    context: int
    device_s: float
    front_s: float
    seal_s: float
    back_s: float
    open_s: float
    tail_s: float
    up_bytes: int
    down_bytes: int


class Round(NamedTuple):
    """One decode step of some rows: one token and its drafts.

    Attributes:
        front, back, tail: layers on the device, in the cloud, on the device.
        device_s: what the device does besides before it sends: embedding, codec.
        after_s: and when the answer is there: codec, head.
        seal_s, open_s: the record that goes up, and the one that comes back.
        head_s: in the cloud.
        up_bytes, down_bytes: payload.
    """

    rows: int
    front: Line
    back: Line
    tail: Line
    device_s: float
    after_s: float
    seal_s: float
    open_s: float
    head_s: float
    up_bytes: int
    down_bytes: int


def line_of(times: LayerTimes, start: int, stop: int, rows: int) -> Line:
    """A decode pass of ``rows`` positions through layers ``[start, stop)`` of ``times``.

    The first position makes the pass grow with its context as a decode step does, each further one as one of a prefill.
    """
    if stop <= start:
        return Line(0.0, 0.0)
    decode = times.decode_cumulative(0.0)
    base_s = float(decode[stop] - decode[start])
    if rows > 1:
        empty = np.zeros(1)
        many = times.prefill_cumulative(np.array([float(rows)]), empty)[0]
        one = times.prefill_cumulative(np.ones(1), empty)[0]
        base_s += float(many[stop] - many[start] - one[stop] + one[start])
    per_row = (times.prefill_s_per_token_per_1k_context or 0.0) * (rows - 1)
    return Line(base_s, (stop - start) * (times.decode_s_per_1k_context + per_row) / 1000)


@dataclass(frozen=True, eq=False)
class Effort:
    """What one plan asks of one device and one cloud."""

    plan: SplitPlan
    model: ModelShape
    device: DeviceProfile
    cloud: CloudProfile

    @cached_property
    def chunk_tokens(self) -> int:
        """Positions of a prefill step: those of the plan, if they fit a record."""
        return min(self.plan.chunk_tokens, codec.max_rows(self.plan.codec, self.model.hidden), MAX_ROWS)

    @cached_property
    def _lane(self) -> tuple[int, int, int, int, float]:
        lane = lane_of(self.plan.arm, self.plan.codec, self.model.hidden)
        coding = 0.0 if lane.codec is None else self.device.codec_s_per_token(lane.codec) or 0.0
        return lane.up_row, lane.up_sink, lane.down_row, lane.down_sink, coding

    @property
    def deep(self) -> bool:
        """Whether layers after the back run on the device, so that every position comes down."""
        return self.plan.t < self.plan.layers

    def sealing_s(self, size: int) -> float:
        """Device seconds to seal, or to open, a record of ``size`` payload bytes."""
        return (self.device.seal_s_per_record or 0.0) + (self.device.seal_s_per_byte or 0.0) * size

    def prefill(self, prompt_tokens: int, cached_tokens: int) -> tuple[Chunk, ...]:
        """The steps of a prompt of which the caches hold the first ``cached_tokens``."""
        kept = self._prefills.get((prompt_tokens, cached_tokens))
        if kept is None:
            if len(self._prefills) >= _KEPT_PREFILLS:
                self._prefills.clear()
            kept = self._prefills[prompt_tokens, cached_tokens] = self._prefill(prompt_tokens, cached_tokens)
        return kept

    @cached_property
    def _prefills(self) -> dict[tuple[int, int], tuple[Chunk, ...]]:
        return {}

    def _prefill(self, prompt_tokens: int, cached_tokens: int) -> tuple[Chunk, ...]:
        plan, device, cloud = self.plan, self.device.active, self.cloud
        contexts = np.arange(cached_tokens, prompt_tokens, self.chunk_tokens)
        rows = np.minimum(self.chunk_tokens, prompt_tokens - contexts)
        front = device.times.prefill_cumulative(rows.astype(np.float64), contexts.astype(np.float64))
        fronts, tails = front[:, plan.s].tolist(), (front[:, -1] - front[:, plan.t]).tolist()
        backs = [0.0] * len(rows)
        if plan.arm is not Arm.DEVICE:
            back = cloud.padded(cloud.times.prefill_cumulative(rows.astype(np.float64), contexts.astype(np.float64)))
            backs = (back[:, plan.t] - back[:, plan.s]).tolist()
        up_row, up_sink, down_row, down_sink, coding = self._lane
        embed_s = device.embed_s if plan.s else 0.0
        chunks = []
        for i, (count, context) in enumerate(zip(rows.tolist(), contexts.tolist(), strict=True)):
            sink, last = context == 0, i == len(backs) - 1
            up = count * up_row + (up_sink if sink else 0)
            answered = count if self.deep else int(last)
            has_sink = sink and (self.deep or count == 1)
            down = answered * down_row + (down_sink if has_sink and answered else 0)
            decoded = answered if plan.arm is Arm.USHAPE else 0
            seal_s, open_s = (self.sealing_s(size) if size else 0.0 for size in (up, down))
            device_s = fronts[i] + count * (embed_s + coding)
            tail_s = tails[i] + decoded * coding
            chunks.append(Chunk(count, context, device_s, fronts[i], seal_s, backs[i], open_s, tail_s, up, down))
        return tuple(chunks)

    def round(self, rows: int) -> Round:
        """A decode step of ``rows`` positions: one known token, and drafted ones behind it."""
        kept = self._rounds.get(rows)
        if kept is None:
            kept = self._rounds[rows] = self._round(rows)
        return kept

    @cached_property
    def _rounds(self) -> dict[int, Round]:
        return {}

    def _round(self, rows: int) -> Round:
        plan, device, cloud = self.plan, self.device.active, self.cloud
        up_row, _, down_row, _, coding = self._lane
        here = plan.arm in (Arm.DEVICE, Arm.USHAPE)
        back = Line(0.0, 0.0)
        if plan.arm is not Arm.DEVICE:
            back = line_of(cloud.times, plan.s - cloud.served.start, plan.t - cloud.served.start, rows)
        up, down = rows * up_row, rows * down_row
        travels = plan.arm is not Arm.DEVICE
        decoding = rows * coding if plan.arm is Arm.USHAPE else 0.0
        return Round(
            rows=rows,
            front=line_of(device.times, 0, plan.s, rows),
            back=back,
            tail=line_of(device.times, plan.t, plan.layers, rows),
            device_s=rows * ((device.embed_s if plan.s else 0.0) + coding),
            after_s=decoding + (rows * device.head_s if here else 0.0),
            seal_s=self.sealing_s(up) if travels else 0.0,
            open_s=self.sealing_s(down) if travels else 0.0,
            head_s=0.0 if here else rows * (cloud.head_s or 0.0),
            up_bytes=up,
            down_bytes=down,
        )

    def shared(self, depth: int, rows: int) -> Line:
        """What a round saves whose drafter ran the first ``depth`` layers, and the embedding, for the drafted rows."""
        times, embed_s = self.device.active.times, self.device.active.embed_s
        many, one = line_of(times, 0, depth, rows), line_of(times, 0, depth, 1)
        return Line(many.base_s - one.base_s + (rows - 1) * embed_s, many.per_token_s - one.per_token_s)


class Efforts:
    """Efforts made once, for one device or for all of a crowd."""

    def __init__(self) -> None:
        self._machines: dict[DeviceProfile, DeviceProfile] = {}
        self._made: dict[tuple[SplitPlan, int], Effort] = {}

    def machine(self, device: DeviceProfile) -> DeviceProfile:
        """The one object that stands for all profiles equal to ``device``; what ``of`` is to be asked with."""
        return self._machines.setdefault(device, device)

    def of(self, plan: SplitPlan, model: ModelShape, machine: DeviceProfile, cloud: CloudProfile) -> Effort:
        """The effort of ``plan``; model and cloud are always the same."""
        key = plan, id(machine)  # which is kept, so its id stays its own
        made = self._made.get(key)
        if made is None:
            made = self._made[key] = Effort(plan, model, machine, cloud)
        return made
