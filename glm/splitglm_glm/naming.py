"""Where each weight of a GLM decoder lies on disk: internal names to tensor names and shapes, per published naming.

A weight may be stored in several tensors (HF keeps Q, K and V apart; the original ChatGLM naming keeps them fused); its
parts are stacked along axis 0 in the order given here. Gate rows come before up rows in both namings (`transformers`
converts one to the other by renaming alone, ``convert_glm_weights_to_hf.py``).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from splitglm_core.errors import ModelInvalid
from splitglm_glm.config import GlmConfig, Naming


@dataclass(frozen=True, slots=True)
class Part:
    """One tensor on disk: its name and the shape that the config asks for."""

    name: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorMap:
    """The parts of every weight. ``layers[i]`` maps the field names of ``LayerWeights`` to parts."""

    embedding: Part
    final_norm: Part
    head: Part | None  # None when the head is tied to the embedding
    layers: tuple[Mapping[str, tuple[Part, ...]], ...]

    def parts(self) -> Iterator[Part]:
        """Every tensor that a complete checkpoint holds."""
        yield self.embedding
        yield self.final_norm
        if self.head is not None:
            yield self.head
        for layer in self.layers:
            for parts in layer.values():
                yield from parts


def tensor_map(config: GlmConfig) -> TensorMap:
    """Names and shapes of the tensors of a checkpoint with this config."""
    width, vocab = config.shape.hidden, config.shape.vocab
    if config.naming is Naming.CHATGLM:
        embedding, norm, head, layer = _CHATGLM_TOP
    else:
        embedding, norm, head, layer = _HF_TOP
    build = _chatglm_layer if config.naming is Naming.CHATGLM else _hf_layer
    return TensorMap(
        embedding=Part(embedding, (vocab, width)),
        final_norm=Part(norm, (width,)),
        head=None if config.tie_word_embeddings else Part(head, (vocab, width)),
        layers=tuple(build(f"{layer}.{i}.", config) for i in range(config.shape.layers)),
    )


def judge_extras(names: Iterable[str], config: GlmConfig) -> tuple[str, ...]:
    """Sort out tensors that no weight needs.

    Returns:
        Names that are ignored, sorted: rotary tables, a stored copy of a tied head, strangers outside the decoder.

    Raises:
        ModelInvalid: a name shows that the checkpoint is of another architecture or size: anything unknown inside a
            decoder layer (it would change what the layer computes), more layers than in the config, experts, vision,
            adapters.
    """
    ignored = []
    for name in sorted(names):
        if _FOREIGN.search(name) and not name.endswith("rotary_emb.inv_freq"):
            raise ModelInvalid(
                f"tensor {name[:200]!r} does not belong to a {config.shape.layers}-layer {config.model_type} model "
                f"(attention_bias {str(config.attention_bias).lower()})",
                "check that config.json and the weights are of the same dense text GLM",
            )
        ignored.append(name)
    return tuple(ignored)


_HF_TOP: Final = ("model.embed_tokens.weight", "model.norm.weight", "lm_head.weight", "model.layers")
_CHATGLM_TOP: Final = (
    "transformer.embedding.word_embeddings.weight",
    "transformer.encoder.final_layernorm.weight",
    "transformer.output_layer.weight",
    "transformer.encoder.layers",
)
# "layers.<digit>" is any decoder layer: what is left over there is unknown to every naming.
_FOREIGN: Final = re.compile(r"expert|vision|visual|lora_|prefix_encoder|(^|\.)layers\.\d")


def _hf_layer(prefix: str, config: GlmConfig) -> dict[str, tuple[Part, ...]]:
    s = config.shape
    q_rows, kv_rows = s.heads * s.head_dim, s.kv_heads * s.head_dim
    projections = (("q_proj", q_rows), ("k_proj", kv_rows), ("v_proj", kv_rows))
    layer: dict[str, tuple[Part, ...]] = {
        "qkv": tuple(Part(f"{prefix}self_attn.{name}.weight", (rows, s.hidden)) for name, rows in projections),
        "o": (Part(prefix + "self_attn.o_proj.weight", (s.hidden, q_rows)),),
        "gate_up": (Part(prefix + "mlp.gate_up_proj.weight", (2 * s.intermediate, s.hidden)),),
        "down": (Part(prefix + "mlp.down_proj.weight", (s.hidden, s.intermediate)),),
        "input_norm": (Part(prefix + "input_layernorm.weight", (s.hidden,)),),
        "post_attention_norm": (Part(prefix + "post_attention_layernorm.weight", (s.hidden,)),),
    }
    if config.attention_bias:
        layer["qkv_bias"] = tuple(Part(f"{prefix}self_attn.{name}.bias", (rows,)) for name, rows in projections)
    if config.sandwich_norms:
        layer["post_self_attn_norm"] = (Part(prefix + "post_self_attn_layernorm.weight", (s.hidden,)),)
        layer["post_mlp_norm"] = (Part(prefix + "post_mlp_layernorm.weight", (s.hidden,)),)
    return layer


def _chatglm_layer(prefix: str, config: GlmConfig) -> dict[str, tuple[Part, ...]]:
    s = config.shape
    qkv_rows = (s.heads + 2 * s.kv_heads) * s.head_dim
    layer: dict[str, tuple[Part, ...]] = {
        "qkv": (Part(prefix + "self_attention.query_key_value.weight", (qkv_rows, s.hidden)),),
        "o": (Part(prefix + "self_attention.dense.weight", (s.hidden, s.heads * s.head_dim)),),
        "gate_up": (Part(prefix + "mlp.dense_h_to_4h.weight", (2 * s.intermediate, s.hidden)),),
        "down": (Part(prefix + "mlp.dense_4h_to_h.weight", (s.hidden, s.intermediate)),),
        "input_norm": (Part(prefix + "input_layernorm.weight", (s.hidden,)),),
        "post_attention_norm": (Part(prefix + "post_attention_layernorm.weight", (s.hidden,)),),
    }
    if config.attention_bias:
        layer["qkv_bias"] = (Part(prefix + "self_attention.query_key_value.bias", (qkv_rows,)),)
    return layer
