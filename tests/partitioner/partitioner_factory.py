"""Profiles, links and requests for the partitioner's tests: plain ones by keyword, random ones by hypothesis."""

from __future__ import annotations

import dataclasses
from typing import Any

from hypothesis import strategies as st

from splitglm_core.plan import Arm, Codec, HeadSide, Precision, Privacy, SplitPlan
from splitglm_core.ranges import LayerRange
from splitglm_core.shapes import ModelShape
from splitglm_partitioner.layer_times import LayerTimes, PrefillPoint
from splitglm_partitioner.profiles import CloudProfile, CodecTime, DeviceProfile, LinkEstimate, PrecisionProfile
from splitglm_partitioner.request import Fixed, Objective, Request, Situation, Warm

ALL_CODECS = (Codec.FP32, Codec.BF16, Codec.INT8)


def make_model(layers: int = 12, hidden: int = 256) -> ModelShape:
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


@st.composite
def situations(draw: st.DrawFn) -> Situation:
    """Anything valid: any privacy, memory, cloud, overrides, open sessions, deadlines."""
    layers = draw(st.integers(2, 8))
    codec_times = draw(st.sampled_from([(), tuple(CodecTime(codec=c, s_per_token=1e-5) for c in ALL_CODECS)]))
    device = make_device(
        layers,
        times=draw(layer_times(layers)),
        memory_bytes_free=draw(st.integers(0, 20_000_000)),
        max_layers=draw(st.integers(0, layers)),
        codecs=codec_times,
    )
    start = draw(st.integers(0, layers - 1))
    served = LayerRange(start, draw(st.integers(start + 1, layers))) if draw(st.booleans()) else LayerRange(0, layers)
    has_head = draw(st.booleans())
    cloud = make_cloud(
        layers,
        served=served,
        times=draw(layer_times(len(served))),
        has_embedding=draw(st.booleans()),
        has_head=has_head,
        head_s=1e-3 if has_head else None,
        codecs=draw(st.sampled_from([(), (Codec.BF16,), ALL_CODECS])),
        price_per_layer_token=draw(st.sampled_from([None, 1e-6])),
    )
    link = make_link(
        uplink_bytes_per_s=draw(st.floats(1e3, 1e8)),
        downlink_bytes_per_s=draw(st.floats(1e3, 1e8)),
        rtt_s=draw(st.floats(0, 0.5)),
        uplink_rel_error=draw(st.floats(0, 2)),
        rtt_var_s=draw(st.floats(0, 0.1)),
    )
    prompt = draw(st.integers(1, 400))
    warm = None
    if draw(st.booleans()):
        warm = Warm(plan=draw(plans(layers)), cached_tokens=draw(st.integers(0, prompt - 1)))
    fixed = Fixed(
        arm=draw(st.none() | st.sampled_from(list(Arm))) if draw(st.booleans()) else None,
        s=draw(st.none() | st.integers(0, layers)) if draw(st.booleans()) else None,
        t=draw(st.none() | st.integers(0, layers)) if draw(st.booleans()) else None,
    )
    request = make_request(
        prompt_tokens=prompt,
        expected_new_tokens=draw(st.integers(1, 50)),
        privacy=draw(st.sampled_from(list(Privacy))),
        s_min=draw(st.integers(1, layers)),
        deadline_s=draw(st.none() | st.floats(0.0, 20.0)),
        objective=Objective(latency=1.0, ttft=draw(st.floats(0, 5)), cloud_cost=draw(st.sampled_from([0.0, 1.0]))),
        codecs=draw(st.sampled_from([(Codec.BF16,), (Codec.BF16, Codec.INT8), ALL_CODECS])),
        chunk_tokens=draw(st.sampled_from([1, 16, 50, 128])),
        head_on_device=draw(st.booleans()),
        fixed=fixed,
        warm=warm,
    )
    reachable = draw(st.booleans())
    return Situation(
        request=request,
        model=make_model(layers),
        device=device,
        link=link if reachable else None,
        cloud=cloud if reachable else None,
    )
