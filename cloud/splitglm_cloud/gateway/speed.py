"""How long queued work will take: learnt from what the engine says of work done. Pure.

The time of a batch through one layer is close to affine in its rows: reading the weights costs the same for one row as
for all, arithmetic grows. Both constants follow from the engine's counters by least squares over sums that decay, so no
batch is looked at singly (the model is linear, so sums of batches obey it as batches do), and load never looks longer
than it is only because small batches, which are slow per row, were all that was seen.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from splitglm_cloud.engine.stats import EngineStats
from splitglm_partitioner.layer_times import LayerTimes

_HALF_LIFE: Final = 20_000.0
"""Batches through one layer after which what was learnt counts half: seconds under load."""
_FEWEST: Final = 8
"""New batches before anything is learnt of them: fewer would mostly tell of the moment of asking."""
_SPREAD: Final = 0.05
"""Relative standard deviation of batch sizes below which they say nothing about the cost of a row."""
_PRIOR_WEIGHT: Final = 50.0


def layer_seconds(times: LayerTimes) -> dict[int, float]:
    """Seconds of a mean layer by rows of its batch, from what was measured at start."""
    measured = {1: sum(times.decode_s) / len(times.decode_s)}
    for point in times.prefill:
        measured[point.chunk_tokens] = point.chunk_tokens * sum(point.s_per_token) / len(point.s_per_token)
    return measured


class Speed:
    """The engine's speed so far.

    Args:
        max_rows: rows that one batch carries at most.
        engines: that share the work; what they say is added up.
        prior: seconds of one layer by rows of its batch, measured at start; soon outweighed.
    """

    def __init__(self, *, max_rows: int = 512, engines: int = 1, prior: Mapping[int, float] | None = None) -> None:
        self._max_rows = max_rows
        self._engines = engines
        self._before = EngineStats()
        self._w = self._n = self._nn = self._y = self._ny = 0.0  # sums of weight, rows, rows squared, seconds, product
        for rows, seconds in (prior or {}).items():
            self._add(_PRIOR_WEIGHT, float(rows), seconds)

    def observe(self, stats: EngineStats) -> None:
        """Learn from the engine's counters; costs next to nothing while they stand still."""
        before = self._before
        if stats.row_layers == before.row_layers:
            return
        batches = sum(stats.batches_by_layer) - sum(before.batches_by_layer)
        rows, seconds = stats.row_layers - before.row_layers, stats.busy_s - before.busy_s
        if batches < 0 or rows < 0 or seconds < 0.0:  # another engine: a worker was replaced
            self._before = stats
        elif batches >= _FEWEST and seconds > 0.0:
            self._before = stats
            self._decay(batches)
            self._add(float(batches), rows / batches, seconds / batches)

    @property
    def known(self) -> bool:
        return self._y > 0.0

    @property
    def layer_s(self) -> tuple[float, float]:
        """Seconds of one layer for a batch, and for each row in it; zeros before anything is known."""
        if not self.known:
            return 0.0, 0.0
        rows, seconds = self._n / self._w, self._y / self._w
        variance = self._nn / self._w - rows * rows
        if variance <= (_SPREAD * rows) ** 2:
            return seconds, 0.0  # rows cost nothing until they are seen to
        per_row_s = max(0.0, (self._ny / self._w - rows * seconds) / variance)
        per_batch_s = seconds - per_row_s * rows
        return (per_batch_s, per_row_s) if per_batch_s >= 0.0 else (0.0, seconds / rows)

    def seconds(self, *, rows: int, row_layers: int, layers: int) -> float:
        """Time for queued ``rows`` that have ``row_layers`` to go in a model of ``layers``. Grows in all of them."""
        if rows <= 0:
            return 0.0
        per_batch_s, per_row_s = self.layer_s
        batches = max(1.0, rows / self._engines / self._max_rows)
        return per_batch_s * layers * batches + per_row_s * row_layers / self._engines

    def _decay(self, batches: int) -> None:
        keep = 0.5 ** (batches / _HALF_LIFE)
        self._w, self._n, self._nn = keep * self._w, keep * self._n, keep * self._nn
        self._y, self._ny = keep * self._y, keep * self._ny

    def _add(self, weight: float, rows: float, seconds: float) -> None:
        self._w += weight
        self._n += weight * rows
        self._nn += weight * rows * rows
        self._y += weight * seconds
        self._ny += weight * rows * seconds
