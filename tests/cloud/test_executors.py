"""One promise for every executor: steps are answered once and in order, whatever the others do."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import executor_runner as told
import numpy as np
import pytest
from executor_world import (
    CONTEXT,
    HIDDEN,
    LAYERS,
    PATIENCE_S,
    USHAPE,
    Ear,
    Executor,
    configure,
    eventually,
    hidden_step,
    ids_step,
    inline_of,
    processes_of,
)

from splitglm_cloud.engine.events import Failure
from splitglm_cloud.execution.process import ProcessExecutor
from splitglm_core.errors import DeviceError, InputError, ModelInvalid, ModelNotFound, SplitGlmError
from splitglm_core.plan import Precision, SplitPlan
from splitglm_wire.actions import Output
from splitglm_wire.frames import ErrorCode

pytestmark = pytest.mark.usefixtures("importable")
KINDS = {"inline": inline_of, "process": processes_of}


@pytest.fixture(scope="module", params=list(KINDS))
def started(request: pytest.FixtureRequest, wide_model: Path) -> Iterator[tuple[Executor, Ear]]:
    ear = Ear()
    executor = KINDS[request.param](wide_model, ear)
    executor.start()
    yield executor, ear
    assert executor.stop(PATIENCE_S)
    assert len(ear.threads) == 1  # events and losses come from one thread


@pytest.fixture
def executor(started: tuple[Executor, Ear]) -> Iterator[Executor]:
    """Each test leaves an executor without sessions."""
    yield started[0]
    for session in {session for session, _ in started[1].heard}:
        started[0].drop(session)
    eventually(lambda: not started[0].stats().sessions)
    started[1].heard.clear()


@pytest.fixture
def ear(started: tuple[Executor, Ear]) -> Ear:
    return started[1]


def test_tokens_come_in_order_and_the_last_one_says_so(executor: Executor, ear: Ear) -> None:
    configure(executor, 1)
    executor.submit(1, ids_step([7, 8, 9], generate=40))
    ear.wait_end(1, 1)
    assert ear.tokens(1) == list(range(10, 50))
    assert [event.last for event in ear.of(1) if isinstance(event, Output)] == [False] * 39 + [True]
    assert executor.ready


def test_many_sessions_each_get_their_own_answers(executor: Executor, ear: Ear) -> None:
    for session in range(64):
        configure(executor, session)
        executor.submit(session, ids_step([session], generate=8))
    for session in range(64):
        ear.wait_end(session, 1)
        assert ear.tokens(session) == [(session + 1 + i) % told.COUNTED for i in range(8)]


def test_every_step_ends_once_whether_it_can_be_computed_or_not(executor: Executor, ear: Ear) -> None:
    """I5. Good steps, steps that the model chokes on, steps that make no sense, steps of nobody."""
    steps = {
        0: ids_step([1, 2]),
        1: ids_step([told.RAISE]),
        2: ids_step([1], base=9),
        3: ids_step([5000]),
        4: ids_step([3], generate=0),
        5: ids_step([1] * (CONTEXT + 1)),
        6: ids_step([9]),
    }
    for session in range(42):
        if session % 7 != 6:
            configure(executor, session)
        executor.submit(session, steps[session % 7])
    codes = {1: ErrorCode.INTERNAL, 2: ErrorCode.INTERNAL, 3: ErrorCode.BAD_TENSOR, 6: ErrorCode.INTERNAL}
    for session in range(42):
        end = ear.wait_end(session, 1)
        if session % 7 in codes:
            assert isinstance(end, Failure) and end.code is codes[session % 7]
    configure(executor, 100)  # whatever could still be said of the others is said before the answer to this
    executor.submit(100, ids_step([1]))
    ear.wait_end(100, 1)
    assert [len(ear.ends(session, 1)) for session in range(42)] == [1] * 42


def test_the_next_step_of_a_session_goes_on_where_it_ended(executor: Executor, ear: Ear) -> None:
    configure(executor, 1)
    executor.submit(1, ids_step([1, 2, 3], generate=0))
    ear.wait_end(1, 1)
    executor.submit(1, ids_step([4], seq=2, base=3, generate=3))
    ear.wait_end(1, 2)
    assert ear.tokens(1) == [5, 6, 7]


def test_an_aborted_step_ends_early_and_well(executor: Executor, ear: Ear) -> None:
    configure(executor, 1)
    executor.submit(1, ids_step([told.SLOW], generate=400))
    executor.abort(1, 1)
    end = ear.wait_end(1, 1)
    assert isinstance(end, Output) and end.last
    assert 1 <= len(ear.tokens(1)) < 400


def test_a_cut_session_takes_steps_from_there(executor: Executor, ear: Ear) -> None:
    configure(executor, 1)
    executor.submit(1, ids_step([1, 2, 3, 4], generate=1))
    ear.wait_end(1, 1)
    executor.cut(1, 2)
    executor.submit(1, ids_step([9], seq=2, base=4))
    executor.submit(1, ids_step([9], seq=3, base=2))
    refused, good = ear.wait_end(1, 2), ear.wait_end(1, 3)
    assert isinstance(refused, Failure)
    assert isinstance(good, Output)


def test_dropping_sessions_frees_their_memory_and_silences_them(executor: Executor, ear: Ear) -> None:
    for session in range(8):
        configure(executor, session)
        executor.submit(session, ids_step([1] * 100, generate=0))
    for session in range(8):
        ear.wait_end(session, 1)
    eventually(lambda: executor.stats().sessions == 8)
    assert executor.stats().kv_used_bytes > 0
    executor.submit(0, ids_step([told.SLOW], seq=2, base=100, generate=300))
    for session in range(8):
        executor.drop(session)
    eventually(lambda: executor.stats().sessions == executor.stats().kv_used_bytes == 0)
    executor.submit(0, ids_step([1], seq=3))
    assert isinstance(ear.wait_end(0, 3), Failure)
    assert ear.ends(0, 2) == []


def test_a_step_whose_deadline_has_passed_is_given_up(executor: Executor, ear: Ear) -> None:
    configure(executor, 1, deadline_ms=int(500 * told.SLOW_S))
    executor.submit(1, ids_step([told.SLOW], generate=3))
    end = ear.wait_end(1, 1)
    assert isinstance(end, Failure) and end.code is ErrorCode.DEADLINE


def test_large_payloads_arrive_whole_both_ways(executor: Executor, ear: Ear) -> None:
    """Together more than a ring holds; what finds no room there travels otherwise."""
    rng = np.random.default_rng(0)
    sent = {session: rng.standard_normal((240, HIDDEN), np.float32) for session in range(24)}
    for session, hidden in sent.items():
        configure(executor, session, USHAPE)
        executor.submit(session, hidden_step(hidden))
    for session, hidden in sent.items():
        end = ear.wait_end(session, 1)
        assert isinstance(end, Output) and end.rows == 240
        assert end.payload == hidden.tobytes()


def test_an_executor_counts_what_it_did(executor: Executor, ear: Ear) -> None:
    before = executor.stats()
    configure(executor, 1)
    executor.submit(1, ids_step([1, 2, 3], generate=5))
    ear.wait_end(1, 1)
    eventually(lambda: executor.stats().row_layers == before.row_layers + 7 * LAYERS)
    assert executor.stats().kv_budget_bytes == before.kv_budget_bytes > 0


@pytest.mark.parametrize("kind", KINDS)
def test_stopping_ends_in_time_with_steps_under_way(kind: str, wide_model: Path) -> None:
    ear = Ear()
    executor = KINDS[kind](wide_model, ear)
    executor.start()
    configure(executor, 1)
    executor.submit(1, ids_step([told.SLOW], generate=400))
    ear.wait(lambda: bool(ear.tokens(1)))
    assert executor.stop(PATIENCE_S)
    assert not executor.ready
    if isinstance(executor, ProcessExecutor):
        assert [worker.last_end for worker in executor.workers()] == ["ended with code 0"]
    assert executor.stop(0.0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("changes", "error", "what"),
    [
        ({"runner": "executor_runner:refusing"}, ModelInvalid, "this model is not to be served"),
        ({"runner": "executor_runner:nobody"}, DeviceError, "cannot be imported"),
        ({"runner": "executor_runner"}, InputError, "neither onnx"),
        ({"max_rows": 0}, InputError, "must be positive"),
    ],
)
def test_what_keeps_an_engine_from_starting_is_said_alike(
    kind: str, changes: dict[str, object], error: type[SplitGlmError], what: str, wide_model: Path
) -> None:
    with pytest.raises(error, match=what):
        KINDS[kind](wide_model, Ear(), **changes).start()


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_that_is_not_there_is_said_alike(kind: str, tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound):
        KINDS[kind](tmp_path / "nothing", Ear()).start()


@pytest.mark.parametrize("runner", ["onnx", "torch"])
def test_a_worker_computes_what_the_thread_computes(
    runner: str, model: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The product's own runners, built from one specification on either side of the border."""
    monkeypatch.setenv("SPLITGLM_HOME", str(home))
    said: list[list[int]] = []
    plan = SplitPlan.cloud_only(4)
    for kind in KINDS.values():
        ear = Ear()
        executor = kind(model, ear, runner=runner, precision=Precision.FP32)
        executor.start()
        try:
            configure(executor, 1, plan)
            executor.submit(1, ids_step([3, 1, 4, 1, 5], generate=12))
            ear.wait_end(1, 1)
        finally:
            executor.stop(PATIENCE_S)
        said.append(ear.tokens(1))
    assert said[0] == said[1]
    assert len(said[0]) == 12
