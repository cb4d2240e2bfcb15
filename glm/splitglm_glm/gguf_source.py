"""Re-expresses a llama-architecture GGUF file as a GLM checkpoint, weight for weight.

GLM rotates pairs (2i, 2i + 1). So does GGUF's llama, whose converter permutes Q and K rows from the half-split order of
transformers' Llama to exactly that order: the rows are used as they are, with the whole head rotated
(partial_rotary_factor 1.0). Gate and up projections are stacked. Quantised weights are stored as the float32 values
they stand for, so nothing is rounded. Only for a file whose hash was checked: GGUF parsers have a history of overflows.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np

from splitglm_core.errors import DeviceError, ModelInvalid
from splitglm_glm.progress import Progress, silent
from splitglm_glm.tensor_writer import TensorPlan, write_tensors

_BLOCK_ROWS: Final = 4096
_CONTROL: Final = 3  # token type, as ggml numbers them
_PRE_TOKENIZER: Final = "smollm"
_KEYS: Final = {
    "vocab_size": "llama.vocab_size",
    "hidden_size": "llama.embedding_length",
    "intermediate_size": "llama.feed_forward_length",
    "num_hidden_layers": "llama.block_count",
    "num_attention_heads": "llama.attention.head_count",
    "num_key_value_heads": "llama.attention.head_count_kv",
    "head_dim": "llama.rope.dimension_count",
    "max_position_embeddings": "llama.context_length",
}


class GgufModel:
    """An opened GGUF file of the llama architecture with tied embeddings and a byte-level BPE tokenizer."""

    def __init__(self, path: Path) -> None:
        """Raises ``ModelInvalid`` for any other kind of file and ``DeviceError`` without the gguf package."""
        try:
            import gguf
        except ImportError:
            raise DeviceError("the gguf package is not installed", "pip install 'splitglm[model]'") from None
        try:
            self._reader = gguf.GGUFReader(path)
        except (ValueError, IndexError, KeyError, OSError) as error:
            raise ModelInvalid(f"{path} is not a GGUF file: {error}", "fetch it again") from None
        self._dequantize = gguf.dequantize
        self._tensors = {tensor.name: tensor for tensor in self._reader.tensors}
        wanted = {
            "general.architecture": "llama",
            "tokenizer.ggml.model": "gpt2",
            "tokenizer.ggml.pre": _PRE_TOKENIZER,
        }
        for key, expected in wanted.items():
            if self.value(key) != expected:
                raise ModelInvalid(f"{key} of {path} is {self.value(key)!r}; only {expected!r} is converted")
        if "output.weight" in self._tensors:
            raise ModelInvalid(f"{path} has an LM head of its own; only tied embeddings are converted")

    def value(self, key: str) -> Any:
        """The metadata value of ``key``.

        Raises:
            ModelInvalid: there is none.
        """
        field = self._reader.fields.get(key)
        if field is None:
            raise ModelInvalid(f"the GGUF file lacks {key}", "fetch it again")
        return field.contents()

    def config(self) -> dict[str, Any]:
        """``config.json`` of the GLM checkpoint."""
        config: dict[str, Any] = {"architectures": ["GlmForCausalLM"], "model_type": "glm"}
        config |= {name: int(self.value(key)) for name, key in _KEYS.items()}
        return config | {
            "rms_norm_eps": _shortest(self.value("llama.attention.layer_norm_rms_epsilon")),
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": _shortest(self.value("llama.rope.freq_base")),
                "partial_rotary_factor": 1.0,
            },
            "attention_bias": False,
            "tie_word_embeddings": True,
            "hidden_act": "silu",
            "bos_token_id": int(self.value("tokenizer.ggml.bos_token_id")),
            "eos_token_id": int(self.value("tokenizer.ggml.eos_token_id")),
            "pad_token_id": int(self.value("tokenizer.ggml.padding_token_id")),
            "dtype": "float32",
        }

    def rows(self, name: str) -> Iterator[np.ndarray]:
        """The tensor ``name`` as float32, at most 4096 rows at a time."""
        tensor = self._tensors.get(name)
        if tensor is None:
            raise ModelInvalid(f"the GGUF file lacks tensor {name}", "fetch it again")
        for start in range(0, tensor.data.shape[0], _BLOCK_ROWS):
            block = self._dequantize(tensor.data[start : start + _BLOCK_ROWS], tensor.tensor_type)
            yield np.ascontiguousarray(block, dtype=np.float32)

    def plans(self) -> Iterator[TensorPlan]:
        """Every tensor of the GLM checkpoint, in the order of the file."""
        yield self._plan("model.embed_tokens.weight", "token_embd.weight")
        for layer in range(int(self.value("llama.block_count"))):
            ours, theirs = f"model.layers.{layer}.", f"blk.{layer}."
            yield self._plan(ours + "input_layernorm.weight", theirs + "attn_norm.weight")
            yield self._plan(ours + "self_attn.q_proj.weight", theirs + "attn_q.weight")
            yield self._plan(ours + "self_attn.k_proj.weight", theirs + "attn_k.weight")
            yield self._plan(ours + "self_attn.v_proj.weight", theirs + "attn_v.weight")
            yield self._plan(ours + "self_attn.o_proj.weight", theirs + "attn_output.weight")
            yield self._plan(ours + "post_attention_layernorm.weight", theirs + "ffn_norm.weight")
            yield self._plan(ours + "mlp.gate_up_proj.weight", theirs + "ffn_gate.weight", theirs + "ffn_up.weight")
            yield self._plan(ours + "mlp.down_proj.weight", theirs + "ffn_down.weight")
        yield self._plan("model.norm.weight", "output_norm.weight")

    def _plan(self, name: str, *stacked: str) -> TensorPlan:
        missing = [part for part in stacked if part not in self._tensors]
        if missing:
            raise ModelInvalid(f"the GGUF file lacks tensor {missing[0]}", "fetch it again")
        # ggml lists dimensions fastest first.
        shapes = [tuple(int(n) for n in reversed(self._tensors[part].shape)) for part in stacked]
        shape = (sum(s[0] for s in shapes), *shapes[0][1:])
        return TensorPlan(name, shape, (block for part in stacked for block in self.rows(part)))

    def tokenizer(self) -> dict[str, Any]:
        """``tokenizer.json``: byte-level BPE that splits digits, as the model was trained."""
        tokens: list[str] = self.value("tokenizer.ggml.tokens")
        types: list[int] = self.value("tokenizer.ggml.token_type")
        flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
        byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
        return {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": [
                {"id": i, "content": token, **flags} for i, token in enumerate(tokens) if types[i] == _CONTROL
            ],
            "normalizer": None,
            "pre_tokenizer": {
                "type": "Sequence",
                "pretokenizers": [{"type": "Digits", "individual_digits": True}, byte_level],
            },
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
                "merges": [pair.split(" ") for pair in self.value("tokenizer.ggml.merges")],
            },
        }

    def tokenizer_config(self) -> dict[str, Any]:
        """``tokenizer_config.json``, chat template included."""
        tokens: list[str] = self.value("tokenizer.ggml.tokens")
        return {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": tokens[int(self.value("tokenizer.ggml.bos_token_id"))],
            "eos_token": tokens[int(self.value("tokenizer.ggml.eos_token_id"))],
            "pad_token": tokens[int(self.value("tokenizer.ggml.padding_token_id"))],
            "unk_token": tokens[int(self.value("tokenizer.ggml.unknown_token_id"))],
            "model_max_length": int(self.value("llama.context_length")),
            "clean_up_tokenization_spaces": False,
            "add_prefix_space": False,
            "chat_template": self.value("tokenizer.chat_template"),
        }


def write_glm_checkpoint(gguf_path: Path, directory: Path, progress: Progress = silent) -> None:
    """Write the GLM checkpoint of a GGUF file into ``directory``; the same file always gives the same bytes.

    Raises:
        ModelInvalid: not a file that can be re-expressed exactly.
        DeviceError: the gguf package is missing.
    """
    model = GgufModel(gguf_path)
    config = model.config()
    generation = {key: config[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    _write_json(directory / "config.json", config)
    _write_json(directory / "generation_config.json", generation)
    _write_json(directory / "tokenizer.json", model.tokenizer())
    _write_json(directory / "tokenizer_config.json", model.tokenizer_config())
    write_tensors(directory / "model.safetensors", model.plans(), progress)


def _write_json(path: Path, document: dict[str, Any]) -> None:
    path.write_text(json.dumps(document, ensure_ascii=False, indent=1), encoding="utf-8")


def _shortest(value: float) -> float:
    # GGUF stores float32; 9.999999747378752e-06 was written as 1e-05.
    return float(str(np.float32(value)))
