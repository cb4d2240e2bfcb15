"""``config.json`` of a GLM checkpoint, parsed by an allow-list of keys.

Three published layouts lead to one ``GlmConfig``: HF ``glm`` (GLM-Edge, GLM-4-9B-HF), HF ``glm4`` (GLM-4-0414, Z1) and
the original ``chatglm`` (ChatGLM3, GLM-4-9B). Semantics follow the configuration classes of `transformers` 5 and, for
``chatglm``, ``modeling_chatglm.py`` as published with the weights. A config never makes code run here: whatever could
(``auto_map``, remote addresses) or would change the mathematics (RoPE scaling, quantisation) is refused by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, Final

from splitglm_core.errors import ModelInvalid
from splitglm_core.shapes import ModelShape
from splitglm_glm.config_reader import CHATGLM_KEYS, HF_KEYS, ConfigReader, finite_number, refuse, show
from splitglm_glm.strict_json import read_object

CONFIG_FILE: Final = "config.json"
MAX_CONFIG_BYTES: Final = 1 << 20

# Bounds before anything is allocated; each is far above the largest GLM.
MAX_LAYERS: Final = 1024
MAX_WIDTH: Final = 65536
MAX_INTERMEDIATE: Final = 1 << 20
MAX_HEADS: Final = 1024
MAX_HEAD_DIM: Final = 1024
MAX_VOCAB: Final = 1 << 20
MAX_POSITIONS: Final = 1 << 24

_HF_MODEL_TYPES: Final = ("glm", "glm4")
_HF_EOS: Final = (151329, 151336, 151338)  # what transformers' GlmConfig assumes when the key is absent


class Naming(Enum):
    """How the tensors of a checkpoint are named on disk."""

    HF = "hf"
    CHATGLM = "chatglm"


@dataclass(frozen=True, slots=True, kw_only=True)
class GlmConfig:
    """What the mathematics of a GLM decoder depends on, whatever layout it was read from.

    Attributes:
        model_type: ``"glm"`` (two norms a block) or ``"glm4"`` (also a norm after each sublayer).
        shape: widths and counts.
        rms_eps: added to the mean square in every RMSNorm.
        rope_theta: base of the rotary frequencies.
        partial_rotary_factor: share of each head that is rotated, from its first element on.
        attention_bias: whether Q, K and V have a bias (the output projection never has).
        eos_token_ids: tokens that end an answer; may be empty.
        naming: tensor names on disk.
    """

    model_type: str
    shape: ModelShape
    rms_eps: float
    rope_theta: float
    partial_rotary_factor: float
    attention_bias: bool
    eos_token_ids: tuple[int, ...]
    naming: Naming = Naming.HF

    def __post_init__(self) -> None:
        shape = self.shape
        if self.model_type not in _HF_MODEL_TYPES:
            refuse(f"model_type {self.model_type!r} is not one of glm, glm4", "pick a GLM-Edge or GLM-4 checkpoint")
        for name, value, most in (
            ("number of layers", shape.layers, MAX_LAYERS),
            ("hidden size", shape.hidden, MAX_WIDTH),
            ("intermediate size", shape.intermediate, MAX_INTERMEDIATE),
            ("number of attention heads", shape.heads, MAX_HEADS),
            ("number of key/value heads", shape.kv_heads, MAX_HEADS),
            ("head dimension", shape.head_dim, MAX_HEAD_DIM),
            ("vocabulary size", shape.vocab, MAX_VOCAB),
            ("number of positions", shape.max_positions, MAX_POSITIONS),
        ):
            if not 1 <= value <= most:
                refuse(f"the {name}, {show(value)}, is outside [1, {most}]")
        if shape.heads % shape.kv_heads:
            refuse(f"{shape.heads} attention heads are not a multiple of {shape.kv_heads} key/value heads")
        for name, number, above, most_number in (
            ("RMSNorm epsilon", self.rms_eps, 0.0, 0.1),
            ("rope_theta", self.rope_theta, 1.0, 1e12),
            ("partial_rotary_factor", self.partial_rotary_factor, 0.0, 1.0),
        ):
            if not above < number <= most_number:
                refuse(f"{name} {number} is outside ({above}, {most_number}]")
        if self.rotary_dim < 2 or self.rotary_dim % 2:
            refuse(f"the rotary dimension {self.rotary_dim} is not a positive even number")
        for token in self.eos_token_ids:
            if not 0 <= token < shape.vocab:
                refuse(f"eos_token_id {show(token)} is outside the vocabulary of {shape.vocab}")

    @property
    def rotary_dim(self) -> int:
        """Rotated elements of each head; pairs are (2i, 2i + 1)."""
        return int(self.shape.head_dim * self.partial_rotary_factor)

    @property
    def sandwich_norms(self) -> bool:
        """True when attention and MLP outputs are normalised before they join the residual stream."""
        return self.model_type == "glm4"

    @property
    def tie_word_embeddings(self) -> bool:
        return self.shape.tied_head

    @property
    def max_position_embeddings(self) -> int:
        return self.shape.max_positions


def load_config(path: Path) -> GlmConfig:
    """Read ``path``: a ``config.json`` or the directory that holds one.

    Raises:
        ModelNotFound: there is no such file.
        ModelInvalid: the file is not the configuration of a supported GLM.
    """
    return parse_config(read_object(path / CONFIG_FILE if path.is_dir() else path, MAX_CONFIG_BYTES))


def parse_config(raw: Mapping[str, Any]) -> GlmConfig:
    """The configuration in ``raw``, a parsed ``config.json``.

    Raises:
        ModelInvalid: unknown model type, a key outside the allow-list, a missing or impossible value, or a feature
            that would need other mathematics.
    """
    model_type = raw.get("model_type")
    if model_type == "chatglm":
        return _parse_chatglm(ConfigReader(raw, CHATGLM_KEYS))
    if model_type in _HF_MODEL_TYPES:
        return _parse_hf(str(model_type), ConfigReader(raw, HF_KEYS))
    raise ModelInvalid(
        f"model_type {show(model_type)} is not supported (known: glm, glm4, chatglm)",
        "pick a dense text GLM, for example GLM-Edge-1.5B-Chat or GLM-4-9B-0414",
    )


def _parse_hf(model_type: str, reader: ConfigReader) -> GlmConfig:
    reader.require("hidden_act", "silu", default="silu", why="the MLP of GLM is SwiGLU")
    # Early conversions of ChatGLM files carry these along.
    reader.require("use_rms_norm", True, default=True, why="LayerNorm is another model")
    reader.require("post_layer_norm", True, default=True, why="the decoder ends in a norm")
    reader.require("apply_residual_connection_post_layernorm", False, default=False, why="the block is pre-norm")
    reader.require("linear_bias", False, default=False, why="only Q, K and V may have a bias")
    # transformers >= 5 nests the rotary settings; a rope_scaling of older files takes precedence, as it does there.
    scaling = reader.table("rope_scaling")
    rope = scaling or reader.table("rope_parameters")
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind != "default":
        refuse(f"rope type {show(kind)} is not supported, only 'default'", "remove the RoPE scaling from config.json")
    for key in rope:
        if key not in ("rope_type", "type", "rope_theta", "partial_rotary_factor"):
            refuse(f"rotary setting {show(key)} is not supported", "remove the RoPE scaling from config.json")
    vocab = reader.integer("vocab_size")
    shape = ModelShape(
        layers=reader.integer("num_hidden_layers"),
        hidden=reader.integer("hidden_size"),
        intermediate=reader.integer("intermediate_size"),
        heads=reader.integer("num_attention_heads"),
        kv_heads=reader.integer("num_key_value_heads"),
        head_dim=reader.integer("head_dim"),
        vocab=vocab,
        max_positions=reader.integer("max_position_embeddings", 131072),
        tied_head=reader.flag("tie_word_embeddings", False),
    )
    return GlmConfig(
        model_type=model_type,
        shape=shape,
        rms_eps=reader.number("rms_norm_eps", 1.5625e-07),
        rope_theta=finite_number("rope_theta", rope.get("rope_theta", reader.number("rope_theta", 10000.0))),
        partial_rotary_factor=finite_number(
            "partial_rotary_factor", rope.get("partial_rotary_factor", reader.number("partial_rotary_factor", 0.5))
        ),
        attention_bias=reader.flag("attention_bias", True),
        eos_token_ids=reader.eos_token_ids(tuple(token for token in _HF_EOS if token < vocab)),
    )


def _parse_chatglm(reader: ConfigReader) -> GlmConfig:
    # The published files all carry auto_map, so it is accepted where it names their own classes; nothing is imported.
    for target in reader.table("auto_map").values():
        if not isinstance(target, str) or target.split("--")[-1].split(".")[0] not in _CHATGLM_MODULES:
            refuse(f"auto_map names {show(target)}, which is not part of the published ChatGLM code")
    reader.require("rmsnorm", True, default=True, why="LayerNorm is another model")
    reader.require("post_layer_norm", True, default=True, why="the decoder ends in a norm")
    reader.require("apply_residual_connection_post_layernorm", False, default=False, why="the block is pre-norm")
    reader.require("add_bias_linear", False, default=False, why="only Q, K and V may have a bias")
    reader.require("original_rope", True, default=True, why="the rotary embedding is interleaved")
    reader.require("multi_query_attention", True, default=False, why="Q, K and V rows are mixed per head otherwise")
    reader.require("pre_seq_len", None, default=None, why="prefix tuning is not read")
    reader.require("quantization_bit", 0, default=0, why="quantised checkpoints are not read")
    vocab = reader.integer("padded_vocab_size")
    shape = ModelShape(
        layers=reader.integer("num_layers"),
        hidden=reader.integer("hidden_size"),
        intermediate=reader.integer("ffn_hidden_size"),
        heads=reader.integer("num_attention_heads"),
        kv_heads=reader.integer("multi_query_group_num"),
        head_dim=reader.integer("kv_channels"),
        vocab=vocab,
        max_positions=reader.integer("seq_length"),
        tied_head=reader.flag("tie_word_embeddings", False),
    )
    return GlmConfig(
        model_type="glm",
        shape=shape,
        rms_eps=reader.number("layernorm_epsilon"),
        rope_theta=10000.0 * reader.number("rope_ratio", 1.0),
        partial_rotary_factor=0.5,  # modeling_chatglm.py rotates half of every head
        attention_bias=reader.flag("add_qkv_bias", False),
        eos_token_ids=reader.eos_token_ids(()),
        naming=Naming.CHATGLM,
    )


_CHATGLM_MODULES: Final = ("configuration_chatglm", "modeling_chatglm", "tokenization_chatglm")
