"""The runners agree with each other and hold no more than they were asked to hold."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from glm_factory import write_tiny_checkpoint

from splitglm_cloud.engine.alone import Alone
from splitglm_cloud.engine.kv_pages import KvPages
from splitglm_cloud.engine.runner import Runner
from splitglm_cloud.engine.runner_onnx import OnnxRunner
from splitglm_cloud.engine.runner_torch import TorchRunner
from splitglm_core.errors import SplitGlmError
from splitglm_core.plan import Precision
from splitglm_core.ranges import LayerRange
from splitglm_glm.opening import open_checkpoint, open_stack
from splitglm_glm.runtime import RuntimeOptions
from splitglm_glm.store import ModelStore

LAYERS = 4
POOL_PAGES = 64


def make(kind: str, model: Path, home: Path, layers: LayerRange, *, text: bool = True) -> Runner:
    checkpoint = open_checkpoint(str(model), ModelStore(home))
    if kind == "torch":
        return TorchRunner(checkpoint, layers, embedding=text, head=text, dtype="float32", threads=1)
    stack = open_stack(
        checkpoint, Precision.FP32, layers=layers, embedding=text, head=text, store=ModelStore(home),
        options=RuntimeOptions(threads=1),
    )  # fmt: skip
    return OnnxRunner(stack, layers, embedding=text, head=text)


def alone(runner: Runner) -> Alone:
    runner.reserve(POOL_PAGES)
    return Alone(runner, KvPages(pages=POOL_PAGES))


@pytest.fixture(scope="module", params=["glm", "glm4"])
def model_of_type(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp(request.param)
    return write_tiny_checkpoint(home / "model", request.param, layers=LAYERS, seed=7)


@pytest.mark.parametrize("layers", [LayerRange(0, 4), LayerRange(1, 3), LayerRange(3, 4)], ids=str)
def test_onnx_and_torch_agree_in_fp32(model_of_type: Path, layers: LayerRange) -> None:
    home = model_of_type.parent
    runners = [alone(make(kind, model_of_type, home, layers)) for kind in ("onnx", "torch")]
    caches = [runner.new_cache(layers, 64) for runner in runners]
    ids = np.random.default_rng(1).integers(0, 256, 30)
    for chunk in (ids[:16], ids[16:29], ids[29:]):
        a, b = (
            runner.forward(runner.embed(chunk), cache, layers) for runner, cache in zip(runners, caches, strict=True)
        )
        assert a.dtype == b.dtype == np.float32 and a.shape == b.shape
        assert float(np.abs(a - b).max()) <= 1e-4
    logits = [runner.logits(a[-1:]) for runner in runners]
    assert float(np.abs(logits[0] - logits[1]).max()) <= 1e-4
    assert [cache.length for cache in caches] == [30, 30]


def test_onnx_and_torch_say_the_same_greedily(model_of_type: Path) -> None:
    everything = LayerRange(0, LAYERS)
    said = []
    for kind in ("onnx", "torch"):
        runner = alone(make(kind, model_of_type, model_of_type.parent, everything))
        cache, ids, out = runner.new_cache(everything, 128), np.arange(40, 60, dtype=np.int64), []
        for _ in range(40):
            hidden = runner.forward(runner.embed(ids), cache, everything)
            ids = runner.logits(hidden[-1:]).argmax(axis=1)
            out.append(int(ids[0]))
        said.append(out)
    assert said[0] == said[1]


def test_a_cut_onnx_cache_leaves_no_trace_of_what_was_cut(model: Path, home: Path) -> None:
    everything = LayerRange(0, LAYERS)
    runner = alone(make("onnx", model, home, everything))
    used, fresh = runner.new_cache(everything, 64), runner.new_cache(everything, 64)
    head, wrong, right = (np.array(ids, np.int64) for ids in ([5, 6, 7, 8], [9] * 40, [10, 11, 12]))
    runner.forward(runner.embed(head), used, everything)
    runner.forward(runner.embed(wrong), used, everything)
    used.truncate(4)
    runner.forward(runner.embed(head), fresh, everything)
    a, b = (runner.forward(runner.embed(right), cache, everything) for cache in (used, fresh))
    np.testing.assert_array_equal(a, b)


def test_the_onnx_runner_loads_only_what_it_was_asked_for(model: Path, tmp_path: Path) -> None:
    runner = make("onnx", model, tmp_path, LayerRange(1, 3), text=False)
    assert isinstance(runner, OnnxRunner)
    assert runner.loaded_parts() == ("layer-001", "layer-002")
    built = {path.name for path in tmp_path.rglob("*") if path.is_file()}
    assert not any(
        "embedding" in name or "head" in name or "layer-000" in name or "layer-003" in name for name in built
    )
    with pytest.raises(SplitGlmError):
        runner.embed(np.array([1], np.int64))
    with pytest.raises(SplitGlmError):
        runner.logits(np.zeros((1, 64), np.float32))


def test_the_onnx_runner_names_what_it_runs_on(model: Path, home: Path) -> None:
    assert "CPU" in make("onnx", model, home, LayerRange(0, 1)).name
