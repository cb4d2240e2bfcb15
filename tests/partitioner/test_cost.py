"""Bytes, memory, decode seconds and the order that more resources must keep."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from partitioner_factory import (
    ALL_CODECS,
    layer_times,
    make_cloud,
    make_device,
    make_link,
    make_model,
    make_request,
    plans,
    split,
    ushape,
)

from splitglm_core.errors import InputError
from splitglm_core.plan import Arm, Codec, HeadSide, SplitPlan
from splitglm_core.ranges import LayerRange
from splitglm_partitioner.breakdown import Breakdown
from splitglm_partitioner.cost import cost_of
from splitglm_partitioner.lanes import row_bytes, sink_extra_bytes
from splitglm_partitioner.layer_times import LayerTimes, PrefillPoint
from splitglm_partitioner.profiles import CloudProfile, CodecTime, DeviceProfile, LinkEstimate
from splitglm_partitioner.request import Request, Warm
from splitglm_wire.codec import payload_bytes

N = 12
MODEL = make_model(N, hidden=256)


def price(
    plan: SplitPlan,
    request: Request | None = None,
    *,
    device: DeviceProfile | None = None,
    link: LinkEstimate | None = None,
    cloud: CloudProfile | None = None,
) -> Breakdown:
    request = request or make_request()
    return cost_of(plan, request, MODEL, device or make_device(), link or make_link(), cloud or make_cloud())


@pytest.mark.parametrize("codec", ALL_CODECS)
@pytest.mark.parametrize("hidden", [64, 576, 4096])
def test_payload_sizes_are_those_of_the_wire(codec: Codec, hidden: int) -> None:
    for rows in (1, 2, 100):
        assert rows * row_bytes(codec, hidden) == payload_bytes(codec, rows, hidden, 1)
        assert rows * row_bytes(codec, hidden) + sink_extra_bytes(codec, hidden) == payload_bytes(
            codec, rows, hidden, 0
        )


@pytest.mark.parametrize("codec", ALL_CODECS)
@pytest.mark.parametrize("t", [N, N - 3])
def test_a_ushape_with_a_tail_downloads_every_prompt_position_and_without_one_only_the_last(
    codec: Codec, t: int
) -> None:
    request = make_request(prompt_tokens=300, expected_new_tokens=50)
    cost = price(ushape(N, 4, t, codec), request)
    steps = 49 * payload_bytes(codec, 1, 256, 300)
    assert cost.uplink_bytes == payload_bytes(codec, 300, 256, 0) + steps
    down = payload_bytes(codec, 300, 256, 0) if t < N else payload_bytes(codec, 1, 256, 299)
    assert cost.downlink_bytes == down + steps


def test_split_downloads_token_ids_and_cloud_only_also_uploads_the_prompts() -> None:
    request = make_request(prompt_tokens=300, expected_new_tokens=50)
    assert price(split(N, 4), request).downlink_bytes == 4 * 50
    cloud_only = price(SplitPlan.cloud_only(N), request)
    assert (cloud_only.uplink_bytes, cloud_only.downlink_bytes) == (4 * 300, 4 * 50)
    device_only = price(SplitPlan.device_only(N), request)
    assert (device_only.uplink_bytes, device_only.downlink_bytes) == (0, 0)


def test_decode_of_each_arm_is_the_sum_of_its_places() -> None:
    """Uniform layers: 4 ms on the device, 0.5 ms in the cloud; heads 3 ms and 1 ms; 40 ms RTT, 2 ms queue."""
    row_s, token_down_s = 512 / 1.25e6, 4 / 5e6
    lag = 0.04 + 5e-4 + 2e-3
    assert price(SplitPlan.device_only(N)).per_token_s == pytest.approx(N * 4e-3 + 2e-6 + 3e-3)
    assert price(SplitPlan.cloud_only(N)).per_token_s == pytest.approx(N * 5e-4 + 2e-3 + 1e-3)
    assert price(split(N, 4)).per_token_s == pytest.approx(
        4 * 4e-3 + 2e-6 + row_s + lag + 8 * 5e-4 + 1e-3 + token_down_s
    )
    assert price(ushape(N, 4, 10)).per_token_s == pytest.approx(
        6 * 4e-3 + 2e-6 + row_s + lag + 6 * 5e-4 + 3e-3 + 512 / 5e6
    )


def test_a_cloud_that_goes_on_alone_pays_no_round_trip_but_cannot_outrun_a_slow_downlink() -> None:
    assert price(SplitPlan.cloud_only(N)).step.rtt_s == 0.0
    far = price(SplitPlan.cloud_only(N), link=make_link(rtt_s=2.0))
    assert far.per_token_s == price(SplitPlan.cloud_only(N)).per_token_s
    slow = price(SplitPlan.cloud_only(N), link=make_link(downlink_bytes_per_s=100.0))
    assert slow.per_token_s == pytest.approx(4 / 100.0 + 5e-4)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_decode_parts_add_up_and_prefill_parts_bound_the_first_token(data: st.DataObject) -> None:
    times = data.draw(st.sampled_from([(), tuple(CodecTime(codec=c, s_per_token=2e-5) for c in ALL_CODECS)]))
    device = make_device(N, times=data.draw(layer_times(N)), codecs=times)
    plan = data.draw(plans(N))
    request = make_request(
        prompt_tokens=data.draw(st.integers(1, 200)), expected_new_tokens=data.draw(st.integers(1, 9))
    )
    cost = price(plan, request, device=device, cloud=make_cloud(N, times=data.draw(layer_times(N))))
    assert cost.step.busy_s == pytest.approx(cost.per_token_s)
    assert cost.ttft_s <= cost.prefill.busy_s * (1 + 1e-9)
    lag = cost.prefill.rtt_s + cost.prefill.queue_s + cost.prefill.head_s
    busiest = max(cost.prefill.front_s + cost.prefill.tail_s, cost.prefill.uplink_s, cost.prefill.back_s)
    assert cost.ttft_s >= max(lag, busiest) * (1 - 1e-9)
    assert cost.total_s == pytest.approx(cost.ttft_s + (request.expected_new_tokens - 1) * cost.per_token_s)
    if times == () or plan.arm in (Arm.DEVICE, Arm.CLOUD):
        assert cost.step.codec_s is None and cost.prefill.codec_s is None


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_better_link_never_makes_a_plan_slower(data: st.DataObject) -> None:
    plan = data.draw(plans(N))
    device, cloud = make_device(N, times=data.draw(layer_times(N))), make_cloud(N, times=data.draw(layer_times(N)))
    name = data.draw(st.sampled_from(["uplink_bytes_per_s", "downlink_bytes_per_s", "rtt_s", "overhead_s"]))
    link = make_link()
    better = getattr(link, name) * data.draw(st.floats(1.0, 100.0)) ** (1 if name.endswith("bytes_per_s") else -1)
    before = price(plan, device=device, link=link, cloud=cloud)
    after = price(plan, device=device, link=dataclasses.replace(link, **{name: better}), cloud=cloud)
    assert after.ttft_s <= before.ttft_s * (1 + 1e-12)
    assert after.per_token_s <= before.per_token_s * (1 + 1e-12)


def test_device_memory_counts_layers_caches_embedding_and_the_head_where_it_is() -> None:
    positions = 300 + 50
    layer = 1_000_000 + positions * 1024
    assert price(split(N, 4)).device_memory_bytes == 4 * layer + 500_000
    assert price(ushape(N, 4, 10)).device_memory_bytes == 6 * layer + 500_000 + 400_000
    assert price(SplitPlan.device_only(N)).device_memory_bytes == N * layer + 900_000
    assert price(SplitPlan.cloud_only(N)).device_memory_bytes == 0


def test_the_cloud_is_charged_for_its_layers_and_for_every_token_it_runs() -> None:
    assert price(ushape(N, 4, 10)).cloud_layer_tokens == 6 * (300 + 49)
    assert price(SplitPlan.device_only(N)).cloud_layer_tokens == 0


def test_an_open_session_of_the_same_cut_runs_and_uploads_only_new_tokens() -> None:
    plan = split(N, 4)
    warm = make_request(warm=Warm(plan=plan, cached_tokens=260))
    cost = price(plan, warm)
    assert cost.uplink_bytes == (40 + 49) * 512
    assert cost.prefill.front_s < 0.2 * price(plan).prefill.front_s
    assert price(split(N, 5), warm) == price(split(N, 5))
    assert price(split(N, 4, Codec.INT8), warm) == price(split(N, 4, Codec.INT8))
    assert price(ushape(N, 4, N), warm) == price(ushape(N, 4, N))


def test_an_open_session_never_sends_the_attention_sink_again() -> None:
    plan = split(N, 4, Codec.INT8)
    cost = price(plan, make_request(warm=Warm(plan=plan, cached_tokens=260)))
    assert cost.uplink_bytes == payload_bytes(Codec.INT8, 40 + 49, 256, 260)


def test_decode_slows_with_the_measured_growth_of_context() -> None:
    times = LayerTimes.uniform(
        N, decode_s=4e-3, prefill_s_per_token=1e-3, decode_context_tokens=100, decode_s_per_1k_context=1e-3
    )
    request = make_request(prompt_tokens=1000, expected_new_tokens=200)
    cost = price(SplitPlan.device_only(N), request, device=make_device(N, times=times))
    assert cost.step.front_s == pytest.approx(N * (4e-3 + 1e-3 * (1100 - 100) / 1000) + 2e-6)


def test_a_chunk_between_measured_sizes_is_interpolated_down_to_a_decode_step() -> None:
    times = LayerTimes(
        decode_s=(1.0,),
        decode_context_tokens=0,
        decode_s_per_1k_context=0.0,
        prefill=(
            PrefillPoint(chunk_tokens=11, s_per_token=(1.0,)),
            PrefillPoint(chunk_tokens=21, s_per_token=(0.8,)),
        ),
    )
    device = make_device(1, times=times, precision=make_device().precision)
    for tokens, seconds in ((1, 1.0), (6, 6.0), (11, 11.0), (16, 13.9), (21, 16.8), (42, 33.6)):
        request = make_request(prompt_tokens=tokens, expected_new_tokens=1)
        plan = SplitPlan.device_only(1, chunk_tokens=64)
        cost = cost_of(plan, request, make_model(1), device, None, None)
        assert cost.prefill.front_s == pytest.approx(seconds + tokens * 2e-6)


@pytest.mark.parametrize(
    ("plan", "cloud"),
    [
        (
            split(N, 4),
            make_cloud(N, served=LayerRange(0, 8), times=LayerTimes.uniform(8, decode_s=1, prefill_s_per_token=1)),
        ),
        (split(N, 4), make_cloud(N, has_head=False, head_s=None)),
        (SplitPlan.cloud_only(N), make_cloud(N, has_embedding=False)),
        (SplitPlan(layers=N, s=2, t=N, head=HeadSide.CLOUD, drafter="lookup", draft_tokens=4), make_cloud(N)),
        (split(N + 1, 4), make_cloud(N)),
    ],
)
def test_a_plan_that_cannot_run_here_has_no_price(plan: SplitPlan, cloud: CloudProfile) -> None:
    with pytest.raises(InputError):
        price(plan, cloud=cloud)


def test_a_plan_that_needs_the_cloud_has_no_price_without_one() -> None:
    with pytest.raises(InputError, match="needs a cloud profile"):
        cost_of(split(N, 4), make_request(), MODEL, make_device(), None, None)
