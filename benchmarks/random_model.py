"""Random checkpoints with a published model's shape, for speed and memory (never for quality).

Every layer has its own numbers: ONNX Runtime stores equal weights once, and a benchmark of copied layers would read
them from the processor's cache.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from splitglm_glm.checkpoint import Checkpoint


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """Shape of a model as its config.json states it."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocab: int


SHAPES = {
    # config.json of THUDM/glm-edge-1.5b-chat: full rotary, no biases, tied embeddings
    "glm-edge-1.5b": Sizes(hidden=2048, layers=28, heads=16, kv_heads=4, head_dim=128, intermediate=6144, vocab=59264),
    "tiny-even": Sizes(hidden=128, layers=8, heads=4, kv_heads=2, head_dim=32, intermediate=256, vocab=512),
    "tiny": Sizes(hidden=128, layers=3, heads=4, kv_heads=2, head_dim=32, intermediate=256, vocab=512),
}


def ensure_checkpoint(directory: Path, sizes: Sizes) -> Checkpoint:
    """The random checkpoint in ``directory``, written on first use (bfloat16 safetensors)."""
    if not (directory / "model.safetensors").exists():
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "config.json").write_text(json.dumps(_config(sizes)))
        staged = directory / "model.safetensors.part"
        _write(staged, sizes)
        staged.replace(directory / "model.safetensors")
    return Checkpoint.open(directory)


def _config(sizes: Sizes) -> dict[str, object]:
    return {
        "model_type": "glm",
        "architectures": ["GlmForCausalLM"],
        "hidden_size": sizes.hidden,
        "num_hidden_layers": sizes.layers,
        "num_attention_heads": sizes.heads,
        "num_key_value_heads": sizes.kv_heads,
        "head_dim": sizes.head_dim,
        "intermediate_size": sizes.intermediate,
        "vocab_size": sizes.vocab,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "partial_rotary_factor": 1.0,
        "attention_bias": False,
        "tie_word_embeddings": True,
        "max_position_embeddings": 8192,
        "eos_token_id": [0],
        "hidden_act": "silu",
    }


def _tensors(sizes: Sizes) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield "model.embed_tokens.weight", (sizes.vocab, sizes.hidden)
    q, kv = sizes.heads * sizes.head_dim, sizes.kv_heads * sizes.head_dim
    for i in range(sizes.layers):
        prefix = f"model.layers.{i}."
        yield prefix + "self_attn.q_proj.weight", (q, sizes.hidden)
        yield prefix + "self_attn.k_proj.weight", (kv, sizes.hidden)
        yield prefix + "self_attn.v_proj.weight", (kv, sizes.hidden)
        yield prefix + "self_attn.o_proj.weight", (sizes.hidden, q)
        yield prefix + "mlp.gate_up_proj.weight", (2 * sizes.intermediate, sizes.hidden)
        yield prefix + "mlp.down_proj.weight", (sizes.hidden, sizes.intermediate)
        yield prefix + "input_layernorm.weight", (sizes.hidden,)
        yield prefix + "post_attention_layernorm.weight", (sizes.hidden,)
    yield "model.norm.weight", (sizes.hidden,)


def _write(path: Path, sizes: Sizes) -> None:
    """safetensors by hand, tensor by tensor, so that writing a big model needs little memory."""
    header: dict[str, object] = {}
    offset = 0
    for name, dims in _tensors(sizes):
        size = 2 * int(np.prod(dims))
        header[name] = {"dtype": "BF16", "shape": list(dims), "data_offsets": [offset, offset + size]}
        offset += size
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    rng = np.random.default_rng(0)
    with path.open("wb") as stream:
        stream.write(len(encoded).to_bytes(8, "little"))
        stream.write(encoded)
        for _, dims in _tensors(sizes):
            if len(dims) == 1:
                values = 1 + np.float32(0.1) * rng.standard_normal(dims, dtype=np.float32)
            else:
                values = np.float32(dims[1] ** -0.5) * rng.standard_normal(dims, dtype=np.float32)
            stream.write((values.view(np.uint32) >> 16).astype(np.uint16).data)  # bfloat16 is the upper half
