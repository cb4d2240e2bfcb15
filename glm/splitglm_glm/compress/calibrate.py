"""How large the activations of each channel are, measured on random token ids.

Quantisation needs to know which channels carry outliers; which ones do is a property of the weights, hardly of the
text, so random ids serve and no data set is needed. The forward pass is plain float32 numpy, one layer in memory.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

from splitglm_core.errors import ModelInvalid
from splitglm_glm.checkpoint import Checkpoint, LayerWeights
from splitglm_glm.compress.quantise import Float32
from splitglm_glm.config import GlmConfig
from splitglm_glm.tensor_files import read_header, read_tensor
from splitglm_glm.tensor_writer import TensorPlan, write_tensors

_VERSION = 3  # of the measurement; a calibration of another version is measured again
_TOKENS = 256
_SEED = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """Root mean square of every channel that enters a matrix.

    Attributes:
        attention_in: ``[layers, hidden]``, after the norm before attention.
        mlp_in: ``[layers, hidden]``, after the norm before the MLP.
        activated: ``[layers, intermediate]``, what enters the down projection.
        head_in: ``[hidden]``, after the final norm.
    """

    attention_in: Float32
    mlp_in: Float32
    activated: Float32
    head_in: Float32


def calibration_name(checkpoint: Checkpoint) -> str:
    """File name that belongs to one checkpoint and one version of the measurement."""
    return f"calibration-{_VERSION}-{checkpoint.fingerprint.hex()[:16]}.safetensors"


def ensure_calibration(
    checkpoint: Checkpoint, directory: Path, on_start: Callable[[], None] | None = None
) -> Calibration:
    """The calibration kept in ``directory``, measured and kept if it is absent or of another checkpoint or version."""
    path = directory / calibration_name(checkpoint)
    found = _read(path, checkpoint)
    if found is not None:
        return found
    if on_start is not None:
        on_start()
    measured = measure_activations(checkpoint)
    staged = path.with_suffix(".part")
    named = ((field.name, getattr(measured, field.name)) for field in fields(Calibration))
    write_tensors(staged, (TensorPlan(name, array.shape, (array,)) for name, array in named))
    staged.replace(path)
    return measured


def measure_activations(checkpoint: Checkpoint) -> Calibration:
    """Run random ids through the model, layer by layer."""
    config = checkpoint.config
    shape = config.shape
    ids = np.random.default_rng(_SEED).integers(0, shape.vocab, min(_TOKENS, shape.max_positions))
    hidden = np.concatenate([checkpoint.embedding_rows(int(i), int(i) + 1) for i in ids])
    cos, sin = _rotary(config, len(ids))
    attention_in = np.empty((shape.layers, shape.hidden), np.float32)
    mlp_in = np.empty((shape.layers, shape.hidden), np.float32)
    activated = np.empty((shape.layers, shape.intermediate), np.float32)
    for layer in range(shape.layers):
        weights = checkpoint.layer(layer)
        normed = _rms_norm(hidden, weights.input_norm, config.rms_eps)
        attention_in[layer] = _channel_rms(normed)
        branch = _attention(normed, weights, config, cos, sin)
        if weights.post_self_attn_norm is not None:
            branch = _rms_norm(branch, weights.post_self_attn_norm, config.rms_eps)
        hidden = hidden + branch
        normed = _rms_norm(hidden, weights.post_attention_norm, config.rms_eps)
        mlp_in[layer] = _channel_rms(normed)
        gate, up = np.split(normed @ weights.gate_up.T, 2, axis=-1)
        inner = gate / (1 + np.exp(-np.clip(gate, -80, 80))) * up
        activated[layer] = _channel_rms(inner)
        branch = inner @ weights.down.T
        if weights.post_mlp_norm is not None:
            branch = _rms_norm(branch, weights.post_mlp_norm, config.rms_eps)
        hidden = hidden + branch
    final = _rms_norm(hidden, checkpoint.final_norm(), config.rms_eps)
    return Calibration(attention_in=attention_in, mlp_in=mlp_in, activated=activated, head_in=_channel_rms(final))


def _attention(normed: Float32, weights: LayerWeights, config: GlmConfig, cos: Float32, sin: Float32) -> Float32:
    """Causal grouped-query attention over one sequence from position 0; returns ``[n, hidden]``."""
    shape, n = config.shape, len(normed)
    qkv = normed @ weights.qkv.T
    if weights.qkv_bias is not None:
        qkv += weights.qkv_bias
    heads = qkv.reshape(n, -1, shape.head_dim).transpose(1, 0, 2)
    query = _rotate(heads[: shape.heads], cos, sin)
    key = _rotate(heads[shape.heads : shape.heads + shape.kv_heads], cos, sin)
    value = heads[shape.heads + shape.kv_heads :]
    group = shape.heads // shape.kv_heads
    scores = query.reshape(shape.kv_heads, group * n, -1) @ key.transpose(0, 2, 1)
    scores = scores.reshape(shape.heads, n, n) * np.float32(shape.head_dim**-0.5)
    scores += np.triu(np.full((n, n), -np.inf, np.float32), 1)
    scores = np.exp(scores - scores.max(-1, keepdims=True))
    scores /= scores.sum(-1, keepdims=True)
    context = scores.reshape(shape.kv_heads, group * n, n) @ value
    result: Float32 = context.reshape(shape.heads, n, -1).transpose(1, 0, 2).reshape(n, -1) @ weights.o.T
    return result


def _rotate(x: Float32, cos: Float32, sin: Float32) -> Float32:
    """Interleaved rotary embedding of the first ``2 * cos.shape[1]`` values per head; ``x [heads, n, head_dim]``."""
    width = 2 * cos.shape[1]
    even, odd = x[..., 0:width:2], x[..., 1:width:2]
    rotated = x.copy()
    rotated[..., 0:width:2] = even * cos - odd * sin
    rotated[..., 1:width:2] = odd * cos + even * sin
    return rotated


def _rotary(config: GlmConfig, positions: int) -> tuple[Float32, Float32]:
    exponents = np.arange(0, config.rotary_dim, 2, dtype=np.float32) / np.float32(config.rotary_dim)
    angles = np.outer(
        np.arange(positions, dtype=np.float32), np.float32(1) / np.float32(config.rope_theta) ** exponents
    )
    return np.cos(angles), np.sin(angles)


def _rms_norm(x: Float32, weight: Float32, eps: float) -> Float32:
    scaled: Float32 = x / np.sqrt((x * x).mean(-1, keepdims=True) + np.float32(eps)) * weight
    return scaled


def _channel_rms(x: Float32) -> Float32:
    rms: Float32 = np.sqrt((x * x).mean(0))
    return rms


def _read(path: Path, checkpoint: Checkpoint) -> Calibration | None:
    shape = checkpoint.config.shape
    dims = {
        "attention_in": (shape.layers, shape.hidden),
        "mlp_in": (shape.layers, shape.hidden),
        "activated": (shape.layers, shape.intermediate),
        "head_in": (shape.hidden,),
    }
    try:
        header = read_header(path)
        arrays = {name: read_tensor(header[name], name) for name in dims}
    except (OSError, KeyError, ModelInvalid):
        return None
    if any(arrays[name].shape != expected for name, expected in dims.items()):
        return None
    return Calibration(**arrays)
