"""Tiny models, a cloud for each, agents connected to it; kept for the whole run."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from glm_factory import write_tiny_checkpoint
from running_cloud import open_agent, running_cloud

from splitglm_core.plan import Precision

sys.path.insert(0, str(Path(__file__).parent))
from pair import Pair, make_reference


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
