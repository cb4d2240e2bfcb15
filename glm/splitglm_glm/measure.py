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
"""The longest context that is timed."""


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
        prefill_s_per_token: by chunk size, one token through one layer.
        embed_s: one token's embedding; 0.0 where it was not asked for.
        head_s: final norm and head for one position; 0.0 where it was not asked for.
    """

    decode_s: float
    decode_context_tokens: int
    decode_s_per_1k_context: float
    prefill_s_per_token: Mapping[int, float]
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
    """Time ``layers`` at batch 1: prefill of each chunk size, decode at a short and a longer context.

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
        cache.truncate(0)
        while cache.length < context:
            computes.forward(noise[: min(len(noise), context - cache.length)], cache, layers)

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
        embed_s=_round(embed_s),
        head_s=_round(head_s),
    )


def _round(seconds: float) -> float:
    return float(f"{seconds:.3g}")
