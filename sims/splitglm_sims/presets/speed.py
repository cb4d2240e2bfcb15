"""Seconds of layers and head from what was measured of a whole model, or from a roofline where nothing was."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Final

from splitglm_core.errors import InputError
from splitglm_core.plan import Precision
from splitglm_core.shapes import ModelShape
from splitglm_partitioner.bounds import MAX_TOKENS, check_count, check_number
from splitglm_partitioner.layer_times import LayerTimes, PrefillPoint
from splitglm_sims.presets.models import model_shape

_EMBED_ROW_PASSES: Final = 2  # read one row and write it


class Basis(Enum):
    """How far a preset's figures can be trusted."""

    MEASURED = "measured"  # on a machine like it, with the product
    DERIVED = "derived"  # scaled from measured figures by a stated rule
    ASSUMED = "assumed"


@dataclass(frozen=True, slots=True, kw_only=True)
class ChunkRate:
    """Prefill of one chunk size through the whole model."""

    chunk_tokens: int
    tokens_per_s: float

    def __post_init__(self) -> None:
        check_count("chunk_tokens", self.chunk_tokens, 2, MAX_TOKENS)
        check_number("tokens_per_s", self.tokens_per_s, 1e-3, 1e9)


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """One model at one precision on one machine, head included.

    Attributes:
        model: of the measurement.
        precision: of the layers.
        layer_bits, vocabulary_bits: per weight, scales included.
        decode_ms: of one token at ``context_tokens``.
        decode_ms_per_1k_context: growth of that.
        prefill: ascending chunk sizes.
    """

    model: str
    precision: Precision
    layer_bits: float
    vocabulary_bits: float
    decode_ms: float
    context_tokens: int
    decode_ms_per_1k_context: float
    prefill: tuple[ChunkRate, ...]

    def __post_init__(self) -> None:
        model_shape(self.model)
        for name in ("layer_bits", "vocabulary_bits"):
            check_number(name, getattr(self, name), 1.0, 64.0)
        check_number("decode_ms", self.decode_ms, 1e-4, 1e7)
        check_count("context_tokens", self.context_tokens, 0, MAX_TOKENS)
        check_number("decode_ms_per_1k_context", self.decode_ms_per_1k_context, 0.0, 1e6)

    def layer_bytes(self, shape: ModelShape) -> int:
        return round(shape.layer_parameters * self.layer_bits / 8)

    def vocabulary_bytes(self, shape: ModelShape) -> int:
        return round(shape.vocab * shape.hidden * self.vocabulary_bits / 8)

    def times(self, shape: ModelShape, slower: float = 1.0) -> tuple[LayerTimes, float]:
        """Times of the layers of ``shape`` and head seconds of one position.

        One decoded token reads every weight once, so its time is shared among layers and head by bytes, and scales with
        them to another model; its growth with context scales with the bytes of keys and values, and prefill with the
        number of weights.
        """
        own = model_shape(self.model)
        total = own.layers * self.layer_bytes(own) + self.vocabulary_bytes(own)
        s_per_byte = slower * self.decode_ms * 1e-3 / total
        kv = shape.kv_bytes_per_token(1) / own.kv_bytes_per_token(1)
        work = shape.layer_parameters / own.layer_parameters
        times = LayerTimes(
            decode_s=(s_per_byte * self.layer_bytes(shape),) * shape.layers,
            decode_context_tokens=self.context_tokens,
            decode_s_per_1k_context=slower * self.decode_ms_per_1k_context * 1e-3 / own.layers * kv,
            prefill=tuple(
                PrefillPoint(
                    chunk_tokens=point.chunk_tokens,
                    s_per_token=(slower * work / point.tokens_per_s / own.layers,) * shape.layers,
                )
                for point in self.prefill
            ),
        )
        return times, s_per_byte * self.vocabulary_bytes(shape)

    def embed_s(self, shape: ModelShape, slower: float = 1.0) -> float:
        """Seconds of one row of the embedding, at the speed at which weights are read."""
        own = model_shape(self.model)
        total = own.layers * self.layer_bytes(own) + self.vocabulary_bytes(own)
        return slower * self.decode_ms * 1e-3 / total * shape.hidden * self.vocabulary_bits / 8 * _EMBED_ROW_PASSES


@dataclass(frozen=True, slots=True, kw_only=True)
class Roofline:
    """A machine that nobody measured: the slower of its memory and its arithmetic (Williams et al., CACM 2009).

    Attributes:
        bytes_per_s, flops_per_s: of its data sheet.
        memory_efficiency, compute_efficiency: assumed shares of those that are reached.
        bits: per weight.
        launch_s: per layer and step, what does not shrink with the model.
    """

    bytes_per_s: float
    flops_per_s: float
    memory_efficiency: float
    compute_efficiency: float
    bits: float
    launch_s: float

    def __post_init__(self) -> None:
        check_number("bytes_per_s", self.bytes_per_s, 1e6, 1e15)
        check_number("flops_per_s", self.flops_per_s, 1e6, 1e18)
        for name in ("memory_efficiency", "compute_efficiency"):
            check_number(name, getattr(self, name), 0.01, 1.0)
        check_number("bits", self.bits, 1.0, 64.0)
        check_number("launch_s", self.launch_s, 0.0, 1.0)

    def times(self, shape: ModelShape, *, chunk_tokens: int = 128) -> tuple[LayerTimes, float]:
        """Times of the layers of ``shape`` and head seconds of one position."""
        kv_bytes = 1000 * shape.kv_bytes_per_token(1, bytes_per_value=2)
        chunk_s = self._pass_s(shape.layer_parameters, chunk_tokens)
        times = LayerTimes.uniform(
            shape.layers,
            decode_s=self._pass_s(shape.layer_parameters, 1),
            prefill_s_per_token=chunk_s / chunk_tokens,
            chunk_tokens=chunk_tokens,
            decode_s_per_1k_context=kv_bytes / (self.bytes_per_s * self.memory_efficiency),
        )
        return times, self._pass_s(shape.vocab * shape.hidden, 1)

    def _pass_s(self, weights: int, tokens: int) -> float:
        memory_s = weights * self.bits / 8 / (self.bytes_per_s * self.memory_efficiency)
        compute_s = 2.0 * weights * tokens / (self.flops_per_s * self.compute_efficiency)
        return self.launch_s + max(memory_s, compute_s)


def nearest(speeds: Sequence[Speed], model: str) -> tuple[Speed, ...]:
    """The measurements to use for ``model``: its own, or else those of the largest model measured."""
    if not speeds:
        raise InputError("nothing was measured")
    own = tuple(speed for speed in speeds if speed.model == model)
    largest = max(speeds, key=lambda speed: model_shape(speed.model).layer_parameters).model
    return own or tuple(speed for speed in speeds if speed.model == largest)
