"""A small world for strategies: profiles, tasks, and a truth that answers each plan with what it would cost."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from splitglm_core.plan import Arm, Codec, Precision, Privacy, SplitPlan
from splitglm_core.ranges import LayerRange
from splitglm_core.shapes import ModelShape
from splitglm_partitioner.cost import cost_of
from splitglm_partitioner.drafts import DraftStatistics
from splitglm_partitioner.governor import Vitals
from splitglm_partitioner.layer_times import LayerTimes
from splitglm_partitioner.observations import Direction, Outcome, ReplyEnded, RoundTrip, Transfer
from splitglm_partitioner.profiles import CloudProfile, DeviceProfile, LinkEstimate, PrecisionProfile
from splitglm_partitioner.request import Request, Situation
from splitglm_sims.strategies.facts import Facts
from splitglm_sims.strategies.strategy import Strategy, Task

LAYERS = 12

MODEL = ModelShape(
    layers=LAYERS,
    hidden=1024,
    intermediate=4096,
    heads=8,
    kv_heads=2,
    head_dim=128,
    vocab=1000,
    max_positions=1 << 16,
    tied_head=False,
)


def make_device(*, layer_s: float = 4e-3, prefill_s: float = 1e-3, **changes: Any) -> DeviceProfile:
    times = LayerTimes.uniform(LAYERS, decode_s=layer_s, prefill_s_per_token=prefill_s, chunk_tokens=64)
    active = PrecisionProfile(
        precision=Precision.INT4,
        times=times,
        embed_s=1e-6,
        head_s=3e-3,
        layer_weight_bytes=1_000_000,
        embedding_weight_bytes=500_000,
        head_weight_bytes=400_000,
    )
    base = DeviceProfile(
        layers=LAYERS,
        precision=Precision.INT4,
        precisions=(active,),
        memory_bytes_free=1 << 40,
        kv_bytes_per_token_per_layer=1024,
        max_layers=LAYERS,
    )
    return replace(base, **changes)


def make_cloud(**changes: Any) -> CloudProfile:
    base = CloudProfile(
        layers=LAYERS,
        served=LayerRange(0, LAYERS),
        times=LayerTimes.uniform(LAYERS, decode_s=5e-4, prefill_s_per_token=3e-5, chunk_tokens=64),
        has_embedding=True,
        has_head=True,
        head_s=1e-3,
        queue_s=0.0,
        codecs=(Codec.BF16, Codec.INT8),
    )
    return replace(base, **changes)


LINK = LinkEstimate(uplink_bytes_per_s=1.25e6, downlink_bytes_per_s=5e6, rtt_s=0.04, overhead_s=5e-4)

LOOKUP = DraftStatistics(name="lookup", s_per_token=1e-4, survival=(0.3, 0.1))
EXIT = DraftStatistics(
    name="exit12", s_per_token=0.02, survival=(0.6, 0.4, 0.2), front_layers=4, shares_front=True, arms=(Arm.USHAPE,)
)
MODEL_DRAFTS = DraftStatistics(name="draft-int4", s_per_token=0.03, survival=(0.9, 0.8, 0.7, 0.6), arms=(Arm.CLOUD,))
DRAFTS = (LOOKUP, EXIT, MODEL_DRAFTS)


def make_situation(
    *,
    device: DeviceProfile | None = None,
    cloud: CloudProfile | None = None,
    link: LinkEstimate | None = LINK,
    drafts: tuple[DraftStatistics, ...] = (),
    **request: Any,
) -> Situation:
    asked = Request(prompt_tokens=200, expected_new_tokens=40, chunk_tokens=64, privacy=Privacy.OPEN)
    return Situation(
        request=replace(asked, **request),
        model=MODEL,
        device=device or make_device(),
        link=link,
        cloud=cloud or make_cloud(),
        drafts=drafts,
    )


def make_facts(situation: Situation) -> Facts:
    return Facts(
        model=situation.model,
        device=situation.device,
        cloud=situation.cloud,
        drafts={"chat": situation.drafts},
    )


def make_task(situation: Situation, now_s: float = 0.0, **changes: Any) -> Task:
    return replace(Task(now_s=now_s, situation=situation, genre="chat", vitals=Vitals()), **changes)


@dataclass(frozen=True)
class Truth:
    """What plans really cost: the cost model at a link and machines that the strategies are not told."""

    situation: Situation

    def outcome(self, plan: SplitPlan, factor: float = 1.0) -> Outcome:
        x = self.situation
        cost = cost_of(replace(plan, drafter="none", draft_tokens=0), x.request, x.model, x.device, x.link, x.cloud)
        return Outcome(
            ttft_s=cost.ttft_s * factor,
            total_s=cost.total_s * factor,
            new_tokens=x.request.expected_new_tokens,
            uplink_bytes=cost.uplink_bytes,
            downlink_bytes=cost.downlink_bytes,
        )


def live(
    strategy: Strategy,
    believed: Situation,
    truth: Callable[[int], Situation],
    *,
    requests: int,
    seed: int = 0,
    noise: float = 0.0,
) -> Iterator[tuple[SplitPlan, Outcome]]:
    """``requests`` replies in a row, ten seconds apart. The strategy sees what a device sees of each."""
    luck = random.Random(seed)
    for index in range(requests):
        now_s = 10.0 * index
        true = truth(index)
        plan = strategy.choose(make_task(believed, now_s))
        outcome = Truth(true).outcome(plan, luck.lognormvariate(0.0, noise) if noise else 1.0)
        end_s = now_s + outcome.total_s
        if plan.arm is not Arm.DEVICE and true.link is not None:
            strategy.observe(RoundTrip(at_s=end_s, seconds=true.link.rtt_s))
            strategy.observe(seen(Direction.UP, outcome.uplink_bytes, true.link.uplink_bytes_per_s, end_s))
            strategy.observe(seen(Direction.DOWN, outcome.downlink_bytes, true.link.downlink_bytes_per_s, end_s))
        strategy.observe(
            ReplyEnded(
                at_s=end_s,
                plan=plan,
                genre="chat",
                max_new_tokens=believed.request.expected_new_tokens,
                predicted_ttft_s=0.0,
                predicted_per_token_s=0.0,
                outcome=outcome,
            )
        )
        yield plan, outcome


def seen(direction: Direction, size: int, bytes_per_s: float, at_s: float) -> Transfer:
    return Transfer(at_s=at_s, direction=direction, transfer_bytes=size, seconds=size / bytes_per_s)


def quarters(values: list[float]) -> tuple[float, float]:
    """Sums of the first and the last quarter."""
    quarter = len(values) // 4
    return sum(values[:quarter]), sum(values[-quarter:])
