"""Devices, clouds and courses: the committed measurements come back out, scaling follows its rule, seeds decide."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from splitglm_core.errors import InputError
from splitglm_core.plan import Codec, Precision
from splitglm_partitioner.profiles import CloudProfile, DeviceProfile
from splitglm_sims.presets.courses import BackgroundLoad, CloudLoad, Switching, Thermal, combined
from splitglm_sims.presets.machines import CLOUDS, DEVICES, cloud_preset, device_preset
from splitglm_sims.presets.models import MODELS, model_shape
from splitglm_sims.presets.speed import Basis, nearest
from splitglm_sims.world.course import Course

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
SHIPPED = [*(DEVICES.load(name) for name in DEVICES.names()), *(CLOUDS.load(name) for name in CLOUDS.names())]


def row(file: str, name: str) -> list[float]:
    """The numbers before the brackets of a row of a committed table."""
    text = (RESULTS / file).read_text(encoding="utf-8")
    line = next(line for line in text.splitlines() if line.startswith(f"| {name} |"))
    return [float(cell) for cell in re.findall(r"\| ([\d.]+) \(", line)]


@pytest.mark.parametrize("preset", SHIPPED, ids=lambda preset: preset.about)
def test_every_preset_states_its_source_and_how_far_to_trust_it(preset: object) -> None:
    source, basis = preset.source, preset.basis  # type: ignore[attr-defined]
    assert len(source) > 40
    assert ("assumed" in source) or basis is Basis.MEASURED
    for file in re.findall(r"benchmarks/results/([\w.-]+\.md)", source):
        assert (RESULTS / file).exists()


@pytest.mark.parametrize("name", DEVICES.names())
def test_a_device_profile_survives_its_json_and_holds_its_model(name: str) -> None:
    profile = device_preset(name).profile()
    assert DeviceProfile.from_json(profile.to_json()) == profile
    assert profile.memory_bytes(profile.layers, 4096, embedding=True, head=True) < profile.memory_bytes_free
    assert profile.codec_s_per_token(Codec.BF16) is not None


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("name", CLOUDS.names())
def test_a_cloud_profile_of_every_model_survives_its_json(name: str, model: str) -> None:
    profile = cloud_preset(name).profile(model)
    assert CloudProfile.from_json(profile.to_json()) == profile
    assert profile.layers == model_shape(model).layers == len(profile.served)


def test_the_laptop_gives_back_the_committed_measurement() -> None:
    profile = device_preset("edge-1.5b-laptop").profile()
    for precision, name in (
        (Precision.INT4, "splitglm int4, sleeping pools"),
        (Precision.INT8, "splitglm int8, sleeping pools"),
    ):
        decode_16_ms, _, decode_512_ms, _, prefill_per_s, _ = row("2026-11-22-front.md", name)
        entry = profile.at(precision).active
        for context, measured_ms in ((16, decode_16_ms), (512, decode_512_ms)):
            step_s = float(entry.times.decode_cumulative(context)[-1]) + entry.head_s
            assert step_s * 1e3 == pytest.approx(measured_ms, rel=0.005)
        chunk_s = float(entry.times.prefill_cumulative(np.array([256.0]), np.array([0.0]))[0, -1])
        assert 256 / chunk_s == pytest.approx(prefill_per_s, rel=0.005)


def test_the_two_core_cloud_gives_back_the_committed_measurement() -> None:
    profile = cloud_preset("cpu-2core").profile("glm-edge-1.5b")
    measured_ms = row("2026-11-22-batch_decode.md", "glm-edge-1.5b, splitglm int8")[0]
    assert profile.head_s is not None
    assert (float(profile.times.decode_cumulative(128)[-1]) + profile.head_s) * 1e3 == pytest.approx(measured_ms)


def test_the_demo_device_gives_back_the_committed_measurement() -> None:
    text = (RESULTS / "2026-11-22-end_to_end.md").read_text(encoding="utf-8")
    line = next(line for line in text.splitlines() if line.startswith("| 0 | 100 | device only |"))
    ttft_ms, tokens_per_s = (float(cell) for cell in re.findall(r"\| ([\d.]+) \(", line)[:2])
    entry = device_preset("demo-2core").profile().active
    step_s = float(entry.times.decode_cumulative(64)[-1]) + entry.head_s
    assert 1.0 / step_s == pytest.approx(tokens_per_s, rel=0.01)
    chunk_s = float(entry.times.prefill_cumulative(np.array([47.0]), np.array([0.0]))[0, -1])
    assert chunk_s * 1e3 == pytest.approx(ttft_ms, rel=0.01)


def test_a_phone_is_twice_as_slow_and_states_its_joules() -> None:
    phone, laptop = (device_preset(f"edge-1.5b-{name}").profile() for name in ("phone", "laptop"))
    assert phone.active.head_s == pytest.approx(2 * laptop.active.head_s)
    assert phone.active.times.decode_s == pytest.approx([2 * value for value in laptop.active.times.decode_s])
    assert phone.power is not None and laptop.power is None
    # Huang et al., MobiSys 2012, table 4: milliwatts for each Mbit/s
    assert phone.power.uplink_j_per_byte == pytest.approx(438.39e-3 / (1e6 / 8), rel=1e-3)
    assert phone.power.downlink_j_per_byte == pytest.approx(51.97e-3 / (1e6 / 8), rel=1e-3)


def test_a_larger_model_is_scaled_by_its_weights() -> None:
    large, small = (device_preset(name).profile().active for name in ("glm4-9b-laptop", "edge-1.5b-laptop"))
    ratio = model_shape("glm-4-9b").layer_parameters / model_shape("glm-edge-1.5b").layer_parameters
    assert large.times.decode_s[0] / small.times.decode_s[0] == pytest.approx(ratio, rel=1e-6)
    assert large.layer_weight_bytes / small.layer_weight_bytes == pytest.approx(ratio, rel=1e-6)
    assert large.head_weight_bytes > 0 == small.head_weight_bytes
    assert large.times.decode_s_per_1k_context == pytest.approx(small.times.decode_s_per_1k_context / 2)  # 2 KV heads


def test_a_roofline_is_bound_by_memory_in_decode_and_by_arithmetic_in_prefill() -> None:
    roofline = cloud_preset("gpu-assumed").roofline
    assert roofline is not None
    shape = model_shape("glm-4-9b")
    times, _ = roofline.times(shape, chunk_tokens=2048)
    assert times.decode_s[0] == pytest.approx(20e-6 + shape.layer_parameters * 2 / (0.6 * 2.039e12))
    chunk_s = times.prefill[0].s_per_token[0] * 2048
    assert chunk_s == pytest.approx(20e-6 + 2 * shape.layer_parameters * 2048 / (0.4 * 3.12e14))


def test_a_price_is_stated_only_where_it_is_known() -> None:
    assert cloud_preset("cpu-2core").profile("smollm2-135m").price_per_layer_token is None
    priced = cloud_preset("gpu-assumed").profile("glm-4-9b").price_per_layer_token
    assert priced == pytest.approx(0.5e-6 / 40)


def test_a_model_that_was_not_measured_takes_the_largest_that_was() -> None:
    speeds = cloud_preset("cpu-2core").speeds
    assert {speed.model for speed in nearest(speeds, "smollm2-135m")} == {"smollm2-135m"}
    assert {speed.model for speed in nearest(speeds, "glm-4-9b")} == {"glm-edge-1.5b"}
    with pytest.raises(InputError, match="nothing was measured"):
        nearest((), "glm-4-9b")


DEVICE = """
about = "a"
source = "b"
basis = "assumed"
model = "glm-4-9b"
precision = "int4"
memory_bytes_free = 1

[[speeds]]
model = "smollm2-135m"
precision = "int4"
layer_bits = 4.0
vocabulary_bits = 8.0
decode_ms = 1.0
context_tokens = 0
decode_ms_per_1k_context = 0.0
prefill = [{ chunk_tokens = 2, tokens_per_s = 1.0 }]
"""


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (('model = "glm-4-9b"', 'model = "gpt"'), "own: there is no model 'gpt'"),
        (('basis = "assumed"', 'basis = "guessed"'), r"own\.basis must be one of measured"),
        (("decode_ms = 1.0", "decode_ms = 0.0"), r"own\.speeds\[0\]: decode_ms"),
        (("chunk_tokens = 2", "chunk = 2"), r"own\.speeds\[0\]\.prefill\[0\] has the unknown field 'chunk'"),
        (("memory_bytes_free = 1", "memory_bytes_free = 1.5"), "memory_bytes_free must be a whole number"),
        (('source = "b"', ""), "lacks the field 'source'"),
    ],
)
def test_a_malformed_device_is_refused_by_name_and_key(change: tuple[str, str], said: str) -> None:
    with pytest.raises(InputError, match=said):
        DEVICES.parse(DEVICE.replace(*change, 1), "own")


def test_a_precision_without_a_measurement_is_refused() -> None:
    preset = DEVICES.parse(DEVICE.replace('precision = "int4"', 'precision = "int8"', 1), "own")
    with pytest.raises(InputError, match="no times for int8"):
        preset.profile()


@given(seed=st.integers(0, 2**63 - 1))
@settings(max_examples=25, deadline=None)
def test_courses_follow_from_the_seed_and_stay_within_their_bounds(seed: int) -> None:
    thermal, load, cloud = Thermal(), BackgroundLoad(), CloudLoad()
    slowdown, temperature = thermal.courses(seed, 1800.0)
    assert (slowdown, temperature) == thermal.courses(seed, 1800.0)
    assert 1.0 <= min(slowdown.values) <= max(slowdown.values) <= thermal.worst
    assert thermal.cool_c <= min(temperature.values) <= max(temperature.values) <= thermal.hot_c
    for slow, heat in zip(slowdown.values, temperature.values, strict=True):
        assert (slow > 1.0) == (heat > thermal.limit_c)
    busy = load.course(seed, 1800.0)
    assert 1.0 <= min(busy.values) <= max(busy.values) <= load.worst
    queue, shared = cloud.courses(seed, 1800.0)
    assert queue.starts_s == shared.starts_s and set(queue.values) <= {cloud.quiet_queue_s, cloud.busy_queue_s}


def test_heat_comes_with_use_and_goes_with_rest() -> None:
    always = replace(Thermal(), use=Switching(quiet_s=1e-3, busy_s=1e6))
    _, temperature = always.courses(1, 600.0)
    assert all(a <= b for a, b in zip(temperature.values, temperature.values[1:], strict=False))
    assert temperature.values[-1] == pytest.approx(90.0, abs=0.1)
    assert temperature.at(60.0) == pytest.approx(90.0 - 50.0 / np.e, abs=0.1)  # one time constant


def test_spells_have_their_mean_lengths_and_shares() -> None:
    starts, busy = Switching(quiet_s=30.0, busy_s=10.0).draw(np.random.default_rng(3), 200_000.0)
    lengths = np.diff([*starts, 200_000.0])
    flags = np.array(busy)
    assert lengths[flags].mean() == pytest.approx(10.0, rel=0.05)
    assert lengths[~flags].mean() == pytest.approx(30.0, rel=0.05)
    assert lengths[flags].sum() / 200_000.0 == pytest.approx(0.25, abs=0.01)


def test_two_courses_multiply() -> None:
    product = combined(Course((0.0, 2.0), (1.0, 3.0)), Course((0.0, 1.0), (2.0, 4.0)))
    assert [product.at(t) for t in (0.0, 1.5, 2.0)] == [2.0, 4.0, 12.0]


@pytest.mark.parametrize(
    ("build", "said"),
    [
        (lambda: Switching(quiet_s=0.0, busy_s=1.0), "quiet_s"),
        (lambda: Thermal(limit_c=95.0), "hot_c"),
        (lambda: Thermal(worst=0.5), "worst"),
        (lambda: BackgroundLoad(worst=1e9), "worst"),
        (lambda: CloudLoad(busy_slowdown=0.1), "busy_slowdown"),
        (lambda: Thermal().courses(1, 1e12), "seconds"),
        (lambda: CloudLoad().courses(-1, 10.0), "seed"),
        (lambda: BackgroundLoad().course(1, 0.0), "seconds"),
    ],
)
def test_impossible_courses_are_refused(build: object, said: str) -> None:
    with pytest.raises(InputError, match=said):
        build()  # type: ignore[operator]


def test_a_shelf_reads_no_endless_file(tmp_path: Path) -> None:
    path = tmp_path / "big.toml"
    path.write_bytes(b"#" * ((1 << 20) + 1))
    with pytest.raises(InputError, match="too long"):
        device_preset(str(path))
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match="there is no device"):
        device_preset(str(tmp_path / "binary.toml"))
