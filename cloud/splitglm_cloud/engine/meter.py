"""Counts what an engine does, for its statistics."""

from __future__ import annotations

from splitglm_cloud.engine.carousel import Carousel
from splitglm_cloud.engine.kv_pages import KvPages
from splitglm_cloud.engine.stats import EngineStats
from splitglm_core.ranges import LayerRange


class Meter:
    """Totals of an engine's life.

    Args:
        layers: of the model.
    """

    def __init__(self, layers: int) -> None:
        self.rows_by_layer = [0] * layers
        self.batches_by_layer = [0] * layers
        self.row_layers = 0
        self.busy_s = 0.0
        self.sweep_s = 0.0
        self._sweeps = 0
        self._sweep_began_s: float | None = None

    def count(self, layers: LayerRange, rows: int, carousel: Carousel, began_s: float, ended_s: float) -> None:
        """A batch was computed between the two times; of no rows if none of its riders could board."""
        for layer in layers if rows else ():
            self.rows_by_layer[layer] += rows
            self.batches_by_layer[layer] += 1
        self.row_layers += rows * len(layers)
        self.busy_s += ended_s - began_s
        if self._sweep_began_s is None:
            self._sweep_began_s = began_s
        elif carousel.sweeps != self._sweeps:
            self.sweep_s = began_s - self._sweep_began_s
            self._sweep_began_s = began_s
        self._sweeps = carousel.sweeps

    def fell_idle(self) -> None:
        """A pause is not part of a sweep."""
        self._sweep_began_s = None

    def stats(self, carousel: Carousel, pages: KvPages, now_s: float) -> EngineStats:
        """What these three know."""
        return EngineStats(
            waiting_rows=carousel.waiting_rows,
            waiting_by_class=carousel.waiting_by_class(),
            riding=carousel.riding,
            oldest_wait_s=carousel.oldest_wait_s(now_s),
            kv_used_bytes=pages.used_bytes,
            kv_budget_bytes=pages.total * pages.page_bytes,
            sweeps=carousel.sweeps,
            sweep_s=self.sweep_s,
            busy_s=self.busy_s,
            row_layers=self.row_layers,
            rows_by_layer=tuple(self.rows_by_layer),
            batches_by_layer=tuple(self.batches_by_layer),
        )
