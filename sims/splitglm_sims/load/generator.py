"""One generator: its share of the schedule on one event loop, in this process or in one of its own.

As a process it reads its job as one JSON line from standard input, connects, says ``ready``, reads the start time,
runs, and writes its record to the file that the job names. ``python -m splitglm_sims.load.generator`` is for
``run.py`` only.
"""

from __future__ import annotations

import asyncio
import gc
import itertools
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from splitglm_core.errors import InputError
from splitglm_partitioner.typed_json import loads
from splitglm_security.trust import PinStore, Trust, TrustPolicy
from splitglm_sims.load.client import LoadSession
from splitglm_sims.load.record import Record, Stage
from splitglm_sims.load.rows import RowBank
from splitglm_sims.load.scenario import MAX_RETRIES, Scenario
from splitglm_sims.load.schedule import SessionPlan, draw_session, schedule
from splitglm_sims.load.stream import Target
from splitglm_sims.load.streams import Streams


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """What a generator must know of the model that the cloud serves."""

    layers: int
    hidden: int
    vocab: int
    fingerprint: str  # hexadecimal


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What one generator process is told.

    Attributes:
        scenario: the whole of it; every generator computes the whole schedule and takes every ``of``-th session.
        model: what is served.
        address, key, psks: the cloud, its identity key and the pairings, keys in hexadecimal.
        share, of: which generator of how many.
        probing: run the closed first phase instead of the schedule.
        capacity_per_s: what the probe found.
        cores: processor cores to stay on; empty leaves it to the system.
        recorded: file of hidden states to send, raw little-endian float32; "" sends random ones.
        out: file for the record.
    """

    scenario: Scenario
    model: Model
    address: str
    key: str
    psks: tuple[str, ...]
    share: int
    of: int
    probing: bool
    capacity_per_s: float | None
    cores: tuple[int, ...]
    recorded: str
    out: str

    def target(self) -> Target:
        """The cloud, with exactly the key that the parent process accepted."""
        trust = Trust(PinStore(Path(os.devnull)), TrustPolicy.PINNED, explicit_key=bytes.fromhex(self.key))
        psks = tuple(bytes.fromhex(psk) for psk in self.psks)
        fingerprint = bytes.fromhex(self.model.fingerprint)
        return Target(address=self.address, fingerprint=fingerprint, trust=trust, psks=psks)

    def bank(self) -> RowBank:
        """The hidden states to send.

        Raises:
            InputError: the recorded ones are not of this model's width.
        """
        if not self.recorded:
            return RowBank.random(self.model.hidden, seed=self.scenario.seed)
        try:
            values = np.fromfile(self.recorded, "<f4")
        except OSError:
            raise InputError(f"{self.recorded} cannot be read") from None
        if not len(values) or len(values) % self.model.hidden:
            raise InputError(f"{self.recorded} does not hold float32 rows of width {self.model.hidden}")
        return RowBank(values.astype(np.float32).reshape(-1, self.model.hidden))


class Generator:
    """Connects first, then runs; its record can be read when it has run."""

    def __init__(self, job: Job, *, target: Target | None = None) -> None:
        self.record = Record()
        self._job = job
        # A probe looks for what the cloud can do, not for how fast it refuses: who is refused comes back when told to.
        self._scenario = replace(job.scenario, retries=MAX_RETRIES) if job.probing else job.scenario
        self._bank = job.bank()
        for kind in job.scenario.kinds:
            self._bank.prepare(kind.codec)
        self._plans: Sequence[SessionPlan] = ()
        if not job.probing:
            every = schedule(job.scenario, layers=job.model.layers, capacity_per_s=job.capacity_per_s)
            self._plans = every[job.share :: job.of]
        self._streams = Streams(self._scenario, target or job.target(), self._connected)

    async def connect(self) -> None:
        """Open every device's streams."""
        await self._streams.open()

    async def run(self, start_s: float) -> None:
        """Send the share of this generator from monotonic ``start_s`` on; ends when its last session has ended."""
        gc.collect()
        gc.freeze()  # the schedule is here to stay: no collection shall look at it again
        await asyncio.sleep(max(0.0, start_s - time.monotonic()))
        began_s, cpu_s = time.monotonic(), time.process_time()
        if self._job.probing:
            await self._probe(start_s)
        else:
            await self._offer(start_s)
        wall_s = max(1e-9, time.monotonic() - began_s)
        self.record.cpu_share = (time.process_time() - cpu_s) / wall_s
        gc.unfreeze()
        await self._streams.close()

    async def _offer(self, start_s: float) -> None:
        """Open loop: every session starts at its time, whatever has become of those before it."""
        async with asyncio.TaskGroup() as sessions:
            for plan in self._plans:
                intended_s = start_s + plan.at_s
                await asyncio.sleep(max(0.0, intended_s - time.monotonic()))
                self.record.add(plan.phase, plan.kind, Stage.LAG, time.monotonic() - intended_s)
                sessions.create_task(self._live(plan, start_s))

    async def _probe(self, start_s: float) -> None:
        """Closed loop: so many sessions at once, each followed by another until the time is over."""
        phase = self._scenario.phases[0]
        end_s = start_s + phase.seconds
        together = phase.closed_sessions or 1
        # As in the schedule, a session's number says what it does.
        numbers = itertools.count(self._job.share, self._job.of)

        async def one_after_another() -> None:
            while (now_s := time.monotonic()) < end_s:
                at_s = now_s - start_s
                counted = at_s >= self._scenario.warmup_s
                layers = self._job.model.layers
                plan = draw_session(self._scenario, next(numbers), layers, phase=0, at_s=at_s, counted=counted)
                await self._live(plan, start_s)

        async with asyncio.TaskGroup() as workers:
            for _ in range(len(range(self._job.share, together, self._job.of))):
                workers.create_task(one_after_another())

    async def _live(self, plan: SessionPlan, start_s: float) -> None:
        vocab = self._job.model.vocab
        session = LoadSession(self._scenario, plan, start_s=start_s, bank=self._bank, vocab=vocab, record=self.record)
        await session.run(self._streams)

    def _connected(self, plan: SessionPlan, seconds: float) -> None:
        self.record.add(plan.phase, plan.kind, Stage.CONNECT, seconds)


async def _main() -> None:
    job = loads(Job, sys.stdin.readline(), "the job")
    if job.cores:
        os.sched_setaffinity(0, job.cores)
    generator = Generator(job)
    await generator.connect()
    print("ready", flush=True)
    start_s = float(await asyncio.to_thread(sys.stdin.readline))
    await generator.run(start_s)
    generator.record.save(Path(job.out))


if __name__ == "__main__":
    asyncio.run(_main())
