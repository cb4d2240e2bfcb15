"""The torch runner: a ragged batch of sessions at any depth says what each session says alone.

The reference is ``GlmModel`` with a private cache; that one is checked against `transformers` elsewhere. Page ids are
granted in random order, and pages that belong to nobody hold NaN, so that a read of one shows in a result.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from glm_factory import write_tiny_checkpoint
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from splitglm_cloud.engine.kv_pages import PAGE_POSITIONS
from splitglm_cloud.engine.paged_attention import FEW_ROWS
from splitglm_cloud.engine.paged_kv import PagedCache
from splitglm_cloud.engine.runner import Rider
from splitglm_cloud.engine.runner_torch import DTYPES, TorchRunner
from splitglm_core.errors import BadTensor, DeviceError, InputError, InternalError, PromptTooLong, SplitGlmError
from splitglm_core.ranges import LayerRange
from splitglm_glm.checkpoint import Checkpoint
from splitglm_glm.model import GlmModel, TorchKvCache

LAYERS = 4
WHOLE = LayerRange(0, LAYERS)
CAPACITY = 200
SESSIONS = 5
HIDDEN = 64
PAGES = SESSIONS * LAYERS * -(-CAPACITY // PAGE_POSITIONS)
CUTS = [LayerRange(s, t) for s in range(LAYERS) for t in range(s + 1, LAYERS + 1)]


def load(
    checkpoint: Checkpoint, layers: LayerRange = WHOLE, *, text: bool = True, dtype: str = "float32"
) -> TorchRunner:
    return TorchRunner(checkpoint, layers, embedding=text, head=text, dtype=dtype, threads=1, poison_freed=True)


@dataclass
class Session:
    """The same session in the batch and alone."""

    layers: LayerRange
    cache: PagedCache
    alone: TorchKvCache


class Crowd:
    """Sessions in one runner; grants pages in random order and compares every result with the session's own."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.runner = load(checkpoint)
        self.runner.reserve(PAGES)
        self.model = GlmModel.load(checkpoint, WHOLE, embedding=True, head=True)
        self.restart(0)

    def restart(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.free = [int(page) for page in self.rng.permutation(PAGES)]

    def open(self, layers: LayerRange = WHOLE) -> Session:
        return Session(layers, self.runner.new_cache(layers, CAPACITY), self.model.new_cache(layers, CAPACITY))

    def grow(self, session: Session, rows: int) -> None:
        while session.cache.committed < session.cache.length + rows:
            session.cache.extend([[self.free.pop()] for _ in session.layers])

    def cut(self, session: Session, length: int) -> None:
        held = {int(page) for page in session.cache.table(session.layers, session.cache.committed).ravel()}
        session.cache.truncate(length)
        session.alone.truncate(length)
        held -= {int(page) for page in session.cache.table(session.layers, session.cache.committed).ravel()}
        self.free += held
        self.rng.shuffle(self.free)

    def close(self, session: Session) -> None:
        self.free += session.cache.table(session.layers, session.cache.committed).ravel().tolist()
        self.rng.shuffle(self.free)
        session.cache.close()
        session.alone.close()

    def noise(self, rows: int) -> NDArray[np.float32]:
        return self.rng.standard_normal((rows, HIDDEN), np.float32)

    def sweep(self, steps: Sequence[tuple[Session, NDArray[np.float32]]], *, fail_at: int | None = None) -> None:
        """One pass over the layers: each step boards at its session's entry and alights at its exit."""
        aboard: list[tuple[Session, NDArray[np.float32], Any]] = []
        marks = sorted({mark for session, _ in steps for mark in (session.layers.start, session.layers.stop)})
        bases = {id(session): session.cache.length for session, _ in steps}
        for start, stop in pairwise(marks):
            segment = LayerRange(start, stop)
            aboard += [(s, x, self.runner.board(x)) for s, x in steps if s.layers.start == start]
            if not aboard:
                continue
            for session, x, _ in aboard:
                self.grow(session, len(x))
            riders = [Rider(session.cache, len(x), bases[id(session)]) for session, x, _ in aboard]
            rows = self.runner.join([rows for _, _, rows in aboard])
            if fail_at is not None and fail_at in segment:
                self._fail(rows, riders, segment, fail_at)
                for session, _ in steps:
                    self.cut(session, bases[id(session)])
                return
            out = self.runner.forward(rows, riders, segment)
            ends = np.cumsum([len(x) for _, x, _ in aboard]).tolist()
            aboard = [(s, x, out[end - len(x) : end]) for (s, x, _), end in zip(aboard, ends, strict=True)]
            for session, x, rows in aboard:
                if session.layers.stop == stop:
                    expected = self.model(torch.from_numpy(x), session.alone, session.layers).numpy()
                    np.testing.assert_allclose(self.runner.alight(rows), expected, rtol=1e-5, atol=1e-5)
                    assert session.cache.length == session.alone.length == bases[id(session)] + len(x)
            aboard = [(s, x, rows) for s, x, rows in aboard if s.layers.stop > stop]

    def _fail(self, rows: Any, riders: list[Rider], segment: LayerRange, layer: int) -> None:
        block = self.runner._model.blocks[str(layer)]
        with patch.object(block.mlp, "forward", side_effect=ArithmeticError), pytest.raises(ArithmeticError):
            self.runner.forward(rows, riders, segment)
        assert [rider.cache.length_of(segment) for rider in riders] == [rider.base for rider in riders]  # type: ignore[attr-defined]


@pytest.fixture(scope="module", params=["glm", "glm4"])
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    home = tmp_path_factory.mktemp(request.param)
    return Checkpoint.open(write_tiny_checkpoint(home / "model", request.param, layers=LAYERS, seed=7))


@pytest.fixture(scope="module")
def shared_crowd(checkpoint: Checkpoint) -> Crowd:
    return Crowd(checkpoint)


@pytest.fixture
def crowd(shared_crowd: Crowd) -> Iterator[Crowd]:
    shared_crowd.runner.reserve(PAGES)
    shared_crowd.restart(1)
    return shared_crowd


STEP = st.tuples(st.just("step"), st.sampled_from([1, 1, 1, 1, 2, 3, FEW_ROWS, FEW_ROWS + 1, PAGE_POSITIONS, 90]))
ACTION = st.one_of(
    STEP, STEP, STEP, STEP,
    st.tuples(st.just("cut"), st.floats(0, 1)),
    st.tuples(st.just("again"), st.sampled_from(CUTS)),
    st.tuples(st.just("idle"), st.none()),
)  # fmt: skip
SCHEDULE = st.tuples(
    st.integers(0, 1 << 32),
    st.lists(st.sampled_from(CUTS), min_size=SESSIONS, max_size=SESSIONS),
    st.lists(
        st.tuples(
            st.lists(ACTION, min_size=SESSIONS, max_size=SESSIONS),
            st.one_of(st.none(), st.none(), st.none(), st.integers(0, LAYERS - 1)),
        ),
        min_size=3,
        max_size=10,
    ),
)


def follow(crowd: Crowd, schedule: Any) -> None:
    seed, cuts, sweeps = schedule
    crowd.restart(seed)
    sessions = [crowd.open(layers) for layers in cuts]
    try:
        for actions, fail_at in sweeps:
            steps = []
            for i, (action, value) in enumerate(actions):
                session = sessions[i]
                if action == "step" and session.cache.length + value <= CAPACITY:
                    steps.append((session, crowd.noise(value)))
                elif action == "cut":
                    crowd.cut(session, int(value * session.cache.length))
                elif action == "again":
                    crowd.close(session)
                    sessions[i] = crowd.open(value)
            crowd.sweep(steps, fail_at=fail_at)
    finally:
        for session in sessions:
            crowd.close(session)
    assert crowd.runner._pool.used == 0 and sorted(crowd.free) == list(range(PAGES))


FIXED = {"deadline": None, "suppress_health_check": [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]}


@settings(max_examples=100, **FIXED)  # twice: one for each kind of model
@given(schedule=SCHEDULE)
def test_any_schedule_gives_each_session_what_it_gives_alone(crowd: Crowd, schedule: Any) -> None:
    follow(crowd, schedule)


@pytest.mark.slow
@settings(max_examples=500, **FIXED)
@given(schedule=SCHEDULE)
def test_a_thousand_schedules_give_each_session_what_it_gives_alone(crowd: Crowd, schedule: Any) -> None:
    follow(crowd, schedule)


def test_prefill_drafts_and_decoding_share_a_batch_with_entries_and_exits_in_its_midst(crowd: Crowd) -> None:
    sessions = [crowd.open(LayerRange(s, t)) for s, t in ((0, 4), (1, 3), (1, 4), (2, 3), (0, 2))]
    crowd.sweep([(session, crowd.noise(rows)) for session, rows in zip(sessions, (90, 1, 40, 70, 17), strict=True)])
    for rows in ((1, 1, 1, 1, 1), (1, 50, 1, 3, 3), (64, 1, 3, 1, 1), (1, 1, 1, 1, 1)):
        crowd.sweep([(session, crowd.noise(n)) for session, n in zip(sessions, rows, strict=True)])
    for session in sessions:
        crowd.close(session)


def test_sessions_decoding_in_one_batch_say_what_they_say_alone(crowd: Crowd) -> None:
    sessions = [crowd.open() for _ in range(4)]
    prompts = [np.arange(start, start + n, dtype=np.int64) for start, n in ((10, 30), (200, 2), (90, 100), (5, 17))]
    batched: list[list[int]] = [[] for _ in sessions]
    inputs = prompts
    for _ in range(30):
        riders = [Rider(s.cache, len(ids), s.cache.length) for s, ids in zip(sessions, inputs, strict=True)]
        for session, ids in zip(sessions, inputs, strict=True):
            crowd.grow(session, len(ids))
        out = crowd.runner.forward(crowd.runner.embed(np.concatenate(inputs)), riders, WHOLE)
        ends = np.cumsum([len(ids) for ids in inputs])
        logits = crowd.runner.logits(crowd.runner.join([out[end - 1 : end] for end in ends.tolist()]))
        assert logits.shape == (4, 320) and logits.dtype == np.float32
        inputs = [np.array([token]) for token in logits.argmax(axis=1)]
        for said, token in zip(batched, inputs, strict=True):
            said.append(int(token[0]))
    for session, prompt, said in zip(sessions, prompts, batched, strict=True):
        ids, alone = torch.from_numpy(prompt), []
        for _ in range(30):
            ids = crowd.model.logits(crowd.model(crowd.model.embed(ids), session.alone, WHOLE)[-1:]).argmax(-1)
            alone.append(int(ids))
        assert said == alone
        crowd.close(session)


def test_what_was_cut_leaves_no_trace(crowd: Crowd) -> None:
    used, fresh = crowd.open(), crowd.open()
    head, wrong, right = crowd.noise(70), crowd.noise(90), crowd.noise(3)
    crowd.sweep([(used, head)])
    crowd.sweep([(used, wrong)])
    crowd.cut(used, 70)
    crowd.sweep([(fresh, head)])
    outputs = []
    for session in (used, fresh):
        crowd.grow(session, 3)
        rows = crowd.runner.forward(crowd.runner.board(right), [Rider(session.cache, 3, 70)], WHOLE)
        outputs.append(crowd.runner.alight(rows))
        crowd.close(session)
    np.testing.assert_array_equal(outputs[0], outputs[1])


@pytest.mark.parametrize("rows", [1, 3, 40])
def test_a_poisoned_row_spoils_its_own_session_only_and_nothing_for_long(crowd: Crowd, rows: int) -> None:
    sick, *healthy = (crowd.open() for _ in range(4))
    crowd.sweep([(session, crowd.noise(30)) for session in (sick, *healthy)])
    bad = np.full((rows, HIDDEN), np.nan, np.float32)
    good = [crowd.noise(rows) for _ in healthy]
    for session in (sick, *healthy):
        crowd.grow(session, rows)
    batch = crowd.runner.join([crowd.runner.board(x) for x in (good[0], bad, *good[1:])])
    order = (healthy[0], sick, *healthy[1:])
    out = crowd.runner.alight(crowd.runner.forward(batch, [Rider(s.cache, rows, 30) for s in order], WHOLE))
    parts = np.split(out, len(order))
    assert np.isnan(parts.pop(1)).all()
    for session, x, part in zip(healthy, good, parts, strict=True):
        expected = crowd.model(torch.from_numpy(x), session.alone, WHOLE).numpy()
        np.testing.assert_allclose(part, expected, rtol=1e-5, atol=1e-5)
    sick.cache.truncate(30)  # within a page: its poisoned rows lie beyond the length, and stay unread
    crowd.sweep([(session, crowd.noise(1)) for session in (sick, *healthy)])
    for session in (sick, *healthy):
        crowd.close(session)


def test_a_page_that_is_not_ones_own_would_show(crowd: Crowd) -> None:
    """The poison bites: a block table that keeps a page after giving it back reads NaN."""
    session = crowd.open()
    crowd.sweep([(session, crowd.noise(70))])
    crowd.runner._pool.give(session.cache.table(WHOLE, 70)[2, :1])
    crowd.grow(session, 1)
    rows = crowd.runner.forward(crowd.runner.board(crowd.noise(1)), [Rider(session.cache, 1, 70)], WHOLE)
    assert np.isnan(crowd.runner.alight(rows)).all()
    crowd.close(session)


def test_a_call_that_is_refused_changes_nothing(crowd: Crowd, checkpoint: Checkpoint) -> None:
    a, b, part = crowd.open(), crowd.open(), crowd.open(LayerRange(1, 3))
    crowd.sweep([(session, crowd.noise(100)) for session in (a, b, part)])
    stranger = load(checkpoint, LayerRange(0, 1), text=False).new_cache(LayerRange(0, 1), 9)
    for riders, rows, layers, error in (
        ([Rider(a.cache, 1, 100), Rider(b.cache, 101, 100)], 102, WHOLE, PromptTooLong),
        ([Rider(a.cache, 1, 100), Rider(b.cache, 1, 99)], 2, WHOLE, InternalError),
        ([Rider(a.cache, 1, 100), Rider(a.cache, 1, 100)], 2, WHOLE, InternalError),
        ([Rider(a.cache, 1, 100), Rider(part.cache, 1, 100)], 2, WHOLE, InternalError),
        ([Rider(a.cache, 1, 100), Rider(b.cache, 1, 100)], 3, WHOLE, InternalError),
        ([Rider(a.cache, 2, 100), Rider(b.cache, -1, 100)], 1, WHOLE, InternalError),
        ([Rider(a.cache, 1, 100), Rider(b.cache, 60, 100)], 61, WHOLE, InternalError),  # pages not granted
        ([Rider(stranger, 1, 0)], 1, LayerRange(0, 1), InternalError),
    ):
        with pytest.raises(error):
            crowd.runner.forward(crowd.runner.board(crowd.noise(rows)), riders, layers)
    with pytest.raises(BadTensor):
        rider = Rider(a.cache, 1, 100)
        crowd.runner.forward(crowd.runner.board(np.zeros((1, HIDDEN + 1), np.float32)), [rider], WHOLE)
    crowd.sweep([(session, crowd.noise(1)) for session in (a, b, part)])
    for session in (a, b, part):
        crowd.close(session)


def test_nobody_aboard_is_no_error(crowd: Crowd) -> None:
    session = crowd.open()
    out = crowd.runner.forward(crowd.runner.board(crowd.noise(0)), [Rider(session.cache, 0, 0)], WHOLE)
    assert crowd.runner.alight(out).shape == (0, HIDDEN) and session.cache.length == 0


def test_host_arrays_are_copied_both_ways(crowd: Crowd) -> None:
    source = crowd.noise(3)
    kept = source.copy()
    source.flags.writeable = False
    rows = crowd.runner.board(source)
    out = crowd.runner.alight(rows[1:])
    out[:] = 0
    np.testing.assert_array_equal(crowd.runner.alight(rows), kept)


def test_what_cannot_be_embedded_or_held_is_refused(crowd: Crowd) -> None:
    with pytest.raises(InputError):
        crowd.runner.embed(np.array([3, 320]))
    for capacity in (0, 513):
        with pytest.raises(PromptTooLong):
            crowd.runner.new_cache(WHOLE, capacity)
    with pytest.raises(InternalError):
        crowd.runner.new_cache(LayerRange(2, 5), 10)


def test_the_runner_loads_only_what_it_was_asked_for(checkpoint: Checkpoint) -> None:
    def held(one: TorchRunner) -> int:
        return one._model.resident_weight_bytes()

    runner, whole = load(checkpoint, LayerRange(1, 3), text=False), load(checkpoint)
    layer = held(load(checkpoint, LayerRange(1, 2), text=False))
    assert 0 < layer < held(whole) / LAYERS
    assert held(runner) == 2 * layer
    with pytest.raises(SplitGlmError):
        runner.embed(np.array([1], np.int64))
    with pytest.raises(SplitGlmError):
        runner.logits(torch.zeros(1, HIDDEN))


def test_an_unknown_dtype_is_refused_and_a_known_one_is_named(checkpoint: Checkpoint) -> None:
    with pytest.raises(DeviceError, match="float32, bfloat16, float16, int8"):
        load(checkpoint, LayerRange(0, 1), text=False, dtype="int3")
    names = [load(checkpoint, LayerRange(0, 1), text=False, dtype=dtype).name for dtype in DTYPES]
    assert all(name.startswith("torch c") and name.endswith(dtype) for name, dtype in zip(names, DTYPES, strict=True))


def said_by(runner: TorchRunner) -> NDArray[np.float32]:
    """Logits of two sessions, one of them prefilled in two parts, with the head run for both at once."""
    runner.reserve(PAGES)
    a, b = runner.new_cache(WHOLE, CAPACITY), runner.new_cache(WHOLE, CAPACITY)
    a.extend([[i, i + 8] for i in range(LAYERS)])
    b.extend([[i + 12] for i in range(LAYERS)])
    ids = np.random.default_rng(3).integers(0, 320, 150)
    runner.forward(runner.embed(ids[:75]), [Rider(a, 75, 0)], WHOLE)
    out = runner.forward(runner.embed(ids[75:]), [Rider(a, 25, 75), Rider(b, 50, 0)], WHOLE)
    return runner.logits(runner.join([out[:25], out[25:]]))


@pytest.mark.parametrize(("dtype", "most"), [("bfloat16", 0.03), ("float16", 0.004), ("int8", 0.03)])
def test_fewer_bits_say_nearly_the_same(checkpoint: Checkpoint, dtype: str, most: float) -> None:
    """Error of the logits relative to their size, root mean squares over 75 rows; the weights are random."""
    exact, rounded = said_by(load(checkpoint)), said_by(load(checkpoint, dtype=dtype))
    error = float(np.sqrt(np.mean((rounded - exact) ** 2) / np.mean(exact**2)))
    assert 0 < error <= most


@pytest.mark.parametrize("tied", [False, True])
def test_eight_bits_halve_the_memory_of_layers_and_head(tmp_path: Path, tied: bool) -> None:
    wide = Checkpoint.open(write_tiny_checkpoint(tmp_path / "m", hidden=128, intermediate=512, vocab=400, tied=tied))

    def held(dtype: str) -> int:
        model = load(wide, dtype=dtype)._model
        embedding = model.embedding
        assert embedding is not None
        return model.resident_weight_bytes() - (0 if tied and dtype != "int8" else embedding.nbytes)

    assert held("int8") <= 0.54 * held("bfloat16")
