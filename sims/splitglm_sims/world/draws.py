"""Luck that does not depend on who asks: every draw is a function of (seed, job, what, index)

Each kind of chance of each job is a stream of its own of a counter-based generator (Philox; Salmon et al., SC 2011),
read by index. So every strategy and every counterfactual meets the same luck at the same chunk and the same token, and
their difference is theirs (common random numbers).
"""

from __future__ import annotations

import math
from enum import IntEnum
from typing import Final

import numpy as np
from numpy.typing import NDArray

_BLOCK: Final = 64
_HALF_NORMAL_SIGMA: Final = 1.0 / math.sqrt(1.0 - 2.0 / math.pi)  # of the normal whose absolute value varies by one
MAX_SEED: Final = 1 << 64


class What(IntEnum):
    """Kinds of chance. The number is part of the key: appending is safe, renumbering changes every outcome."""

    DEVICE = 0
    PREFILL_DELAY = 1
    DECODE_DELAY = 2
    PREFILL_QUEUE = 3
    DECODE_QUEUE = 4
    PREFILL_COMPUTE = 5
    DECODE_COMPUTE = 6
    ACCEPTANCE = 7
    PROBE_DELAY = 8
    PATIENCE = 9


class Draws:
    """The luck of one job of one device.

    Args:
        seed: of the scene.
        job: index of the job.
        device: index of the device in a crowd.
    """

    __slots__ = ("_key", "_streams")

    def __init__(self, seed: int, job: int, device: int = 0) -> None:
        self._key = (seed % MAX_SEED, job, device)
        self._streams: dict[tuple[What, bool], tuple[np.random.Generator, list[float]]] = {}

    def uniform(self, what: What, index: int) -> float:
        """In [0, 1)."""
        return self._at(what, index, normal=False)

    def exponential(self, what: What, index: int) -> float:
        """Mean 1."""
        return -math.log1p(-self._at(what, index, normal=False))

    def half_normal(self, what: What, index: int) -> float:
        """Not negative, standard deviation 1."""
        return abs(self._at(what, index, normal=True)) * _HALF_NORMAL_SIGMA

    def log_normal(self, what: What, index: int, sigma: float) -> float:
        """Mean 1; ``sigma`` is the standard deviation of the logarithm."""
        return math.exp(sigma * self._at(what, index, normal=True) - 0.5 * sigma * sigma)

    def _at(self, what: What, index: int, *, normal: bool) -> float:
        stream = self._streams.get((what, normal))
        if stream is None:
            seed, job, device = self._key
            words = np.array([seed, job << 28 ^ device << 5 ^ what << 1 ^ normal], dtype=np.uint64)
            stream = self._streams[what, normal] = np.random.Generator(np.random.Philox(key=words)), []
        generator, values = stream
        while index >= len(values):
            block: NDArray[np.float64] = generator.standard_normal(_BLOCK) if normal else generator.random(_BLOCK)
            values.extend(block.tolist())
        return values[index]
