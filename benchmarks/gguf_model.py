"""The random checkpoint's weights as a GGUF file that llama.cpp loads (architecture chatglm, no vocabulary)."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np

from splitglm_glm.checkpoint import Checkpoint

KINDS = {"q4_0": gguf.GGMLQuantizationType.Q4_0, "q8_0": gguf.GGMLQuantizationType.Q8_0}


def ensure_gguf(checkpoint: Checkpoint, path: Path, kind: str) -> Path:
    """``path`` with the layers at ``kind``; the tied vocabulary is Q8_0 in every file, as it is in our graphs."""
    if not path.exists():
        staged = path.with_suffix(".part")
        _write(checkpoint, staged, KINDS[kind])
        staged.replace(path)
    return path


def _write(checkpoint: Checkpoint, path: Path, kind: gguf.GGMLQuantizationType) -> None:
    config, shape = checkpoint.config, checkpoint.config.shape
    writer = gguf.GGUFWriter(path, "chatglm", use_temp_file=True)
    writer.add_context_length(shape.max_positions)
    writer.add_embedding_length(shape.hidden)
    writer.add_feed_forward_length(shape.intermediate)
    writer.add_block_count(shape.layers)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_layer_norm_rms_eps(config.rms_eps)
    writer.add_rope_dimension_count(config.rotary_dim)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_tokenizer_model("no_vocab")
    writer.add_vocab_size(shape.vocab)

    def matrix(name: str, values: np.ndarray, stored: gguf.GGMLQuantizationType) -> None:
        writer.add_tensor(name, gguf.quants.quantize(values, stored), raw_dtype=stored)

    matrix("token_embd.weight", checkpoint.embedding(), gguf.GGMLQuantizationType.Q8_0)
    writer.add_tensor("output_norm.weight", checkpoint.final_norm())
    for i in range(shape.layers):
        weights = checkpoint.layer(i)
        writer.add_tensor(f"blk.{i}.attn_norm.weight", weights.input_norm)
        matrix(f"blk.{i}.attn_qkv.weight", weights.qkv, kind)
        matrix(f"blk.{i}.attn_output.weight", weights.o, kind)
        writer.add_tensor(f"blk.{i}.ffn_norm.weight", weights.post_attention_norm)
        matrix(f"blk.{i}.ffn_up.weight", weights.gate_up, kind)
        matrix(f"blk.{i}.ffn_down.weight", weights.down, kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
