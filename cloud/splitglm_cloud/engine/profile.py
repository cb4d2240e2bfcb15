"""What this cloud tells devices about its speed: measured at start, carried in the manifest."""

from __future__ import annotations

import time

from splitglm_cloud.engine.alone import Alone
from splitglm_cloud.engine.kv_pages import PAGE_POSITIONS, KvPages
from splitglm_cloud.engine.runner import Runner
from splitglm_core.plan import Codec
from splitglm_core.ranges import LayerRange
from splitglm_glm.measure import GROWTH_LAYERS, GROWTH_POSITIONS, MEASURED_POSITIONS, measure
from splitglm_partitioner.layer_times import LayerTimes, PrefillPoint
from splitglm_partitioner.profiles import CloudProfile


def measure_cloud(
    runner: Runner, layers: LayerRange, *, embedding: bool, head: bool, codecs: tuple[Codec, ...]
) -> CloudProfile:
    """Time the served layers on this machine, before anybody is served; about a second for a small model on a CPU."""
    deep = GROWTH_LAYERS * 2 * (GROWTH_POSITIONS // PAGE_POSITIONS + 1)
    pages = KvPages(pages=len(layers) * (MEASURED_POSITIONS // PAGE_POSITIONS + 1) + deep)
    runner.reserve(pages.total)
    alone = Alone(runner, pages)
    seconds = measure(alone, layers, shape=runner.shape, embedding=embedding, head=head, now_s=time.perf_counter)
    times = LayerTimes(
        decode_s=(seconds.decode_s,) * len(layers),
        decode_context_tokens=seconds.decode_context_tokens,
        decode_s_per_1k_context=seconds.decode_s_per_1k_context,
        prefill=tuple(
            PrefillPoint(chunk_tokens=chunk, s_per_token=(value,) * len(layers))
            for chunk, value in seconds.prefill_s_per_token.items()
        ),
        prefill_s_per_token_per_1k_context=seconds.prefill_s_per_token_per_1k_context,
    )
    return CloudProfile(
        layers=runner.shape.layers,
        served=layers,
        times=times,
        has_embedding=embedding,
        has_head=head,
        head_s=seconds.head_s if head else None,
        queue_s=0.0,
        codecs=codecs,
    )
