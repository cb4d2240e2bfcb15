"""What one plan costs, term by term: the prices of a grid of one, itemised."""

from __future__ import annotations

from splitglm_core.errors import InputError
from splitglm_core.plan import Arm, HeadSide, SplitPlan
from splitglm_core.shapes import ModelShape
from splitglm_partitioner.basis import basis_of
from splitglm_partitioner.breakdown import Breakdown, Parts
from splitglm_partitioner.decoding_rounds import rounds_of_plan
from splitglm_partitioner.drafts import DraftStatistics
from splitglm_partitioner.factors import ArmFactors, factors_of
from splitglm_partitioner.grid import grid_of_plan
from splitglm_partitioner.layer_times import Seconds
from splitglm_partitioner.pricing import Prices, Run, alone_s, first_wait_s, price
from splitglm_partitioner.profiles import CloudProfile, DeviceProfile, LinkEstimate
from splitglm_partitioner.request import Request, Situation


def cost_of(
    plan: SplitPlan,
    request: Request,
    model: ModelShape,
    device: DeviceProfile,
    link: LinkEstimate | None,
    cloud: CloudProfile | None,
    drafts: tuple[DraftStatistics, ...] = (),
    factors: tuple[ArmFactors, ...] = (),
) -> Breakdown:
    """Price one plan, whether or not the request's constraints allow it.

    Raises:
        InputError: the plan is of another model, drafts with a drafter that ``drafts`` does not hold, or needs a cloud,
            head or layers that are not there.
    """
    situation = Situation(
        request=request, model=model, device=device, link=link, cloud=cloud, drafts=drafts, factors=factors
    )
    return cost_in(situation, plan)


def cost_in(situation: Situation, plan: SplitPlan) -> Breakdown:
    """``cost_of`` for inputs already bundled."""
    _check(situation, plan)
    request, device, link = situation.request, situation.device, situation.link
    basis = basis_of(grid_of_plan(plan, situation.model.hidden), device, situation.cloud)
    run = Run(plan.chunk_tokens, request.cached_tokens(plan))
    rounds = rounds_of_plan(basis, plan, situation)
    prices = price(basis, situation, (link,), (run,), rounds, energy=device.power is not None)
    ttft_s, per_token_s = float(prices.ttft_s[0, 0, 0]), float(prices.per_token_s[0, 0, 0])
    factors = factors_of(plan.arm, situation.factors)
    prefill = _prefill(prices, plan)._replace(calibration_s=ttft_s - ttft_s / factors.ttft)
    step = _step(prices)._replace(calibration_s=per_token_s - per_token_s / factors.per_token)
    further = request.expected_new_tokens - 1
    memory, held = 0, plan.s + plan.layers - plan.t
    if plan.arm is not Arm.CLOUD:
        memory = device.memory_bytes(held, request.positions, embedding=True, head=plan.arm is not Arm.SPLIT)
    layer_tokens = (plan.t - plan.s) * (prices.rows(0) + further * float(rounds.per_token[0]))
    up, down = wire_bytes(prices, 0, 0, 0)
    joules = None
    if prices.first_j is not None and prices.token_j is not None:
        joules = float(prices.first_j[0, 0, 0] + further * prices.token_j[0, 0, 0])
    unit = situation.cloud.price_per_layer_token if situation.cloud is not None else None
    return Breakdown(
        ttft_s=ttft_s,
        per_token_s=per_token_s,
        total_s=ttft_s + further * per_token_s,
        prefill=prefill,
        step=step,
        uplink_bytes=round(up),
        downlink_bytes=round(down),
        device_memory_bytes=memory,
        cloud_layer_tokens=round(layer_tokens),
        energy_j=joules,
        price=0.0 if plan.arm is Arm.DEVICE else None if unit is None else unit * layer_tokens,
    )


def wire_bytes(prices: Prices, run: int, choice: int, column: int) -> tuple[float, float]:
    """Payload bytes up and down of the whole request under one plan, run and round."""
    basis, request = prices.basis, prices.situation.request
    lane, rows = basis.grid.lanes[basis.grid.lane[column]], prices.rows(run)
    fresh, further = rows == request.prompt_tokens, request.expected_new_tokens - 1
    steps = further * float(prices.rounds.per_token[choice])
    alone = column == basis.alone and choice in prices.rounds.alone
    up = (rows + (0.0 if alone else steps)) * lane.up_row + (lane.up_sink if fresh else 0)
    if column >= basis.grid.deep_start:
        return up, (rows + steps) * lane.down_row + (lane.down_sink if fresh else 0)
    return up, (1 + steps) * lane.down_row + (lane.down_sink if request.prompt_tokens == 1 else 0)


def _check(situation: Situation, plan: SplitPlan) -> None:
    cloud = situation.cloud
    if plan.layers != situation.model.layers:
        raise InputError(f"the plan is of a model with {plan.layers} layers, not {situation.model.layers}")
    if plan.arm is not Arm.DEVICE:
        if cloud is None or situation.link is None:
            raise InputError(f"the cost of {plan} needs a cloud profile and a link estimate")
        if plan.head is HeadSide.CLOUD and not cloud.has_head:
            raise InputError(f"the cloud has no head for {plan}")
        if plan.arm is Arm.CLOUD and not cloud.has_embedding:
            raise InputError("the cloud has no embedding, so token ids cannot go up")
        if not cloud.served.covers(plan.back):
            raise InputError(f"the cloud serves layers {cloud.served}, not {plan.back}")


def _prefill(prices: Prices, plan: SplitPlan) -> Parts:
    basis, prefill, situation = prices.basis, prices.prefill, prices.situation
    deep = basis.grid.deep_start == 0
    amounts = (prefill.amounts_with_tail() if deep else prefill.amounts_without_tail())[0]
    seconds = amounts * prices.rates[0] * basis.matrix[:, 0]
    lane, link = basis.grid.lanes[0], prices.links[0]
    if link is None or plan.arm is Arm.DEVICE:
        return _parts(prices, seconds)
    front = prefill.counts[0, 0] @ prefill.amounts[0]
    first_s = float((front * prices.rates[0] * basis.matrix[:, 0])[basis.layout.front].sum())
    size = prices.rows(0) * lane.up_row + (lane.up_sink if prices.rows(0) == situation.request.prompt_tokens else 0)
    waits = {
        "uplink_queue_s": max(0.0, link.uplink_queue_s - first_s),
        "promotion_s": link.promotion_s,
        "slow_start_s": first_wait_s(size, link) - link.promotion_s,
    }
    return _parts(prices, seconds)._replace(**waits)


def _step(prices: Prices) -> Parts:
    basis, rounds = prices.basis, prices.rounds
    seconds = rounds.amounts[0] * prices.rates[0] * basis.matrix[:, 0]
    parts = _parts(prices, seconds)
    if basis.alone is None or not rounds.alone:
        return parts
    busy, sending = alone_s(basis, rounds, prices.rates, prices.situation)
    there = parts.queue_s + parts.sweep_s + parts.back_s + parts.head_s
    hidden = dict.fromkeys(("front_s", "uplink_s", "overhead_s", "rtt_s", "tail_s"), 0.0)
    return parts._replace(
        **hidden,
        draft_s=float(busy[0, 0]) - there if rounds.choices[0].in_cloud else 0.0,
        seal_s=None if parts.seal_s is None else 0.0,
        downlink_s=max(0.0, float(sending[0, 0] - busy[0, 0])),
    )


def _parts(prices: Prices, seconds: Seconds) -> Parts:
    """``seconds`` by quantity as seconds by term."""
    sums = dict.fromkeys(Parts._fields, 0.0)
    for term, value in zip(prices.basis.layout.terms, seconds.tolist(), strict=True):
        sums[term] += value
    device, lane = prices.situation.device, prices.basis.grid.lanes[0]
    coded = lane.codec is not None and device.codec_s_per_token(lane.codec) is not None
    sealed = lane.arm is not Arm.DEVICE and (device.seal_s_per_byte is not None or device.seal_s_per_record is not None)
    out: dict[str, float | None] = dict(sums)
    if not coded:
        out["codec_s"] = None
    if not sealed:
        out["seal_s"] = None
    return Parts(**out)  # type: ignore[arg-type]
