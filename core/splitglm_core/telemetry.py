"""Every metric and span name in one file. Names are Prometheus style; units are in the name (seconds, bytes, ratio)."""

from __future__ import annotations

from typing import Final

PREFIX: Final = "splitglm_"

# Gateway, gauges
READY: Final = PREFIX + "ready"  # 1 while new work is taken
SESSIONS_OPEN: Final = PREFIX + "sessions_open"
STREAMS_OPEN: Final = PREFIX + "streams_open"
# Gateway, counters
STEPS_TOTAL: Final = PREFIX + "steps_total"  # labels class, outcome, below
OPENS_TOTAL: Final = PREFIX + "opens_total"  # labels class, outcome, below
HANDSHAKES_TOTAL: Final = PREFIX + "handshakes_total"  # label result, below
ERRORS_TOTAL: Final = PREFIX + "errors_total"  # label code
TOKENS_TOTAL: Final = PREFIX + "tokens_total"  # label kind = prefill | generated
WIRE_BYTES_TOTAL: Final = PREFIX + "wire_bytes_total"  # label direction = up | down
REBUILDS_TOTAL: Final = PREFIX + "rebuilds_total"  # label result, below
# Gateway, histograms
STAGE_SECONDS: Final = PREFIX + "stage_seconds"  # label stage, below
TIME_TO_FIRST_TOKEN_SECONDS: Final = PREFIX + "time_to_first_token_seconds"  # label class
INTER_TOKEN_LATENCY_SECONDS: Final = PREFIX + "inter_token_latency_seconds"  # label class

# Engine, gauges
STEPS_WAITING: Final = PREFIX + "steps_waiting"  # label class
ROWS_WAITING: Final = PREFIX + "rows_waiting"
OLDEST_WAIT_SECONDS: Final = PREFIX + "oldest_wait_seconds"
STEPS_RIDING: Final = PREFIX + "steps_riding"
ENGINE_SESSIONS: Final = PREFIX + "engine_sessions"
KV_BYTES: Final = PREFIX + "kv_bytes"
KV_ACTIVE_BYTES: Final = PREFIX + "kv_active_bytes"
KV_BUDGET_BYTES: Final = PREFIX + "kv_budget_bytes"
KV_USAGE_RATIO: Final = PREFIX + "kv_usage_ratio"
SWEEP_SECONDS: Final = PREFIX + "sweep_seconds"
# Engine, counters
SWEEPS_TOTAL: Final = PREFIX + "sweeps_total"
ENGINE_BUSY_SECONDS_TOTAL: Final = PREFIX + "engine_busy_seconds_total"
ROW_LAYERS_TOTAL: Final = PREFIX + "row_layers_total"
LAYER_ROWS_TOTAL: Final = PREFIX + "layer_rows_total"  # label layer
LAYER_BATCHES_TOTAL: Final = PREFIX + "layer_batches_total"  # label layer
EVICTIONS_TOTAL: Final = PREFIX + "evictions_total"
PREEMPTIONS_TOTAL: Final = PREFIX + "preemptions_total"

# Workers
WORKERS: Final = PREFIX + "workers"  # label state, below
WORKER_RESTARTS_TOTAL: Final = PREFIX + "worker_restarts_total"

STAGES: Final = ("open", "queue", "sweep", "back", "seal")
"""Of a step in the cloud: unseal and take, wait until the sweep begins in which it rides, wait for that sweep to come
round to its first layer, compute its layers (and head), seal the reply."""
STEP_OUTCOMES: Final = ("ok", "failed", "refused", "lost")
OPEN_OUTCOMES: Final = ("ok", "refused")
HANDSHAKE_RESULTS: Final = ("ok", "failed", "busy", "version", "model")
TOKEN_KINDS: Final = ("prefill", "generated")
REBUILD_RESULTS: Final = ("ok", "failed", "left")
WORKER_STATES: Final = ("starting", "ready", "stopping", "ending", "down")

SPANS: Final = ("splitglm.reply", "queue", "sweep", "back", "rebuild")
"""A reply, and the parts of its time that become children of its span."""
