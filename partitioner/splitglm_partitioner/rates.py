"""Bytes per second of one direction, from passive transfers and probes, with an error that grows as they age.

The rate is a harmonic mean, the mean that predicts the time of the next bytes (MPC, Yin et al., SIGCOMM 2015), without
samples far from the median; its error is the largest recent relative error of its own predictions (RobustMPC, same
paper). A change point (``change.py``) drops what was measured before it.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, replace

from splitglm_partitioner.bounds import MAX_BYTES, MAX_BYTES_PER_S, check_count, check_number, check_seconds
from splitglm_partitioner.change import ChangeDetector

# A smaller transfer measures the round trip, not the rate.
MIN_TRANSFER_BYTES = 16 << 10
WINDOW = 8
# A sample that much older than the newest one is dropped.
MAX_AGE_S = 60.0
# From this many samples on, those this many times faster or slower than the median are left out: one is an outlier, and
# two that agree are a change point, which is sure from twice on: the first of them must not move the estimate.
TRIM_FROM = 3
OUTLIER_FACTOR = 1.9
# From this many on, the largest error is left out: one stall is no forecast.
ERROR_TRIM_FROM = 5
# Error that ``MAX_AGE_S`` of silence adds: the next transfer may well see half the rate.
STALE_REL_ERROR = 1.0
# However old, a quarter of the last rate is what is promised: less would be an invention.
MAX_STALE_REL_ERROR = 3.0
# Weight of a sample: halves with this much age behind the newest, and rises with the root of its size up to this one.
# Radio rates keep their value for seconds: of 0.5 to 20 s, 2 s predicts well over all spacings of transfers on the link
# classes marked for tuning. The packets of one transfer share most of its luck, so weight rises slower than size.
RECENCY_HALF_LIFE_S = 2.0
FULL_WEIGHT_BYTES = 256 << 10
MAX_REL_ERROR = 1e6


@dataclass(frozen=True, slots=True)
class _Sample:
    at_s: float
    bytes_per_s: float
    weight: float
    rel_error: float  # of the estimate that stood before this sample


class RateEstimator:
    """Bytes per second in one direction, from the last ``WINDOW`` transfers of at least ``MIN_TRANSFER_BYTES``.

    Before the first sample the start values hold. Afterwards the rate is always within the samples kept and never
    decays towards a guess; what age costs is certainty: the relative error is
    ``sqrt(e^2 + STALE_REL_ERROR^2 * age / MAX_AGE_S)`` with ``age`` that of the newest sample, as if the logarithm of
    the rate took a random walk, and at most ``max(e, MAX_STALE_REL_ERROR)``.
    """

    def __init__(self, *, start_bytes_per_s: float, start_rel_error: float) -> None:
        self.start(start_bytes_per_s, start_rel_error)
        self._samples: deque[_Sample] = deque(maxlen=WINDOW)
        self._change = ChangeDetector()
        self.newest_s: float | None = None
        self.changed_s: float | None = None

    def start(self, bytes_per_s: float, rel_error: float) -> None:
        """Hold these values until the first sample; an estimator that has samples keeps them."""
        check_number("start_bytes_per_s", bytes_per_s, 1.0, MAX_BYTES_PER_S)
        check_number("start_rel_error", rel_error, 0.0, MAX_REL_ERROR)
        self._start = (bytes_per_s, rel_error)

    def observe(self, transfer_bytes: int, seconds: float, now_s: float) -> bool:
        """Take one transfer; ``seconds`` is its time on the wire without the round trip. False when it is too small.

        ``newest_s`` is then when the newest sample was taken, ``changed_s`` when the last change was found.

        Raises:
            InputError: a size or time out of range.
        """
        check_count("transfer_bytes", transfer_bytes, 0, MAX_BYTES)
        check_seconds("transfer seconds", seconds)
        if transfer_bytes < MIN_TRANSFER_BYTES or seconds == 0.0:
            return False
        rate = min(max(transfer_bytes / seconds, 1.0), MAX_BYTES_PER_S)
        error, kept = 0.0, 0
        if self._samples:
            # The start value is a guess: its miss says nothing about how well the estimator predicts this link.
            before = self._mean()
            error = min(abs(before - rate) / rate, MAX_REL_ERROR)
            kept = self._change.add(math.log(rate / before))
        weight = math.sqrt(min(transfer_bytes, FULL_WEIGHT_BYTES) / MIN_TRANSFER_BYTES)
        self._samples.append(_Sample(now_s, rate, weight, error))
        self.newest_s = now_s
        if kept:
            self._forget_all_but(kept)
            self.changed_s = now_s
        while now_s - self._samples[0].at_s > MAX_AGE_S:
            self._samples.popleft()
        return True

    def estimate(self, now_s: float) -> tuple[float, float]:
        """Rate and its relative error; the start values before the first sample."""
        if not self._samples:
            return self._start
        errors = sorted(sample.rel_error for sample in self._samples)
        error = errors[-2] if len(errors) >= ERROR_TRIM_FROM else errors[-1]
        if len(errors) <= 2:
            error = max(error, self._start[1] / len(errors))
        age_s = max(0.0, now_s - self._samples[-1].at_s)
        aged = math.sqrt(error * error + STALE_REL_ERROR**2 * age_s / MAX_AGE_S)
        return self._mean(), min(aged, max(error, MAX_STALE_REL_ERROR))

    def _mean(self) -> float:
        ordered = sorted(self._samples, key=lambda sample: sample.bytes_per_s)
        if len(ordered) >= TRIM_FROM:
            middle = ordered[(len(ordered) - 1) // 2].bytes_per_s  # of two middle ones the slower; it always stays
            low, high = middle / OUTLIER_FACTOR, middle * OUTLIER_FACTOR
            ordered = [sample for sample in ordered if low <= sample.bytes_per_s <= high]
        newest_s = max(sample.at_s for sample in ordered)
        weights = [sample.weight * 0.5 ** ((newest_s - sample.at_s) / RECENCY_HALF_LIFE_S) for sample in ordered]
        seconds_per_byte = sum(w / sample.bytes_per_s for w, sample in zip(weights, ordered, strict=True))
        # Rounding must not carry a mean out of what it is a mean of.
        mean: float = sum(weights) / seconds_per_byte
        return min(max(mean, ordered[0].bytes_per_s), ordered[-1].bytes_per_s)

    def _forget_all_but(self, newest: int) -> None:
        while len(self._samples) > newest:
            self._samples.popleft()
        # Their misses were those of an estimate that no longer stands; what counts is how they agree.
        mean = self._mean()
        for index, sample in enumerate(self._samples):
            miss = min(abs(mean - sample.bytes_per_s) / sample.bytes_per_s, MAX_REL_ERROR)
            self._samples[index] = replace(sample, rel_error=miss)
