"""Calibration and equalisation: the numpy forward pass is the model, and equalising changes nothing but rounding."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from glm_factory import write_tiny_checkpoint

from splitglm_core.plan import Precision
from splitglm_glm.checkpoint import Checkpoint
from splitglm_glm.compress import calibrate
from splitglm_glm.compress.calibrate import ensure_calibration, measure_activations
from splitglm_glm.compress.equalise import channel_factors, column_peaks, equalise_layer
from splitglm_glm.export import build
from splitglm_glm.export.build import ensure_graphs
from splitglm_glm.runtime import RuntimeOptions
from splitglm_glm.stack import LayerStack


def reference_rms(directory: Path, vocab: int) -> dict[str, np.ndarray]:
    """The same statistics from transformers, by hooks on the matrices' inputs."""
    model = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    seen: dict[str, np.ndarray] = {}

    def watch(name: str, module: torch.nn.Module) -> None:
        def record(_: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            seen[name] = inputs[0].detach().square().flatten(0, -2).mean(0).sqrt().numpy()

        module.register_forward_pre_hook(record)

    for i, layer in enumerate(model.model.layers):
        watch(f"attention_in {i}", layer.self_attn.q_proj)
        watch(f"mlp_in {i}", layer.mlp.gate_up_proj)
        watch(f"activated {i}", layer.mlp.down_proj)
    watch("head_in", model.lm_head)
    with torch.no_grad():
        model(torch.tensor(np.random.default_rng(0).integers(0, vocab, 256))[None])
    return seen


@pytest.mark.parametrize(
    "sizes",
    [{"model_type": "glm"}, {"model_type": "glm4", "attention_bias": False}, {"partial_rotary": 1.0, "tied": True}],
)
def test_the_calibration_pass_is_the_model(tmp_path: Path, sizes: dict[str, object]) -> None:
    checkpoint = Checkpoint.open(write_tiny_checkpoint(tmp_path, layers=2, **sizes))  # type: ignore[arg-type]
    measured = measure_activations(checkpoint)
    for name, expected in reference_rms(tmp_path, checkpoint.config.shape.vocab).items():
        kind, _, layer = name.partition(" ")
        got = getattr(measured, kind)
        np.testing.assert_allclose(got[int(layer)] if layer else got, expected, rtol=1e-3, atol=1e-5)


def test_equalised_weights_give_the_same_layer_in_exact_arithmetic(tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(write_tiny_checkpoint(tmp_path, layers=1))
    rng = np.random.default_rng(1)
    shape = checkpoint.config.shape
    before, stats = (
        checkpoint.layer(0),
        [rng.lognormal(0, 2, n) for n in (shape.hidden, shape.hidden, shape.intermediate)],
    )
    after = equalise_layer(checkpoint.layer(0), *(s.astype(np.float32) for s in stats))
    np.testing.assert_allclose(after.input_norm * after.qkv, before.input_norm * before.qkv, rtol=1e-5)
    half = shape.intermediate
    np.testing.assert_allclose(
        after.post_attention_norm * after.gate_up[:half], before.post_attention_norm * before.gate_up[:half], rtol=1e-5
    )
    x = rng.standard_normal(shape.hidden)
    up_before = before.gate_up[half:] @ (before.post_attention_norm * x)
    up_after = after.gate_up[half:] @ (after.post_attention_norm * x)
    np.testing.assert_allclose(after.down @ up_after, before.down @ up_before, rtol=1e-3, atol=1e-4)
    assert not np.allclose(after.qkv, before.qkv)


def test_a_tied_table_keeps_its_meaning_on_both_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At 8 bits the head and the embedding share an equalised table; both must still be the checkpoint's."""
    checkpoint = Checkpoint.open(write_tiny_checkpoint(tmp_path, layers=1, tied=True))
    skewed = np.geomspace(0.01, 100, checkpoint.config.shape.hidden).astype(np.float32)
    monkeypatch.setattr(build, "channel_factors", lambda activation, peak: skewed)
    graphs = ensure_graphs(checkpoint, Precision.INT8, tmp_path / "g")
    stack = LayerStack(checkpoint, graphs, Precision.INT8, options=RuntimeOptions(threads=1))
    rows = stack.embed(np.arange(320))
    table = checkpoint.embedding()
    # Absolute error of a value is at most half a step of its block of neighbouring channels.
    assert np.abs(rows - table)[:, -16:].max() < 0.05 * np.abs(table).max()


def test_channel_factors_are_bounded_and_centred() -> None:
    factors = channel_factors(np.array([0, 1e-30, 1, 4, 1e30], np.float32), np.array([1, 0, 1, 1, 1e-30], np.float32))
    assert np.isfinite(factors).all() and factors.min() >= 1 / 64 - 1e-6 and factors.max() <= 64 + 1e-3
    assert channel_factors(np.full(8, 3.0, np.float32), np.full(8, 7.0, np.float32)) == pytest.approx(np.ones(8))
    np.testing.assert_array_equal(column_peaks(np.array([[1, -5], [-2, 3]], np.float32)), [2, 5])


def test_calibration_is_kept_and_redone_for_another_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = Checkpoint.open(write_tiny_checkpoint(tmp_path / "a", layers=1))
    other = Checkpoint.open(write_tiny_checkpoint(tmp_path / "b", layers=1, seed=3))
    first = ensure_calibration(checkpoint, tmp_path)
    started: list[int] = []
    again = ensure_calibration(checkpoint, tmp_path, lambda: started.append(1))
    np.testing.assert_array_equal(first.activated, again.activated)
    assert started == []
    ensure_calibration(other, tmp_path, lambda: started.append(2))
    assert started == [2]
    (tmp_path / calibrate.calibration_name(other)).write_bytes(b"not safetensors")
    ensure_calibration(other, tmp_path, lambda: started.append(3))
    assert started == [2, 3]
