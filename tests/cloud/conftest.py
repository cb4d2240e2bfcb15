"""One tiny model for the cloud's tests, and a cloud that serves it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from glm_factory import write_tiny_checkpoint
from running_cloud import RunningCloud, running_cloud

from splitglm_core.plan import Precision
from splitglm_core.ranges import LayerRange
from splitglm_glm.checkpoint import Checkpoint
from splitglm_glm.opening import open_checkpoint, open_stack
from splitglm_glm.runtime import RuntimeOptions
from splitglm_glm.stack import LayerStack
from splitglm_glm.store import ModelStore

sys.path.insert(0, str(Path(__file__).parent))
LAYERS = 4


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cloud")


@pytest.fixture(scope="session")
def model(home: Path) -> Path:
    return write_tiny_checkpoint(home / "model", layers=LAYERS)


@pytest.fixture(scope="session")
def checkpoint(model: Path, home: Path) -> Checkpoint:
    return open_checkpoint(str(model), ModelStore(home))


@pytest.fixture(scope="session")
def stack(checkpoint: Checkpoint, home: Path) -> LayerStack:
    return open_stack(
        checkpoint,
        Precision.FP32,
        layers=LayerRange(0, LAYERS),
        embedding=True,
        head=True,
        store=ModelStore(home),
        options=RuntimeOptions(threads=1),
    )


@pytest.fixture(scope="session")
def cloud(model: Path, home: Path) -> Iterator[RunningCloud]:
    with running_cloud(model, home) as running:
        yield running
