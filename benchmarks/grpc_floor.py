"""What gRPC alone costs for a step's bytes: an echo in a process of its own, no seal, no session, no engine.

Run with ``serve`` it is that process. The pause between steps matters as much as the protocol: a processor that slept
and a cache that was used by others are paid for by whoever comes next.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import numpy as np
from pinning import pinned_children

SERVICE, METHOD = "splitglm.benchmark.Echo", "Stream"
MESSAGE_BYTES = 420
"""A sealed step with one bf16 row of width 128."""


async def _serve() -> None:
    async def echo(requests: AsyncIterator[bytes], context: grpc.aio.ServicerContext) -> None:
        async for message in requests:
            await context.write(message)

    server = grpc.aio.server()
    handler = grpc.method_handlers_generic_handler(SERVICE, {METHOD: grpc.stream_stream_rpc_method_handler(echo)})
    server.add_generic_rpc_handlers((handler,))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(port, flush=True)
    await asyncio.to_thread(sys.stdin.read)  # until whoever started us is gone
    await server.stop(None)


async def _round_trips(port: int, steps_per_s: float | None, seconds: float) -> np.ndarray:
    found = []
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        call = channel.stream_stream(f"/{SERVICE}/{METHOD}")()
        rng = np.random.default_rng(5)
        end_s = time.perf_counter() + seconds
        while time.perf_counter() < end_s:
            if steps_per_s is not None:
                await asyncio.sleep(rng.exponential(1.0 / steps_per_s))
            started_s = time.perf_counter()
            await call.write(bytes(MESSAGE_BYTES))
            await call.read()
            found.append(time.perf_counter() - started_s)
        call.cancel()
    return np.array(found)


def round_trips(steps_per_s: float | None, seconds: float, *, cores: tuple[int, ...] = ()) -> np.ndarray:
    """Seconds of each echo, one at a time: right after each other, or with Poisson pauses; the echo is on ``cores``."""
    command = [sys.executable, str(Path(__file__)), "serve"]
    with pinned_children(cores):
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        port = int(process.stdout.readline()) if process.stdout else 0
        return asyncio.run(_round_trips(port, steps_per_s, seconds))
    finally:
        process.communicate()


if __name__ == "__main__":
    asyncio.run(_serve())
