"""A device and a cloud that hold the same model, and the reference for both."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from reference import Reference
from running_cloud import RunningCloud

from splitglm_cloud.engine.alone import Alone
from splitglm_cloud.engine.kv_pages import KvPages
from splitglm_cloud.engine.runner_onnx import OnnxRunner
from splitglm_core.plan import Precision
from splitglm_core.ranges import LayerRange
from splitglm_edge import Agent
from splitglm_glm.opening import open_checkpoint, open_stack
from splitglm_glm.runtime import RuntimeOptions
from splitglm_glm.store import ModelStore


@dataclass(frozen=True)
class Pair:
    """A model, the cloud that serves it, an agent that uses it and the reference that knows the truth."""

    model: Path
    home: Path
    cloud: RunningCloud
    agent: Agent
    reference: Reference


def make_reference(model: Path, home: Path, precision: Precision) -> Reference:
    store = ModelStore(home)
    checkpoint = open_checkpoint(str(model), store)
    everything = LayerRange(0, checkpoint.config.shape.layers)
    options = RuntimeOptions(threads=1)
    stack = open_stack(
        checkpoint, precision, layers=everything, embedding=True, head=True, store=store, options=options
    )
    runner = OnnxRunner(stack, everything, embedding=True, head=True)
    return Reference(stack, Alone(runner, KvPages(pages=1 << 20)))
