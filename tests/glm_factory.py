"""Tiny random GLM checkpoints on disk, in every naming that the product reads, with a working tokenizer.

Weights depend on ``seed`` and sizes only: the ``glm`` and the ``chatglm`` checkpoint of one seed are the same model.
"""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path
from string import ascii_lowercase

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

SPECIAL_TOKENS = ("<|endoftext|>", "[MASK]", "[gMASK]", "<sop>", "<|system|>", "<|user|>", "<|assistant|>")
MIN_VOCAB = 256 + len(SPECIAL_TOKENS)
DTYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
CHAT_TEMPLATE = (
    "[gMASK]<sop>{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)


def write_tiny_checkpoint(
    directory: Path,
    model_type: str = "glm",
    *,
    layers: int = 4,
    hidden: int = 64,
    heads: int = 4,
    kv_heads: int = 2,
    head_dim: int = 16,
    intermediate: int = 96,
    vocab: int = 320,
    tied: bool = False,
    partial_rotary: float = 0.5,
    attention_bias: bool = True,
    dtype: str = "float32",
    shards: int = 1,
    seed: int = 0,
) -> Path:
    """Write config.json, safetensors (with an index when ``shards`` > 1), tokenizer.json and tokenizer_config.json.

    ``model_type`` is "glm", "glm4" or "chatglm" (the original naming). ``vocab`` is at least ``MIN_VOCAB``: 256 byte
    tokens, merges of two letters as far as there is room, then the special tokens; tokenizer and model agree on it up
    to 939, beyond that the model is padded as published GLMs are.
    """
    if model_type == "chatglm" and partial_rotary != 0.5:
        raise ValueError("the original naming always rotates half of each head")
    directory.mkdir(parents=True, exist_ok=True)
    eos = write_tokenizer(directory, vocab)
    config = {
        "model_type": model_type,
        "hidden_size": hidden,
        "num_attention_heads": heads,
        "tie_word_embeddings": tied,
        "eos_token_id": eos,
        "pad_token_id": eos[0],
        "use_cache": True,
    }
    if model_type == "chatglm":
        config |= {
            "architectures": ["ChatGLMModel"],
            "auto_map": {"AutoModel": "modeling_chatglm.ChatGLMForConditionalGeneration"},
            "num_layers": layers,
            "ffn_hidden_size": intermediate,
            "kv_channels": head_dim,
            "multi_query_attention": True,
            "multi_query_group_num": kv_heads,
            "add_qkv_bias": attention_bias,
            "add_bias_linear": False,
            "padded_vocab_size": vocab,
            "layernorm_epsilon": 1e-5,
            "rope_ratio": 1,
            "seq_length": 512,
            "rmsnorm": True,
            "post_layer_norm": True,
            "original_rope": True,
            "torch_dtype": dtype,
        }
    else:
        config |= {
            "architectures": ["GlmForCausalLM" if model_type == "glm" else "Glm4ForCausalLM"],
            "num_hidden_layers": layers,
            "intermediate_size": intermediate,
            "head_dim": head_dim,
            "num_key_value_heads": kv_heads,
            "attention_bias": attention_bias,
            "vocab_size": vocab,
            "rms_norm_eps": 1e-5,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": partial_rotary},
            "max_position_embeddings": 512,
            "hidden_act": "silu",
            "dtype": dtype,
        }
    (directory / "config.json").write_text(json.dumps(config, indent=1))
    tensors = random_tensors(
        model_type,
        layers=layers,
        hidden=hidden,
        q_rows=heads * head_dim,
        kv_rows=kv_heads * head_dim,
        intermediate=intermediate,
        vocab=vocab,
        tied=tied,
        attention_bias=attention_bias,
        seed=seed,
    )
    write_weights(directory, {name: value.astype(DTYPES[dtype]) for name, value in tensors.items()}, shards)
    return directory


def random_tensors(
    model_type: str,
    *,
    layers: int,
    hidden: int,
    q_rows: int,
    kv_rows: int,
    intermediate: int,
    vocab: int,
    tied: bool,
    attention_bias: bool,
    seed: int,
) -> dict[str, np.ndarray]:
    """Float32 weights under the names of ``model_type``; scaled so that hidden states keep their size."""
    rng = np.random.default_rng(seed)

    def matrix(rows: int, columns: int) -> np.ndarray:
        return (rng.standard_normal((rows, columns)) / np.sqrt(columns)).astype(np.float32)

    def norm() -> np.ndarray:
        return (1 + 0.2 * rng.standard_normal(hidden)).astype(np.float32)

    original = model_type == "chatglm"
    embedding = rng.standard_normal((vocab, hidden)).astype(np.float32)
    tensors: dict[str, np.ndarray] = {}
    tensors["transformer.embedding.word_embeddings.weight" if original else "model.embed_tokens.weight"] = embedding
    for i in range(layers):
        q, k, v = matrix(q_rows, hidden), matrix(kv_rows, hidden), matrix(kv_rows, hidden)
        biases = [(0.5 * rng.standard_normal(rows)).astype(np.float32) for rows in (q_rows, kv_rows, kv_rows)]
        o, gate_up, down = matrix(hidden, q_rows), matrix(2 * intermediate, hidden), matrix(hidden, intermediate)
        input_norm, post_attention_norm = norm(), norm()
        if original:
            p = f"transformer.encoder.layers.{i}."
            tensors[p + "self_attention.query_key_value.weight"] = np.concatenate([q, k, v])
            if attention_bias:
                tensors[p + "self_attention.query_key_value.bias"] = np.concatenate(biases)
            tensors[p + "self_attention.dense.weight"] = o
            tensors[p + "mlp.dense_h_to_4h.weight"] = gate_up
            tensors[p + "mlp.dense_4h_to_h.weight"] = down
        else:
            p = f"model.layers.{i}."
            for name, weight, bias in zip("qkv", (q, k, v), biases, strict=True):
                tensors[f"{p}self_attn.{name}_proj.weight"] = weight
                if attention_bias:
                    tensors[f"{p}self_attn.{name}_proj.bias"] = bias
            tensors[p + "self_attn.o_proj.weight"] = o
            tensors[p + "mlp.gate_up_proj.weight"] = gate_up
            tensors[p + "mlp.down_proj.weight"] = down
        tensors[p + "input_layernorm.weight"] = input_norm
        tensors[p + "post_attention_layernorm.weight"] = post_attention_norm
        if model_type == "glm4":
            tensors[p + "post_self_attn_layernorm.weight"] = norm()
            tensors[p + "post_mlp_layernorm.weight"] = norm()
    tensors["transformer.encoder.final_layernorm.weight" if original else "model.norm.weight"] = norm()
    if original:  # published files carry this table; readers skip it
        tensors["transformer.rotary_pos_emb.inv_freq"] = np.ones(4, np.float32)
    head = matrix(vocab, hidden) * 4
    if not tied:
        tensors["transformer.output_layer.weight" if original else "lm_head.weight"] = head
    return tensors


def write_weights(directory: Path, tensors: dict[str, np.ndarray], shards: int = 1) -> None:
    """Write ``tensors`` as model.safetensors, or dealt in runs to ``shards`` files with an index."""
    if shards == 1:
        save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
        return
    names = list(tensors)
    weight_map = {}
    for shard in range(shards):
        file = f"model-{shard + 1:05d}-of-{shards:05d}.safetensors"
        mine = names[shard * len(names) // shards : (shard + 1) * len(names) // shards]
        save_file({name: tensors[name] for name in mine}, directory / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(mine, file)
    total = sum(value.nbytes for value in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))


def write_tokenizer(directory: Path, vocab: int) -> list[int]:
    """Write a byte-level BPE tokenizer of ``vocab`` tokens; returns the ids that end an answer."""
    if vocab < MIN_VOCAB:
        raise ValueError(f"a byte-level tokenizer needs a vocabulary of at least {MIN_VOCAB}, not {vocab}")
    tokens = list(_byte_alphabet())
    merges = [list(pair) for pair in product(ascii_lowercase, repeat=2)][: vocab - MIN_VOCAB]
    tokens += ["".join(pair) for pair in merges]
    first_special = len(tokens)
    added = [
        {
            "id": first_special + i,
            "content": token,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": True,
        }
        for i, token in enumerate(SPECIAL_TOKENS)
    ]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": True}
    document = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {token: i for i, token in enumerate(tokens)},
            "merges": merges,
        },
    }
    (directory / "tokenizer.json").write_text(json.dumps(document, ensure_ascii=False), encoding="utf-8")
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "<|endoftext|>",
        "pad_token": "<|endoftext|>",
        "additional_special_tokens": list(SPECIAL_TOKENS),
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
    ends = ("<|endoftext|>", "<|user|>")
    return [first_special + SPECIAL_TOKENS.index(token) for token in ends]


def _byte_alphabet() -> list[str]:
    # GPT-2's printable stand-ins for the 256 bytes, in byte order.
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    stand_ins = iter(range(256, 512))
    return [chr(byte) if byte in printable else chr(next(stand_ins)) for byte in range(256)]
