"""Profiles, links and requests for the partitioner's tests: plain ones by keyword, random ones by hypothesis."""

from __future__ import annotations

import dataclasses
from typing import Any

from hypothesis import strategies as st

from splitglm_core.errors import InputError, NoFeasiblePlan
from splitglm_core.plan import Arm, Codec, HeadSide, Precision, Privacy, SplitPlan
from splitglm_core.ranges import LayerRange
from splitglm_core.shapes import ModelShape
from splitglm_partitioner.drafts import DraftStatistics
from splitglm_partitioner.factors import ArmFactors
from splitglm_partitioner.layer_times import LayerTimes, PrefillPoint
from splitglm_partitioner.policy import Decision, choose, decide
from splitglm_partitioner.power import PowerProfile
from splitglm_partitioner.profiles import CloudProfile, CodecTime, DeviceProfile, LinkEstimate, PrecisionProfile
from splitglm_partitioner.request import Fixed, Objective, Request, Situation, Warm

ALL_CODECS = (Codec.FP32, Codec.BF16, Codec.INT8)
HIDDEN = 256
POWER = PowerProfile(compute_w=4.0, radio_w=0.8, uplink_j_per_byte=2e-7, downlink_j_per_byte=1e-7)


def make_model(layers: int = 12, hidden: int = HIDDEN) -> ModelShape:
    return ModelShape(
        layers=layers,
        hidden=hidden,
        intermediate=4 * hidden,
        heads=4,
        kv_heads=2,
        head_dim=64,
        vocab=1000,
        max_positions=1 << 20,
        tied_head=False,
    )


def make_device(layers: int = 12, *, times: LayerTimes | None = None, **changes: Any) -> DeviceProfile:
    active = PrecisionProfile(
        precision=Precision.INT4,
        times=times or LayerTimes.uniform(layers, decode_s=4e-3, prefill_s_per_token=1e-3, chunk_tokens=64),
        embed_s=2e-6,
        head_s=3e-3,
        layer_weight_bytes=1_000_000,
        embedding_weight_bytes=500_000,
        head_weight_bytes=400_000,
    )
    base = DeviceProfile(
        layers=layers,
        precision=Precision.INT4,
        precisions=(active,),
        memory_bytes_free=1 << 40,
        kv_bytes_per_token_per_layer=1024,
        max_layers=layers,
    )
    return dataclasses.replace(base, **changes)


def make_cloud(layers: int = 12, *, served: LayerRange | None = None, **changes: Any) -> CloudProfile:
    served = served or LayerRange(0, layers)
    base = CloudProfile(
        layers=layers,
        served=served,
        times=LayerTimes.uniform(len(served), decode_s=5e-4, prefill_s_per_token=3e-5, chunk_tokens=64),
        has_embedding=True,
        has_head=True,
        head_s=1e-3,
        queue_s=2e-3,
        codecs=ALL_CODECS,
    )
    return dataclasses.replace(base, **changes)


def make_link(**changes: float) -> LinkEstimate:
    base = LinkEstimate(uplink_bytes_per_s=1.25e6, downlink_bytes_per_s=5e6, rtt_s=0.04, overhead_s=5e-4)
    return dataclasses.replace(base, **changes)


def make_request(**changes: Any) -> Request:
    return dataclasses.replace(Request(prompt_tokens=300, expected_new_tokens=50, chunk_tokens=64), **changes)


def ushape(layers: int, s: int, t: int, codec: Codec = Codec.BF16, chunk_tokens: int = 64) -> SplitPlan:
    return SplitPlan(layers=layers, s=s, t=t, head=HeadSide.DEVICE, codec=codec, chunk_tokens=chunk_tokens)


def split(layers: int, s: int, codec: Codec = Codec.BF16, chunk_tokens: int = 64) -> SplitPlan:
    return SplitPlan(layers=layers, s=s, t=layers, head=HeadSide.CLOUD, codec=codec, chunk_tokens=chunk_tokens)


def layer_times(layers: int) -> st.SearchStrategy[LayerTimes]:
    seconds = st.floats(1e-5, 1e-2)
    per_token = st.floats(1e-6, 1e-3)

    def build(decode: list[float], points: list[list[float]], growth: float | None) -> LayerTimes:
        return LayerTimes(
            decode_s=tuple(decode),
            decode_context_tokens=0,
            decode_s_per_1k_context=growth or 0.0,
            prefill=tuple(
                PrefillPoint(chunk_tokens=16 << i, s_per_token=tuple(point)) for i, point in enumerate(points)
            ),
            prefill_s_per_token_per_1k_context=growth,
        )

    return st.builds(
        build,
        st.lists(seconds, min_size=layers, max_size=layers),
        st.lists(st.lists(per_token, min_size=layers, max_size=layers), min_size=1, max_size=3),
        st.none() | st.floats(0.0, 1e-4),
    )


@st.composite
def plans(draw: st.DrawFn, layers: int) -> SplitPlan:
    arm = draw(st.sampled_from(list(Arm)))
    chunk = draw(st.sampled_from([1, 7, 32, 64]))
    codec = draw(st.sampled_from(ALL_CODECS))
    if arm is Arm.DEVICE:
        return SplitPlan.device_only(layers, chunk_tokens=chunk)
    if arm is Arm.CLOUD:
        return SplitPlan.cloud_only(layers, chunk_tokens=chunk)
    s = draw(st.integers(1, layers - 1))
    if arm is Arm.SPLIT:
        return split(layers, s, codec, chunk)
    return ushape(layers, s, draw(st.integers(s + 1, layers)), codec, chunk)


def links() -> st.SearchStrategy[LinkEstimate]:
    """Any link: rates, delays, uncertainty, bytes of others ahead, a radio at rest, slow start."""
    waits = st.just(0.0) | st.floats(0, 1)
    rates = st.floats(1e3, 1e8)
    return st.builds(
        make_link,
        uplink_bytes_per_s=rates,
        downlink_bytes_per_s=rates,
        rtt_s=st.floats(0, 0.5),
        uplink_rel_error=st.floats(0, 2),
        rtt_var_s=st.floats(0, 0.1),
        uplink_queue_s=waits,
        promotion_s=waits,
        window_bytes=st.none() | st.integers(1000, 100_000),
    )


@st.composite
def drafters(draw: st.DrawFn, layers: int, name: str, arms: tuple[Arm, ...] | None = None) -> DraftStatistics:
    """Any drafter: beside the front, early exit, or in the cloud."""
    chances = sorted(draw(st.lists(st.floats(0, 1), min_size=1, max_size=5)), reverse=True)
    seconds, kind = draw(st.floats(0, 1e-2)), draw(st.sampled_from(["plain", "front", "early exit", "in cloud"]))
    if kind == "in cloud" and arms in (None, (Arm.CLOUD,)):
        return DraftStatistics(
            name=name, s_per_token=seconds, survival=tuple(chances), arms=(Arm.CLOUD,), in_cloud=True
        )
    depth = 0 if kind in ("plain", "in cloud") else draw(st.integers(1, layers))
    given_arms = arms or draw(st.sampled_from([(Arm.CLOUD, Arm.SPLIT, Arm.USHAPE), (Arm.USHAPE,), (Arm.SPLIT,)]))
    return DraftStatistics(
        name=name,
        s_per_token=seconds,
        survival=tuple(chances),
        front_layers=depth,
        shares_front=kind == "early exit",
        arms=given_arms,
    )


@st.composite
def situations_of_plans(draw: st.DrawFn) -> tuple[Situation, SplitPlan]:
    """Anything that a plan's price may depend on, and a plan that has one."""
    layers = draw(st.integers(2, 5))
    device = make_device(
        layers,
        times=draw(layer_times(layers)),
        codecs=draw(st.sampled_from([(), tuple(CodecTime(codec=c, s_per_token=3e-5) for c in Codec)])),
        seal_s_per_byte=draw(st.none() | st.floats(0, 1e-7)),
        seal_s_per_record=draw(st.none() | st.floats(0, 1e-4)),
        slowdown=draw(st.just(1.0) | st.floats(0.5, 8)),
        power=draw(st.none() | st.just(POWER)),
    )
    cloud = make_cloud(
        layers,
        times=draw(layer_times(layers)),
        sweep_s=draw(st.floats(0, 0.1)),
        slowdown=draw(st.just(1.0) | st.floats(0.5, 8)),
        price_per_layer_token=draw(st.none() | st.just(1e-6)),
    )
    plan = draw(plans(layers))
    # Up to fourteen chunks: runs of equal chunks longer than the knots occur.
    prompt = draw(st.integers(1, 14 * plan.chunk_tokens))
    warm = Warm(plan=plan, cached_tokens=draw(st.integers(0, prompt - 1))) if draw(st.booleans()) else None
    drafts: tuple[DraftStatistics, ...] = ()
    if plan.arm is not Arm.DEVICE and draw(st.booleans()):
        drafts = (draw(drafters(layers, "drafter", (plan.arm,))),)
        if drafts[0].front_layers <= plan.s:
            length = draw(st.integers(1, len(drafts[0].survival)))
            plan = dataclasses.replace(plan, drafter="drafter", draft_tokens=length)
    request = make_request(prompt_tokens=prompt, chunk_tokens=plan.chunk_tokens, warm=warm)
    situation = Situation(
        request=request, model=make_model(layers), device=device, link=draw(links()), cloud=cloud, drafts=drafts
    )
    return situation, plan


def arm_factors() -> st.SearchStrategy[tuple[ArmFactors, ...]]:
    """Of any arms, each at most once."""
    one = st.builds(ArmFactors, arm=st.sampled_from(list(Arm)), ttft=st.floats(0.5, 2), per_token=st.floats(0.5, 2))
    return st.lists(one, max_size=4, unique_by=lambda factors: factors.arm).map(tuple)


def mostly(usual: Any, other: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """``usual`` in three of four draws: were every constraint tight, no plan would ever be allowed."""
    return st.integers(0, 3).flatmap(lambda n: other if n == 3 else st.just(usual))


@st.composite
def situations(draw: st.DrawFn) -> Situation:
    """Anything valid: any privacy, memory, cloud, overrides, open sessions, deadlines."""
    layers = draw(st.integers(2, 8))
    codec_times = draw(st.sampled_from([(), tuple(CodecTime(codec=c, s_per_token=1e-5) for c in ALL_CODECS)]))
    device = make_device(
        layers,
        times=draw(layer_times(layers)),
        memory_bytes_free=draw(mostly(1 << 40, st.integers(0, 20_000_000))),
        max_layers=draw(mostly(layers, st.integers(0, layers))),
        codecs=codec_times,
        seal_s_per_byte=draw(st.sampled_from([None, 2e-9])),
        power=draw(st.sampled_from([None, POWER])),
        slowdown=draw(st.sampled_from([1.0, 2.5])),
    )
    start = draw(st.integers(0, layers - 1))
    served = draw(
        mostly(LayerRange(0, layers), st.integers(start + 1, layers).map(lambda stop: LayerRange(start, stop)))
    )
    has_head = draw(mostly(True, st.just(False)))
    cloud = make_cloud(
        layers,
        served=served,
        times=draw(layer_times(len(served))),
        has_embedding=draw(mostly(True, st.just(False))),
        has_head=has_head,
        head_s=1e-3 if has_head else None,
        codecs=draw(mostly(ALL_CODECS, st.sampled_from([(), (Codec.BF16,)]))),
        price_per_layer_token=draw(mostly(1e-6, st.none())),
    )
    link = draw(links())
    prompt = draw(st.integers(1, 400))
    warm = None
    if draw(st.booleans()):
        warm = Warm(plan=draw(plans(layers)), cached_tokens=draw(st.integers(0, prompt - 1)))
    some_cut = st.builds(
        Fixed,
        arm=mostly(None, st.sampled_from(list(Arm))),
        s=st.none() | st.integers(0, layers),
        t=mostly(None, st.integers(0, layers)),
    )
    request = make_request(
        prompt_tokens=prompt,
        expected_new_tokens=draw(st.integers(1, 50)),
        privacy=draw(mostly(Privacy.OPEN, st.sampled_from(list(Privacy)))),
        s_min=draw(mostly(1, st.integers(1, layers))),
        deadline_s=draw(mostly(None, st.floats(0.01, 20.0) | st.floats(10.0, 1e4))),
        objective=Objective(
            latency=draw(mostly(1.0, st.just(0.0))),
            ttft=draw(st.floats(0.1, 5)),
            cloud_cost=draw(st.sampled_from([0.0, 1.0])),
            energy=draw(st.sampled_from([0.0, 0.3])) if device.power is not None else 0.0,
        ),
        energy_budget_j=draw(mostly(None, st.floats(0.01, 50.0) | st.floats(50.0, 1e4)))
        if device.power is not None
        else None,
        codecs=draw(st.sampled_from([(Codec.BF16,), (Codec.BF16, Codec.INT8), ALL_CODECS])),
        chunk_tokens=warm.plan.chunk_tokens if warm is not None else draw(st.sampled_from([1, 16, 50, 128])),
        chunks=draw(st.sampled_from([(), (8,), (33, 65, 200)])),
        head_on_device=draw(mostly(False, st.just(True))),
        fixed=draw(mostly(Fixed(), some_cut)),
        warm=warm,
    )
    reachable = draw(mostly(True, st.just(False)))
    names = draw(mostly(("one", "two"), st.sampled_from([(), ("one",)])))
    return Situation(
        request=request,
        model=make_model(layers),
        device=device,
        link=link if reachable else None,
        cloud=cloud if reachable else None,
        drafts=tuple(draw(drafters(layers, name)) for name in names),
        factors=draw(mostly((), arm_factors())),
    )


def pick(
    request: Request,
    *,
    device: DeviceProfile | None = None,
    link: LinkEstimate | None = None,
    cloud: CloudProfile | None = None,
    drafts: tuple[DraftStatistics, ...] = (),
) -> Decision:
    device, link, cloud = device or make_device(12), link or make_link(), cloud or make_cloud(12)
    return choose(request, make_model(12), device, link, cloud, drafts)


def drafting(**changes: Any) -> DraftStatistics:
    base = DraftStatistics(name="lookup", s_per_token=1e-5, survival=(0.8, 0.7, 0.6, 0.5))
    return dataclasses.replace(base, **changes)


def decide_or_none(situation: Situation) -> Decision | None:
    try:
        return decide(situation)
    except (NoFeasiblePlan, InputError):
        return None
