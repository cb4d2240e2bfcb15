"""The connections of a generator: a few per simulated device, shared by its sessions as a real one shares its link."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from splitglm_core.errors import DeviceError, Overloaded
from splitglm_sims.load.scenario import Scenario
from splitglm_sims.load.schedule import SessionPlan
from splitglm_sims.load.stream import LoadStream, Target

Owner = tuple[int, int]
"""Kind and tenant: one simulated device."""

OPENING_ATTEMPTS = 50
"""A server takes a few handshakes of one address at once and then some tens a second; we wait for our turn."""


class NoPlace(DeviceError):
    """Every stream that the scenario allows is full: the generator's own limit, not the cloud's."""


class Streams:
    """Gives every session a stream and takes it back.

    Args:
        on_connect: told the seconds that each connection took during the run.
    """

    def __init__(self, scenario: Scenario, target: Target, on_connect: Callable[[SessionPlan, float], None]) -> None:
        self._scenario = scenario
        self._target = target
        self._on_connect = on_connect
        self._shared: dict[Owner, list[LoadStream]] = {}
        self._locks: dict[Owner, asyncio.Lock] = {}
        every = [(number, tenant) for number, kind in enumerate(scenario.kinds) for tenant in range(kind.tenants)]
        self._devices = {owner: device for device, owner in enumerate(every)}

    async def open(self) -> None:
        """Connect every device before the run, at the pace that the server allows.

        Raises:
            Overloaded: the server never let us in; and what ``LoadStream.connect`` raises.
        """
        for owner, device in self._devices.items():
            streams = self._shared.setdefault(owner, [])
            while len(streams) < self._scenario.streams_per_tenant:
                streams.append(await self._patiently(device))

    async def take(self, plan: SessionPlan) -> LoadStream:
        """The least used stream of the session's device, or one of its own.

        Raises:
            NoPlace: all are full.
            Overloaded, LinkError and others: a stream had to be opened and could not be.
        """
        if plan.own_stream:
            return await self._connect(plan)
        owner = plan.kind, plan.tenant
        async with self._locks.setdefault(owner, asyncio.Lock()):
            streams = [stream for stream in self._shared.get(owner, []) if stream.error is None]
            self._shared[owner] = streams
            if len(streams) < self._scenario.streams_per_tenant:
                streams.append(await self._connect(plan))
            stream = min(streams, key=lambda candidate: candidate.sessions)
            if stream.sessions >= self._scenario.sessions_per_stream:
                raise NoPlace("every stream is full", "raise streams_per_tenant or sessions_per_stream")
            stream.sessions += 1
            return stream

    async def give_back(self, plan: SessionPlan, stream: LoadStream) -> None:
        if not plan.own_stream:
            stream.sessions -= 1
        elif plan.vanishes:
            await stream.vanish()
        else:
            await stream.close()

    async def close(self) -> None:
        """Say goodbye on every shared stream."""
        streams = [stream for shared in self._shared.values() for stream in shared]
        await asyncio.gather(*(stream.close() for stream in streams))

    async def _connect(self, plan: SessionPlan) -> LoadStream:
        started_s = time.monotonic()
        stream = await LoadStream.connect(self._target, device=self._devices[plan.kind, plan.tenant])
        self._on_connect(plan, time.monotonic() - started_s)
        return stream

    async def _patiently(self, device: int) -> LoadStream:
        for _ in range(OPENING_ATTEMPTS):
            try:
                return await LoadStream.connect(self._target, device=device)
            except Overloaded:
                await asyncio.sleep(0.1)
        return await LoadStream.connect(self._target, device=device)
