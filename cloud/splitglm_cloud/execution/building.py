"""From a specification to an engine: the same for a thread of the server and for a worker process."""

from __future__ import annotations

import importlib
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from splitglm_cloud.engine.alone import Alone
from splitglm_cloud.engine.carousel import Carousel, SweepLimits
from splitglm_cloud.engine.engine import Engine
from splitglm_cloud.engine.events import Emit
from splitglm_cloud.engine.kv_pages import PAGE_POSITIONS, KvPages
from splitglm_cloud.engine.profile import measure_cloud
from splitglm_cloud.engine.runner import Runner
from splitglm_cloud.execution.facts import EngineFacts, EngineSpec
from splitglm_core.errors import DeviceError, InputError
from splitglm_core.plan import Codec, Precision
from splitglm_core.ranges import LayerRange
from splitglm_glm.checkpoint import Checkpoint
from splitglm_glm.opening import Progress, open_checkpoint, open_stack
from splitglm_glm.runtime import RuntimeOptions
from splitglm_glm.store import ModelStore
from splitglm_partitioner.profiles import CloudProfile
from splitglm_wire.limits import MAX_CONTEXT

_HALF_WIDTH: Final = ("bfloat16", "float16")


class SystemClock:
    """The monotonic clock of this machine."""

    def now_s(self) -> float:
        return time.monotonic()


@dataclass(frozen=True, slots=True)
class Built:
    """A loaded model: what it can do, and how to make an engine of it.

    Attributes:
        make_engine: given the function that receives its events. One engine at a time: it has the runner for itself,
            and all of its memory for keys and values.
    """

    runner: Runner
    facts: EngineFacts
    make_engine: Callable[[Emit], Engine]


def build(spec: EngineSpec, progress: Progress | None = None) -> Built:
    """Load the model, and measure it unless that was done before. Takes seconds to minutes.

    Raises:
        ModelNotFound, ModelInvalid, InputError, DeviceError: it cannot be served as asked.
    """
    store = ModelStore(Path(spec.store) if spec.store else None)
    checkpoint = open_checkpoint(spec.model, store)
    shape = checkpoint.config.shape
    layers = spec.layers or LayerRange(0, shape.layers)
    if layers.stop > shape.layers or not len(layers):
        raise InputError(f"layers {layers} are not in a model of {shape.layers} layers")
    # A cloud that can see text needs the embedding (ids come up) and the head (it samples).
    embedding, head = spec.text and layers.start == 0, spec.text and layers.stop == shape.layers
    runner = _make_runner(spec, checkpoint, layers, embedding, head, store, progress)
    one = shape.kv_bytes_per_token(layers=1, bytes_per_value=kv_value_bytes(spec, runner.name))
    pages = KvPages.for_budget(spec.kv_budget_bytes, one)
    room = pages.total // len(layers) * PAGE_POSITIONS
    if not room:
        raise InputError(
            f"{spec.kv_budget_bytes} bytes hold no session's keys and values",
            f"give at least {len(layers) * pages.page_bytes}",
        )
    codecs = tuple(Codec)
    if spec.profile:
        profile = CloudProfile.from_json(spec.profile)
        warm_up(runner, layers, embedding=embedding, head=head)
    else:
        profile = measure_cloud(runner, layers, embedding=embedding, head=head, codecs=codecs)
    runner.reserve(pages.total)
    runner.reserve(pages.total)
    limits = SweepLimits(
        max_rows=spec.max_rows,
        prefill_rows_beside_decode=spec.prefill_rows_beside_decode,
        stride_layers=spec.stride_layers,
    )
    facts = EngineFacts(
        runner=runner.name,
        shape=shape,
        fingerprint=checkpoint.fingerprint,
        layers=layers,
        embedding=embedding,
        head=head,
        precision=spec.precision if spec.runner == "onnx" else Precision.FP32,
        codecs=codecs,
        max_context=min(spec.max_context or MAX_CONTEXT, shape.max_positions, room),
        profile=profile.to_json(),
        batch_s=expected_batch_s(profile, limits),
    )

    def make_engine(emit: Emit) -> Engine:
        fresh = KvPages(pages=pages.total, page_bytes=pages.page_bytes)
        max_wait_s = spec.max_wait_s or math.inf
        return Engine(runner, Carousel(limits=limits), fresh, SystemClock(), emit, max_wait_s=max_wait_s)

    return Built(runner, facts, make_engine)


def warm_up(runner: Runner, layers: LayerRange, *, embedding: bool, head: bool) -> None:
    """Run a few rows through everything once: what loads on first use must not look like a worker that hangs."""
    pages = KvPages(pages=len(layers))
    runner.reserve(pages.total)
    alone = Alone(runner, pages)
    rows = np.zeros((4, runner.shape.hidden), np.float32)
    cache = alone.new_cache(layers, len(rows))
    try:
        alone.forward(rows, cache, layers)
    finally:
        cache.close()
    if embedding:
        alone.embed(np.zeros(1, np.int64))
    if head:
        alone.logits(rows[:1])


def kv_value_bytes(spec: EngineSpec, runner_name: str) -> int:
    """Bytes of one number in a cache: what the torch runner computes in, elsewhere float32."""
    if spec.runner != "torch":
        return 4
    on_gpu = not runner_name.startswith("torch cpu")
    return 2 if spec.dtype in _HALF_WIDTH or (spec.dtype == "int8" and on_gpu) else 4


def expected_batch_s(profile: CloudProfile, limits: SweepLimits) -> float:
    """The largest batch at the speed of the largest chunk that was measured, and the head for a full house."""
    layers = min(limits.stride_layers, len(profile.served))
    s_per_token = max(profile.times.prefill[-1].s_per_token)
    return layers * limits.max_rows * s_per_token + limits.max_rows * (profile.head_s or 0.0)


def _make_runner(
    spec: EngineSpec,
    checkpoint: Checkpoint,
    layers: LayerRange,
    embedding: bool,
    head: bool,
    store: ModelStore,
    progress: Progress | None,
) -> Runner:
    if spec.runner == "onnx":
        from splitglm_cloud.engine.runner_onnx import OnnxRunner  # brings ONNX Runtime, which others need not load

        stack = open_stack(
            checkpoint,
            spec.precision,
            layers=layers,
            embedding=embedding,
            head=head,
            store=store,
            options=RuntimeOptions(threads=spec.threads),
            progress=progress,
        )
        return OnnxRunner(stack, layers, embedding=embedding, head=head, exact=spec.exact)
    if spec.runner == "torch":
        try:
            from splitglm_cloud.engine.runner_torch import TorchRunner
        except ImportError as error:
            hint = "pip install 'splitglm[torch]', or use --runner onnx"
            raise DeviceError("torch is not installed", hint) from error
        return TorchRunner(checkpoint, layers, embedding=embedding, head=head, dtype=spec.dtype, threads=spec.threads)
    module, _, name = spec.runner.partition(":")
    try:
        factory = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise DeviceError(f"runner {spec.runner} cannot be imported: {error}", "check PYTHONPATH") from error
    runner: Runner = factory(spec, checkpoint, layers, embedding=embedding, head=head)
    return runner
