"""What was measured: seconds per layer, memory, the link, the cloud. Frozen values, checked when built.

A quantity that nobody measured is ``None`` and its term is left out of every sum; it is never replaced by a guess.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from splitglm_core.errors import InputError
from splitglm_core.plan import Codec, Precision
from splitglm_core.ranges import LayerRange
from splitglm_partitioner import typed_json
from splitglm_partitioner.bounds import (
    MAX_BYTES,
    MAX_BYTES_PER_S,
    MAX_LAYERS,
    MAX_SECONDS,
    check_count,
    check_number,
    check_seconds,
)
from splitglm_partitioner.layer_times import LayerTimes, Seconds
from splitglm_partitioner.power import PowerProfile

# Beyond these a machine is not slow but broken, or its profile is of another one.
MIN_SLOWDOWN = 0.05
MAX_SLOWDOWN = 100.0


@dataclass(frozen=True, slots=True, kw_only=True)
class PrecisionProfile:
    """What the device does at one weight precision.

    Attributes:
        precision: of the layer graphs.
        times: all layers of the model.
        embed_s: seconds to look up one token's embedding.
        head_s: seconds of final norm, LM head and sampler for one position.
        layer_weight_bytes: resident bytes of one layer.
        embedding_weight_bytes: resident bytes of the embedding.
        head_weight_bytes: bytes that the head needs besides the embedding (0 when it shares the embedding's).
    """

    precision: Precision
    times: LayerTimes
    embed_s: float
    head_s: float
    layer_weight_bytes: int
    embedding_weight_bytes: int
    head_weight_bytes: int

    def __post_init__(self) -> None:
        check_seconds("embed_s", self.embed_s)
        check_seconds("head_s", self.head_s)
        check_count("layer_weight_bytes", self.layer_weight_bytes, 1, MAX_BYTES)
        check_count("embedding_weight_bytes", self.embedding_weight_bytes, 0, MAX_BYTES)
        check_count("head_weight_bytes", self.head_weight_bytes, 0, MAX_BYTES)


@dataclass(frozen=True, slots=True, kw_only=True)
class CodecTime:
    """Measured seconds to encode, and likewise to decode, one token's hidden state on the device."""

    codec: Codec
    s_per_token: float

    def __post_init__(self) -> None:
        check_seconds("codec seconds per token", self.s_per_token)


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceProfile:
    """The device, as measured by ``splitglm profile``.

    Attributes:
        layers: decoder layers of the profiled model.
        precision: the precision in use; one of ``precisions``.
        precisions: what was measured at each precision.
        memory_bytes_free: bytes that weights and KV caches together may occupy.
        kv_bytes_per_token_per_layer: bytes of keys and values.
        max_layers: most layers the device may hold (front and tail together); ``layers`` when unlimited.
        codecs: measured codec times; empty when not measured.
        seal_s_per_byte, seal_s_per_record: seconds to seal, and likewise to open; None when not measured. ``slowdown``
            does not touch them.
        power: None when nobody stated it.
        slowdown: how many times longer its passes take now than when it was profiled (load, temperature).
    """

    layers: int
    precision: Precision
    precisions: tuple[PrecisionProfile, ...]
    memory_bytes_free: int
    kv_bytes_per_token_per_layer: int
    max_layers: int
    codecs: tuple[CodecTime, ...] = ()
    seal_s_per_byte: float | None = None
    seal_s_per_record: float | None = None
    power: PowerProfile | None = None
    slowdown: float = 1.0
    active: PrecisionProfile = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        check_count("layers", self.layers, 1, MAX_LAYERS)
        check_count("memory_bytes_free", self.memory_bytes_free, 0, MAX_BYTES)
        check_count("kv_bytes_per_token_per_layer", self.kv_bytes_per_token_per_layer, 1, MAX_BYTES)
        check_count("max_layers", self.max_layers, 0, self.layers)
        for name in ("seal_s_per_byte", "seal_s_per_record"):
            if getattr(self, name) is not None:
                check_seconds(name, getattr(self, name))
        check_number("slowdown", self.slowdown, MIN_SLOWDOWN, MAX_SLOWDOWN)
        named = {entry.precision: entry for entry in self.precisions}
        if len(named) != len(self.precisions) or len({c.codec for c in self.codecs}) != len(self.codecs):
            raise InputError("a device profile lists each precision and each codec once")
        if self.precision not in named:
            raise InputError(f"the device profile holds no times for {self.precision.value}", "run splitglm profile")
        if any(entry.times.layers != self.layers for entry in self.precisions):
            raise InputError(f"the device profile must time all {self.layers} layers at each precision")
        object.__setattr__(self, "active", named[self.precision])

    def at(self, precision: Precision) -> DeviceProfile:
        """The same device using another measured precision."""
        return replace(self, precision=precision)

    def codec_s_per_token(self, codec: Codec) -> float | None:
        """Seconds to encode or decode one hidden state; None when not measured."""
        return next((entry.s_per_token for entry in self.codecs if entry.codec is codec), None)

    def memory_bytes(self, device_layers: int, tokens: int, *, embedding: bool, head: bool) -> int:
        """Resident bytes of weights and KV caches for ``device_layers`` layers and ``tokens`` positions."""
        used = device_layers * (self.active.layer_weight_bytes + tokens * self.kv_bytes_per_token_per_layer)
        used += self.active.embedding_weight_bytes if embedding else 0
        return used + (self.active.head_weight_bytes if head else 0)

    def to_json(self) -> str:
        """Canonical JSON text, read back by ``from_json``."""
        return typed_json.dumps(self)

    @classmethod
    def from_json(cls, text: str) -> DeviceProfile:
        """Parse ``to_json`` text; InputError for an unknown or missing field or a value out of range."""
        return typed_json.loads(cls, text, "device profile")


@dataclass(frozen=True, slots=True, kw_only=True)
class CloudProfile:
    """The cloud's own figures, carried by its replies.

    Attributes:
        layers: decoder layers of the model.
        served: layers it runs.
        times: the served layers, in order.
        has_embedding: it can take token ids.
        has_head: it can apply the head and sample.
        head_s: seconds of norm, head and sampler for one position; None for a cloud without a head.
        queue_s: mean seconds that a step waits for a place in a sweep.
        sweep_s: mean seconds that it then waits for the sweep to come round to its first layer.
        codecs: offered for hidden states.
        price_per_layer_token: price of one token through one layer; None when none is stated.
        slowdown: how many times longer a step, its head included, is computed now than alone (it shares its batches).
    """

    layers: int
    served: LayerRange
    times: LayerTimes
    has_embedding: bool
    has_head: bool
    head_s: float | None
    queue_s: float
    codecs: tuple[Codec, ...]
    price_per_layer_token: float | None = None
    sweep_s: float = 0.0
    slowdown: float = 1.0

    def __post_init__(self) -> None:
        check_count("layers", self.layers, 1, MAX_LAYERS)
        check_seconds("queue_s", self.queue_s)
        check_seconds("sweep_s", self.sweep_s)
        check_number("slowdown", self.slowdown, MIN_SLOWDOWN, MAX_SLOWDOWN)
        if len(self.served) == 0 or self.served.stop > self.layers or self.times.layers != len(self.served):
            raise InputError(f"served layers {self.served} must be timed one by one and lie in [0, {self.layers})")
        if self.has_head != (self.head_s is not None):
            raise InputError("head_s is stated exactly when the cloud has a head")
        if self.head_s is not None:
            check_seconds("head_s", self.head_s)
        if self.price_per_layer_token is not None:
            check_number("price_per_layer_token", self.price_per_layer_token, 0.0, 1e6)
        if len(set(self.codecs)) != len(self.codecs):
            raise InputError("a cloud profile lists each codec once")

    def padded(self, cumulative: Seconds) -> Seconds:
        """Spread ``[..., len(served) + 1]`` sums over all layers: ``[..., layers + 1]``, flat where none is served."""
        if len(self.served) == self.layers:
            return cumulative
        pad = [(0, 0)] * (cumulative.ndim - 1) + [(self.served.start, self.layers - self.served.stop)]
        return np.pad(cumulative, pad, mode="edge")

    def to_json(self) -> str:
        """Canonical JSON text, read back by ``from_json``."""
        return typed_json.dumps(self)

    @classmethod
    def from_json(cls, text: str) -> CloudProfile:
        """Parse ``to_json`` text; InputError for an unknown or missing field or a value out of range."""
        return typed_json.loads(cls, text, "cloud profile")


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkEstimate:
    """The link now, and how sure that is. Times exclude each other: bytes at the rate, plus RTT, plus overhead.

    Attributes:
        uplink_bytes_per_s, downlink_bytes_per_s: goodput of payload.
        rtt_s: round trip of an empty exchange.
        overhead_s: per step, everything that is neither model nor link: framing, gRPC, scheduling, and sealing where
            the device's profile does not state it.
        uplink_rel_error, downlink_rel_error: largest recent relative error of the rate estimate.
        rtt_var_s: mean deviation of the RTT (RTTVAR of RFC 6298).
        uplink_queue_s: until what was handed over before has left the device.
        promotion_s: extra of the first exchange now, after the link has rested (radio idle to connected); 0 when it
            is in use.
        window_bytes: what a connection that rested may send before the first acknowledgement (slow start); None when
            the link shows no slow start.
    """

    uplink_bytes_per_s: float
    downlink_bytes_per_s: float
    rtt_s: float
    overhead_s: float
    uplink_rel_error: float = 0.0
    downlink_rel_error: float = 0.0
    rtt_var_s: float = 0.0
    uplink_queue_s: float = 0.0
    promotion_s: float = 0.0
    window_bytes: int | None = None

    def __post_init__(self) -> None:
        check_number("uplink_bytes_per_s", self.uplink_bytes_per_s, 1.0, MAX_BYTES_PER_S)
        check_number("downlink_bytes_per_s", self.downlink_bytes_per_s, 1.0, MAX_BYTES_PER_S)
        for name in ("rtt_s", "overhead_s", "rtt_var_s", "uplink_queue_s", "promotion_s"):
            check_seconds(name, getattr(self, name))
        if self.window_bytes is not None:
            check_count("window_bytes", self.window_bytes, 1, MAX_BYTES)
        for name in ("uplink_rel_error", "downlink_rel_error"):
            check_number(name, getattr(self, name), 0.0, 1e6)

    def pessimistic(self) -> LinkEstimate:
        """The link to promise a deadline on: SRTT + 4 RTTVAR (RFC 6298), rate / (1 + error) (RobustMPC, 2015)."""
        return LinkEstimate(
            uplink_bytes_per_s=max(1.0, self.uplink_bytes_per_s / (1.0 + self.uplink_rel_error)),
            downlink_bytes_per_s=max(1.0, self.downlink_bytes_per_s / (1.0 + self.downlink_rel_error)),
            rtt_s=min(self.rtt_s + 4.0 * self.rtt_var_s, MAX_SECONDS),
            overhead_s=self.overhead_s,
            uplink_queue_s=self.uplink_queue_s,
            promotion_s=self.promotion_s,
            window_bytes=self.window_bytes,
        )
