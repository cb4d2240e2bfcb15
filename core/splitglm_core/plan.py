"""The frozen choice for one request, in the words of the field: front, back, tail, arm, codec.

It lives on the ground floor because the policy makes it, the wire carries it and both halves obey it.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from splitglm_core.errors import InputError
from splitglm_core.ranges import LayerRange


class Arm(Enum):
    """A kind of plan."""

    DEVICE = "device"  # every layer on the device; nothing is sent
    CLOUD = "cloud"  # token ids go up, sampled tokens stream down
    SPLIT = "split"  # hidden states of the front go up, sampled tokens come down
    USHAPE = "ushape"  # hidden states go up and come down; the device samples


class HeadSide(Enum):
    """Who applies the final norm and LM head, and therefore samples."""

    DEVICE = "device"
    CLOUD = "cloud"


class Codec(Enum):
    """How a hidden state becomes bytes. All are fixed-rate: an entropy coder's sizes would leak content."""

    FP32 = "fp32"  # exact; for parity and research
    BF16 = "bf16"
    INT8 = "int8"  # one scale per token, massive activations escaped exactly


class Precision(Enum):
    """Weight precision of the layer graphs."""

    FP32 = "fp32"
    INT8 = "int8"
    INT4 = "int4"


class Privacy(Enum):
    """What may be *sent*. What an operator could reconstruct from hidden states is another matter: see SECURITY.md."""

    OPEN = "open"  # token ids may go up
    NO_PROMPT = "no-prompt"  # prompt ids stay; the cloud may sample the answer
    NO_TEXT = "no-text"  # neither prompt nor answer ids leave the device
    LOCAL = "local"  # nothing goes up


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitPlan:
    """Where to cut and how to decode one request.

    Layers ``[0, s)`` (front) and ``[t, layers)`` (tail) run on the device, ``[s, t)`` (back) in the cloud.

    Attributes:
        layers: decoder layers of the model, N.
        s: first layer of the back; ``s == layers`` means that nothing is sent.
        t: one past the last layer of the back.
        head: side of final norm, LM head and sampler.
        codec: encoding of hidden states in both directions.
        chunk_tokens: prompt positions per prefill step.
        drafter: name of the drafter, ``"none"`` when decoding token by token.
        draft_tokens: tokens proposed per round trip.
    """

    layers: int
    s: int
    t: int
    head: HeadSide
    codec: Codec = Codec.BF16
    chunk_tokens: int = 128
    drafter: str = "none"
    draft_tokens: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.s <= self.t <= self.layers or self.layers < 1:
            raise InputError(f"cut s={self.s}, t={self.t} does not satisfy 0 <= s <= t <= {self.layers}")
        if self.head is HeadSide.CLOUD and (self.t != self.layers or self.s == self.layers):
            raise InputError(f"a head in the cloud needs s < t = {self.layers}, not s={self.s}, t={self.t}")
        if self.head is HeadSide.DEVICE and self.s == self.t and self.s != self.layers:
            raise InputError(f"an empty back [{self.s}, {self.t}) is written s = t = {self.layers}")
        if self.head is HeadSide.DEVICE and self.s == 0:
            raise InputError("a head on the device needs s >= 1: at s = 0 the embedding rows would be sent")
        if self.chunk_tokens < 1 or self.draft_tokens < 0:
            raise InputError("chunk_tokens must be at least 1 and draft_tokens at least 0")

    @property
    def arm(self) -> Arm:
        if self.s == self.layers:
            return Arm.DEVICE
        if self.head is HeadSide.DEVICE:
            return Arm.USHAPE
        return Arm.CLOUD if self.s == 0 else Arm.SPLIT

    @property
    def front(self) -> LayerRange:
        return LayerRange(0, self.s)

    @property
    def back(self) -> LayerRange:
        return LayerRange(self.s, self.t)

    @property
    def tail(self) -> LayerRange:
        return LayerRange(self.t, self.layers)

    @classmethod
    def device_only(cls, layers: int, *, chunk_tokens: int = 128) -> SplitPlan:
        return cls(layers=layers, s=layers, t=layers, head=HeadSide.DEVICE, chunk_tokens=chunk_tokens)

    @classmethod
    def cloud_only(cls, layers: int, *, chunk_tokens: int = 128) -> SplitPlan:
        return cls(layers=layers, s=0, t=layers, head=HeadSide.CLOUD, chunk_tokens=chunk_tokens)

    def __str__(self) -> str:
        if self.arm is Arm.DEVICE:
            return f"device only, {self.layers} layers"
        if self.arm is Arm.CLOUD:
            return f"cloud only, {self.layers} layers, token ids up"
        where = f"front [0, {self.s}) | back [{self.s}, {self.t})"
        if self.arm is Arm.USHAPE:
            where += f" | tail [{self.t}, {self.layers}) + head on the device"
        return f"{self.arm.value}: {where}, {self.codec.value}"
