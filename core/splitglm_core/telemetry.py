"""Every metric name in one file. Names are Prometheus style; units are in the name (seconds, bytes, ratio)."""

from __future__ import annotations

from typing import Final

PREFIX: Final = "splitglm_"

# Cloud, gauges
SESSIONS_OPEN: Final = PREFIX + "sessions_open"
STREAMS_OPEN: Final = PREFIX + "streams_open"
STEPS_WAITING: Final = PREFIX + "steps_waiting"
KV_BYTES: Final = PREFIX + "kv_bytes"
KV_USAGE_RATIO: Final = PREFIX + "kv_usage_ratio"
# Cloud, counters
STEPS_TOTAL: Final = PREFIX + "steps_total"  # label outcome
HANDSHAKES_TOTAL: Final = PREFIX + "handshakes_total"  # label result
ERRORS_TOTAL: Final = PREFIX + "errors_total"  # label code
TOKENS_TOTAL: Final = PREFIX + "tokens_total"  # label kind = prefill | generated
WIRE_BYTES_TOTAL: Final = PREFIX + "wire_bytes_total"  # label direction = up | down
# Cloud, histograms
STAGE_SECONDS: Final = PREFIX + "stage_seconds"  # label stage, below

STAGES: Final = ("open", "queue", "decode", "back", "head", "encode", "seal")
