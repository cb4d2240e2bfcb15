"""Seconds of layers on this machine, by running them on noise. Same procedure for a device and for a cloud."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from splitglm_core.ranges import LayerRange
from splitglm_core.shapes import ModelShape

Float32 = NDArray[np.float32]
MEASURED_POSITIONS: Final = 512
"""The longest context at which decoding is timed."""
GROWTH_POSITIONS: Final = 1024
"""The longest context at which prefill is timed; a shallow one would drown in noise what a long prompt multiplies."""
GROWTH_LAYERS: Final = 2
"""Of these the growth of prefill is taken: weights, which few layers leave in the cache, cost the same at any depth."""
_MOST_FILL_S: Final = 4.0
"""For getting there: a slow machine is timed at a shallower context."""


class Computes(Protocol):
    """Anything that runs layers: the ONNX stack or a cloud's runner."""

    def new_cache(self, layers: LayerRange, capacity: int) -> Any: ...
    def embed(self, ids: NDArray[np.int64]) -> Float32: ...
    def forward(self, hidden: Float32, cache: Any, layers: LayerRange) -> Float32: ...
    def logits(self, hidden: Float32) -> Float32: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerSeconds:
    """Medians over repetitions, rounded to three digits: more would be noise.

    Attributes:
        decode_s: one token through one layer at ``decode_context_tokens`` of context.
        decode_s_per_1k_context: growth per 1000 further context tokens, never negative.
        prefill_s_per_token: by chunk size, one token through one layer, from an empty cache.
        prefill_s_per_token_per_1k_context: growth per token and 1000 tokens in the cache before the chunk, never
            negative.
        embed_s: one token's embedding; 0.0 where it was not asked for.
        head_s: final norm and head for one position; 0.0 where it was not asked for.
    """

    decode_s: float
    decode_context_tokens: int
    decode_s_per_1k_context: float
    prefill_s_per_token: Mapping[int, float]
    prefill_s_per_token_per_1k_context: float
    embed_s: float
    head_s: float


def measure(
    computes: Computes,
    layers: LayerRange,
    *,
    shape: ModelShape,
    embedding: bool,
    head: bool,
    now_s: Callable[[], float],
    chunks: tuple[int, ...] = (16, 128),
    repetitions: int = 5,
) -> LayerSeconds:
    """Time ``layers`` at batch 1: prefill of each chunk size, decode at a short and a longer context, prefill's growth.

    Keys and values are held of ``MEASURED_POSITIONS`` in all ``layers``; after that, of ``GROWTH_POSITIONS`` and of a
    chunk in ``GROWTH_LAYERS``.

    Args:
        now_s: a monotonic clock in seconds.
        chunks: ascending prefill sizes; cut to the model's context.
    """
    longest = min(MEASURED_POSITIONS, shape.max_positions - 1)
    chunks = tuple(chunk for chunk in chunks if chunk < longest) or (max(2, longest // 2),)
    noise = np.random.default_rng(0).standard_normal((max(chunks), shape.hidden), np.float32)
    cache = computes.new_cache(layers, longest + 1)
    count = len(layers)

    def timed(run: Callable[[], object]) -> float:
        started_s = now_s()
        run()
        return now_s() - started_s

    def decode_at(context: int) -> float:
        _fill(computes, cache, context, layers, noise)

        def one() -> None:
            cache.truncate(context)
            computes.forward(noise[:1], cache, layers)

        one()
        return median(timed(one) for _ in range(2 * repetitions)) / count

    def prefill_of(chunk: int) -> float:
        def one() -> None:
            cache.truncate(0)
            computes.forward(noise[:chunk], cache, layers)

        one()
        return median(timed(one) for _ in range(max(2, repetitions // 2))) / (count * chunk)

    try:
        prefill = {chunk: _round(prefill_of(chunk)) for chunk in chunks}
        short = min(16, longest // 2)
        near, far = decode_at(short), decode_at(longest)
        growth = max(0.0, (far - near) / (longest - short) * 1000)
        # A noisy machine can make the line through both points negative at an empty context.
        growth = min(growth, 0.9 * near * 1000 / max(1, short))
    finally:
        cache.close()
    deeper = _prefill_growth(
        computes,
        LayerRange(layers.start, min(layers.stop, layers.start + GROWTH_LAYERS)),
        noise,
        most_positions=min(GROWTH_POSITIONS, shape.max_positions - 1),
        s_per_token=prefill[chunks[-1]],
        timed=timed,
        repetitions=repetitions,
    )
    ids = np.zeros(1, np.int64)
    embed_s = median(timed(lambda: computes.embed(ids)) for _ in range(repetitions)) if embedding else 0.0
    if head:
        computes.logits(noise[:1])
    head_s = median(timed(lambda: computes.logits(noise[:1])) for _ in range(repetitions)) if head else 0.0
    return LayerSeconds(
        decode_s=_round(near),
        decode_context_tokens=short,
        decode_s_per_1k_context=_round(growth),
        prefill_s_per_token=prefill,
        prefill_s_per_token_per_1k_context=_round(deeper),
        embed_s=_round(embed_s),
        head_s=_round(head_s),
    )


def _prefill_growth(
    computes: Computes,
    layers: LayerRange,
    noise: Float32,
    *,
    most_positions: int,
    s_per_token: float,
    timed: Callable[[Callable[[], object]], float],
    repetitions: int,
) -> float:
    """Further seconds of a token in a layer per 1000 tokens in the cache before its chunk, all of ``noise``.

    The chunk runs in turn after nothing and after a deep context, so that both meet the same disturbances, and the best
    of each counts: a disturbance only ever adds.
    """
    chunk = len(noise)
    affordable = int(_MOST_FILL_S / max(1e-9, s_per_token * len(layers)))
    depth = min(most_positions - chunk, max(chunk, affordable))
    if depth < 1:
        return 0.0
    empty, deep = computes.new_cache(layers, chunk), computes.new_cache(layers, depth + chunk)

    def after(cache: Any, context: int) -> float:
        cache.truncate(context)
        return timed(lambda: computes.forward(noise, cache, layers))

    try:
        _fill(computes, deep, depth, layers, noise)
        pairs = [(after(empty, 0), after(deep, depth)) for _ in range(repetitions)]
    finally:
        empty.close()
        deep.close()
    further_s = min(late for _, late in pairs) - min(early for early, _ in pairs)
    return max(0.0, further_s) / (chunk * len(layers) * depth) * 1000


def _fill(computes: Computes, cache: Any, length: int, layers: LayerRange, noise: Float32) -> None:
    """Make ``cache`` ``length`` positions long, keeping what it has."""
    cache.truncate(min(length, cache.length))
    while cache.length < length:
        computes.forward(noise[: length - cache.length], cache, layers)


def _round(seconds: float) -> float:
    return float(f"{seconds:.3g}")
