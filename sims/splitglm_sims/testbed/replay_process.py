"""The process of a replaying link: ``python -m splitglm_sims.testbed.replay_process HOST:PORT``, orders on its input.

It writes the port that it listens on, then one answer per order, and ends when its input does.
"""

from __future__ import annotations

import asyncio
import sys

from splitglm_core.errors import InputError, SplitGlmError, status_of
from splitglm_partitioner import typed_json
from splitglm_sims.link_emulator import LinkEmulator
from splitglm_sims.shaper import Direction, LinkShape
from splitglm_sims.testbed.orders import Answer, Order, Shown, rotated
from splitglm_sims.traces import RateTrace

AHEAD_S = 0.03
AHEAD_S_PER_PIECE = 2e-6
"""Rotating traces takes less than this, so that the instant that was ordered has not passed when it is known."""


class _Link:
    """The emulator and the clock of its traces. ``LinkEmulator`` starts its lanes' clocks when it is entered."""

    def __init__(self, emulator: LinkEmulator, origin_s: float) -> None:
        self._emulator = emulator
        self._origin_s = origin_s
        self._shown: Shown | None = None
        self._began_s = 0.0

    def obey(self, order: Order) -> Answer:
        if order.show is not None:
            self._shown = order.show
            self._shape(order.show.up, order.show.down, order.show.rtt_s)
        if order.begin_offset_s is not None:
            if self._shown is None:
                raise InputError("a link must be shown before its traces can begin")
            pieces = len(self._shown.up.starts_s) + len(self._shown.down.starts_s)
            began_s = asyncio.get_running_loop().time() + AHEAD_S + AHEAD_S_PER_PIECE * pieces
            by_s = order.begin_offset_s - (began_s - self._origin_s)
            self._shape(rotated(self._shown.up, by_s), rotated(self._shown.down, by_s), self._shown.rtt_s)
            self._began_s = began_s
        counters = self._emulator.counters
        return Answer(began_s=self._began_s, up_bytes=counters.up_entered_bytes, down_bytes=counters.down_entered_bytes)

    def _shape(self, up: RateTrace, down: RateTrace, rtt_s: float) -> None:
        for direction, trace in ((Direction.UP, up), (Direction.DOWN, down)):
            self._emulator.set_shape(direction, LinkShape(delay_s=rtt_s / 2, trace=trace))


async def _serve(host: str, port: int) -> None:
    async with LinkEmulator(host, port, LinkShape(), LinkShape()) as emulator:
        # asyncio's clock is the system's monotonic one, which all processes of a machine share.
        link = _Link(emulator, asyncio.get_running_loop().time())
        print(emulator.port, flush=True)
        while line := await asyncio.to_thread(sys.stdin.readline):
            plain = typed_json.loads(Order, line, "an order to the link")
            print(typed_json.dumps(link.obey(plain)), flush=True)


def main() -> int:
    try:
        host, _, port = sys.argv[1].rpartition(":")
        asyncio.run(_serve(host, int(port)))
    except SplitGlmError as error:
        print(error.one_line(), file=sys.stderr)
        return status_of(error).exit_code
    except KeyboardInterrupt as error:
        return status_of(error).exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
