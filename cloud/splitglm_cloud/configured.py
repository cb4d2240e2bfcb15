"""What a server's settings mean to its engine and to its gate."""

from __future__ import annotations

from typing import Final

from splitglm_cloud.execution.facts import EngineSpec
from splitglm_cloud.gateway.load import LoadLimits
from splitglm_cloud.settings import CloudSettings
from splitglm_glm.store import ModelStore

WAITS: Final = 4.0
"""Work is let in when it is expected to wait for ``max_queue_s`` at most; the engine gives it up after so many times
that, for expectations err."""


def engine_spec(settings: CloudSettings, store: ModelStore | None) -> EngineSpec:
    return EngineSpec(
        model=settings.model,
        store=str(store.root) if store is not None else "",
        layers=settings.layers,
        text=settings.text,
        runner=settings.runner,
        precision=settings.precision,
        dtype=settings.torch_dtype,
        threads=settings.threads,
        exact=settings.exact_batches,
        kv_budget_bytes=settings.kv_budget_bytes,
        max_context=settings.max_context,
        max_wait_s=WAITS * settings.max_queue_s,
        max_rows=settings.sweep_rows,
        prefill_rows_beside_decode=settings.prefill_rows_beside_decode,
    )


def load_limits(settings: CloudSettings) -> LoadLimits:
    return LoadLimits(
        max_queue_s=settings.max_queue_s,
        max_wait_s=WAITS * settings.max_queue_s,
        max_queue_bytes=settings.queue_budget_bytes,
        max_sessions_per_tenant=settings.max_sessions_per_tenant,
        kv_admit=settings.kv_admit_watermark,
        kv_high=settings.kv_high_watermark,
    )
