"""The ONNX runner as the engine uses it: ragged batches in, rows that belong to the caller out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from glm_factory import write_tiny_checkpoint

from splitglm_cloud.engine.runner import Cache, Rider
from splitglm_cloud.engine.runner_onnx import OnnxRunner
from splitglm_core.errors import InputError
from splitglm_core.plan import Precision
from splitglm_core.ranges import LayerRange
from splitglm_glm.opening import open_checkpoint, open_stack
from splitglm_glm.runtime import RuntimeOptions
from splitglm_glm.store import ModelStore

LAYERS, HIDDEN = 4, 128
EVERY = LayerRange(0, LAYERS)


@pytest.fixture(scope="module", params=[Precision.INT8, Precision.INT4])
def runner(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> OnnxRunner:
    home = tmp_path_factory.mktemp("runner")
    model: Path = write_tiny_checkpoint(home / "model", layers=LAYERS, hidden=HIDDEN, intermediate=256)
    store = ModelStore(home)
    stack = open_stack(
        open_checkpoint(str(model), store), request.param, layers=EVERY, embedding=True, head=True, store=store,
        options=RuntimeOptions(threads=1),
    )  # fmt: skip
    return OnnxRunner(stack, EVERY, embedding=True, head=True)


def prompts(*lengths: int) -> list[np.ndarray]:
    return [np.random.default_rng(n).integers(0, 256, n) for n in lengths]


def reply(runner: OnnxRunner, ids: np.ndarray, cache: Cache, tokens: int) -> list[int]:
    """Greedy decoding in batches of one."""
    said: list[int] = []
    while len(said) < tokens:
        rows = runner.forward(runner.embed(ids), [Rider(cache, len(ids), cache.length)], EVERY)
        ids = runner.logits(rows[-1:]).argmax(axis=1)
        said.append(int(ids[0]))
    return said


def test_sessions_in_one_batch_say_what_each_says_alone(runner: OnnxRunner) -> None:
    questions = prompts(30, 1, 7, 12, 3)
    expected = [reply(runner, ids, runner.new_cache(EVERY, 64), 20) for ids in questions]
    caches = [runner.new_cache(EVERY, 64) for _ in questions]
    said: list[list[int]] = [[] for _ in questions]
    waiting = list(questions)
    for step in range(60):  # the sessions join one by one and take turns: the batch is never the same twice in a row
        riding = [s for s in range(5) if s * 3 <= step and (step + s) % 4 and len(said[s]) < 20]
        if not riding:
            continue
        rows = runner.embed(np.concatenate([waiting[s] for s in riding]))
        riders = [Rider(caches[s], len(waiting[s]), caches[s].length) for s in riding]
        for layers in (LayerRange(0, 3), LayerRange(3, 4)):
            rows = runner.forward(rows, riders, layers)
        ends = np.cumsum([rider.rows for rider in riders])
        logits = runner.logits(runner.join([rows[end - 1 : end] for end in ends]))
        for session, row in zip(riding, logits, strict=True):
            waiting[session] = row.argmax(keepdims=True)
            said[session].append(int(row.argmax()))
    assert said == expected


def test_rows_that_alight_belong_to_their_owner(runner: OnnxRunner) -> None:
    cache = runner.new_cache(EVERY, 16)
    rows = runner.forward(runner.embed(prompts(4)[0]), [Rider(cache, 4, 0)], EVERY)
    mine = runner.alight(rows[1:3])
    assert mine.base is None and mine.dtype == np.float32
    kept, all_rows = mine.copy(), rows.copy()
    runner.forward(runner.embed(prompts(5)[0]), [Rider(cache, 5, 4)], EVERY)
    np.testing.assert_array_equal(mine, kept)
    np.testing.assert_array_equal(rows, all_rows)


def test_rows_from_outside_ride_with_rows_from_inside(runner: OnnxRunner) -> None:
    ids = prompts(3, 2)
    caches = [runner.new_cache(EVERY, 16), runner.new_cache(LayerRange(2, 4), 16)]
    outside = np.random.default_rng(0).standard_normal((2, HIDDEN), np.float32)
    rows = runner.forward(runner.embed(ids[0]), [Rider(caches[0], 3, 0)], LayerRange(0, 2))
    riders = [Rider(caches[0], 3, 0), Rider(caches[1], 2, 0)]
    got = runner.forward(runner.join([rows, runner.board(outside)]), riders, LayerRange(2, 4))
    fresh = runner.new_cache(LayerRange(2, 4), 16)
    expected = runner.forward(runner.board(outside), [Rider(fresh, 2, 0)], LayerRange(2, 4))
    np.testing.assert_array_equal(got[3:], expected)


def test_pages_granted_to_a_cache_change_nothing(runner: OnnxRunner) -> None:
    cache, ids = runner.new_cache(EVERY, 16), prompts(4)[0]
    runner.reserve(8)
    cache.extend([(3, 4), (0,), (), (7,)])
    rows = runner.forward(runner.embed(ids), [Rider(cache, 4, 0)], EVERY)
    fresh = runner.new_cache(EVERY, 16)
    np.testing.assert_array_equal(rows, runner.forward(runner.embed(ids), [Rider(fresh, 4, 0)], EVERY))
    assert (cache.length, cache.committed, cache.committed_for(9)) == (4, 4, 9)


def test_a_bad_token_among_good_ones_is_refused_before_anything_runs(runner: OnnxRunner) -> None:
    with pytest.raises(InputError):
        runner.embed(np.array([1, 2, 1 << 20, 3], np.int64))
