"""Clouds on loopback for tests: a real server on an event loop in a thread of its own, and agents that know its key."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from splitglm_cloud.server import CloudServer
from splitglm_cloud.settings import CloudSettings
from splitglm_core.plan import Precision
from splitglm_edge import Agent, CloudAddress
from splitglm_edge.timeouts import Timeouts
from splitglm_glm.store import ModelStore
from splitglm_security.admission import Admission, TokenBuckets

T = TypeVar("T")
PATIENT = Timeouts(connect_s=20.0, silence_s=20.0, step_s=60.0)
"""For tests that are not about silence: a busy test machine must not look like a dead cloud."""


class RunningCloud:
    """A started ``CloudServer``."""

    def __init__(self, server: CloudServer) -> None:
        self.server = server
        self.port = 0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="test-cloud", daemon=True)

    def start(self) -> None:
        self._thread.start()
        self.port = self.run(self.server.start())

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def key(self) -> str:
        return self.server.node_key.text

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run ``work`` on the server's loop and wait for it."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(60)

    def now(self, read: Any) -> Any:
        """``read()`` on the loop's thread, where the session table lives."""

        async def call() -> Any:
            return read()

        return self.run(call())

    def until(self, condition: Any) -> None:
        """Wait on the loop's thread until ``condition()`` holds."""

        async def poll() -> None:
            async with asyncio.timeout(30):
                while not condition():
                    await asyncio.sleep(0.002)

        self.run(poll())

    def stop(self, grace_s: float = 0.0) -> None:
        self.run(self.server.stop(grace_s))
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


def generous_admission() -> Admission:
    """Tests connect many times a second from one address."""
    buckets = TokenBuckets(rate_per_s=1e6, burst=1_000_000)
    return Admission(buckets=buckets, half_open=64, half_open_per_peer=64)


@contextmanager
def running_cloud(
    model: Path, home: Path, *, precision: Precision = Precision.FP32, **settings: Any
) -> Iterator[RunningCloud]:
    """Serve ``model``; graphs, keys and profiles lie under ``home``."""
    options = {"listen": "127.0.0.1:0", "threads": 1, "status": False, "key_file": home / "node.key", **settings}
    server = CloudServer(
        CloudSettings(model=str(model), precision=precision, **options),
        store=ModelStore(home),
        admission=generous_admission(),
    )
    cloud = RunningCloud(server)
    cloud.start()
    try:
        yield cloud
    finally:
        cloud.stop()


def open_agent(
    model: Path,
    home: Path,
    cloud: RunningCloud | None = None,
    *,
    precision: Precision = Precision.FP32,
    address: str | None = None,
    timeouts: Timeouts = PATIENT,
    **options: Any,
) -> Agent:
    """An agent of ``model`` that expects ``cloud`` (at ``address``, if something lies between)."""
    where = None if cloud is None else CloudAddress(address=address or cloud.address, key=cloud.key)
    return Agent.open(
        str(model), cloud=where, precision=precision, threads=1, store=ModelStore(home), timeouts=timeouts, **options
    )
