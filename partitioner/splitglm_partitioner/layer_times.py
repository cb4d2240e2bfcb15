"""Measured seconds of decoder layers, and their sums over layer ranges."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from splitglm_core.errors import InputError
from splitglm_partitioner.bounds import MAX_LAYERS, MAX_TOKENS, check_count, check_seconds

Seconds = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefillPoint:
    """Measured prefill of one chunk size, from an empty cache. ``s_per_token`` holds one entry per layer."""

    chunk_tokens: int
    s_per_token: tuple[float, ...]

    def __post_init__(self) -> None:
        check_count("chunk_tokens of a prefill point", self.chunk_tokens, 2, MAX_TOKENS)
        for value in self.s_per_token:
            check_seconds("prefill seconds per token and layer", value)


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerTimes:
    """Measured seconds of consecutive decoder layers on one machine.

    Attributes:
        decode_s: one token through each layer, at ``decode_context_tokens`` of context.
        decode_context_tokens: context at which ``decode_s`` was measured.
        decode_s_per_1k_context: growth of one layer's decode time per 1000 further context tokens.
        prefill: one or more measured chunk sizes, ascending.
        prefill_s_per_token_per_1k_context: growth of one layer's prefill time per token and 1000 tokens that are in
            the cache before the chunk; None when not measured.
    """

    decode_s: tuple[float, ...]
    decode_context_tokens: int
    decode_s_per_1k_context: float
    prefill: tuple[PrefillPoint, ...]
    prefill_s_per_token_per_1k_context: float | None = None
    # Derived once: cumulative seconds over layers, so that any layer range costs one subtraction.
    _decode: Seconds = field(init=False, repr=False, compare=False)
    _depth: Seconds = field(init=False, repr=False, compare=False)
    _chunks: tuple[int, ...] = field(init=False, repr=False, compare=False)
    _prefill: Seconds = field(init=False, repr=False, compare=False)
    _hash: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        check_count("number of timed layers", len(self.decode_s), 1, MAX_LAYERS)
        for value in self.decode_s:
            check_seconds("decode seconds per layer", value)
        check_count("decode_context_tokens", self.decode_context_tokens, 0, MAX_TOKENS)
        check_seconds("decode_s_per_1k_context", self.decode_s_per_1k_context)
        if self.decode_s_per_1k_context * self.decode_context_tokens / 1000 > min(self.decode_s):
            raise InputError("decode_s_per_1k_context makes decode seconds negative at an empty context")
        if self.prefill_s_per_token_per_1k_context is not None:
            check_seconds("prefill_s_per_token_per_1k_context", self.prefill_s_per_token_per_1k_context)
        chunks = tuple(point.chunk_tokens for point in self.prefill)
        if not 1 <= len(chunks) <= 64 or any(a >= b for a, b in pairwise(chunks)):
            raise InputError("prefill needs 1 to 64 points with ascending chunk sizes")
        if any(len(point.s_per_token) != len(self.decode_s) for point in self.prefill):
            raise InputError(f"every prefill point needs {len(self.decode_s)} layers, as decode_s has")
        rows = [self.decode_s, *(tuple(p.chunk_tokens * x for x in p.s_per_token) for p in self.prefill)]
        sums = np.zeros((len(rows), len(self.decode_s) + 1))
        np.cumsum(np.array(rows), axis=1, out=sums[:, 1:])
        object.__setattr__(self, "_decode", sums[0])
        object.__setattr__(self, "_depth", np.arange(len(self.decode_s) + 1, dtype=np.float64))
        object.__setattr__(self, "_chunks", (1, *chunks))
        object.__setattr__(self, "_prefill", sums)
        sums.setflags(write=False)
        object.__setattr__(self, "_hash", hash((self.decode_s, self.decode_context_tokens, self.prefill)))

    def __hash__(self) -> int:
        return self._hash  # caches look these up for every decision, and there are hundreds of numbers

    @classmethod
    def uniform(
        cls,
        layers: int,
        *,
        decode_s: float,
        prefill_s_per_token: float,
        chunk_tokens: int = 128,
        decode_context_tokens: int = 0,
        decode_s_per_1k_context: float = 0.0,
        prefill_s_per_token_per_1k_context: float | None = None,
    ) -> LayerTimes:
        """Times of ``layers`` equal layers: what a machine reports that measured one layer for all."""
        check_count("layers", layers, 1, MAX_LAYERS)
        return cls(
            decode_s=(decode_s,) * layers,
            decode_context_tokens=decode_context_tokens,
            decode_s_per_1k_context=decode_s_per_1k_context,
            prefill=(PrefillPoint(chunk_tokens=chunk_tokens, s_per_token=(prefill_s_per_token,) * layers),),
            prefill_s_per_token_per_1k_context=prefill_s_per_token_per_1k_context,
        )

    @property
    def layers(self) -> int:
        return len(self.decode_s)

    @property
    def points(self) -> Seconds:
        """Seconds of a decode step, then of each measured chunk, through the first 0, 1, ..., L layers; read-only.

        Shape ``[1 + len(prefill), L + 1]``, at ``decode_context_tokens`` and from an empty cache.
        """
        return self._prefill

    def weights(self, tokens: float) -> list[float]:
        """How a pass over ``tokens`` >= 1 positions is made up of ``points``.

        Seconds of the whole chunk are interpolated, from a decode step (a chunk of one) through the measured sizes; a
        larger chunk costs as much per token as the largest measured one.
        """
        sizes, out = self._chunks, [0.0] * len(self._chunks)
        if tokens >= sizes[-1]:
            out[-1] = tokens / sizes[-1]
            return out
        right = bisect_right(sizes, tokens)
        out[right] = (tokens - sizes[right - 1]) / (sizes[right] - sizes[right - 1])
        out[right - 1] = 1.0 - out[right]
        return out

    def decode_cumulative(self, context_tokens: float) -> Seconds:
        """Seconds of one decode step through the first 0, 1, ..., L layers; float64 ``[L + 1]``."""
        growth = self.decode_s_per_1k_context * (context_tokens - self.decode_context_tokens) / 1000
        return self._decode + growth * self._depth if growth else self._decode

    def prefill_cumulative(self, chunks: Seconds, contexts: Seconds) -> Seconds:
        """Seconds of each chunk through the first 0, 1, ..., L layers; float64 ``[n, L + 1]``, owned by the caller.

        Args:
            chunks: tokens of each chunk, ``[n]``; all but the last are equal.
            contexts: tokens in the cache before each chunk, ``[n]``.
        """
        out = np.empty((len(chunks), self.layers + 1))
        out[:-1] = self._chunk(float(chunks[0]))
        out[-1] = self._chunk(float(chunks[-1]))
        if self.prefill_s_per_token_per_1k_context is not None:
            growth = chunks * contexts * (self.prefill_s_per_token_per_1k_context / 1000)
            out += np.multiply.outer(growth, self._depth)
        return out

    def steps_of_growth(self, tokens: int) -> float:
        """Chunks of ``tokens`` by which the context must have grown until a chunk's seconds have doubled.

        In the layer where that is first; infinite without growth.
        """
        step_s = tokens * tokens * (self.prefill_s_per_token_per_1k_context or 0.0) / 1000
        return float(np.diff(self._chunk(tokens)).min()) / step_s if step_s > 0.0 else np.inf

    def _chunk(self, tokens: float) -> Seconds:
        out: Seconds = np.asarray(self.weights(tokens)) @ self._prefill
        return out
