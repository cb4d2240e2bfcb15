"""When memory is short: who loses keys and values, who waits, and that nobody waits for ever."""

from __future__ import annotations

import pytest
from engine_bench import CLOUD, LAYERS, PROMPT, Bench, Kind, ids_step

from splitglm_cloud.engine.events import Evicted, Failure, Owner
from splitglm_cloud.engine.kv_pages import PAGE_POSITIONS
from splitglm_cloud.engine.residency import RECENT_S
from splitglm_core.criticality import Criticality
from splitglm_wire.cloud import Output
from splitglm_wire.frames import ErrorCode, Reply

FILL = [1] * 100  # two pages in every layer


def filled(bench: Bench, session: int, **config: object) -> None:
    """A session that has used two pages in every layer and is idle now."""
    bench.configure(session, CLOUD, **config)
    bench.engine.submit(session, ids_step(FILL, reply=Reply.ACK))
    bench.run()


def test_the_longest_idle_session_gives_way_and_is_told(kind: Kind) -> None:
    bench = Bench(kind, pages=4 * LAYERS)
    for session in (1, 2):
        filled(bench, session)
        bench.clock.time_s += 2 * RECENT_S
    bench.configure(3, CLOUD)
    bench.engine.submit(3, ids_step(PROMPT, generate=2))
    bench.run()
    assert bench.last(1) == Evicted(None)
    assert isinstance(bench.last(2), Output)
    assert bench.tokens(3) == bench.expected_tokens(PROMPT, 2)
    bench.engine.submit(1, ids_step(PROMPT, generate=1, seq=2))  # it holds nothing, so it begins at position 0
    bench.run()
    assert bench.tokens(1) == bench.expected_tokens(PROMPT, 1)


def test_the_least_critical_idle_session_goes_first(kind: Kind) -> None:
    bench = Bench(kind, pages=4 * LAYERS)
    filled(bench, 1)
    filled(bench, 2, criticality=Criticality.SHEDDABLE)
    bench.clock.time_s += 2 * RECENT_S
    bench.configure(3, CLOUD)
    bench.engine.submit(3, ids_step(PROMPT, generate=1))
    bench.run()
    assert bench.last(2) == Evicted(None) and isinstance(bench.last(1), Output)


def test_a_younger_session_waits_while_an_older_one_was_used_a_moment_ago(kind: Kind) -> None:
    """Its device is about to send the next token: evicting it would only make the two evict each other in turn."""
    bench = Bench(kind, pages=2 * LAYERS)
    filled(bench, 1)
    bench.configure(2, CLOUD)
    bench.engine.submit(2, ids_step(PROMPT, generate=1))
    bench.run()
    assert bench.engine.parked == 1 and bench.results.get(2) is None
    assert isinstance(bench.last(1), Output)
    bench.clock.time_s += 2 * RECENT_S
    bench.run()
    assert bench.last(1) == Evicted(None)
    assert bench.tokens(2) == bench.expected_tokens(PROMPT, 1)
    assert bench.engine.parked == 0


@pytest.mark.parametrize("younger_is", [Criticality.CRITICAL, Criticality.SHEDDABLE])
def test_an_older_session_at_work_takes_memory_from_a_younger_one(kind: Kind, younger_is: Criticality) -> None:
    bench = Bench(kind, pages=3 * LAYERS)
    bench.configure(1, CLOUD)
    bench.configure(2, CLOUD, criticality=younger_is)
    bench.engine.submit(2, ids_step(FILL, generate=40))
    for _ in range(3):
        bench.engine.turn()
    told = bench.tokens(2)
    assert told
    bench.engine.submit(1, ids_step(FILL, generate=2))
    bench.run()
    assert Evicted(1) in bench.results[2]
    assert bench.tokens(1) == bench.expected_tokens(FILL, 2)
    # Whoever keeps its inputs goes on where it was: prompt and delivered tokens again, then the rest.
    delivered = bench.tokens(2)
    bench.engine.drop(1)
    bench.configure(2, CLOUD, generated=tuple(delivered))
    bench.engine.submit(2, ids_step([*FILL, *delivered], generate=3))
    bench.run()
    assert bench.tokens(2) == bench.expected_tokens(FILL, len(delivered) + 3)


def test_a_more_critical_session_goes_before_an_older_one(kind: Kind) -> None:
    bench = Bench(kind, pages=3 * LAYERS)
    bench.configure(1, CLOUD)
    bench.configure(2, CLOUD, criticality=Criticality.CRITICAL_PLUS)
    bench.engine.submit(1, ids_step(FILL, generate=20))
    bench.engine.turn()
    bench.engine.submit(2, ids_step(FILL, generate=2))
    bench.run()
    assert Evicted(1) in bench.results[1]
    assert bench.tokens(2) == bench.expected_tokens(FILL, 2)


def test_a_step_that_needs_more_than_the_whole_pool_is_refused_at_once(kind: Kind) -> None:
    bench = Bench(kind, pages=LAYERS)
    bench.configure(1, CLOUD)
    bench.engine.submit(1, ids_step(FILL, generate=1))
    bench.run()
    failure = bench.last(1)
    assert isinstance(failure, Failure) and failure.code is ErrorCode.OVERLOADED
    assert bench.ledger.used == 0 and bench.engine.parked == 0


def test_a_reply_that_outgrows_the_pool_ends_with_overloaded(kind: Kind) -> None:
    bench = Bench(kind, pages=LAYERS)
    bench.configure(1, CLOUD)
    bench.engine.submit(1, ids_step(PROMPT, generate=200))
    bench.run()
    failure = bench.last(1)
    assert isinstance(failure, Failure) and failure.code is ErrorCode.OVERLOADED
    assert len(bench.tokens(1)) == PAGE_POSITIONS - len(PROMPT) + 1


def test_who_waits_for_memory_keeps_its_deadline(kind: Kind) -> None:
    bench = Bench(kind, pages=2 * LAYERS)
    filled(bench, 1)
    bench.configure(2, CLOUD, deadline_ms=200)
    bench.engine.submit(2, ids_step(PROMPT, generate=1))
    bench.run()
    assert bench.engine.parked == 1
    bench.clock.time_s += 0.3
    bench.run()
    failure = bench.last(2)
    assert isinstance(failure, Failure) and failure.code is ErrorCode.DEADLINE and bench.engine.parked == 0


def test_who_waits_for_memory_does_not_wait_longer_than_others(kind: Kind) -> None:
    bench = Bench(kind, pages=2 * LAYERS, max_wait_s=2.0)
    filled(bench, 1)
    bench.configure(2, CLOUD)
    bench.engine.submit(2, ids_step(FILL, generate=1))
    for seq in range(2, 5):  # an older session's device sends a token now and then
        bench.run()
        assert bench.engine.parked == 1 and bench.results.get(2) is None
        bench.clock.time_s += 0.75 * RECENT_S
        bench.engine.submit(1, ids_step([1], seq=seq, base=98 + seq, reply=Reply.ACK))
    bench.run()
    failure = bench.last(2)
    assert isinstance(failure, Failure) and failure.code is ErrorCode.OVERLOADED and failure.retry_after_s > 0
    assert bench.engine.parked == 0


def test_what_waits_for_memory_is_not_counted_as_computed(kind: Kind) -> None:
    bench = Bench(kind, pages=2 * LAYERS)
    filled(bench, 1)
    before = bench.engine.stats()
    bench.configure(2, CLOUD)
    bench.engine.submit(2, ids_step(FILL, generate=1))
    bench.run()
    after = bench.engine.stats()
    assert bench.engine.parked == 1
    assert (after.row_layers, after.batches_by_layer) == (before.row_layers, before.batches_by_layer)


def test_memory_is_sought_anew_when_there_is_more_of_it_and_else_only_now_and_then(
    kind: Kind, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each one that waits looks at every session: not between any two batches."""
    bench = Bench(kind, pages=2 * LAYERS)
    filled(bench, 1)
    bench.configure(2, CLOUD)
    bench.engine.submit(2, ids_step(FILL, generate=1))
    bench.run()
    tries, missing = list[int](), bench.ledger.missing

    def counted(session: int, **wanted: int) -> int:
        tries.append(session)
        return missing(session, **wanted)

    monkeypatch.setattr(bench.ledger, "missing", counted)
    for _ in range(100):
        bench.clock.time_s += 0.001
        bench.engine.turn()
    assert 1 <= len(tries) <= 3
    tries.clear()
    bench.engine.drop(1)
    bench.run()
    assert not tries and bench.tokens(2) == bench.expected_tokens(FILL, 1)


def test_a_cancelled_generation_does_not_wait_for_memory(kind: Kind) -> None:
    bench = Bench(kind, pages=3 * LAYERS)
    filled(bench, 1)
    bench.configure(2, CLOUD)
    bench.engine.submit(2, ids_step(PROMPT, generate=200))
    bench.run()
    assert bench.engine.parked == 1 and len(bench.tokens(2)) == PAGE_POSITIONS - len(PROMPT) + 1
    bench.engine.abort(2, seq=1)
    assert bench.last(2) == Output(1, 0, b"", True) and bench.engine.parked == 0


def test_dropping_or_closing_while_a_step_waits_for_memory_leaves_nothing(kind: Kind) -> None:
    bench = Bench(kind, pages=2 * LAYERS)
    filled(bench, 1)
    bench.configure(2, CLOUD)
    bench.engine.submit(2, ids_step(PROMPT, generate=1))
    bench.run()
    bench.engine.drop(2)
    assert bench.engine.parked == 0
    bench.engine.close()
    assert bench.ledger.used == 0 and bench.engine.turn() is False


def test_many_sessions_in_a_pool_for_few_all_finish_with_their_own_tokens(kind: Kind) -> None:
    """Q3: no deadlock. The test keeps the inputs and rebuilds whoever was evicted, as the gateway does."""
    bench = Bench(kind, pages=5 * LAYERS)
    prompts = {session: [*PROMPT, session] * 2 for session in range(6)}
    wanted = {session: bench.expected_tokens(ids, 30) for session, ids in prompts.items()}
    for session, ids in prompts.items():
        bench.configure(session, CLOUD)
        bench.engine.submit(session, ids_step(ids, generate=30))
    for _ in range(5000):
        if not bench.engine.turn():
            bench.clock.time_s += RECENT_S
        for session, ids in prompts.items():
            if bench.results.get(session) and isinstance(event := bench.last(session), Evicted) and event.seq:
                done = bench.tokens(session)
                bench.configure(session, CLOUD, generated=tuple(done))
                bench.results[session].append(Output(0, 0, b"", False))
                bench.engine.submit(session, ids_step([*ids, *done], generate=30 - len(done)))
        if all(len(bench.tokens(session)) == 30 for session in prompts):
            break
    assert {session: bench.tokens(session) for session in prompts} == wanted
    assert bench.engine.stats().preemptions > 0


def test_a_tenant_gets_its_share_of_memory_from_one_that_holds_more(kind: Kind) -> None:
    """Q2: older sessions of one tenant do not keep all others out of memory."""
    bench = Bench(kind, pages=8 * LAYERS)
    for session in range(1, 9):
        bench.configure(session, CLOUD, owner=Owner("greedy"))
        bench.engine.submit(session, ids_step(PROMPT, generate=40))
    bench.configure(9, CLOUD, owner=Owner("small"))
    bench.engine.turn()
    bench.engine.submit(9, ids_step(PROMPT, generate=2))
    for _ in range(6):
        bench.engine.turn()
    assert bench.tokens(9) == bench.expected_tokens(PROMPT, 2)
    assert [session for session in range(1, 9) if Evicted(1) in bench.results[session]] == [8]  # their youngest


@pytest.mark.parametrize("weight", [0.2, 1.0, 5.0])
def test_tenants_at_work_never_evict_each_other_in_turn(kind: Kind, weight: float) -> None:
    """Rebuilt at once whenever they are evicted: each session may lose its pages a few times, not for ever."""
    bench = Bench(kind, pages=6 * LAYERS)
    owners = {session: Owner("ab"[session % 2], weight if session % 2 else 1.0) for session in range(7)}
    for session, owner in owners.items():
        bench.configure(session, CLOUD, owner=owner)
        bench.engine.submit(session, ids_step([*PROMPT, session] * 2, generate=40))
    rebuilt = 0
    for _ in range(4000):
        if not bench.engine.turn():
            bench.clock.time_s += RECENT_S
        for session in owners:
            if bench.results.get(session) and isinstance(event := bench.last(session), Evicted) and event.seq:
                done = bench.tokens(session)
                rebuilt += 1
                bench.results[session].append(Output(0, 0, b"", False))
                bench.configure(session, CLOUD, owner=owners[session], generated=tuple(done))
                bench.engine.submit(session, ids_step([*[*PROMPT, session] * 2, *done], generate=40 - len(done)))
        if all(len(bench.tokens(session)) == 40 for session in owners):
            break
    assert all(len(bench.tokens(session)) == 40 for session in owners)
    assert 0 < rebuilt < 30
