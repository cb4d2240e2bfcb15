"""Predicted costs as values, and the charges that do not depend on the cut."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


class Parts(NamedTuple):
    """Busy seconds by place. ``codec_s`` is None when the device's codec times were not measured or none is used.

    In a decode step the parts add up to ``per_token_s``. In prefill the places work at the same time, so the parts add
    up to at least ``ttft_s``.
    """

    front_s: float
    codec_s: float | None
    uplink_s: float
    overhead_s: float
    rtt_s: float
    queue_s: float
    back_s: float
    downlink_s: float
    tail_s: float
    head_s: float

    @property
    def busy_s(self) -> float:
        """Sum of all parts."""
        device = self.front_s + (self.codec_s or 0.0) + self.tail_s + self.head_s
        return device + self.uplink_s + self.overhead_s + self.rtt_s + self.queue_s + self.back_s + self.downlink_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Breakdown:
    """Predicted cost of one request under one plan.

    Attributes:
        ttft_s: until the first token is known on the device.
        per_token_s: mean of the further tokens, at the mean context of the answer.
        total_s: ``ttft_s + (expected_new_tokens - 1) * per_token_s``.
        prefill, step: where the seconds go.
        uplink_bytes, downlink_bytes: payload of the whole request, without framing.
        device_memory_bytes: weights and KV caches on the device.
        cloud_layer_tokens: tokens times layers that the cloud computes.
    """

    ttft_s: float
    per_token_s: float
    total_s: float
    prefill: Parts
    step: Parts
    uplink_bytes: int
    downlink_bytes: int
    device_memory_bytes: int
    cloud_layer_tokens: int


class Charge(NamedTuple):
    """Seconds of one lane (arm and codec) that are the same at every cut.

    Attributes:
        head_s: norm, head and sampler, wherever they run.
        up_row_s, down_row_s: one position over the link.
        up_sink_s, down_sink_s: extra of position 0 when it is sent.
        down_last_s: the one row or token that ends a prefill without a tail.
        overhead_s: per step. It occupies the uplink's place in the pipeline.
        codec_s: one hidden state through the device's codec; None when not measured or none is used.
        hidden_down: hidden states that come down per step.
        autonomous: the cloud goes on without waiting for the device.
    """

    head_s: float
    up_row_s: float = 0.0
    up_sink_s: float = 0.0
    down_row_s: float = 0.0
    down_sink_s: float = 0.0
    down_last_s: float = 0.0
    overhead_s: float = 0.0
    rtt_s: float = 0.0
    queue_s: float = 0.0
    codec_s: float | None = None
    hidden_down: int = 0
    autonomous: bool = False

    def rates(self) -> tuple[float, ...]:
        """Columns of the prefill: up row, up sink, overhead, codec, after, down row, down sink, lag, head; seconds."""
        codec_s, lag_s = self.codec_s or 0.0, self.rtt_s + self.queue_s
        up = (self.up_row_s, self.up_sink_s, self.overhead_s, codec_s, self.after_s)
        return (*up, self.down_row_s, self.down_sink_s, lag_s, self.head_s)

    @property
    def after_s(self) -> float:
        """From the end of the last back until the first token, where there is no tail."""
        coding = (self.codec_s or 0.0) * self.hidden_down
        return self.rtt_s + self.queue_s + self.head_s + self.down_last_s + coding

    def exposed_s(self, back_s: float) -> float:
        """Part of sending a token that an autonomous cloud's next step does not hide."""
        return max(0.0, self.down_row_s + self.overhead_s - (self.queue_s + back_s + self.head_s))

    def step_s(self, whole_back_s: float) -> float:
        """One decode step without its layers. ``whole_back_s``: all layers in the cloud, for the autonomous case."""
        if self.autonomous:
            return self.queue_s + self.head_s + self.exposed_s(whole_back_s)
        coding = (self.codec_s or 0.0) * (1 + self.hidden_down)
        link = self.up_row_s + self.down_row_s + self.overhead_s + self.rtt_s
        return link + coding + self.queue_s + self.head_s
