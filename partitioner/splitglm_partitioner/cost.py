"""What a plan costs: the one place where seconds and bytes of every arm are added up.

Prefill is a line of machines (front on the device, uplink, back in the cloud and, where the tail's KV caches need every
position, downlink and tail) through which the chunks pass in order, see ``pipeline``. Front and tail share the device,
which runs all fronts first. Propagation and the wait in the cloud's queue delay all chunks alike and occupy no machine.

Decode has no overlap, except that a cloud that samples and embeds by itself sends each token while computing the next.
All plans of a grid are priced together; ``cost_of`` prices a grid of one, so there is no second formula.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from splitglm_core.errors import InputError
from splitglm_core.plan import Arm, HeadSide, SplitPlan
from splitglm_core.shapes import ModelShape
from splitglm_partitioner.breakdown import Breakdown, Charge, Parts
from splitglm_partitioner.grid import Grid, grid_of_plan
from splitglm_partitioner.lanes import Lane
from splitglm_partitioner.layer_times import Seconds
from splitglm_partitioner.pipeline import run_jobs
from splitglm_partitioner.profiles import CloudProfile, DeviceProfile, LinkEstimate
from splitglm_partitioner.request import Request, Situation


def cost_of(
    plan: SplitPlan,
    request: Request,
    model: ModelShape,
    device: DeviceProfile,
    link: LinkEstimate | None,
    cloud: CloudProfile | None,
) -> Breakdown:
    """Price one plan, whether or not the request's constraints allow it.

    Raises:
        InputError: the plan is of another model, drafts, or needs a cloud, head or layers that are not there.
    """
    situation = Situation(request=request, model=model, device=device, link=link, cloud=cloud)
    if plan.layers != model.layers:
        raise InputError(f"the plan is of a model with {plan.layers} layers, not {model.layers}")
    if plan.arm is not Arm.DEVICE:
        if cloud is None or link is None:
            raise InputError(f"the cost of {plan} needs a cloud profile and a link estimate")
        if plan.head is HeadSide.CLOUD and not cloud.has_head:
            raise InputError(f"the cloud has no head for {plan}")
        if plan.arm is Arm.CLOUD and not cloud.has_embedding:
            raise InputError("the cloud has no embedding, so token ids cannot go up")
        if not cloud.served.covers(plan.back):
            raise InputError(f"the cloud serves layers {cloud.served}, not {plan.back}")
    grid = grid_of_plan(plan, model.hidden)
    cached = request.cached_tokens(plan)
    return price(grid, situation, link, chunk_tokens=plan.chunk_tokens, cached_tokens=cached).breakdown(0)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Prices:
    """Costs of every plan of a grid, and what is needed to explain any one of them.

    Attributes:
        grid, situation: what was priced.
        charges: per lane.
        steps, rows: chunks and positions of the prefill.
        front, back: seconds of the whole prefill in layers ``[0, l)`` on the device and in the cloud, ``[layers + 1]``.
        decode_device, decode_cloud: the same for one decode step.
        ttft_s, per_token_s, total_s: ``[plans]``.
    """

    grid: Grid
    situation: Situation
    charges: tuple[Charge, ...]
    steps: int
    rows: int
    front: list[float]
    back: list[float]
    decode_device: list[float]
    decode_cloud: list[float]
    ttft_s: Seconds
    per_token_s: Seconds
    total_s: Seconds

    @property
    def tokens_run(self) -> int:
        """Positions that pass through every layer: prompt not cached, and all new tokens but the last."""
        return self.rows + self.situation.request.expected_new_tokens - 1

    def wire_bytes(self, index: int) -> tuple[int, int]:
        """Payload bytes up and down of the whole request."""
        lane = self.grid.lanes[self.grid.lane[index]]
        request = self.situation.request
        fresh = self.rows == request.prompt_tokens
        up = self.tokens_run * lane.up_row + (lane.up_sink if fresh else 0)
        if index >= self.grid.deep_start:
            return up, self.tokens_run * lane.down_row + (lane.down_sink if fresh else 0)
        sink = lane.down_sink if request.prompt_tokens == 1 else 0
        return up, request.expected_new_tokens * lane.down_row + sink

    def breakdown(self, index: int) -> Breakdown:
        """Everything about plan ``index``."""
        grid, x = self.grid, self.situation
        s, t = int(grid.s[index]), int(grid.t[index])
        arm = grid.lanes[grid.lane[index]].arm
        memory = 0
        if arm is not Arm.CLOUD:
            held = s + grid.layers - t
            memory = x.device.memory_bytes(held, x.request.positions, embedding=True, head=arm is not Arm.SPLIT)
        up, down = self.wire_bytes(index)
        return Breakdown(
            ttft_s=float(self.ttft_s[index]),
            per_token_s=float(self.per_token_s[index]),
            total_s=float(self.total_s[index]),
            prefill=self._prefill(index, s, t),
            step=self._step(index, s, t),
            uplink_bytes=up,
            downlink_bytes=down,
            device_memory_bytes=memory,
            cloud_layer_tokens=(t - s) * self.tokens_run,
        )

    def _prefill(self, index: int, s: int, t: int) -> Parts:
        charge, rows = self.charges[self.grid.lane[index]], self.rows
        deep, front, back = index >= self.grid.deep_start, self.front, self.back
        codec_rows = rows + (rows if deep else charge.hidden_down)
        return Parts(
            front_s=front[s],
            codec_s=None if charge.codec_s is None else charge.codec_s * codec_rows,
            uplink_s=rows * charge.up_row_s + charge.up_sink_s,
            overhead_s=charge.overhead_s * self.steps,
            rtt_s=charge.rtt_s,
            queue_s=charge.queue_s,
            back_s=back[t] - back[s],
            downlink_s=rows * charge.down_row_s + charge.down_sink_s if deep else charge.down_last_s,
            tail_s=front[-1] - front[t],
            head_s=charge.head_s,
        )

    def _step(self, index: int, s: int, t: int) -> Parts:
        charge = self.charges[self.grid.lane[index]]
        alone = self.grid.lanes[self.grid.lane[index]].arm is Arm.CLOUD
        back = self.decode_cloud[t] - self.decode_cloud[s]
        return Parts(
            front_s=self.decode_device[s],
            codec_s=None if charge.codec_s is None else charge.codec_s * (1 + charge.hidden_down),
            uplink_s=0.0 if alone else charge.up_row_s,
            overhead_s=0.0 if alone else charge.overhead_s,
            rtt_s=0.0 if alone else charge.rtt_s,
            queue_s=charge.queue_s,
            back_s=back,
            downlink_s=charge.exposed_s(back) if alone else charge.down_row_s,
            tail_s=self.decode_device[-1] - self.decode_device[t],
            head_s=charge.head_s,
        )


def price(
    grid: Grid, situation: Situation, link: LinkEstimate | None, *, chunk_tokens: int, cached_tokens: int
) -> Prices:
    """Price every plan of ``grid`` over ``link``, ``cached_tokens`` of the prompt being in the KV caches already."""
    request, device, cloud = situation.request, situation.device.active, situation.cloud
    charges = tuple([_charge(lane, situation, link, fresh=cached_tokens == 0) for lane in grid.lanes])
    chunks, contexts = _chunks(request.prompt_tokens, cached_tokens, chunk_tokens)
    front = device.times.prefill_cumulative(chunks, contexts)
    front[:, 1:] += (device.embed_s * chunks)[:, None]
    mean_context = request.prompt_tokens + request.expected_new_tokens / 2
    decode_device = device.times.decode_cumulative(mean_context).copy()
    decode_device[1:] += device.embed_s
    if cloud is None:
        back, decode_cloud = np.zeros_like(front), np.zeros_like(decode_device)
    else:
        back = cloud.padded(cloud.times.prefill_cumulative(chunks, contexts))
        decode_cloud = cloud.padded(cloud.times.decode_cumulative(mean_context))
    ttft_s = _first_token_s(grid, charges, chunks, front, back)
    whole_back = float(decode_cloud[-1])
    fixed = np.array([charge.step_s(whole_back) for charge in charges])
    lead = decode_device - decode_cloud  # what layers [0, l) cost more here than there
    per_token_s = lead.take(grid.s) - lead.take(grid.t) + (decode_device[-1] + fixed).take(grid.lane)
    total_s = ttft_s + (request.expected_new_tokens - 1) * per_token_s
    return Prices(
        grid=grid,
        situation=situation,
        charges=charges,
        steps=len(chunks),
        rows=request.prompt_tokens - cached_tokens,
        front=front.sum(axis=0).tolist(),
        back=back.sum(axis=0).tolist(),
        decode_device=decode_device.tolist(),
        decode_cloud=decode_cloud.tolist(),
        ttft_s=ttft_s,
        per_token_s=per_token_s,
        total_s=total_s,
    )


def _chunks(prompt: int, cached: int, chunk: int) -> tuple[Seconds, Seconds]:
    """Tokens of each prefill chunk and the context before it."""
    contexts = np.arange(cached, prompt, chunk, dtype=np.float64)
    chunks = np.full(len(contexts), float(chunk))
    chunks[-1] = prompt - contexts[-1]
    return chunks, contexts


def _charge(lane: Lane, situation: Situation, link: LinkEstimate | None, *, fresh: bool) -> Charge:
    """Seconds of ``lane``'s traffic and of its fixed work."""
    device, cloud = situation.device, situation.cloud
    if lane.arm is Arm.DEVICE or link is None or cloud is None:
        return Charge(head_s=device.active.head_s)
    down = 1.0 / link.downlink_bytes_per_s
    up = 1.0 / link.uplink_bytes_per_s
    in_cloud = lane.arm is not Arm.USHAPE
    alone_in_prompt = situation.request.prompt_tokens == 1
    return Charge(
        head_s=(cloud.head_s or 0.0) if in_cloud else device.active.head_s,
        up_row_s=lane.up_row * up,
        up_sink_s=lane.up_sink * up if fresh else 0.0,
        down_row_s=lane.down_row * down,
        down_sink_s=lane.down_sink * down if fresh else 0.0,
        down_last_s=(lane.down_row + (lane.down_sink if alone_in_prompt else 0)) * down,
        overhead_s=link.overhead_s,
        rtt_s=link.rtt_s,
        queue_s=cloud.queue_s,
        codec_s=None if lane.codec is None else device.codec_s_per_token(lane.codec),
        hidden_down=0 if in_cloud else 1,
        autonomous=lane.arm is Arm.CLOUD,
    )


def _first_token_s(grid: Grid, charges: tuple[Charge, ...], chunks: Seconds, front: Seconds, back: Seconds) -> Seconds:
    """Time to first token of every plan."""
    lane, s, t, deep = grid.lane, grid.s, grid.t, grid.deep_start
    table = np.array([charge.rates() for charge in charges]).T
    up_row, up_sink, overhead, codec, after = table[:5].take(lane, axis=1)
    sinks, coded, tailed = bool(table[1].any()), bool(table[3].any()), deep < len(s)
    ends = [np.zeros(len(s)) for _ in range(5 if tailed else 3)]
    if tailed:
        # Downlink and tail are machines of no work for the plans that have none. The tail waits for all fronts; its
        # clock runs late by the lag of link and queue, so that a chunk arrives there as it leaves the downlink.
        tail_rates = table[3:].take(lane, axis=1)
        tail_rates[:, :deep] = 0.0
        decoding, _, down_row, down_sink, lag, head = tail_rates
        after[deep:] = (lag + head)[deep:]
        ends[4][deep:] = (front.sum(axis=0).take(s) + float(chunks.sum()) * decoding - lag)[deep:]
    times: list[Seconds] = []
    for first, count in _runs(chunks, front, back):
        if count == 1:
            tokens, ahead, behind = float(chunks[first]), front[first], back[first]
            times = [ahead.take(s), tokens * up_row + overhead, behind.take(t) - behind.take(s)]
            if tailed:
                times += [tokens * down_row, (ahead[-1] - ahead).take(t)]
            if coded:
                times[0] += tokens * codec
                if tailed:
                    times[4] += tokens * decoding
        if first == 0 and sinks:
            with_sink = [times[0], times[1] + up_sink, *times[2:]]
            if tailed:
                with_sink[3] = times[3] + down_sink
            run_jobs(ends, with_sink, 1)
        else:  # a run of several is of chunks like the one before, but for position 0
            run_jobs(ends, times, count)
    out: Seconds = ends[-1] + after
    return out


def _runs(chunks: Seconds, front: Seconds, back: Seconds) -> list[tuple[int, int]]:
    """Consecutive chunks of equal cost as (index, count). The first may carry position 0, the last may be short."""
    n = len(chunks)
    # Seconds never fall with context, so equal ends mean that no chunk between them differs.
    if n > 3 and front[1, -1] == front[-2, -1] and back[1, -1] == back[-2, -1]:
        return [(0, 1), (1, n - 2), (n - 1, 1)]
    return [(i, 1) for i in range(n)]
