"""Which links the emulator can show, and from which instants of their traces a real run is worth timing"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Final

from splitglm_core.errors import InputError
from splitglm_sims.world.scene import LinkScene

_BIN_S: Final = 0.5
_LEAST_BYTES_PER_BIN: Final = 2000.0


def emulated(scene: LinkScene) -> LinkScene:
    """``scene`` as far as the emulator goes: rates and round trip, without jitter, resting radio and slow start."""
    return replace(scene, jitter_s=0.0, rest_after_s=math.inf, promotion_s=0.0, window_bytes=None)


def calm_offsets(scene: LinkScene, count: int, *, span_s: float, every_s: float = 5.0) -> tuple[float, ...]:
    """The first ``count`` instants after which, for ``span_s``, neither direction falls silent; repeated when fewer.

    In a silence of a second and a half the agent gives the cloud up and goes on alone: how long that takes is another
    question than how long a reply does.

    Raises:
        InputError: the traces have no such instant.
    """
    found: list[float] = []
    period_s = max(scene.up.period_s, scene.down.period_s, every_s)
    for step in range(int(period_s / every_s)):
        start_s = step * every_s
        bins = [start_s + index * _BIN_S for index in range(math.ceil(span_s / _BIN_S))]
        if all(
            trace.bytes_before(at_s + _BIN_S) - trace.bytes_before(at_s) >= _LEAST_BYTES_PER_BIN
            for trace in (scene.up, scene.down)
            for at_s in bins
        ):
            found.append(start_s)
            if len(found) == count:
                break
    if not found:
        raise InputError(f"the traces have no stretch of {span_s:g} s without a silence", "ask for a shorter one")
    return tuple(found[index % len(found)] for index in range(count))
