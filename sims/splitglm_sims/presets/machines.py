"""Named devices and clouds: shipped figures with their source, made into the profiles that the policy takes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from splitglm_core.errors import InputError
from splitglm_core.plan import Codec, Precision
from splitglm_core.ranges import LayerRange
from splitglm_core.shapes import ModelShape
from splitglm_partitioner.bounds import MAX_BYTES, check_count, check_number
from splitglm_partitioner.power import PowerProfile
from splitglm_partitioner.profiles import CloudProfile, CodecTime, DeviceProfile, PrecisionProfile
from splitglm_sims.presets.models import model_shape
from splitglm_sims.presets.shelf import Shelf
from splitglm_sims.presets.speed import Basis, Roofline, Speed, nearest

ALL_CODECS: Final = (Codec.FP32, Codec.BF16, Codec.INT8)


@dataclass(frozen=True, slots=True, kw_only=True)
class DevicePreset:
    """A device with its model.

    Attributes:
        about: one line for people.
        source: of the figures.
        basis: how far they can be trusted.
        model: that it runs.
        precision: in use.
        speeds: measured; those of another model are scaled to this one.
        slower: all seconds times this.
        memory_bytes_free: for weights and caches.
        codecs: seconds per token.
        seal_s_per_byte, seal_s_per_record, power: as in ``DeviceProfile``.
    """

    about: str
    source: str
    basis: Basis
    model: str
    precision: Precision
    speeds: tuple[Speed, ...]
    slower: float = 1.0
    memory_bytes_free: int
    codecs: tuple[CodecTime, ...] = ()
    seal_s_per_byte: float | None = None
    seal_s_per_record: float | None = None
    power: PowerProfile | None = None

    def __post_init__(self) -> None:
        if not self.about or not self.source:
            raise InputError("a device says what it is about and where its figures come from")
        model_shape(self.model)
        check_number("slower", self.slower, 0.01, 100.0)
        check_count("memory_bytes_free", self.memory_bytes_free, 0, MAX_BYTES)

    @property
    def shape(self) -> ModelShape:
        return model_shape(self.model)

    def profile(self) -> DeviceProfile:
        """What such a device would have measured of itself when idle."""
        shape = self.shape
        return DeviceProfile(
            layers=shape.layers,
            precision=self.precision,
            precisions=tuple(self._at(speed, shape) for speed in nearest(self.speeds, self.model)),
            memory_bytes_free=self.memory_bytes_free,
            kv_bytes_per_token_per_layer=shape.kv_bytes_per_token(1),
            max_layers=shape.layers,
            codecs=tuple(
                CodecTime(codec=item.codec, s_per_token=item.s_per_token * self.slower) for item in self.codecs
            ),
            seal_s_per_byte=_times(self.seal_s_per_byte, self.slower),
            seal_s_per_record=_times(self.seal_s_per_record, self.slower),
            power=self.power,
        )

    def _at(self, speed: Speed, shape: ModelShape) -> PrecisionProfile:
        times, head_s = speed.times(shape, self.slower)
        vocabulary_bytes = speed.vocabulary_bytes(shape)
        return PrecisionProfile(
            precision=speed.precision,
            times=times,
            embed_s=speed.embed_s(shape, self.slower),
            head_s=head_s,
            layer_weight_bytes=speed.layer_bytes(shape),
            embedding_weight_bytes=vocabulary_bytes,
            head_weight_bytes=0 if shape.tied_head else vocabulary_bytes,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class CloudPreset:
    """A cloud. Exactly one of ``speeds`` and ``roofline`` tells its times.

    Attributes:
        about, source, basis: as in ``DevicePreset``.
        precision: of its weights, where it was measured.
        speeds: measured; the model asked for is scaled from the largest one where it was not measured itself.
        roofline: of a machine that nobody measured.
        price_per_million_tokens: through the whole model, input and output alike; assumed wherever it is stated.
    """

    about: str
    source: str
    basis: Basis
    precision: Precision | None = None
    speeds: tuple[Speed, ...] = ()
    roofline: Roofline | None = None
    price_per_million_tokens: float | None = None

    def __post_init__(self) -> None:
        if not self.about or not self.source:
            raise InputError("a cloud says what it is about and where its figures come from")
        if bool(self.speeds) == (self.roofline is not None):
            raise InputError("a cloud has either speeds or a roofline")
        if bool(self.speeds) != (self.precision is not None):
            raise InputError("precision goes with speeds")
        if self.price_per_million_tokens is not None:
            check_number("price_per_million_tokens", self.price_per_million_tokens, 0.0, 1e9)

    def profile(self, model: str) -> CloudProfile:
        """The cloud serving all of ``model``, idle.

        Raises:
            InputError: no such model, or nothing was measured at the cloud's precision.
        """
        shape = model_shape(model)
        if self.roofline is not None:
            times, head_s = self.roofline.times(shape)
        else:
            fitting = [speed for speed in nearest(self.speeds, model) if speed.precision is self.precision]
            if not fitting:
                raise InputError(f"the cloud was not measured at its precision for {model}")
            times, head_s = fitting[0].times(shape)
        price = self.price_per_million_tokens
        return CloudProfile(
            layers=shape.layers,
            served=LayerRange(0, shape.layers),
            times=times,
            has_embedding=True,
            has_head=True,
            head_s=head_s,
            queue_s=0.0,
            codecs=ALL_CODECS,
            price_per_layer_token=None if price is None else price * 1e-6 / shape.layers,
        )


DEVICES: Final = Shelf(kind=DevicePreset, package="splitglm_sims.presets", folder="devices", word="device")
CLOUDS: Final = Shelf(kind=CloudPreset, package="splitglm_sims.presets", folder="clouds", word="cloud")


def device_preset(name_or_path: str) -> DevicePreset:
    """A device by its shipped name or from a TOML file; InputError names file and key."""
    return DEVICES.load(name_or_path)


def cloud_preset(name_or_path: str) -> CloudPreset:
    """A cloud by its shipped name or from a TOML file; InputError names file and key."""
    return CLOUDS.load(name_or_path)


def _times(value: float | None, factor: float) -> float | None:
    return None if value is None else value * factor
