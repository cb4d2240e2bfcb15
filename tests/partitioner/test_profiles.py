"""Profiles as JSON: exact round trips, and every malformed text refused with a reason."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
from hypothesis import given, settings
from partitioner_factory import drafting, make_cloud, make_device, make_link, make_request, pick, situations

from splitglm_core.errors import InputError
from splitglm_core.plan import Codec, Precision
from splitglm_partitioner.layer_times import LayerTimes
from splitglm_partitioner.profiles import CloudProfile, CodecTime, DeviceProfile, LinkEstimate
from splitglm_partitioner.request import Objective, Situation


@settings(max_examples=50, deadline=None)
@given(situations())
def test_profiles_survive_json_exactly(x: Situation) -> None:
    assert DeviceProfile.from_json(x.device.to_json()) == x.device
    if x.cloud is not None:
        assert CloudProfile.from_json(x.cloud.to_json()) == x.cloud


def change(text: str, path: tuple[Any, ...], value: Any) -> str:
    """``text`` with the value at ``path`` replaced; ``KeyError`` as a value deletes it."""
    data = json.loads(text)
    at = data
    for key in path[:-1]:
        at = at[key]
    if value is KeyError:
        del at[path[-1]]
    else:
        at[path[-1]] = value
    return json.dumps(data)


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        (("memory_bytes_free",), KeyError, "lacks the field 'memory_bytes_free'"),
        (("colour",), "red", "unknown field 'colour'"),
        (("memory_bytes_free",), -1, "outside"),
        (("memory_bytes_free",), 1.5, "whole number"),
        (("memory_bytes_free",), True, "whole number"),
        (("layers",), 13, "time all 13 layers"),
        (("max_layers",), 13, "outside"),
        (("precision",), "int3", "one of fp32, int8, int4"),
        (("precision",), "fp32", "no times for fp32"),
        (("precisions",), {}, "array"),
        (("precisions", 0), 3, "object"),
        (("precisions", 0, "head_s"), "fast", "a number"),
        (("precisions", 0, "head_s"), -1e-3, "outside"),
        (("precisions", 0, "head_s"), 10**400, "too large"),
        (("precisions", 0, "times", "decode_s", 0), -1.0, "outside"),
        (("precisions", 0, "times", "decode_s"), [], "number of timed layers"),
        (("precisions", 0, "times", "prefill"), [], "1 to 64 points"),
        (("precisions", 0, "times", "prefill", 0, "s_per_token"), [1e-3], "needs 12 layers"),
        (("precisions", 0, "times", "prefill", 0, "chunk_tokens"), 1, "outside"),
        (("slowdown",), 0.0, "outside"),
        (("seal_s_per_byte",), -1e-9, "outside"),
        (("power",), {"compute_w": 1.0}, "lacks the field 'downlink_j_per_byte'"),
    ],
)
def test_a_malformed_device_profile_is_refused_with_the_place(path: tuple[Any, ...], value: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        DeviceProfile.from_json(change(make_device(12).to_json(), path, value))


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        (("served", "stop"), 13, "must be timed one by one"),
        (("served", "start"), 5, "must be timed one by one"),
        (("served",), {"start": 3, "stop": 1}, "half-open"),
        (("head_s",), None, "exactly when the cloud has a head"),
        (("has_head",), 1, "true or false"),
        (("codecs",), ["bf16", "bf16"], "each codec once"),
        (("codecs",), ["gzip"], "one of fp32, bf16, int8"),
        (("price_per_layer_token",), -1.0, "outside"),
        (("queue_s",), 1e9, "outside"),
        (("sweep_s",), -1.0, "outside"),
        (("slowdown",), 1e6, "outside"),
    ],
)
def test_a_malformed_cloud_profile_is_refused_with_the_place(path: tuple[Any, ...], value: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        CloudProfile.from_json(change(make_cloud(12).to_json(), path, value))


@pytest.mark.parametrize(
    "text",
    ["", "null", "[]", "{", '{"layers": NaN}', '{"layers": 1, "layers": 1}', "[" * 200_000, " " * (5 << 20)],
    ids=["empty", "null", "array", "open", "nan", "twice", "deep", "long"],
)
def test_text_that_is_not_a_profile_is_refused(text: str) -> None:
    for kind in (DeviceProfile, CloudProfile):
        with pytest.raises(InputError):
            kind.from_json(text)


def test_a_device_measured_at_two_precisions_is_priced_at_the_one_in_use() -> None:
    device = make_device(12)
    int8 = dataclasses.replace(device.active, precision=Precision.INT8, layer_weight_bytes=2_000_000)
    both = dataclasses.replace(device, precisions=(device.active, int8))
    assert both.active.layer_weight_bytes == 1_000_000
    assert both.at(Precision.INT8).active.layer_weight_bytes == 2_000_000
    with pytest.raises(InputError, match="no times for fp32"):
        both.at(Precision.FP32)


def test_contradictory_values_are_refused_when_built() -> None:
    with pytest.raises(InputError, match="negative at an empty context"):
        LayerTimes.uniform(
            2, decode_s=1e-3, prefill_s_per_token=1e-4, decode_context_tokens=1000, decode_s_per_1k_context=2e-3
        )
    with pytest.raises(InputError, match="each codec once"):
        make_device(2, codecs=(CodecTime(codec=Codec.BF16, s_per_token=0.0),) * 2)
    with pytest.raises(InputError, match="nothing to choose by"):
        Objective(latency=0.0)
    with pytest.raises(InputError, match="more than 4096 chunks"):
        make_request(prompt_tokens=5000, chunk_tokens=1)
    with pytest.raises(InputError, match="more than 4096 chunks"):
        make_request(prompt_tokens=5000, chunks=(1,))
    with pytest.raises(InputError, match="lists a size twice"):
        make_request(chunk_tokens=64, chunks=(32, 64))
    with pytest.raises(InputError, match="further chunk sizes"):
        make_request(chunks=tuple(range(1, 9)))
    with pytest.raises(InputError, match="energy_budget_j"):
        make_request(energy_budget_j=-1.0)
    with pytest.raises(InputError, match="a drafter twice"):
        pick(make_request(), drafts=(drafting(), drafting()))
    with pytest.raises(InputError, match="finite"):
        make_link(rtt_s=float("nan"))
    with pytest.raises(InputError, match="outside"):
        make_link(uplink_bytes_per_s=0.0)


def test_the_pessimistic_link_is_slower_by_its_uncertainty_and_certain() -> None:
    link = make_link(uplink_rel_error=1.0, downlink_rel_error=0.25, rtt_var_s=0.01)
    worst = link.pessimistic()
    assert worst == LinkEstimate(
        uplink_bytes_per_s=link.uplink_bytes_per_s / 2,
        downlink_bytes_per_s=link.downlink_bytes_per_s / 1.25,
        rtt_s=link.rtt_s + 0.04,
        overhead_s=link.overhead_s,
    )
    assert worst.pessimistic() == worst
