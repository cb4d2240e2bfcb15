"""Typed look-ups in an untrusted ``config.json``: an allow-list of keys, types checked, nothing evaluated."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final, NoReturn

from splitglm_core.errors import ModelInvalid

# Bookkeeping that changes nothing here. Everything not listed is refused: a key nobody reads may be one that matters.
_BOOKKEEPING: Final = frozenset(
    {
        "_attn_implementation_autoset",
        "_name_or_path",
        "architectures",
        "attention_dropout",
        "bos_token_id",
        "chunk_size_feed_forward",
        "classifier_dropout",
        "dtype",
        "hidden_dropout",
        "id2label",
        "initializer_range",
        "is_encoder_decoder",
        "label2id",
        "output_attentions",
        "output_hidden_states",
        "pad_token_id",
        "problem_type",
        "resid_pdrop",
        "return_dict",
        "torch_dtype",
        "transformers_version",
        "use_cache",
    }
)
HF_KEYS: Final = _BOOKKEEPING | frozenset(
    {
        "apply_residual_connection_post_layernorm",
        "attention_bias",
        "eos_token_id",
        "head_dim",
        "hidden_act",
        "hidden_size",
        "intermediate_size",
        "linear_bias",
        "max_position_embeddings",
        "model_type",
        "num_attention_heads",
        "num_hidden_layers",
        "num_key_value_heads",
        "partial_rotary_factor",
        "post_layer_norm",
        "rms_norm_eps",
        "rope_parameters",
        "rope_scaling",
        "rope_theta",
        "tie_word_embeddings",
        "use_rms_norm",
        "vocab_size",
    }
)
# attention_softmax_in_fp32, apply_query_key_layer_scaling and bias_dropout_fusion are about rounding and speed only.
CHATGLM_KEYS: Final = _BOOKKEEPING | frozenset(
    {
        "add_bias_linear",
        "add_qkv_bias",
        "apply_query_key_layer_scaling",
        "apply_residual_connection_post_layernorm",
        "attention_softmax_in_fp32",
        "auto_map",
        "bias_dropout_fusion",
        "eos_token_id",
        "ffn_hidden_size",
        "fp32_residual_connection",
        "hidden_size",
        "kv_channels",
        "layernorm_epsilon",
        "model_type",
        "multi_query_attention",
        "multi_query_group_num",
        "num_attention_heads",
        "num_layers",
        "original_rope",
        "padded_vocab_size",
        "post_layer_norm",
        "pre_seq_len",
        "prefix_projection",
        "quantization_bit",
        "rmsnorm",
        "rope_ratio",
        "seq_length",
        "tie_word_embeddings",
        "vocab_size",
    }
)
_MAX_DEPTH: Final = 8
_WHY_REFUSED: Final = {
    "auto_map": "it asks for code shipped with the model to be run",
    "trust_remote_code": "it asks for code shipped with the model to be run",
    "_attn_implementation": "it names code to be loaded",
    "_attn_implementation_internal": "it names code to be loaded",
    "quantization_config": "quantised checkpoints are not read; splitglm quantises by itself",
    "vision_config": "models with vision are not supported",
    "n_routed_experts": "mixture-of-experts models are not supported",
    "num_nextn_predict_layers": "mixture-of-experts models are not supported",
}


def refuse(what: str, hint: str = "check config.json against the published one") -> NoReturn:
    """Raise ``ModelInvalid``."""
    raise ModelInvalid(what, hint)


class ConfigReader:
    """Typed look-ups in a config whose keys were checked; ``bool`` never passes as a number."""

    def __init__(self, raw: Mapping[str, Any], allowed: frozenset[str]) -> None:
        for key, value in raw.items():
            if key not in allowed:
                why = _WHY_REFUSED.get(key, "it is unknown, so it may change what the model computes")
                refuse(f"config key {show(key)} is refused: {why}")
            _refuse_addresses(key, value, depth=0)
        self._raw = raw

    def integer(self, key: str, default: int | None = None) -> int:
        value = self._raw.get(key, default)
        if value is None:
            refuse(f"config key {key!r} is missing")
        if not isinstance(value, int) or isinstance(value, bool):
            refuse(f"config key {key!r} is {show(value)}, not an integer")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        return finite_number(key, self._raw.get(key, default))

    def flag(self, key: str, default: bool) -> bool:
        value = self._raw.get(key, default)
        if not isinstance(value, bool):
            refuse(f"config key {key!r} is {show(value)}, not true or false")
        return value

    def table(self, key: str) -> Mapping[str, Any]:
        value = self._raw.get(key)
        if value is not None and not isinstance(value, dict):
            refuse(f"config key {key!r} is {show(value)}, not an object")
        return value or {}

    def require(self, key: str, expected: object, *, default: object, why: str) -> None:
        value = self._raw.get(key, default)
        if type(value) is not type(expected) or value != expected:
            refuse(f"config key {key!r} is {show(value)} but only {expected!r} is supported: {why}")

    def eos_token_ids(self, default: tuple[int, ...]) -> tuple[int, ...]:
        value = self._raw.get("eos_token_id")
        if value is None:
            return default
        items = value if isinstance(value, list) else [value]
        if len(items) > 256 or not all(isinstance(item, int) and not isinstance(item, bool) for item in items):
            refuse(f"config key 'eos_token_id' is {show(value)}, not a token id or a short list of them")
        return tuple(items)


def show(value: object) -> str:
    """``repr`` cut to a length that fits a message."""
    text = repr(value)
    return text if len(text) <= 80 else text[:80] + "..."


def finite_number(key: str, value: object) -> float:
    """``value`` as a float, or ``ModelInvalid`` naming ``key``."""
    if value is None:
        refuse(f"config key {key!r} is missing")
    try:
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            return float(value)
    except OverflowError:  # an integer beyond the range of a float
        pass
    refuse(f"config key {key!r} is {show(value)}, not a finite number")


def _refuse_addresses(key: str, value: object, depth: int) -> None:
    # Loading must never reach for the network, and no key of a GLM config has a reason to hold an address.
    if depth > _MAX_DEPTH:
        refuse(f"config key {key!r} is nested deeper than {_MAX_DEPTH} levels")
    if isinstance(value, str) and "://" in value:
        refuse(f"config key {key!r} holds an address, {show(value)}; loading never uses the network")
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    for item in items:
        _refuse_addresses(key, item, depth + 1)
