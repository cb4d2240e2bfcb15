"""Batches of sessions: a row is what it would be alone, nothing passes between sessions, failures change nothing."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from itertools import accumulate, pairwise
from pathlib import Path

import numpy as np
import onnx
import pytest
from glm_factory import write_tiny_checkpoint
from hypothesis import given, settings
from hypothesis import strategies as st

from splitglm_core.errors import InternalError, ModelInvalid, PromptTooLong
from splitglm_core.plan import Precision
from splitglm_core.ranges import LayerRange
from splitglm_glm import batch
from splitglm_glm.batch import BatchStack
from splitglm_glm.checkpoint import Checkpoint
from splitglm_glm.export.build import ensure_graphs
from splitglm_glm.export.split import split_layer
from splitglm_glm.kv import KvCache
from splitglm_glm.runtime import RuntimeOptions
from splitglm_glm.stack import LayerStack

LAYERS, VOCAB, CAPACITY = 4, 320, 96
EVERY = LayerRange(0, LAYERS)


@dataclass(frozen=True, slots=True)
class Riding:
    cache: KvCache
    rows: int
    base: int


def open_stack(directory: Path, precision: Precision, threads: int = 1, **sizes: object) -> LayerStack:
    checkpoint = Checkpoint.open(write_tiny_checkpoint(directory, layers=LAYERS, **sizes))  # type: ignore[arg-type]
    graphs = ensure_graphs(checkpoint, precision, directory / "graphs" / precision.value)
    return LayerStack(checkpoint, graphs, precision, options=RuntimeOptions(threads=threads))


@pytest.fixture(scope="module", params=list(Precision))
def stack(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> LayerStack:
    return open_stack(tmp_path_factory.mktemp("batch"), request.param, hidden=128, intermediate=256)


@pytest.fixture(scope="module")
def batches(stack: LayerStack) -> BatchStack:
    return BatchStack(stack, exact=True)


def token_ids(count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, VOCAB, count)


def together(
    batches: BatchStack, hidden: list[np.ndarray], caches: list[KvCache], layers: LayerRange = EVERY
) -> list[np.ndarray]:
    """One batch; the results of each session."""
    riders = [Riding(cache, len(rows), cache.length_of(layers)) for rows, cache in zip(hidden, caches, strict=True)]
    out = batches.forward(np.concatenate(hidden), riders, layers)
    edges = [0, *accumulate(len(rows) for rows in hidden)]
    return [out[a:b] for a, b in pairwise(edges)]


def alone(batches: BatchStack, hidden: np.ndarray, cache: KvCache, layers: LayerRange = EVERY) -> np.ndarray:
    return together(batches, [hidden], [cache], layers)[0]


schedules = st.lists(  # per batch: which of five sessions ride, with how many rows
    st.dictionaries(st.integers(0, 4), st.integers(1, 9), min_size=1), min_size=1, max_size=6
)


@given(schedule=schedules)
@settings(max_examples=25, deadline=None)
def test_every_row_has_the_same_bits_alone_and_in_any_batch(
    stack: LayerStack, batches: BatchStack, schedule: list[dict[int, int]]
) -> None:
    mixed = [stack.new_cache(EVERY, CAPACITY) for _ in range(5)]
    single = [stack.new_cache(EVERY, CAPACITY) for _ in range(5)]
    for step, riding in enumerate(schedule):
        hidden = {s: stack.embed(token_ids(rows, seed=10 * step + s)) for s, rows in riding.items()}
        got = together(batches, list(hidden.values()), [mixed[s] for s in hidden])
        for session, rows in zip(hidden, got, strict=True):
            np.testing.assert_array_equal(rows, alone(batches, hidden[session], single[session]))
    assert [cache.length for cache in mixed] == [cache.length for cache in single]


def test_a_batch_computes_what_the_whole_layers_compute(stack: LayerStack, batches: BatchStack) -> None:
    lengths = [30, 1, 17, 4]
    hidden = [stack.embed(token_ids(n, seed=n)) for n in lengths]
    caches = [stack.new_cache(EVERY, CAPACITY) for _ in lengths]
    plain = [stack.new_cache(EVERY, CAPACITY) for _ in lengths]
    # One row takes another kernel in the whole layer: rounding, which int8 activations may amplify to one of 127 steps.
    most = 1e-5 if stack.precision is Precision.FP32 else 2e-2
    for rows in (hidden, [one[:1] for one in hidden], [one[:2] for one in hidden]):
        got = together(batches, rows, caches)
        for mine, one, cache in zip(got, rows, plain, strict=True):
            np.testing.assert_allclose(mine, stack.forward(one, cache, EVERY), atol=most)


def test_a_range_in_segments_equals_the_range_at_once(stack: LayerStack, batches: BatchStack) -> None:
    hidden = [stack.embed(token_ids(n, seed=n)) for n in (5, 1)]
    whole = together(batches, hidden, [stack.new_cache(EVERY, CAPACITY) for _ in hidden])
    caches, rows = [stack.new_cache(EVERY, CAPACITY) for _ in hidden], hidden
    for layers in (LayerRange(0, 1), LayerRange(1, 1), LayerRange(1, 4)):
        rows = together(batches, rows, caches, layers)
    for got, expected in zip(rows, whole, strict=True):
        np.testing.assert_array_equal(got, expected)


def test_sessions_with_different_entries_share_the_layers_they_have_in_common(
    stack: LayerStack, batches: BatchStack
) -> None:
    early, late = stack.embed(token_ids(3, seed=1)), stack.embed(token_ids(2, seed=2))
    first, second = stack.new_cache(EVERY, CAPACITY), stack.new_cache(LayerRange(2, 4), CAPACITY)
    below = alone(batches, early, first, LayerRange(0, 2))
    got = together(batches, [below, late], [first, second], LayerRange(2, 4))
    np.testing.assert_array_equal(got[0], alone(batches, early, stack.new_cache(EVERY, CAPACITY)))
    np.testing.assert_array_equal(
        got[1], alone(batches, late, stack.new_cache(LayerRange(2, 4), CAPACITY), LayerRange(2, 4))
    )
    assert (first.length, second.length) == (3, 2)


def test_the_head_gives_the_same_bits_for_one_row_and_for_many(stack: LayerStack, batches: BatchStack) -> None:
    rows = stack.embed(token_ids(7, seed=3))
    got = batches.logits(rows)
    assert got.shape == (7, VOCAB)
    for at in range(7):
        np.testing.assert_array_equal(batches.logits(rows[at : at + 1])[0], got[at])
    assert batches.logits(rows[:0]).shape == (0, VOCAB)


def test_what_earlier_batches_left_behind_is_never_read(stack: LayerStack) -> None:
    """The canary: a session whose rows and memory are all NaN leaves its mates and successors untouched."""
    batches = BatchStack(stack, exact=True)
    hidden = stack.embed(token_ids(3, seed=5))
    expected = alone(batches, hidden, stack.new_cache(EVERY, CAPACITY))
    poison = np.full((9, hidden.shape[1]), np.nan, np.float32)
    poisoned, mate = stack.new_cache(EVERY, CAPACITY), stack.new_cache(EVERY, CAPACITY)
    got = together(batches, [poison, hidden, poison[:0]], [poisoned, mate, stack.new_cache(EVERY, CAPACITY)])
    assert np.isnan(got[0]).all()
    np.testing.assert_array_equal(got[1], expected)
    for array in batches._buffers._arrays:
        array.fill(np.nan)
    np.testing.assert_array_equal(alone(batches, hidden, stack.new_cache(EVERY, CAPACITY)), expected)


@pytest.mark.skipif(sys.platform != "linux", reason="the system clears mappings when asked to")
def test_memory_of_an_ended_session_holds_nothing_for_the_next(stack: LayerStack, batches: BatchStack) -> None:
    for _ in range(20):
        cache = stack.new_cache(EVERY, CAPACITY)
        assert not any(buffer.array.any() for pair in cache._buffers for buffer in pair)
        alone(batches, stack.embed(token_ids(40, seed=1)), cache)
        assert all(buffer.array.any() for pair in cache._buffers for buffer in pair)
        views = [buffer.array for pair in cache._buffers for buffer in pair]
        cache.truncate(0)
        assert not any(view.any() for view in views)
        del views
        cache.close()


def test_a_full_cache_refuses_the_batch_and_no_cache_changes(stack: LayerStack, batches: BatchStack) -> None:
    hidden = stack.embed(token_ids(6, seed=1))
    caches = [stack.new_cache(EVERY, 12), stack.new_cache(EVERY, 8)]
    together(batches, [hidden, hidden], caches)
    with pytest.raises(PromptTooLong):
        together(batches, [hidden, hidden], caches)
    assert [cache.length for cache in caches] == [6, 6]
    fresh = stack.new_cache(EVERY, 12)
    alone(batches, hidden, fresh)
    np.testing.assert_array_equal(together(batches, [hidden, hidden[:2]], caches)[0], alone(batches, hidden, fresh))


def test_a_failure_in_the_middle_of_the_layers_leaves_every_length(
    stack: LayerStack, batches: BatchStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    hidden = [stack.embed(token_ids(n, seed=n)) for n in (4, 1, 3)]
    caches = [stack.new_cache(EVERY, CAPACITY) for _ in hidden]
    together(batches, hidden, caches)
    attend = BatchStack._attend

    def fail(self: BatchStack, layer: batch._Layer, turns: object) -> None:
        if layer.number == 2:
            raise RuntimeError("no more")
        attend(self, layer, turns)  # type: ignore[arg-type]

    monkeypatch.setattr(BatchStack, "_attend", fail)
    with pytest.raises(RuntimeError):
        together(batches, hidden, caches)
    monkeypatch.undo()
    assert [cache.length for cache in caches] == [4, 1, 3]
    fresh = [stack.new_cache(EVERY, CAPACITY) for _ in hidden]
    together(batches, hidden, fresh)
    for got, expected in zip(together(batches, hidden, caches), together(batches, hidden, fresh), strict=True):
        np.testing.assert_array_equal(got, expected)


def test_batches_that_contradict_their_caches_are_refused(stack: LayerStack, batches: BatchStack) -> None:
    hidden = stack.embed(token_ids(2, seed=1))
    cache = stack.new_cache(EVERY, CAPACITY)
    for riders in (
        [Riding(cache, 1, 0)],  # fewer rows than there are
        [Riding(cache, 2, 1)],  # a base that the cache does not have
        [Riding(cache, 1, 0), Riding(cache, 1, 0)],  # twice in one batch
        [Riding(stack.new_cache(LayerRange(1, 4), CAPACITY), 2, 0)],  # layers that it does not have
    ):
        with pytest.raises(InternalError):
            batches.forward(hidden, riders, EVERY)
    assert cache.length == 0


@pytest.mark.parametrize("precision", [Precision.FP32, Precision.INT8])
def test_threads_change_no_bit(tmp_path: Path, precision: Precision, monkeypatch: pytest.MonkeyPatch) -> None:
    results = []
    for threads in (1, 3):
        stack = open_stack(tmp_path, precision, threads)
        batches = BatchStack(stack, exact=True)
        if threads > 1:  # so small a model would never use them
            monkeypatch.setattr(batch, "_WIDE_PRODUCTS", 1)
            monkeypatch.setattr(batch, "_SHARED_PRODUCTS", 1)
        caches = [stack.new_cache(EVERY, CAPACITY) for _ in range(5)]
        lengths = [25, 1, 1, 3, 1]
        for step in range(3):
            got = together(
                batches, [stack.embed(token_ids(n, seed=n + step)) for n in lengths[: 5 - step]], caches[: 5 - step]
            )
        results.append(np.concatenate(got))
        assert (batches._pool is not None) == (threads > 1)
    np.testing.assert_array_equal(results[0], results[1])


def test_a_failing_thread_fails_the_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stack = open_stack(tmp_path, Precision.FP32, threads=2)
    batches = BatchStack(stack, exact=True)
    monkeypatch.setattr(batch, "_SHARED_PRODUCTS", 1)
    caches = [stack.new_cache(EVERY, CAPACITY) for _ in range(2)]
    hidden = [stack.embed(token_ids(1, seed=s)) for s in range(2)]
    together(batches, hidden, caches)
    narrow = BatchStack._attend_narrow

    def fail(layer: batch._Layer, turns: list[batch._Turn]) -> None:
        if turns[0].cache is caches[1]:
            raise RuntimeError("a worker fell")
        narrow(layer, turns)

    monkeypatch.setattr(BatchStack, "_attend_narrow", staticmethod(fail))
    with pytest.raises(RuntimeError, match="a worker fell"):
        together(batches, hidden, caches)
    assert [cache.length for cache in caches] == [1, 1]


def test_one_row_is_computed_as_one_unless_bits_must_agree(stack: LayerStack) -> None:
    hidden = stack.embed(token_ids(1, seed=2))
    expected = stack.forward(hidden, stack.new_cache(EVERY, CAPACITY), EVERY)
    got = alone(BatchStack(stack, exact=False), hidden, stack.new_cache(EVERY, CAPACITY))
    np.testing.assert_array_equal(got, expected)


def test_a_batch_cache_holds_no_buffers_of_its_own(stack: LayerStack, batches: BatchStack) -> None:
    cache = stack.new_cache(EVERY, CAPACITY)
    alone(batches, stack.embed(token_ids(5, seed=1)), cache)
    assert not cache._bindings and set(cache.attention) == set(EVERY)
    cache.close()
    assert not cache.attention


def test_only_the_layers_asked_for_are_loaded_and_none_of_the_whole_ones(tmp_path: Path) -> None:
    stack = open_stack(tmp_path, Precision.INT8)
    batches = BatchStack(stack, exact=True)
    batches.preload(LayerRange(1, 3))
    assert batches.loaded_parts() == ("layer-001", "layer-002")
    assert stack.loaded_parts() == ()


def test_the_pieces_of_a_layer_hold_each_weight_once(stack: LayerStack) -> None:
    path = stack.graph_file("layer-001")
    pieces = split_layer(path, stack.config.shape)
    parts = [onnx.load_from_string(piece).graph for piece in (pieces.before, pieces.attention, pieces.after)]
    whole = onnx.load(path, load_external_data=False).graph
    names = [tensor.name for part in parts for tensor in part.initializer]
    assert sorted(names) == sorted(tensor.name for tensor in whole.initializer)
    assert [node.name for part in parts for node in part.node] == [node.name for node in whole.node]
    assert not parts[1].initializer
    assert [value.name for value in parts[0].output] == ["qkv"]
    assert [value.name for value in parts[2].input] == ["hidden_in", "context"]


def test_files_that_are_no_layer_are_refused(stack: LayerStack, tmp_path: Path) -> None:
    garbage = tmp_path / "layer-000.onnx"
    garbage.write_bytes(b"\x00garbage")
    with pytest.raises(ModelInvalid):
        split_layer(garbage, stack.config.shape)
    with pytest.raises(ModelInvalid):
        split_layer(stack.graph_file("head"), stack.config.shape)
