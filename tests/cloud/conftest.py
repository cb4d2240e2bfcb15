"""One tiny model for the cloud's tests, and a cloud that serves it."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from engine_bench import Bench, Kind
from glm_factory import write_tiny_checkpoint
from running_cloud import RunningCloud, running_cloud

from splitglm_cloud.engine.runner import Runner
from splitglm_cloud.engine.runner_onnx import OnnxRunner
from splitglm_cloud.engine.runner_torch import TorchRunner
from splitglm_core.plan import Precision
from splitglm_core.ranges import LayerRange
from splitglm_glm.checkpoint import Checkpoint
from splitglm_glm.opening import open_checkpoint, open_stack
from splitglm_glm.runtime import RuntimeOptions
from splitglm_glm.stack import LayerStack
from splitglm_glm.store import ModelStore

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


@pytest.fixture(scope="session", params=["onnx", "torch"])
def runners(request: pytest.FixtureRequest, checkpoint: Checkpoint, stack: LayerStack) -> Callable[[], Runner]:
    """Makes runners of one kind; what they free is poisoned where they can."""

    def make() -> Runner:
        if request.param == "onnx":
            return OnnxRunner(stack, LayerRange(0, LAYERS), embedding=True, head=True)
        return TorchRunner(
            checkpoint, LayerRange(0, LAYERS), embedding=True, head=True, dtype="float32", threads=1, poison_freed=True
        )

    return make


@pytest.fixture
def kind(runners: Callable[[], Runner]) -> Kind:
    return Kind.of(runners(), runners())


@pytest.fixture
def bench(kind: Kind) -> Bench:
    return Bench(kind)


@pytest.fixture(scope="session")
def importable() -> Iterator[None]:
    """Workers import this folder's runner; they need a POSIX system."""
    if os.name != "posix":
        pytest.skip("engine workers need a POSIX system")
    with pytest.MonkeyPatch.context() as patch:
        paths = [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, paths)))
        yield


@pytest.fixture(scope="session")
def wide_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Wide enough that a step is a megabyte."""
    return write_tiny_checkpoint(tmp_path_factory.mktemp("wide") / "model", layers=3, hidden=1024)
