"""The measured profile of this device."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from splitglm_core.plan import Codec, Precision
from splitglm_core.ranges import LayerRange
from splitglm_edge import Agent
from splitglm_edge.probe import decoding, load_power, load_profile, measure_device, profile_path, save_profile
from splitglm_glm.export.manifest import GraphsManifest
from splitglm_glm.opening import open_checkpoint, open_stack
from splitglm_glm.runtime import RuntimeOptions
from splitglm_glm.store import ModelStore
from splitglm_partitioner.power import PowerProfile


def test_a_measurement_knows_every_layer_and_codec_and_unloads_what_it_loaded(model: Path, home: Path) -> None:
    store = ModelStore(home)
    checkpoint = open_checkpoint(str(model), store)
    stack = open_stack(
        checkpoint, Precision.FP32, layers=LayerRange(0, 4), embedding=True, head=True, store=store,
        options=RuntimeOptions(threads=1),
    )  # fmt: skip
    stack.preload(LayerRange(1, 2), embedding=False, head=False)
    graphs = store.graphs_dir(checkpoint.directory, Precision.FP32)
    manifest = GraphsManifest.open(graphs, checkpoint.fingerprint, Precision.FP32)
    profile = measure_device(checkpoint, stack, manifest)
    assert stack.loaded_parts() == ("layer-001",)
    here = profile.precisions[0]
    assert profile.layers == profile.max_layers == len(here.times.decode_s) == 4
    assert here.precision is profile.precision is Precision.FP32
    assert all(seconds > 0 for seconds in here.times.decode_s) and here.head_s > 0 and here.embed_s > 0
    growth = here.times.prefill_s_per_token_per_1k_context
    assert growth is not None and growth >= 0.0
    assert {time.codec for time in profile.codecs} == set(Codec)
    assert all(time.s_per_token > 0 for time in profile.codecs)
    assert profile.memory_bytes_free > 1 << 20 and profile.power is None
    assert profile.seal_s_per_byte is not None and 0.0 < profile.seal_s_per_byte < 1e-7
    assert profile.seal_s_per_record is not None and 0.0 < profile.seal_s_per_record < 1e-3
    assert here.layer_weight_bytes == manifest.weight_bytes("layer-000")


def test_a_profile_is_kept_and_read_with_the_memory_that_is_free_now(agent: Agent, tmp_path: Path) -> None:
    path = tmp_path / "deep" / "profile.json"
    save_profile(agent.profile, path)
    raw = json.loads(path.read_text())
    raw["memory_bytes_free"] = 1
    path.write_text(json.dumps(raw))
    loaded = load_profile(path)
    assert loaded is not None and loaded.memory_bytes_free > 1 << 20
    assert loaded.precisions == agent.profile.precisions and loaded.codecs == agent.profile.codecs
    assert [file.name for file in path.parent.iterdir()] == ["profile.json"]  # no staged file stays


def test_a_profile_of_an_older_release_is_measured_again(agent: Agent, tmp_path: Path) -> None:
    path = tmp_path / "profile.json"
    save_profile(agent.profile, path)
    raw = json.loads(path.read_text())
    del raw["seal_s_per_byte"]
    path.write_text(json.dumps(raw))
    assert load_profile(path) is None


def test_a_profile_without_the_growth_of_prefill_is_measured_again(agent: Agent, tmp_path: Path) -> None:
    path = tmp_path / "profile.json"
    save_profile(agent.profile, path)
    raw = json.loads(path.read_text())
    raw["precisions"][0]["times"]["prefill_s_per_token_per_1k_context"] = None
    path.write_text(json.dumps(raw))
    assert load_profile(path) is None


def test_the_power_that_was_stated_outlives_a_profile_that_is_measured_again(model: Path, tmp_path: Path) -> None:
    store = ModelStore(tmp_path)
    power = {"compute_w": 3.0, "radio_w": 0.5, "uplink_j_per_byte": 1e-6, "downlink_j_per_byte": 5e-7}
    with Agent.open(model, store=store, precision=Precision.FP32, threads=1) as agent:
        path = profile_path(store.root, agent.checkpoint.fingerprint, Precision.FP32, 1)
    raw = json.loads(path.read_text()) | {"power": power}
    raw["precisions"][0]["times"]["prefill_s_per_token_per_1k_context"] = None
    path.write_text(json.dumps(raw))
    with Agent.open(model, store=store, precision=Precision.FP32, threads=1) as agent:
        assert agent.profile.power == PowerProfile(**power)
    assert load_profile(path) is not None
    for text in ("{", "[]", "{}", '{"power": 3}', '{"power": {"compute_w": -1}}'):
        path.write_text(text)
        assert load_power(path) is None


def test_a_stated_power_is_kept(agent: Agent, tmp_path: Path) -> None:
    power = PowerProfile(compute_w=3.0, radio_w=0.5, uplink_j_per_byte=1e-6, downlink_j_per_byte=5e-7)
    path = tmp_path / "profile.json"
    save_profile(replace(agent.profile, power=power), path)
    loaded = load_profile(path)
    assert loaded is not None and loaded.power == power


def test_a_pass_of_the_work_whose_power_is_measured_is_a_decode_pass(agent: Agent) -> None:
    one_pass = decoding(agent._stack, LayerRange(0, 4))
    for _ in range(600):  # longer than its cache
        one_pass()


@pytest.mark.parametrize("damage", ["", "{", "[]", "null", "3", '{"layers": 4}', '{"memory_bytes_free": 1, "x": []}'])
def test_a_damaged_profile_is_measured_again(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "profile.json"
    path.write_text(damage)
    assert load_profile(path) is None
    assert load_profile(tmp_path / "absent.json") is None


def test_another_machine_thread_count_precision_or_model_has_another_file(tmp_path: Path) -> None:
    paths = {
        profile_path(tmp_path, fingerprint, precision, threads)
        for fingerprint in (bytes(32), bytes([1] * 32))
        for precision in (Precision.INT8, Precision.FP32)
        for threads in (1, 2)
    }
    assert len(paths) == 8
