"""The engine's metrics: read from its own snapshot when the page is asked for, so that computing pays nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from splitglm_cloud.engine.stats import EngineStats
from splitglm_cloud.status import WorkerStatus
from splitglm_core import telemetry as names
from splitglm_core.criticality import Criticality

_GAUGES = (
    (names.ROWS_WAITING, "Rows that have not boarded a sweep", "waiting_rows"),
    (names.OLDEST_WAIT_SECONDS, "Age of the work that has waited longest", "oldest_wait_s"),
    (names.STEPS_RIDING, "Works aboard the running sweep", "riding"),
    (names.ENGINE_SESSIONS, "Sessions with state in an engine", "sessions"),
    (names.KV_BYTES, "Bytes of keys and values held for sessions", "kv_used_bytes"),
    (names.KV_ACTIVE_BYTES, "Of these, held for sessions that have work", "kv_active_bytes"),
    (names.KV_BUDGET_BYTES, "Bytes of keys and values that may be held", "kv_budget_bytes"),
    (names.SWEEP_SECONDS, "Duration of the last whole sweep over the layers", "sweep_s"),
)
_COUNTERS = (
    (names.SWEEPS_TOTAL, "Sweeps over the layers", "sweeps"),
    (names.ENGINE_BUSY_SECONDS_TOTAL, "Seconds spent on batches", "busy_s"),
    (names.ROW_LAYERS_TOTAL, "Rows times layers computed", "row_layers"),
    (names.EVICTIONS_TOTAL, "Idle sessions that lost their keys and values", "evictions"),
    (names.PREEMPTIONS_TOTAL, "Sessions with work that lost their keys and values", "preemptions"),
)


class EngineMetrics(Collector):
    """Until it has a source it shows every name without a sample."""

    def __init__(self) -> None:
        self._stats: Callable[[], EngineStats] | None = None
        self._workers: Callable[[], Sequence[WorkerStatus]] | None = None

    def watch(
        self, stats: Callable[[], EngineStats], workers: Callable[[], Sequence[WorkerStatus]] | None = None
    ) -> None:
        """Read from these, on the thread that serves the page.

        Args:
            stats: of all engines together (``EngineStats.merged``).
            workers: where engines run in processes of their own.
        """
        self._stats, self._workers = stats, workers

    def collect(self) -> Iterator[Metric]:
        stats = None if self._stats is None else self._stats()
        for name, words, field in _GAUGES:
            yield GaugeMetricFamily(name, words, value=None if stats is None else getattr(stats, field))
        for name, words, field in _COUNTERS:
            yield CounterMetricFamily(name, words, value=None if stats is None else getattr(stats, field))
        ratio = GaugeMetricFamily(names.KV_USAGE_RATIO, "Share of the budget for keys and values in use")
        waiting = GaugeMetricFamily(names.STEPS_WAITING, "Works that have not boarded, by class", labels=["class"])
        rows = CounterMetricFamily(names.LAYER_ROWS_TOTAL, "Rows computed by layer", labels=["layer"])
        batches = CounterMetricFamily(names.LAYER_BATCHES_TOTAL, "Batches computed by layer", labels=["layer"])
        if stats is not None:
            ratio.add_metric([], stats.kv_used_bytes / max(1, stats.kv_budget_bytes))
            for criticality, count in zip(Criticality, stats.waiting_by_class, strict=True):
                waiting.add_metric([criticality.name.lower()], count)
            for family, counts in ((rows, stats.rows_by_layer), (batches, stats.batches_by_layer)):
                for layer, count in enumerate(counts):
                    family.add_metric([str(layer)], count)
        yield from (ratio, waiting, rows, batches)

        states = GaugeMetricFamily(names.WORKERS, "Worker processes by state", labels=["state"])
        restarts = CounterMetricFamily(names.WORKER_RESTARTS_TOTAL, "Workers started again after a loss")
        if self._workers is not None:
            workers = self._workers()
            for state in names.WORKER_STATES:
                states.add_metric([state], sum(worker.state == state for worker in workers))
            restarts.add_metric([], sum(worker.restarts for worker in workers))
        yield from (states, restarts)
