"""Tiny models, a cloud for each, agents connected to it; kept for the whole run."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
from glm_factory import write_tiny_checkpoint
from running_cloud import RunningCloud, open_agent, running_cloud

from splitglm_core.plan import Precision
from splitglm_core.ranges import LayerRange
from splitglm_edge import Agent
from splitglm_glm.opening import open_checkpoint, open_stack
from splitglm_glm.runtime import RuntimeOptions
from splitglm_glm.store import ModelStore

sys.path.insert(0, str(Path(__file__).parent))
from reference import Reference


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
    return Reference(stack, stack)


@pytest.fixture(scope="session")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Pair]]:
    """By model type: "glm" and "glm4", random weights, fp32."""
    with ExitStack() as stack:
        made = {}
        for seed, model_type in enumerate(("glm", "glm4")):
            home = tmp_path_factory.mktemp(model_type)
            model = write_tiny_checkpoint(home / "model", model_type, layers=5, seed=seed)
            cloud = stack.enter_context(running_cloud(model, home))
            agent = stack.enter_context(open_agent(model, home, cloud))
            made[model_type] = Pair(model, home, cloud, agent, make_reference(model, home, Precision.FP32))
        yield made


@pytest.fixture
def glm(pairs: dict[str, Pair]) -> Pair:
    return pairs["glm"]
