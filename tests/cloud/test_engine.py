"""The engine computes what the layers compute, for everybody at once; what goes wrong stays with whom it concerns."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from engine_bench import (
    CLOUD,
    CONTEXT,
    LAYERS,
    PROMPT,
    SAMPLED,
    SPLIT,
    USHAPE,
    Bench,
    Kind,
    hidden_step,
    ids_step,
)

from splitglm_cloud.engine.events import Evicted, Failure
from splitglm_cloud.engine.kv_pages import PAGE_POSITIONS
from splitglm_cloud.engine.runner import Runner
from splitglm_cloud.engine.slots import MAX_WORK_ROWS, Run
from splitglm_core.errors import InternalError
from splitglm_core.plan import SplitPlan
from splitglm_core.ranges import LayerRange
from splitglm_core.sampling import SamplingParams
from splitglm_glm.sampling import Sampler
from splitglm_wire.cloud import Output
from splitglm_wire.frames import ErrorCode, Reply, Rows, Step


@pytest.mark.parametrize("sampling", [SamplingParams(), SAMPLED], ids=["greedy", "sampled"])
def test_the_cloud_arm_generates_what_the_layers_say(bench: Bench, sampling: SamplingParams) -> None:
    bench.configure(1, CLOUD, sampling)
    bench.engine.submit(1, ids_step(PROMPT, generate=10))
    bench.run()
    assert bench.tokens(1) == bench.expected_tokens(PROMPT, 10, sampling)
    assert [o.last for o in bench.results[1] if isinstance(o, Output)] == [False] * 9 + [True]


def test_the_split_arm_samples_after_the_last_row(bench: Bench) -> None:
    bench.configure(1, SPLIT)
    hidden = bench.front(PROMPT)
    bench.engine.submit(1, hidden_step(hidden[:16], reply=Reply.ACK))
    bench.run()
    bench.engine.submit(1, hidden_step(hidden[16:], reply=Reply.TOKEN, seq=2, base=16))
    bench.run()
    assert bench.results[1][0] == Output(1, 0, b"", True, *_times(bench.results[1][0]))
    assert bench.tokens(1) == bench.expected_tokens(PROMPT, 1)


@pytest.mark.parametrize("reply", [Reply.ALL_HIDDEN, Reply.LAST_HIDDEN])
def test_the_u_shape_returns_hidden_states(bench: Bench, reply: Reply) -> None:
    bench.configure(1, USHAPE)
    hidden = bench.front(PROMPT)
    bench.engine.submit(1, hidden_step(hidden, reply=reply))
    bench.run()
    output = bench.last(1)
    assert isinstance(output, Output) and output.last
    expected = bench.alone.forward(hidden, bench.alone.new_cache(LayerRange(1, 3), CONTEXT), LayerRange(1, 3))
    wanted = expected if reply is Reply.ALL_HIDDEN else expected[-1:]
    got = np.frombuffer(output.payload, "<f4").reshape(output.rows, -1)
    np.testing.assert_array_equal(got, wanted)


def test_neighbours_in_every_arm_change_nothing(bench: Bench) -> None:
    """R2: the same tokens whatever else runs."""
    prompts = {session: [*PROMPT, session] for session in range(6)}
    for session, ids in prompts.items():
        bench.configure(session, CLOUD)
        bench.engine.submit(session, ids_step(ids, generate=6))
    bench.configure(10, USHAPE)
    bench.engine.submit(10, hidden_step(bench.front(PROMPT), reply=Reply.ALL_HIDDEN))
    bench.run()
    for session, ids in prompts.items():
        assert bench.tokens(session) == bench.expected_tokens(ids, 6)


def test_generation_stops_at_a_stop_token(bench: Bench) -> None:
    expected = bench.expected_tokens(PROMPT, 10)
    stop = expected[3]
    bench.configure(1, CLOUD, stop_ids=(stop,))
    bench.engine.submit(1, ids_step(PROMPT, generate=10))
    bench.run()
    assert bench.tokens(1) == expected[: expected.index(stop) + 1]


def _times(output: Output | Failure) -> tuple[int, int, int]:
    assert isinstance(output, Output)
    return output.queue_us, output.sweep_us, output.compute_us


def _nan(width: int) -> Step:
    bad = np.full((2, width), np.nan, np.float32)
    return Step(
        handle=1, fence=1, seq=1, base=0, rows_kind=Rows.HIDDEN, rows=2, reply=Reply.TOKEN, generate=1,
        payload=bad.tobytes(),
    )  # fmt: skip


def _poisoned(width: int) -> dict[str, tuple[SplitPlan, Step, ErrorCode]]:
    huge = np.full((1, width), 1e30, np.float32)
    short = np.zeros((1, width - 1), np.float32)
    base = {
        "handle": 1,
        "fence": 1,
        "seq": 1,
        "base": 0,
        "rows_kind": Rows.HIDDEN,
        "rows": 1,
        "reply": Reply.TOKEN,
        "generate": 1,
    }
    return {
        "nan": (SPLIT, _nan(width), ErrorCode.BAD_TENSOR),
        "huge": (SPLIT, Step(**base, payload=huge.tobytes()), ErrorCode.BAD_TENSOR),
        "wrong size": (SPLIT, Step(**base, payload=short.tobytes()), ErrorCode.BAD_TENSOR),
        "id out of range": (CLOUD, ids_step([1, 2**32 - 1]), ErrorCode.BAD_TENSOR),
        "beyond the context": (CLOUD, ids_step([1] * (CONTEXT + 1)), ErrorCode.BAD_REQUEST),
    }


@pytest.mark.parametrize("poison", _poisoned(64))
def test_a_poisoned_step_fails_alone_and_the_session_goes_on(bench: Bench, poison: str) -> None:
    plan, bad, code = _poisoned(bench.runner.shape.hidden)[poison]
    bench.configure(1, CLOUD)
    bench.configure(2, plan)
    bench.engine.submit(1, ids_step(PROMPT, generate=6))
    bench.engine.submit(2, bad)
    bench.run()
    assert bench.results[2] == [Failure(1, code, bench.results[2][0].text)]  # type: ignore[union-attr]
    assert bench.tokens(1) == bench.expected_tokens(PROMPT, 6)
    bench.engine.cut(2, 0)  # what the session machine orders after a failure
    good = ids_step(PROMPT, generate=1) if plan is CLOUD else hidden_step(bench.front(PROMPT), reply=Reply.TOKEN)
    bench.engine.submit(2, good)
    bench.run()
    assert bench.tokens(2) == bench.expected_tokens(PROMPT, 1)


class Faulty:
    """A runner whose next passes go wrong."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self.fault: Exception | float | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._runner, name)

    def forward(self, rows: Any, riders: Any, layers: LayerRange) -> Any:
        out = self._runner.forward(rows, riders, layers)
        if isinstance(self.fault, Exception):
            raise self.fault
        if self.fault is not None:
            return out * self.fault
        return out


@pytest.mark.parametrize(
    ("fault", "code"),
    [(RuntimeError("secret content"), ErrorCode.INTERNAL), (MemoryError(), ErrorCode.INTERNAL),
     (float("nan"), ErrorCode.BAD_TENSOR), (float("inf"), ErrorCode.BAD_TENSOR)],
)  # fmt: skip
def test_a_pass_that_goes_wrong_is_told_without_content_and_leaves_no_trace(
    kind: Kind, fault: Exception | float, code: ErrorCode, caplog: pytest.LogCaptureFixture
) -> None:
    bench = Bench(kind, faults=Faulty)
    faulty: Any = bench.runner
    bench.configure(1, CLOUD)
    faulty.fault = fault
    bench.engine.submit(1, ids_step(PROMPT, generate=3))
    bench.run()
    failure = bench.last(1)
    assert isinstance(failure, Failure) and failure.code is code
    assert "secret" not in failure.text + caplog.text
    faulty.fault = None
    bench.engine.cut(1, 0)
    bench.configure(1, CLOUD)
    bench.engine.submit(1, ids_step(PROMPT, generate=3))
    bench.run()
    assert bench.tokens(1) == bench.expected_tokens(PROMPT, 3)


class NoRoom:
    """A runner without memory for what leaves it."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner

    def __getattr__(self, name: str) -> Any:
        return getattr(self._runner, name)

    def alight(self, rows: Any) -> Any:
        raise MemoryError


@pytest.mark.parametrize("reply", [Reply.ALL_HIDDEN, Reply.LAST_HIDDEN])
def test_an_answer_that_finds_no_memory_fails_alone(kind: Kind, reply: Reply) -> None:
    bench = Bench(kind, faults=NoRoom)
    bench.configure(1, USHAPE)
    bench.configure(2, CLOUD)
    bench.engine.submit(1, hidden_step(bench.front(PROMPT), reply=reply))
    bench.engine.submit(2, ids_step(PROMPT, generate=3))
    bench.run()
    failure = bench.last(1)
    assert isinstance(failure, Failure) and failure.code is ErrorCode.INTERNAL
    assert bench.tokens(2) == bench.expected_tokens(PROMPT, 3)
    assert bench.ledger.held(1) == 0


def test_abort_ends_generation_at_once_and_what_was_said_stays(bench: Bench) -> None:
    bench.configure(1, CLOUD)
    bench.engine.submit(1, ids_step(PROMPT, generate=200))
    for _ in range(3):
        bench.engine.turn()
    bench.engine.abort(1, seq=9)  # another step's number changes nothing
    bench.engine.turn()
    said = bench.tokens(1)
    assert said == bench.expected_tokens(PROMPT, 4)
    bench.engine.abort(1, seq=1)
    assert bench.last(1) == Output(1, 0, b"", True) and not bench.engine.turn()
    bench.engine.submit(1, ids_step(said[-1:], seq=2, base=len(PROMPT) + 3, generate=2))
    bench.run()
    assert bench.tokens(1) == bench.expected_tokens(PROMPT, 6)


def test_abort_before_the_first_token_waits_for_it(bench: Bench) -> None:
    """The step's rows were accepted, so they are applied."""
    bench.configure(1, CLOUD)
    bench.engine.submit(1, ids_step(PROMPT, generate=200))
    bench.engine.abort(1, seq=1)
    bench.run()
    assert bench.tokens(1) == bench.expected_tokens(PROMPT, 1) and bench.results[1] == [bench.last(1)]


def parts_of(ids: list[int]) -> list[list[int]]:
    return [ids[at : at + MAX_WORK_ROWS] for at in range(0, len(ids), MAX_WORK_ROWS)]


LONG = [int(i) for i in np.random.default_rng(1).integers(0, 256, MAX_WORK_ROWS + 90)]
ROOMY = {"context": 500}


def test_a_long_step_is_computed_in_parts_and_says_what_the_parts_say(bench: Bench) -> None:
    everything = LayerRange(0, LAYERS)
    cache = bench.alone.new_cache(everything, 500)
    for part in parts_of(LONG):
        hidden = bench.alone.forward(bench.alone.embed(np.array(part, np.int64)), cache, everything)
    expected = Sampler(SAMPLED).pick(bench.alone.logits(hidden[-1:])[0], len(LONG))
    bench.configure(1, CLOUD, **ROOMY)
    bench.engine.submit(1, ids_step(LONG, generate=1))
    turns = 0
    while bench.engine.turn():
        turns += 1
    assert turns == len(parts_of(LONG)) == 2
    assert bench.tokens(1) == [expected] and len(bench.results[1]) == 1


@pytest.mark.parametrize("reply", [Reply.ALL_HIDDEN, Reply.LAST_HIDDEN, Reply.ACK])
def test_a_long_step_of_hidden_states_is_answered_once_and_whole(bench: Bench, reply: Reply) -> None:
    back = LayerRange(1, 3)
    rows = np.random.default_rng(2).standard_normal((len(LONG), bench.runner.shape.hidden)).astype(np.float32)
    cache = bench.alone.new_cache(back, 500)
    cuts = range(0, len(LONG), MAX_WORK_ROWS)
    expected = np.concatenate([bench.alone.forward(rows[at : at + MAX_WORK_ROWS], cache, back) for at in cuts])
    bench.configure(1, USHAPE, **ROOMY)
    bench.engine.submit(1, hidden_step(rows, reply=reply))
    bench.run()
    (output,) = bench.results[1]
    assert isinstance(output, Output) and output.last
    wanted = {Reply.ALL_HIDDEN: expected, Reply.LAST_HIDDEN: expected[-1:], Reply.ACK: expected[:0]}[reply]
    np.testing.assert_array_equal(np.frombuffer(output.payload, "<f4").reshape(output.rows, wanted.shape[1]), wanted)


def test_a_token_waits_for_one_part_of_anothers_prompt_and_not_for_all_of_it(bench: Bench) -> None:
    bench.configure(1, CLOUD, **ROOMY)
    bench.configure(2, CLOUD)
    bench.engine.submit(1, ids_step(LONG, generate=1))
    bench.engine.turn()
    bench.engine.submit(2, ids_step([5], generate=3))
    bench.engine.turn()
    assert len(bench.tokens(2)) == 1 and bench.tokens(1) == []
    bench.run()
    assert len(bench.tokens(2)) == 3 and len(bench.tokens(1)) == 1


@pytest.mark.parametrize(
    ("rows", "reply", "decode"),
    [(1, Reply.TOKEN, True), (8, Reply.ALL_HIDDEN, True), (1, Reply.ACK, False), (8, Reply.ACK, False),
     (9, Reply.TOKEN, False)],
)  # fmt: skip
def test_only_a_small_step_that_somebody_waits_for_is_decoding(rows: int, reply: Reply, decode: bool) -> None:
    """A prompt cut into small pieces must not go before the prompts of others."""
    run = Run(ids_step([1] * rows, reply=reply), 0.0)
    assert run.decode is decode
    run.generated = 1
    assert run.decode


def test_a_long_step_that_goes_wrong_in_its_second_part_is_one_failure(bench: Bench) -> None:
    bench.configure(1, CLOUD, deadline_ms=500, **ROOMY)
    bench.engine.submit(1, ids_step(LONG, generate=3))
    bench.engine.turn()
    bench.clock.time_s += 0.6
    bench.run()
    assert [o.code for o in bench.results[1] if isinstance(o, Failure)] == [ErrorCode.DEADLINE]
    assert len(bench.results[1]) == 1
    bench.engine.cut(1, 0)
    bench.configure(1, CLOUD)
    bench.engine.submit(1, ids_step(PROMPT, generate=3))
    bench.run()
    assert bench.tokens(1) == bench.expected_tokens(PROMPT, 3)


def test_a_step_that_does_not_begin_where_the_cache_ends_is_never_computed(bench: Bench) -> None:
    bench.configure(1, CLOUD)
    bench.engine.submit(1, ids_step(PROMPT, base=5))
    failure = bench.last(1)
    assert isinstance(failure, Failure) and failure.code is ErrorCode.INTERNAL
    assert bench.engine.turn() is False


class Cramped:
    """A runner without memory for another cache while ``full``."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self.full = True

    def __getattr__(self, name: str) -> Any:
        return getattr(self._runner, name)

    def new_cache(self, layers: LayerRange, capacity: int) -> Any:
        if self.full:
            raise MemoryError
        return self._runner.new_cache(layers, capacity)


def test_a_session_that_loses_its_cache_to_a_failed_configure_says_so(kind: Kind) -> None:
    """Whoever keeps its inputs would otherwise go on at a position that is gone."""
    bench = Bench(kind, faults=Cramped)
    cramped: Any = bench.runner
    cramped.full = False
    bench.configure(1, CLOUD)
    bench.engine.submit(1, ids_step(PROMPT, reply=Reply.ACK))
    bench.run()
    cramped.full = True
    bench.configure(1, CLOUD, context=CONTEXT + 1, keep=len(PROMPT))  # a longer context needs another cache
    assert bench.last(1) == Evicted(None) and bench.ledger.used == 0
    cramped.full = False
    bench.configure(1, CLOUD, context=CONTEXT + 1)
    bench.engine.submit(1, ids_step(PROMPT, generate=2, seq=2))
    bench.run()
    assert bench.tokens(1) == bench.expected_tokens(PROMPT, 2)


def test_a_session_without_memory_is_told_overloaded_and_served_when_there_is_some(kind: Kind) -> None:
    bench = Bench(kind, faults=Cramped)
    cramped: Any = bench.runner
    bench.configure(1, CLOUD)
    for _ in range(2):
        bench.engine.submit(1, ids_step(PROMPT, generate=3))
        bench.run()
        failure = bench.last(1)
        assert isinstance(failure, Failure) and failure.code is ErrorCode.OVERLOADED
    cramped.full = False
    bench.engine.submit(1, ids_step(PROMPT, generate=3))
    bench.run()
    assert bench.tokens(1) == bench.expected_tokens(PROMPT, 3)
    cramped.full = True
    bench.configure(2, CLOUD)
    bench.engine.drop(2)
    bench.engine.submit(2, ids_step(PROMPT))
    unknown = bench.last(2)
    assert isinstance(unknown, Failure) and unknown.code is ErrorCode.INTERNAL  # dropped is dropped


def test_the_pages_count_what_caches_have_committed(bench: Bench) -> None:
    """Not what they hold: many sessions that fill their caches and forget it all must not hold memory for free."""
    bench.configure(1, CLOUD)
    cache = bench.engine._slots[1].cache
    assert bench.ledger.used == 0 == cache.committed
    for seq, (base, rows, cut) in enumerate([(0, 150, 149), (149, 1, 20), (20, 200, 100), (100, 20, 0)], start=1):
        bench.engine.submit(1, ids_step([1] * rows, seq=seq, base=base, reply=Reply.ACK))
        bench.run()
        assert cache.length <= cache.committed <= bench.ledger.used // LAYERS * PAGE_POSITIONS
        bench.engine.cut(1, cut)
        assert bench.ledger.used == LAYERS * -(-cache.committed // PAGE_POSITIONS)
    assert bench.ledger.used == 0 == cache.committed


def test_history_that_no_penalty_looks_at_is_not_kept(bench: Bench) -> None:
    history = tuple(range(100))
    bench.configure(1, CLOUD, SamplingParams(temperature=1.0, seed=3), generated=history)
    bench.configure(2, CLOUD, SAMPLED, generated=history)
    counts = [bench.engine._slots[session].sampler._counts for session in (1, 2)]
    assert counts == [{}, dict.fromkeys(history, 1)]


def test_keep_and_cut_forget_positions_and_their_pages(bench: Bench) -> None:
    bench.configure(1, CLOUD)
    bench.engine.submit(1, ids_step([1] * 150, reply=Reply.ACK))
    bench.run()
    assert bench.ledger.used == 3 * LAYERS
    bench.engine.cut(1, len(PROMPT))
    assert bench.ledger.used == LAYERS
    bench.configure(1, CLOUD, keep=0)
    assert bench.ledger.used == 0
    bench.engine.submit(1, ids_step(PROMPT, generate=4, seq=2))
    bench.run()
    assert bench.tokens(1) == bench.expected_tokens(PROMPT, 4)


@pytest.mark.parametrize("moment", ["waiting", "generating", "idle"])
def test_drop_frees_everything_at_any_moment(bench: Bench, moment: str) -> None:
    bench.configure(1, CLOUD)
    bench.configure(2, CLOUD)
    bench.engine.submit(1, ids_step(PROMPT, generate=1 if moment == "idle" else 50))
    if moment != "waiting":
        bench.engine.turn()
    bench.engine.drop(1)
    told = len(bench.results.get(1, []))
    bench.engine.submit(2, ids_step(PROMPT, generate=3))
    bench.run()
    assert len(bench.results.get(1, [])) == told  # a dropped session is told nothing more
    assert bench.tokens(2) == bench.expected_tokens(PROMPT, 3)
    assert bench.engine.stats().sessions == 1 and bench.engine.stats().waiting == 0
    bench.engine.drop(2)
    bench.engine.drop(2)
    assert bench.engine.stats().sessions == 0 and bench.ledger.used == 0


def test_closing_frees_every_session(bench: Bench) -> None:
    for session in range(3):
        bench.configure(session, CLOUD)
        bench.engine.submit(session, ids_step(PROMPT))
    bench.engine.turn()
    bench.engine.close()
    assert bench.engine.stats().sessions == bench.engine.stats().waiting == bench.ledger.used == 0
    assert bench.engine.turn() is False


def test_another_cut_gets_other_caches(bench: Bench) -> None:
    bench.configure(1, CLOUD)
    bench.engine.submit(1, ids_step(PROMPT, reply=Reply.ACK))
    bench.run()
    bench.configure(1, SPLIT)
    assert bench.ledger.used == 0
    bench.engine.submit(1, hidden_step(bench.front(PROMPT), reply=Reply.TOKEN, seq=2))
    bench.run()
    assert bench.tokens(1) == bench.expected_tokens(PROMPT, 1)


def test_a_step_after_its_deadline_is_not_computed(bench: Bench) -> None:
    bench.configure(1, CLOUD, deadline_ms=500)
    bench.engine.submit(1, ids_step(PROMPT, generate=50))
    bench.engine.turn()
    bench.clock.time_s += 0.6
    bench.run()
    failure = bench.last(1)
    assert isinstance(failure, Failure) and failure.code is ErrorCode.DEADLINE
    assert len(bench.tokens(1)) == 1


@pytest.mark.parametrize("session", [1, 2])
def test_a_step_that_cannot_be_taken_is_answered(bench: Bench, session: int) -> None:
    """Unknown session, and a second step while one runs: the session machine never does it, the engine survives it."""
    bench.configure(1, CLOUD)
    bench.engine.submit(1, ids_step(PROMPT, generate=3))
    bench.engine.submit(session, ids_step(PROMPT, seq=2))
    failure = bench.last(session)
    assert isinstance(failure, Failure) and failure.code is ErrorCode.INTERNAL
    bench.run()
    assert bench.tokens(1) == bench.expected_tokens(PROMPT, 3)


def test_times_are_told_once(bench: Bench) -> None:
    bench.configure(1, CLOUD)
    bench.engine.submit(1, ids_step(PROMPT, generate=4))
    bench.clock.time_s += 0.25
    bench.run()
    assert [_times(output)[0] for output in bench.results[1]] == [250_000, 0, 0, 0]


def test_a_wait_is_told_in_two_parts_for_the_sweep_to_begin_and_for_it_to_come_round(bench: Bench) -> None:
    """Queue until the sweep began in which the step rode, sweep from there; together the wait until it boarded."""
    hidden = bench.front(PROMPT)
    for session, plan in ((1, CLOUD), (2, USHAPE), (3, CLOUD), (4, USHAPE)):
        bench.configure(session, plan)
    bench.engine.submit(1, ids_step(PROMPT, generate=1))
    bench.engine.submit(2, hidden_step(hidden, reply=Reply.ALL_HIDDEN))
    bench.clock.time_s += 0.5
    assert bench.engine.turn()  # a sweep begins; 1 rides layer 0, where 2 does not ride
    bench.clock.time_s += 0.25
    assert bench.engine.turn()  # 2 boards
    bench.engine.submit(3, ids_step(PROMPT, generate=1))  # the sweep is past both their layers
    bench.engine.submit(4, hidden_step(hidden, reply=Reply.ALL_HIDDEN))
    bench.clock.time_s += 0.125
    while 1 not in bench.results:
        assert bench.engine.turn()
    bench.clock.time_s += 0.125
    assert bench.engine.turn()  # the next sweep
    bench.clock.time_s += 0.0625
    bench.run()
    told = {session: _times(bench.last(session))[:2] for session in (1, 2, 3, 4)}
    assert told == {1: (500_000, 0), 2: (500_000, 250_000), 3: (250_000, 0), 4: (250_000, 62_500)}


def test_a_step_that_boards_the_sweep_under_way_has_waited_for_no_other(bench: Bench) -> None:
    bench.configure(1, CLOUD)
    bench.configure(2, USHAPE)
    bench.engine.submit(1, ids_step(PROMPT[:2], generate=1))
    bench.engine.submit(2, hidden_step(bench.front(PROMPT), reply=Reply.ALL_HIDDEN))
    assert bench.engine.turn()
    bench.engine.drop(2)
    bench.configure(2, USHAPE)
    bench.engine.submit(2, hidden_step(bench.front(PROMPT), reply=Reply.ALL_HIDDEN))
    bench.clock.time_s += 0.25
    bench.run()
    assert _times(bench.last(2))[:2] == (0, 250_000)


def test_books_are_checked_for_a_hundredth_of_the_time_at_most(kind: Kind, monkeypatch: pytest.MonkeyPatch) -> None:
    """With one device the engine falls idle after every token."""
    bench, checks = Bench(kind), list[float]()

    def slow() -> None:
        checks.append(bench.clock.time_s)
        bench.clock.time_s += 0.1  # a pool of many pages

    monkeypatch.setattr(bench.ledger, "check_integrity", slow)
    for _ in range(1000):
        bench.clock.time_s += 0.05
        bench.run()
    assert 2 <= len(checks) <= 7


def test_closing_gives_back_the_runners_memory_although_a_table_is_broken(
    kind: Kind, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Bench(kind)
    for session in (1, 2):
        bench.configure(session, CLOUD)
        bench.engine.submit(session, ids_step(PROMPT, generate=1))
    bench.run()

    def broken(session: int) -> int:
        raise InternalError("a table is broken")

    monkeypatch.setattr(bench.ledger, "release", broken)
    with pytest.raises(InternalError):
        bench.engine.close()
    fresh = Bench(kind)  # on the same runner
    for session in (1, 2):
        fresh.configure(session, CLOUD)
        fresh.engine.submit(session, ids_step(PROMPT, generate=3))
    fresh.run()
    assert fresh.tokens(1) == fresh.tokens(2) == fresh.expected_tokens(PROMPT, 3)
