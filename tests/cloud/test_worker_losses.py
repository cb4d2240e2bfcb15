"""A worker may die or hang whenever it likes: its sessions are named, nothing is left of it, and another one serves."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import executor_runner as told
import psutil
import pytest
from executor_world import (
    PATIENCE_S,
    Ear,
    configure,
    descriptors,
    eventually,
    ids_step,
    processes_of,
)
from glm_factory import write_tiny_checkpoint

from splitglm_cloud.engine.events import Failure
from splitglm_cloud.execution.process import ProcessExecutor
from splitglm_cloud.execution.seats import Supervision
from splitglm_cloud.execution.workers import WorkerState
from splitglm_core.errors import DeviceError
from splitglm_wire.actions import Output
from splitglm_wire.frames import ErrorCode

pytestmark = [
    pytest.mark.usefixtures("importable"),
    pytest.mark.skipif(sys.platform != "linux", reason="counts what /proc shows"),
]
QUICK = Supervision(watchdog_s=0.5, first_pause_s=0.01)


@contextmanager
def running(
    model: Path, *, workers: int = 1, supervision: Supervision = QUICK
) -> Iterator[tuple[ProcessExecutor, Ear]]:
    ear = Ear()
    executor = processes_of(model, ear, workers=workers, supervision=supervision)
    executor.start()
    try:
        yield executor, ear
    finally:
        executor.stop(PATIENCE_S)


def gone(pid: int) -> bool:
    """True for a process that is no more, or that only its parent has still to hear of."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def shared_memory_files() -> list[str]:
    return sorted(path.name for path in Path("/dev/shm").iterdir() if "splitglm" in path.name)


def test_a_killed_worker_names_its_sessions_and_the_others_go_on(wide_model: Path) -> None:
    with running(wide_model, workers=2) as (executor, ear):
        for session in range(8):
            configure(executor, session)
            executor.submit(session, ids_step([session], generate=450))
        ear.wait(lambda: all(ear.of(session) for session in range(8)))
        victim = executor.workers()[0]
        assert victim.sessions == 4
        os.kill(victim.pid, signal.SIGKILL)
        ear.wait(lambda: len(ear.lost()) == victim.sessions)
        lost = ear.lost()
        for session in set(range(8)) - lost:
            assert isinstance(ear.wait_end(session, 1), Output)
        told_until = {session: ear.of(session)[-1] for session in lost}
        assert set(told_until.values()) == {None}  # after the loss, nothing
        for session in lost:
            configure(executor, session)
            executor.submit(session, ids_step([7], seq=2, generate=2))
        for session in lost:
            assert isinstance(ear.wait_end(session, 2), Output)
        eventually(lambda: executor.workers()[0].state is WorkerState.READY)
        after = executor.workers()[0]
        assert (after.restarts, after.last_end) == (1, "ended by SIGKILL") and after.pid != victim.pid
        assert not psutil.pid_exists(victim.pid)


def test_commands_for_a_lost_session_mean_nothing_until_it_is_configured_again(wide_model: Path) -> None:
    with running(wide_model) as (executor, ear):
        configure(executor, 1)
        executor.submit(1, ids_step([told.DIE]))
        ear.wait_lost(1)
        executor.submit(1, ids_step([1], seq=2))  # sent before its sender heard of the loss
        executor.cut(1, 0)
        configure(executor, 1)
        executor.submit(1, ids_step([1], seq=3, generate=1))
        assert isinstance(ear.wait_end(1, 3), Output)
        assert ear.ends(1, 2) == []


def test_a_worker_that_breaks_is_replaced_as_one_that_was_killed(wide_model: Path) -> None:
    with running(wide_model) as (executor, ear):
        configure(executor, 1)
        executor.submit(1, ids_step([told.BREAK]))
        ear.wait_lost(1)
        eventually(lambda: executor.workers()[0].last_end == "ended with code 70")
        configure(executor, 1)
        executor.submit(1, ids_step([1], seq=2))
        assert isinstance(ear.wait_end(1, 2), Output)


def test_losses_leak_nothing(wide_model: Path) -> None:
    """I6: descriptors, threads, processes, shared memory, folders."""
    with running(wide_model) as (executor, ear):  # whatever is loaded once is loaded now
        configure(executor, 0)
        executor.submit(0, ids_step([1]))
        ear.wait_end(0, 1)

    def held() -> tuple[int, int, int, list[str]]:
        return descriptors(), threading.active_count(), len(psutil.Process().children()), shared_memory_files()

    before = held()
    with running(wide_model) as (executor, ear):
        started = held()
        for session in range(1, 4):
            configure(executor, session)
            executor.submit(session, ids_step([told.DIE]))
            ear.wait_lost(session)
            eventually(lambda: executor.ready)
        eventually(lambda: held() == started)
    assert held() == before


def test_the_counters_of_dead_workers_stay_counted(wide_model: Path) -> None:
    with running(wide_model) as (executor, ear):
        configure(executor, 1)
        executor.submit(1, ids_step([1, 2, 3], generate=5))
        ear.wait_end(1, 1)
        eventually(lambda: executor.stats().row_layers == 21 and executor.stats().sessions == 1)
        os.kill(executor.workers()[0].pid, signal.SIGKILL)
        ear.wait_lost(1)
        eventually(lambda: executor.stats().sessions == 0)
        assert executor.stats().row_layers == 21


@pytest.mark.parametrize("order", [told.STOP, told.HANG], ids=["stopped process", "blocked loop"])
def test_a_hung_worker_is_noticed_in_time_and_killed(order: int, wide_model: Path) -> None:
    watchdog_s = 2.0 if order == told.STOP else 0.5
    with running(wide_model, supervision=Supervision(watchdog_s=watchdog_s)) as (executor, ear):
        pid = executor.workers()[0].pid
        configure(executor, 1)
        configure(executor, 2)
        began_s = time.monotonic()
        executor.submit(1, ids_step([order]))
        ear.wait_lost(1)
        took_s = time.monotonic() - began_s
        assert ear.lost() == {1, 2}
        # Three times the 99th percentile batch is far below; the margin is for a busy machine.
        assert watchdog_s * 0.9 < took_s < watchdog_s + 2.0
        eventually(lambda: not psutil.pid_exists(pid))  # SIGCONT can wake nobody
        eventually(lambda: executor.workers()[0].last_end == "hung, ended by SIGKILL")
        configure(executor, 1)
        executor.submit(1, ids_step([4], seq=2, generate=1))
        assert isinstance(ear.wait_end(1, 2), Output)
        assert ear.ends(1, 1) == []


def test_a_slow_batch_is_not_taken_for_a_hang(wide_model: Path) -> None:
    with running(wide_model, supervision=Supervision(watchdog_s=2 * told.SLOW_S)) as (executor, ear):
        configure(executor, 1)
        for turn in range(5):
            executor.submit(1, ids_step([told.SLOW], seq=turn + 1, base=turn, generate=0))
            ear.wait_end(1, turn + 1)
        assert executor.workers()[0].restarts == 0


def test_a_step_that_ends_its_worker_three_times_is_refused_after_that(wide_model: Path) -> None:
    with running(wide_model) as (executor, ear):
        for death in range(3):
            configure(executor, 1)
            executor.submit(1, ids_step([told.DIE], seq=death + 1))
            ear.wait_lost(1, death + 1)
        configure(executor, 1)
        executor.submit(1, ids_step([told.DIE], seq=4))
        end = ear.wait_end(1, 4)
        assert isinstance(end, Failure) and end.code is ErrorCode.INTERNAL
        configure(executor, 2)
        executor.submit(2, ids_step([1]))
        assert isinstance(ear.wait_end(2, 1), Output)  # others are served
        assert executor.workers()[0].restarts == 3


def test_without_any_worker_steps_are_refused_with_a_hint_when_to_try_again(wide_model: Path) -> None:
    patience = Supervision(first_pause_s=PATIENCE_S, longest_pause_s=PATIENCE_S, patience_s=0.2)
    with running(wide_model, supervision=patience) as (executor, ear):
        configure(executor, 1)
        executor.submit(1, ids_step([told.DIE]))
        ear.wait_lost(1)
        eventually(lambda: executor.workers()[0].state is WorkerState.DOWN)
        assert not executor.ready
        configure(executor, 1)
        executor.submit(1, ids_step([1], seq=2))
        end = ear.wait_end(1, 2)
        assert isinstance(end, Failure) and end.code is ErrorCode.UNAVAILABLE and end.retry_after_s > 0


def test_a_worker_that_dies_while_starting_ends_the_start_with_a_reason(wide_model: Path) -> None:
    before = descriptors()
    executor = processes_of(wide_model, Ear(), runner="executor_runner:dying")
    with pytest.raises(DeviceError, match="ended with code 9 before it was ready"):
        executor.start()
    assert descriptors() == before


def test_a_worker_whose_model_has_changed_on_disk_serves_nobody(tmp_path: Path) -> None:
    """Keys and values of one model are never mixed with those of another."""
    model = write_tiny_checkpoint(tmp_path / "model", layers=3)
    with running(model) as (executor, ear):
        configure(executor, 1)
        write_tiny_checkpoint(model, layers=3, seed=1)
        os.kill(executor.workers()[0].pid, signal.SIGKILL)
        ear.wait_lost(1)
        eventually(lambda: "files have changed" in executor.workers()[0].last_end)
        assert not executor.ready


def test_workers_share_what_the_whole_executor_was_given(wide_model: Path) -> None:
    executor = processes_of(wide_model, Ear(), workers=4, runner="executor_runner:writing_down")
    with pytest.raises(DeviceError, match=f"threads: 1, budget: {(1 << 30) // 4}"):
        executor.start()


@pytest.mark.slow
def test_twenty_kills_and_stops_under_load_lose_nobody_for_good(wide_model: Path) -> None:
    """Whoever is lost is configured again and asks again: everybody gets everything, and nothing piles up."""
    chance = random.Random(1)
    supervision = Supervision(watchdog_s=0.5, first_pause_s=0.01, longest_pause_s=0.1, patience_s=PATIENCE_S)
    with running(wide_model, workers=2, supervision=supervision) as (executor, ear):
        before = descriptors(), threading.active_count()
        wanted, losses = dict.fromkeys(range(12), 1), dict.fromkeys(range(12), 0)

        def ask(session: int) -> None:
            configure(executor, session)
            executor.submit(session, ids_step([session], seq=wanted[session], generate=300))

        def follow() -> None:
            for session, seq in list(wanted.items()):
                if ear.of(session).count(None) > losses[session]:
                    losses[session] = ear.of(session).count(None)
                    ask(session)
                elif (end := ear.ends(session, seq)) and isinstance(end[-1], Output):
                    wanted[session] += 1
                    executor.drop(session)
                    ask(session)

        for session in wanted:
            ask(session)
        for _ in range(20):
            seen = len(ear.heard)
            eventually(lambda seen=seen: follow() or len(ear.heard) > seen + 500)  # type: ignore[misc]
            alive = [worker.pid for worker in executor.workers() if worker.state is WorkerState.READY]
            if alive:
                os.kill(chance.choice(alive), chance.choice((signal.SIGKILL, signal.SIGSTOP)))
        done = dict(wanted)
        eventually(lambda: follow() or all(wanted[session] > done[session] for session in wanted))
        eventually(lambda: (descriptors(), threading.active_count()) == before)
        assert sum(worker.restarts for worker in executor.workers()) >= 10
        assert not [event for _, event in ear.heard if isinstance(event, Failure)]


GATEWAY = """
import sys, threading
from pathlib import Path
import executor_runner, psutil
from executor_world import Ear, configure, eventually, ids_step, processes_of
from splitglm_cloud.execution.seats import Supervision
ear = Ear()
executor = processes_of(Path(sys.argv[1]), ear, workers=2, supervision=Supervision(watchdog_s=600.0))
executor.start()
for session, word in enumerate(map(int, sys.argv[2:])):
    configure(executor, session)
    executor.submit(session, ids_step([word], generate=400))
    if word == executor_runner.STOP:
        worker = psutil.Process(executor.workers()[session].pid)
        eventually(lambda: worker.status() == psutil.STATUS_STOPPED)
    elif word != executor_runner.HANG:
        ear.wait(lambda: bool(ear.tokens(session)))
print(*(worker.pid for worker in executor.workers()), flush=True)
threading.Event().wait()
"""


@pytest.mark.parametrize("words", [(1, 1), (told.HANG, told.STOP)], ids=["at work", "hung"])
def test_no_worker_outlives_a_killed_gateway(words: tuple[int, int], wide_model: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "TMPDIR": str(tmp_path)} | {"PYTHONPATH": os.pathsep.join(sys.path)}
    environment.pop("XDG_RUNTIME_DIR", None)
    command = [sys.executable, "-c", GATEWAY, str(wide_model), *map(str, words)]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE) as gateway:
        assert gateway.stdout is not None
        pids = [int(pid) for pid in gateway.stdout.readline().split()]
        gateway.kill()
    assert len(pids) == 2
    eventually(
        lambda: all(not psutil.pid_exists(p) or psutil.Process(p).status() == psutil.STATUS_ZOMBIE for p in pids)
    )
    assert list(tmp_path.iterdir()) == []
    assert shared_memory_files() == []
