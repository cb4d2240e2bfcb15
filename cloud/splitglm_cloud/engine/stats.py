"""What an engine says of itself: one frozen snapshot, cheap to take, for admission, metrics and ``splitglm top``."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import zip_longest


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineStats:
    """Counters grow for the engine's life; the rest is as of now.

    Attributes:
        waiting: works that have not boarded.
        waiting_rows: their rows.
        waiting_by_class: the works by criticality, most critical first.
        riding: works in the running sweep.
        sessions: sessions with state.
        oldest_wait_s: age of the work that has waited longest.
        kv_used_bytes, kv_budget_bytes: pages held, and of the pool.
        kv_active_bytes: of these, pages of sessions that have work: what evicting idle sessions cannot give back.
        sweeps: passes over the layers.
        sweep_s: seconds of the last whole sweep.
        busy_s: seconds spent on batches.
        row_layers: rows times layers computed.
        rows_by_layer, batches_by_layer: their quotient is the mean batch of a layer.
        evictions: sessions that lost their keys and values while idle.
        preemptions: the same while they had work.
    """

    waiting: int = 0
    waiting_rows: int = 0
    waiting_by_class: tuple[int, int, int, int] = (0, 0, 0, 0)
    riding: int = 0
    sessions: int = 0
    oldest_wait_s: float = 0.0
    kv_used_bytes: int = 0
    kv_budget_bytes: int = 0
    kv_active_bytes: int = 0
    sweeps: int = 0
    sweep_s: float = 0.0
    busy_s: float = 0.0
    row_layers: int = 0
    rows_by_layer: tuple[int, ...] = ()
    batches_by_layer: tuple[int, ...] = ()
    evictions: int = 0
    preemptions: int = 0

    def merged(self, other: EngineStats) -> EngineStats:
        """Both engines as one: sums; the larger of ages and sweep times."""
        waits = zip(self.waiting_by_class, other.waiting_by_class, strict=True)
        plus = tuple(mine + theirs for mine, theirs in waits)
        return EngineStats(
            waiting=self.waiting + other.waiting,
            waiting_rows=self.waiting_rows + other.waiting_rows,
            waiting_by_class=(plus[0], plus[1], plus[2], plus[3]),
            riding=self.riding + other.riding,
            sessions=self.sessions + other.sessions,
            oldest_wait_s=max(self.oldest_wait_s, other.oldest_wait_s),
            kv_used_bytes=self.kv_used_bytes + other.kv_used_bytes,
            kv_budget_bytes=self.kv_budget_bytes + other.kv_budget_bytes,
            kv_active_bytes=self.kv_active_bytes + other.kv_active_bytes,
            sweeps=self.sweeps + other.sweeps,
            sweep_s=max(self.sweep_s, other.sweep_s),
            busy_s=self.busy_s + other.busy_s,
            row_layers=self.row_layers + other.row_layers,
            rows_by_layer=_sums(self.rows_by_layer, other.rows_by_layer),
            batches_by_layer=_sums(self.batches_by_layer, other.batches_by_layer),
            evictions=self.evictions + other.evictions,
            preemptions=self.preemptions + other.preemptions,
        )


def _sums(mine: tuple[int, ...], theirs: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(a + b for a, b in zip_longest(mine, theirs, fillvalue=0))
