"""Two clients that time single steps: the product's own (threads), and one on asyncio without a thread hand-over.

Both send one hidden state up and wait for the answer, at given times or one step right after the other, and both
count from when a step was meant to be sent.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from splitglm_core.plan import HeadSide, SplitPlan
from splitglm_core.sampling import SamplingParams
from splitglm_edge.link import CloudLink
from splitglm_edge.remote import RemoteSession
from splitglm_edge.timeouts import Timeouts
from splitglm_sims.load.stream import LoadStream, Target
from splitglm_wire import codec
from splitglm_wire.device import DeviceSession, StepDone
from splitglm_wire.events import Gap, Refused
from splitglm_wire.frames import Reply, Rows

CONTEXT = 8192


@dataclass(slots=True)
class Timed:
    """One entry per step, seconds."""

    total: list[float] = field(default_factory=list)
    compute: list[float] = field(default_factory=list)
    lag: list[float] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What every session does.

    Attributes:
        plans: one per session; split sessions ask for a token per step, U-shape sessions for a hidden state.
        row: hidden state, float32 (1, hidden).
        steps_per_s: of all sessions together, Poisson; None: the next step as soon as an answer is there.
    """

    plans: tuple[SplitPlan, ...]
    row: np.ndarray
    steps_per_s: float | None
    seconds: float

    @property
    def sessions(self) -> int:
        return len(self.plans)

    def arrivals(self, session: int) -> Iterator[float | None]:
        """Intended times from the start; None: at once. Ends with the run."""
        if self.steps_per_s is None:
            while True:
                yield None
        gap_s = self.sessions / self.steps_per_s
        rng = np.random.default_rng([session, 5])
        at_s = rng.exponential(gap_s)
        while at_s < self.seconds:
            yield at_s
            at_s += rng.exponential(gap_s)


def by_threads(target: Target, task: Task) -> Timed:
    """Every session is a thread with a ``RemoteSession`` on one ``CloudLink``, as in an app."""
    link = CloudLink.connect(target.address, fingerprint=target.fingerprint, trust=target.trust)
    timed = Timed()
    start_s = time.perf_counter() + 0.5
    threads = [
        threading.Thread(target=_thread, args=(link, task, session, start_s, timed)) for session in range(task.sessions)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    link.close()
    return timed


def _thread(link: CloudLink, task: Task, session: int, start_s: float, timed: Timed) -> None:
    remote, plan = RemoteSession(lambda: link, Timeouts()), task.plans[session]
    remote.begin(
        plan=plan, sampling=SamplingParams(), context=CONTEXT, keep=0, stop_ids=(), generated=(), deadline_s=None
    )

    def step() -> float:
        payload = codec.encode(task.row, plan.codec, base=remote.length)
        remote.step(rows_kind=Rows.HIDDEN, rows=1, payload=payload, **_asked(plan))
        while not isinstance(event := remote.wait(), StepDone):
            pass
        return event.compute_s

    step()
    for at_s in task.arrivals(session):
        now_s = time.perf_counter()
        intended_s = max(now_s, start_s) if at_s is None else start_s + at_s
        if intended_s >= start_s + task.seconds or remote.length >= CONTEXT - 1:
            break
        time.sleep(max(0.0, intended_s - now_s))
        lag_s = time.perf_counter() - intended_s
        _note(timed, step(), intended_s, lag_s)
    remote.close()


def by_asyncio(target: Target, task: Task) -> Timed:
    """All sessions in one thread, on one stream: what is left when no thread has to wake another on this side."""
    return asyncio.run(_by_asyncio(target, task))


async def _by_asyncio(target: Target, task: Task) -> Timed:
    stream = await LoadStream.connect(target)
    timed = Timed()
    start_s = time.perf_counter() + 0.5
    await asyncio.gather(*(_coroutine(stream, task, session, start_s, timed) for session in range(task.sessions)))
    await stream.close()
    return timed


async def _coroutine(stream: LoadStream, task: Task, session: int, start_s: float, timed: Timed) -> None:
    handle, inbox = stream.open_inbox()
    machine = DeviceSession(handle=handle, session_id=os.urandom(16))
    plan = task.plans[session]
    stream.send(machine.open(plan=plan, sampling=SamplingParams(), context=CONTEXT, keep=0))

    async def step() -> float:
        payload = codec.encode(task.row, plan.codec, base=machine.length)
        stream.send(machine.step(rows_kind=Rows.HIDDEN, rows=1, payload=payload, **_asked(plan))[1])
        while True:
            received = await inbox.get()
            if received is None:
                raise SystemExit("the stream ended in the middle of the measurement")
            for event in machine.receive(received[0])[0]:
                if isinstance(event, StepDone):
                    return event.compute_s
                if isinstance(event, (Refused, Gap)):
                    raise SystemExit(f"the cloud refused a step: {event}")

    await step()
    for at_s in task.arrivals(session):
        now_s = time.perf_counter()
        intended_s = max(now_s, start_s) if at_s is None else start_s + at_s
        if intended_s >= start_s + task.seconds or machine.length >= CONTEXT - 1:
            break
        if intended_s > now_s:
            await asyncio.sleep(intended_s - now_s)
        lag_s = time.perf_counter() - intended_s
        _note(timed, await step(), intended_s, lag_s)
    stream.send(machine.close())
    stream.drop_inbox(handle)


def _asked(plan: SplitPlan) -> dict[str, Any]:
    token = plan.head is HeadSide.CLOUD
    return {"reply": Reply.TOKEN if token else Reply.LAST_HIDDEN, "generate": int(token)}


def _note(timed: Timed, compute_s: float, intended_s: float, lag_s: float) -> None:
    timed.total.append(time.perf_counter() - intended_s)
    timed.compute.append(compute_s)
    timed.lag.append(lag_s)


CLIENTS = {"threads": by_threads, "asyncio": by_asyncio}
