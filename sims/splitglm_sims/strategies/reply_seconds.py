"""Seconds of a whole reply layer by layer, as profiled: what linear and dynamic-programming baselines add up."""

from __future__ import annotations

import numpy as np

from splitglm_partitioner.layer_times import LayerTimes, Seconds
from splitglm_partitioner.request import Situation


class ReplySeconds:
    """Cumulative seconds of the first ``l`` layers on each machine for prompt and answer; nothing overlaps.

    Args:
        situation: the request and the profiles.
        new_tokens: of the answer; None for the expected ones.
        cached_tokens: leading prompt tokens that need not be run.

    Attributes:
        rows: prompt positions that are run.
        new_tokens: of the answer.
        device_prefill, device_decode, cloud_prefill, cloud_decode: ``[layers + 1]`` each; the cloud's are flat where it
            serves no layer, and 0 without a cloud. Decode is that of all tokens after the first.
    """

    def __init__(self, situation: Situation, *, new_tokens: int | None = None, cached_tokens: int = 0) -> None:
        request, active, cloud = situation.request, situation.device.active, situation.cloud
        self.new_tokens = request.expected_new_tokens if new_tokens is None else new_tokens
        self.rows = request.prompt_tokens - cached_tokens
        contexts = np.arange(cached_tokens, request.prompt_tokens, request.chunk_tokens, dtype=np.float64)
        chunks = np.full(len(contexts), float(request.chunk_tokens))
        chunks[-1] = request.prompt_tokens - contexts[-1]
        middle = request.prompt_tokens + self.new_tokens / 2
        slow = situation.device.slowdown
        self.device_prefill, self.device_decode = self._phases(active.times, chunks, contexts, middle, slow)
        self.device_prefill[1:] += active.embed_s * self.rows
        self.device_decode[1:] += active.embed_s * (self.new_tokens - 1)
        if cloud is None:
            self.cloud_prefill, self.cloud_decode = np.zeros((2, len(self.device_prefill)))
        else:
            prefill, decode = self._phases(cloud.times, chunks, contexts, middle, cloud.slowdown)
            self.cloud_prefill, self.cloud_decode = cloud.padded(prefill), cloud.padded(decode)

    @property
    def device(self) -> Seconds:
        """Both phases on the device."""
        out: Seconds = self.device_prefill + self.device_decode
        return out

    @property
    def cloud(self) -> Seconds:
        """Both phases in the cloud."""
        out: Seconds = self.cloud_prefill + self.cloud_decode
        return out

    def _phases(
        self, times: LayerTimes, chunks: Seconds, contexts: Seconds, middle: float, slowdown: float
    ) -> tuple[Seconds, Seconds]:
        prefill: Seconds = times.prefill_cumulative(chunks, contexts).sum(axis=0) * slowdown
        decode: Seconds = times.decode_cumulative(middle) * ((self.new_tokens - 1) * slowdown)
        return prefill, decode
