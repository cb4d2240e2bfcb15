"""The layer stack: right numbers, positions and memory, whatever way a sequence is cut and whoever runs beside it."""

from __future__ import annotations

import dataclasses
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from glm_factory import write_tiny_checkpoint
from hypothesis import given, settings
from hypothesis import strategies as st

from splitglm_core.errors import InputError, InternalError, ModelInvalid, PromptTooLong
from splitglm_core.plan import Precision
from splitglm_core.ranges import LayerRange
from splitglm_glm import kv
from splitglm_glm.checkpoint import Checkpoint
from splitglm_glm.export.build import ensure_graphs
from splitglm_glm.kv import _KEPT_BINDING_BYTES, RELEASE_POSITIONS, KvCache, LazyBuffer
from splitglm_glm.rotary import rotary_pairs
from splitglm_glm.runtime import CPU, RuntimeOptions
from splitglm_glm.stack import LayerStack

ONE_THREAD = RuntimeOptions(threads=1)
VOCAB, LAYERS = 320, 4
EVERY = LayerRange(0, LAYERS)
SHAPES = {
    "glm": {"model_type": "glm"},
    "glm tied, full rotary, no bias": {"tied": True, "partial_rotary": 1.0, "attention_bias": False},
    "glm4": {"model_type": "glm4", "attention_bias": False},
    "glm4 with a padded last block": {"model_type": "glm4", "hidden": 72, "head_dim": 32, "heads": 3, "kv_heads": 1},
    "chatglm": {"model_type": "chatglm"},
}


def open_stack(directory: Path, precision: Precision = Precision.FP32, **sizes: object) -> LayerStack:
    checkpoint = Checkpoint.open(write_tiny_checkpoint(directory, **sizes))  # type: ignore[arg-type]
    graphs = ensure_graphs(checkpoint, precision, directory / "graphs" / precision.value)
    return LayerStack(checkpoint, graphs, precision, options=ONE_THREAD)


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> LayerStack:
    return open_stack(tmp_path_factory.mktemp("stack"), tied=True)


def token_ids(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, VOCAB, count)


def run(stack: LayerStack, cache: KvCache, ids: np.ndarray, layers: LayerRange = EVERY) -> np.ndarray:
    return stack.logits(stack.forward(stack.embed(ids), cache, layers))


def alone(stack: LayerStack, ids: np.ndarray) -> np.ndarray:
    return run(stack, stack.new_cache(EVERY, len(ids)), ids)


def reference_logits(directory: Path, ids: np.ndarray) -> np.ndarray:
    model = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    with torch.no_grad():
        return model(torch.tensor(ids)[None]).logits[0].numpy()


@pytest.mark.parametrize("name", [name for name in SHAPES if name != "chatglm"])
def test_fp32_equals_transformers(tmp_path: Path, name: str) -> None:
    stack = open_stack(tmp_path, **SHAPES[name])
    ids = token_ids(40)
    expected, got = reference_logits(tmp_path, ids), alone(stack, ids)
    assert np.abs(got - expected).max() <= 1e-4
    assert (got.argmax(-1) == expected.argmax(-1)).all()


def test_the_original_naming_gives_the_same_model(tmp_path: Path) -> None:
    ids = token_ids(20)
    theirs = alone(open_stack(tmp_path / "chatglm", **SHAPES["chatglm"]), ids)
    ours = alone(open_stack(tmp_path / "glm", **SHAPES["glm"]), ids)
    assert np.abs(theirs - ours).max() <= 1e-5


# Stated error of the quantised stacks: relative RMS of the logits on 4 layers of Gaussian weights, which are harder to
# quantise than trained ones (real text on a trained model: benchmarks/quality.py).
@pytest.mark.parametrize(("precision", "most"), [(Precision.INT8, 0.05), (Precision.INT4, 0.35)])
@pytest.mark.parametrize("name", ["glm", "glm4 with a padded last block"])
def test_quantised_stacks_stay_within_the_stated_error(
    tmp_path: Path, precision: Precision, most: float, name: str
) -> None:
    ids = token_ids(40)
    exact = alone(open_stack(tmp_path / "fp32", **SHAPES[name]), ids)
    error = alone(open_stack(tmp_path / "quantised", precision, **SHAPES[name]), ids) - exact
    relative = np.sqrt((error**2).mean() / (exact**2).mean())
    assert 0 < relative <= most


@pytest.mark.parametrize("precision", list(Precision))
def test_composed_ranges_equal_the_whole_stack(tmp_path: Path, precision: Precision) -> None:
    stack = open_stack(tmp_path, precision)
    ids = token_ids(24)
    whole = stack.forward(stack.embed(ids), stack.new_cache(EVERY, 24), EVERY)
    hidden = stack.embed(ids)
    for layers in (LayerRange(0, 1), LayerRange(1, 1), LayerRange(1, 4)):
        hidden = stack.forward(hidden, stack.new_cache(layers, 24), layers)
    np.testing.assert_array_equal(hidden, whole)


def test_front_and_tail_share_one_cache_without_the_back(stack: LayerStack) -> None:
    ids = token_ids(12)
    cache, back_cache = stack.new_cache(EVERY, 16), stack.new_cache(LayerRange(1, 3), 16)
    got = []
    for chunk in (ids[:9], ids[9:]):
        front = stack.forward(stack.embed(chunk), cache, LayerRange(0, 1))
        back = stack.forward(front, back_cache, LayerRange(1, 3))
        got.append(stack.logits(stack.forward(back, cache, LayerRange(3, 4))))
    np.testing.assert_allclose(np.concatenate(got), alone(stack, ids), atol=1e-4)
    assert cache.length_of(LayerRange(0, 1)) == cache.length_of(LayerRange(3, 4)) == 12
    assert cache.length == cache.length_of(LayerRange(1, 3)) == 0
    with pytest.raises(InternalError):
        cache.length_of(EVERY)


@given(cuts=st.lists(st.integers(1, 39), max_size=8))
@settings(max_examples=25, deadline=None)
def test_any_chunking_gives_the_same_logits(stack: LayerStack, cuts: list[int]) -> None:
    ids = token_ids(40)
    cache = stack.new_cache(EVERY, 40)
    edges = [0, *sorted(set(cuts)), 40]
    parts = [run(stack, cache, ids[a:b]) for a, b in pairwise(edges)]
    np.testing.assert_allclose(np.concatenate(parts), alone(stack, ids), atol=1e-4)
    assert cache.length == 40


@given(steps=st.lists(st.tuples(st.integers(1, 6), st.integers(0, 6)), min_size=1, max_size=8))
@settings(max_examples=25, deadline=None)
def test_truncating_and_redoing_equals_never_having_tried(stack: LayerStack, steps: list[tuple[int, int]]) -> None:
    """Speculation's life: append some right and some wrong tokens, forget the wrong ones, go on."""
    ids = token_ids(64)
    cache, position = stack.new_cache(EVERY, 96), 0
    for right, wrong in steps:
        got = run(stack, cache, np.concatenate([ids[position : position + right], token_ids(wrong, seed=9)]))
        position += right
        cache.truncate(position)
        assert cache.length == position
        np.testing.assert_allclose(got[right - 1], alone(stack, ids[:position])[-1], atol=1e-4)


def test_truncation_leaves_shorter_layers_alone_and_refuses_negative_lengths(stack: LayerStack) -> None:
    cache = stack.new_cache(EVERY, 8)
    stack.forward(stack.embed(token_ids(5)), cache, LayerRange(0, 2))
    cache.truncate(7)
    assert cache.length_of(LayerRange(0, 2)) == 5
    cache.truncate(3)
    assert (cache.length_of(LayerRange(0, 2)), cache.length_of(LayerRange(2, 4))) == (3, 0)
    with pytest.raises(InternalError):
        cache.truncate(-1)


def test_two_caches_interleaved_do_not_see_each_other(stack: LayerStack) -> None:
    first, second = token_ids(20, seed=1), token_ids(20, seed=2)
    caches = stack.new_cache(EVERY, 20), stack.new_cache(EVERY, 33)
    for start in range(0, 20, 5):
        for cache, ids in zip(caches, (first, second), strict=True):
            expected = alone(stack, ids[: start + 5])[start:]
            np.testing.assert_allclose(run(stack, cache, ids[start : start + 5]), expected, atol=1e-4)


def test_threads_with_their_own_caches_get_exactly_what_they_get_alone(tmp_path: Path) -> None:
    stack = open_stack(tmp_path, Precision.INT8)
    barrier = threading.Barrier(4)

    def decode(seed: int) -> np.ndarray:
        ids, cache = token_ids(30, seed), stack.new_cache(EVERY, 30)
        barrier.wait()
        rows = [run(stack, cache, ids[:10]), *(run(stack, cache, ids[i : i + 1]) for i in range(10, 30))]
        return np.concatenate(rows)

    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(decode, range(4)))
    barrier = threading.Barrier(1)
    for seed in range(4):
        np.testing.assert_array_equal(together[seed], decode(seed))


def test_results_are_not_overwritten_by_the_next_step(stack: LayerStack) -> None:
    cache = stack.new_cache(EVERY, 8)
    first = stack.forward(stack.embed(token_ids(1)), cache, EVERY)
    kept = first.copy()
    stack.forward(stack.embed(token_ids(1, seed=3)), cache, EVERY)
    np.testing.assert_array_equal(first, kept)


def test_a_full_cache_refuses_and_stays_usable(stack: LayerStack) -> None:
    ids = token_ids(9)
    cache = stack.new_cache(EVERY, 8)
    run(stack, cache, ids[:6])
    with pytest.raises(PromptTooLong):
        run(stack, cache, ids[6:9])
    assert cache.length == 6
    np.testing.assert_allclose(run(stack, cache, ids[6:8]), alone(stack, ids[:8])[6:], atol=1e-4)


def test_no_positions_is_a_pass_that_changes_nothing(stack: LayerStack) -> None:
    cache = stack.new_cache(EVERY, 8)
    assert run(stack, cache, np.zeros(0, np.int64)).shape == (0, VOCAB)
    assert cache.length == 0


def test_inputs_that_fit_no_model_are_refused(stack: LayerStack) -> None:
    for ids in ([VOCAB], [-1]):
        with pytest.raises(InputError):
            stack.embed(np.array(ids))
    with pytest.raises(InputError):
        stack.new_cache(EVERY, 513)
    with pytest.raises(InternalError):
        stack.new_cache(LayerRange(0, 5), 8)
    with pytest.raises(InternalError):
        stack.forward(np.zeros((1, 63), np.float32), stack.new_cache(EVERY, 8), EVERY)
    with pytest.raises(InternalError):
        stack.forward(np.zeros((1, 64), np.float32), stack.new_cache(LayerRange(0, 2), 8), EVERY)


def test_a_longer_cache_extends_the_rotary_table_for_all_positions(tmp_path: Path) -> None:
    stack = open_stack(tmp_path)
    ids = token_ids(30)
    short = stack.new_cache(EVERY, 30)
    first = run(stack, short, ids[:20])
    long = stack.new_cache(EVERY, 512)
    np.testing.assert_allclose(run(stack, long, ids)[:20], first, atol=1e-4)
    np.testing.assert_allclose(run(stack, short, ids[20:]), alone(stack, ids)[20:], atol=1e-4)


def test_only_the_layers_in_use_are_loaded(tmp_path: Path) -> None:
    stack = open_stack(tmp_path, Precision.INT8)
    assert stack.loaded_parts() == () and stack.resident_weight_bytes() == 0
    stack.preload(LayerRange(0, 1), embedding=True, head=False)
    one = stack.resident_weight_bytes()
    stack.forward(stack.embed(token_ids(3)), stack.new_cache(EVERY, 8), LayerRange(0, 2))
    assert stack.loaded_parts() == ("embedding", "layer-000", "layer-001")
    assert stack.resident_weight_bytes() == 2 * one > 0
    stack.unload(LayerRange(1, 2), embedding=True)
    assert stack.loaded_parts() == ("layer-000",)


def test_missing_and_truncated_parts_name_the_remedy(tmp_path: Path) -> None:
    directory = tmp_path / "graphs" / "int8"
    stack = open_stack(tmp_path, Precision.INT8)
    data = directory / "layer-002.bin"
    data.write_bytes(data.read_bytes()[:-4096])
    with pytest.raises(ModelInvalid, match=r"layer-002\.bin has \d+ bytes instead of") as caught:
        stack.preload(EVERY, embedding=False, head=False)
    assert "splitglm pull" in caught.value.hint
    with pytest.raises(ModelInvalid, match="holds no fp32 graphs"):
        LayerStack(Checkpoint.open(tmp_path), tmp_path / "nowhere", Precision.FP32)


def test_the_cpu_is_the_last_resort_and_is_reported(stack: LayerStack) -> None:
    stack.preload(LayerRange(0, 1), embedding=False, head=False)
    assert stack.providers == (CPU,)


def test_closing_a_cache_gives_its_memory_back(stack: LayerStack) -> None:
    cache = stack.new_cache(EVERY, 64)
    run(stack, cache, token_ids(4))
    shape = stack.config.shape
    assert cache.bytes_reserved() == shape.kv_bytes_per_token(LAYERS) * 64
    cache.close()
    assert cache.bytes_reserved() == 0
    with pytest.raises(InternalError):
        run(stack, cache, token_ids(1))


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_reserved_positions_cost_no_memory_until_used(tmp_path: Path) -> None:
    before = resident_bytes()
    buffer = LazyBuffer((1, 8, 1 << 16, 32))  # 64 MB
    assert buffer.bytes == 64 << 20
    assert resident_bytes() - before < 4 << 20
    buffer.array[0, :, :4096] = 1.0
    assert 3 << 20 < resident_bytes() - before < 12 << 20
    assert not buffer.array[0, :, 4096:8192].any()


def test_scratch_is_given_back_once_when_decoding_starts(stack: LayerStack, monkeypatch: pytest.MonkeyPatch) -> None:
    trims: list[int] = []
    monkeypatch.setattr(kv, "trim_heap", lambda: trims.append(1))
    cache, ids = stack.new_cache(EVERY, 64), token_ids(48)
    expected = alone(stack, ids)
    got = [run(stack, cache, ids[:40]), *(run(stack, cache, ids[i : i + 1]) for i in range(40, 48))]
    assert trims == [1]
    np.testing.assert_allclose(np.concatenate(got), expected, atol=1e-4)


@pytest.mark.skipif(sys.platform != "linux", reason="counts the pages of the mapping")
@pytest.mark.parametrize("kept", [0, 1, 100, 4096 - 64])
def test_released_positions_give_their_memory_back_and_no_others(kept: int) -> None:
    heads, positions, width = 3, 5000, 24  # heads that begin in the middle of a page
    buffer = LazyBuffer((1, heads, positions, width))
    buffer.array[:] = 7.0
    before = resident_bytes()
    buffer.release(kept)
    freed = before - resident_bytes()
    wanted = heads * (positions - kept) * 4 * width
    assert abs(freed - wanted) < 64 << 10
    assert (buffer.array[:, :, :kept] == 7.0).all()
    buffer.array[:, :, kept:] = 1.0  # and can be written again
    assert (buffer.array[:, :, :kept] == 7.0).all()


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_truncated_cache_keeps_memory_for_what_it_keeps(stack: LayerStack) -> None:
    cache = stack.new_cache(EVERY, 512)
    run(stack, cache, token_ids(400))
    assert cache.committed == 400
    cache.truncate(400 - RELEASE_POSITIONS + 1)
    assert cache.committed == 400  # undoing a draft costs no system call
    cache.truncate(400 - RELEASE_POSITIONS)
    assert cache.committed == cache.length == 400 - RELEASE_POSITIONS
    for length in range(cache.length, 0, -RELEASE_POSITIONS // 2):  # nor can small steps hide anything
        cache.truncate(length)
        assert cache.length <= cache.committed < cache.length + RELEASE_POSITIONS
    kept = {id(key): key.array.copy() for key, _ in cache._buffers}
    run(stack, cache, token_ids(100, seed=2))
    cache.truncate(0)
    assert cache.committed == 0
    assert all(not key.array.any() and kept[id(key)].any() for key, _ in cache._buffers)


def test_buffers_of_long_passes_are_not_kept_for_idle_requests(stack: LayerStack) -> None:
    cache = stack.new_cache(EVERY, 512)
    for n in (1, 300, 5, 9, 7, 3):
        cache.truncate(0)
        run(stack, cache, token_ids(n))
    cache.truncate(0)
    huge = 1 + _KEPT_BINDING_BYTES // (2 * 4 * stack.config.shape.hidden)
    assert huge > 500  # on this tiny model every pass would be kept
    assert sorted(cache._bindings) == [1, 3, 7, 9]
    assert cache._binding(huge) is not cache._binding(huge)
    assert huge not in cache._bindings and len(cache._bindings) == 4


def test_heads_too_narrow_for_the_kernel_are_refused_when_building(tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(write_tiny_checkpoint(tmp_path, head_dim=24, partial_rotary=1.0))
    with pytest.raises(ModelInvalid, match="attention kernel"):
        ensure_graphs(checkpoint, Precision.FP32, tmp_path / "g", parts=["layer-000"])
    narrow = dataclasses.replace(checkpoint.config, partial_rotary_factor=0.5)
    assert rotary_pairs(narrow) == 8
