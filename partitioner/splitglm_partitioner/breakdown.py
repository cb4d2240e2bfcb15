"""Predicted costs as values: seconds by named term, bytes, joules and price."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


class Parts(NamedTuple):
    """Busy seconds by term. ``codec_s`` and ``seal_s`` are None where they were not measured or nothing needs them.

    Those of one further token add up to ``per_token_s``; with drafts they are those of a round over the tokens that it
    is expected to bring. In prefill the places work at the same time, so the parts add up to at least ``ttft_s``. All
    but ``calibration_s`` are the bare model's.

    Attributes:
        front_s: embedding and layers ``[0, s)`` on the device.
        draft_s: drafting.
        codec_s: hidden states to bytes and back, on the device.
        seal_s: sealing and opening records, on the device.
        uplink_s, downlink_s: payload at the link's rate.
        uplink_queue_s: waiting behind bytes of others that were handed over before.
        slow_start_s: the upload waits for acknowledgements while its window grows.
        overhead_s: per step, what is neither model nor link.
        rtt_s: propagation.
        promotion_s: the radio wakes up.
        queue_s: waiting for a place in the cloud.
        sweep_s: waiting for the sweep to come round.
        back_s: layers ``[s, t)`` in the cloud.
        tail_s: layers ``[t, layers)`` on the device.
        head_s: norm, head and sampler, wherever they run.
        calibration_s: what the arm's factor adds to the model's seconds; below 0 where they have been too many.
    """

    front_s: float
    draft_s: float
    codec_s: float | None
    seal_s: float | None
    uplink_s: float
    uplink_queue_s: float
    slow_start_s: float
    overhead_s: float
    rtt_s: float
    promotion_s: float
    queue_s: float
    sweep_s: float
    back_s: float
    downlink_s: float
    tail_s: float
    head_s: float
    calibration_s: float

    @property
    def busy_s(self) -> float:
        """Sum of all parts."""
        return sum(part for part in self if part is not None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Breakdown:
    """Predicted cost of one request under one plan.

    Attributes:
        ttft_s: until the first token is known on the device.
        per_token_s: mean of the further tokens, at the mean context of the answer.
        total_s: ``ttft_s + (expected_new_tokens - 1) * per_token_s``.
        prefill: where the seconds of the first token go.
        step: where the seconds of a further token go.
        uplink_bytes, downlink_bytes: payload of the whole request, without framing; expected, with drafts.
        device_memory_bytes: weights and KV caches on the device.
        cloud_layer_tokens: tokens times layers that the cloud computes, dropped drafts included; expected, with drafts.
        energy_j: joules on the device; None when its power is not stated. The radio's seconds are calibrated as
            ``ttft_s`` and ``per_token_s`` are, those of computing are the model's.
        price: what the cloud asks; 0 for a plan that leaves it alone, None when it states no price.
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
    energy_j: float | None = None
    price: float | None = None
