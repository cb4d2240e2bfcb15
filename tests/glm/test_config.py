"""config.json is untrusted input: what is read, what is refused and that every refusal says why."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import Glm4Config
from transformers import GlmConfig as HfGlmConfig

from splitglm_core.errors import ModelInvalid, ModelNotFound
from splitglm_glm.config import MAX_CONFIG_BYTES, GlmConfig, Naming, load_config, parse_config

# GLM-Edge-1.5B-Chat's shape in the layout of transformers 4.
EDGE: dict[str, Any] = {
    "architectures": ["GlmForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "eos_token_id": [59246, 59253, 59255],
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 2048,
    "initializer_range": 0.02,
    "intermediate_size": 6144,
    "max_position_embeddings": 8192,
    "model_type": "glm",
    "num_attention_heads": 16,
    "num_hidden_layers": 28,
    "num_key_value_heads": 4,
    "pad_token_id": 59246,
    "partial_rotary_factor": 1.0,
    "rms_norm_eps": 1e-05,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.47.0.dev0",
    "use_cache": True,
    "vocab_size": 59264,
}
# GLM-4-9B-Chat as first published, with its remote code.
CHATGLM: dict[str, Any] = {
    "_name_or_path": "THUDM/glm-4-9b-chat",
    "add_bias_linear": False,
    "add_qkv_bias": True,
    "apply_query_key_layer_scaling": True,
    "apply_residual_connection_post_layernorm": False,
    "architectures": ["ChatGLMModel"],
    "attention_dropout": 0.0,
    "attention_softmax_in_fp32": True,
    "auto_map": {
        "AutoConfig": "configuration_chatglm.ChatGLMConfig",
        "AutoModel": "THUDM/glm-4-9b-chat--modeling_chatglm.ChatGLMForConditionalGeneration",
    },
    "bias_dropout_fusion": True,
    "classifier_dropout": None,
    "eos_token_id": [151329, 151336, 151338],
    "ffn_hidden_size": 13696,
    "fp32_residual_connection": False,
    "hidden_dropout": 0.0,
    "hidden_size": 4096,
    "kv_channels": 128,
    "layernorm_epsilon": 1.5625e-07,
    "model_type": "chatglm",
    "multi_query_attention": True,
    "multi_query_group_num": 2,
    "num_attention_heads": 32,
    "num_layers": 40,
    "original_rope": True,
    "pad_token_id": 151329,
    "padded_vocab_size": 151552,
    "post_layer_norm": True,
    "rmsnorm": True,
    "rope_ratio": 500,
    "seq_length": 131072,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "use_cache": True,
    "vocab_size": 151552,
}


def refused(raw: dict[str, Any]) -> str:
    """The message of the refusal of ``raw``, which must be fit for a person."""
    with pytest.raises(ModelInvalid) as caught:
        parse_config(raw)
    message = caught.value.one_line()
    assert caught.value.what.strip()
    assert caught.value.hint.strip()
    assert "\n" not in message
    assert len(message) < 500
    return message


def test_glm_edge_is_read() -> None:
    config = parse_config(EDGE)
    shape = config.shape
    assert (shape.layers, shape.hidden, shape.intermediate, shape.vocab) == (28, 2048, 6144, 59264)
    assert (shape.heads, shape.kv_heads, shape.head_dim) == (16, 4, 128)
    assert (config.rotary_dim, config.rope_theta, config.rms_eps) == (128, 10000.0, 1e-5)
    assert config.tie_word_embeddings
    assert not config.attention_bias
    assert not config.sandwich_norms
    assert config.max_position_embeddings == 8192
    assert config.eos_token_ids == (59246, 59253, 59255)
    assert config.naming is Naming.HF


def test_glm4_adds_the_sandwich_norms_and_nothing_else() -> None:
    plain, sandwich = parse_config(EDGE), parse_config(EDGE | {"model_type": "glm4"})
    assert sandwich.sandwich_norms
    assert sandwich.shape == plain.shape


def test_original_chatglm_maps_to_the_same_fields() -> None:
    config = parse_config(CHATGLM)
    assert config == GlmConfig(
        model_type="glm",
        shape=config.shape,
        rms_eps=1.5625e-07,
        rope_theta=5_000_000.0,
        partial_rotary_factor=0.5,
        attention_bias=True,
        eos_token_ids=(151329, 151336, 151338),
        naming=Naming.CHATGLM,
    )
    shape = config.shape
    assert (shape.layers, shape.hidden, shape.intermediate, shape.vocab) == (40, 4096, 13696, 151552)
    assert (shape.heads, shape.kv_heads, shape.head_dim, shape.max_positions) == (32, 2, 128, 131072)
    assert config.rotary_dim == 64


_ROPE_LAYOUTS: tuple[dict[str, Any], ...] = (
    {},
    {"rope_theta": 5e6},
    {"rope_theta": 5e6, "partial_rotary_factor": 0.25},
    {"rope_parameters": {"rope_type": "default", "rope_theta": 2e4, "partial_rotary_factor": 1.0}},
    {"rope_parameters": {"rope_type": "default", "rope_theta": 2e4}, "partial_rotary_factor": 0.25},
    {"rope_parameters": {"rope_theta": 2e4, "partial_rotary_factor": 0.25}, "rope_theta": 3e4},
    {"rope_scaling": None, "rope_theta": 7e4},
    {"rope_scaling": {"type": "default", "rope_theta": 9e4}, "rope_parameters": {"rope_theta": 1e4}},
)


@pytest.mark.parametrize("layout", _ROPE_LAYOUTS)
@pytest.mark.parametrize("reference", [HfGlmConfig, Glm4Config])
def test_rotary_settings_are_read_as_transformers_reads_them(layout: dict[str, Any], reference: type[Any]) -> None:
    raw = {key: value for key, value in EDGE.items() if key not in ("rope_theta", "partial_rotary_factor")}
    raw |= {"model_type": reference.model_type} | layout
    theirs = reference.from_dict(json.loads(json.dumps(raw))).rope_parameters
    ours = parse_config(raw)
    assert ours.rope_theta == theirs["rope_theta"]
    assert ours.partial_rotary_factor == theirs["partial_rotary_factor"]


@pytest.mark.parametrize("reference", [HfGlmConfig, Glm4Config])
def test_what_transformers_saves_is_read_back(tmp_path: Path, reference: type[Any]) -> None:
    theirs = reference(num_hidden_layers=3, attention_bias=False, rms_norm_eps=1e-6, tie_word_embeddings=True)
    theirs.save_pretrained(tmp_path)
    ours = load_config(tmp_path)
    assert ours == load_config(tmp_path / "config.json")
    assert ours.model_type == theirs.model_type
    assert ours.shape.layers == 3
    assert (ours.attention_bias, ours.tie_word_embeddings, ours.rms_eps) == (False, True, 1e-6)
    assert ours.eos_token_ids == tuple(theirs.eos_token_id)
    assert ours.rotary_dim == 64


def test_absent_optional_keys_mean_what_transformers_assumes() -> None:
    sizes = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "head_dim")
    raw = {key: EDGE[key] for key in (*sizes, "num_key_value_heads", "model_type")}
    ours, theirs = parse_config(raw | {"vocab_size": 151552}), HfGlmConfig()
    assert ours.attention_bias is theirs.attention_bias
    assert ours.tie_word_embeddings is theirs.tie_word_embeddings
    assert ours.rms_eps == theirs.rms_norm_eps
    assert ours.max_position_embeddings == theirs.max_position_embeddings
    assert ours.eos_token_ids == tuple(theirs.eos_token_id)
    assert parse_config(raw).eos_token_ids == (), "GLM-4's end tokens are not in GLM-Edge's vocabulary"


def test_a_single_eos_token_is_one() -> None:
    assert parse_config(EDGE | {"eos_token_id": 7}).eos_token_ids == (7,)


@pytest.mark.parametrize("model_type", ["glm4_moe", "glm4v", "llama", "", None, 4, ["glm"], {"glm": 1}])
def test_unknown_model_types_are_refused_with_the_known_ones(model_type: object) -> None:
    assert "known: glm, glm4, chatglm" in refused(EDGE | {"model_type": model_type})


@pytest.mark.parametrize("key", [key for key in EDGE if key.endswith(("_size", "_layers", "_heads", "_dim"))])
def test_missing_sizes_are_refused_by_name(key: str) -> None:
    assert key in refused({name: value for name, value in EDGE.items() if name != key})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("auto_map", {"AutoModel": "modeling_evil.Model"}),
        ("trust_remote_code", True),
        ("_attn_implementation", "someone/kernels"),
        ("_attn_implementation_internal", "eager"),
        ("quantization_config", {"quant_method": "gptq"}),
        ("vision_config", {}),
        ("n_routed_experts", 8),
        ("sliding_window", 4096),
        ("x" * 5000, 1),
    ],
)
def test_keys_outside_the_allow_list_are_refused(key: str, value: object) -> None:
    assert key[:40] in refused(EDGE | {key: value})


@pytest.mark.parametrize("key", ["_name_or_path", "architectures", "id2label"])
def test_addresses_are_refused_wherever_they_hide(key: str) -> None:
    for value in ("https://example.org/x", ["s3://bucket"], {"a": [{"b": "file:///etc/passwd"}]}):
        assert "address" in refused(EDGE | {key: value})


def test_deep_nesting_is_refused() -> None:
    nested: Any = "x"
    for _ in range(500):
        nested = [nested]
    assert "nested" in refused(EDGE | {"id2label": nested})


@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("num_hidden_layers", [0, -1, 1025, 2**31, 2**63, 1.0, True, "28", None, [28]]),
        ("hidden_size", [0, -1, 65537, 2**64]),
        ("intermediate_size", [0, -5, 2**21]),
        ("num_attention_heads", [0, -16, 1025]),
        ("num_key_value_heads", [0, -4, 3, 5, 32]),
        ("head_dim", [0, -128, 1025]),
        ("vocab_size", [0, -1, 2**20 + 1]),
        ("max_position_embeddings", [0, -1, 2**24 + 1]),
        ("rms_norm_eps", [0, -1e-5, 1.0, float("nan"), float("inf"), "1e-5", True, 10**400]),
        ("rope_theta", [0, 1, -1e4, 1e13, float("inf"), None]),
        ("partial_rotary_factor", [0, -0.5, 1.01, float("nan"), "0.5"]),
        ("attention_bias", ["true", 1, None]),
        ("tie_word_embeddings", [0, "no"]),
        ("eos_token_id", [-1, 59264, True, "2", [1, "2"], [1.0], [[1]], list(range(257))]),
        ("hidden_act", ["gelu", None, 1]),
        ("rope_parameters", [[], "default", {"rope_type": "yarn"}, {"type": "linear", "factor": 2.0}, {"factor": 2.0}]),
        ("rope_scaling", [{"rope_type": "dynamic"}, {"rope_theta": "big"}]),
        ("linear_bias", [True]),
        ("use_rms_norm", [False, 1]),
    ],
)
def test_impossible_values_are_refused(key: str, values: list[object]) -> None:
    for value in values:
        refused(EDGE | {key: value})


@pytest.mark.parametrize("factor", [0.01, 0.0079, 0.3])
def test_an_odd_rotary_dimension_is_refused(factor: float) -> None:
    """int(128 * 0.01) = 1, int(128 * 0.0079) = 1, int(10 * 0.3) = 3."""
    head_dim = 10 if factor == 0.3 else 128
    assert "rotary dimension" in refused(EDGE | {"partial_rotary_factor": factor, "head_dim": head_dim})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("multi_query_attention", False),
        ("rmsnorm", False),
        ("post_layer_norm", False),
        ("apply_residual_connection_post_layernorm", True),
        ("add_bias_linear", True),
        ("original_rope", False),
        ("pre_seq_len", 128),
        ("quantization_bit", 4),
        ("quantization_bit", False),
        ("vision_config", {}),
        ("rope_ratio", -1),
        ("rope_ratio", 1e300),
        ("multi_query_group_num", 3),
        ("auto_map", {"AutoModel": "evil.Model"}),
        ("auto_map", {"AutoModel": "../modeling_chatglm.Model"}),
        ("auto_map", {"AutoModel": ["modeling_chatglm.Model"]}),
        ("auto_map", "modeling_chatglm.Model"),
    ],
)
def test_chatglm_variants_that_compute_something_else_are_refused(key: str, value: object) -> None:
    refused(CHATGLM | {key: value})


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (b"", "not valid JSON"),
        (b"{", "not valid JSON"),
        (b"[1]", "not an object"),
        (b"null", "not an object"),
        (b"\xff\xfe{}", "not valid JSON"),
        (b'{"model_type": "glm", "model_type": "glm4"}', "given twice"),
        (b'{"rms_norm_eps": NaN}', "not a JSON number"),
        (b'{"rms_norm_eps": -Infinity}', "not a JSON number"),
        (b'{"hidden_size": ' + b"9" * 5000 + b"}", "not valid JSON"),
        (b"[" * 100_000, "nested too deeply"),
        (b" " * (MAX_CONFIG_BYTES + 1), "longer than"),
    ],
)
def test_malformed_files_are_refused(tmp_path: Path, text: bytes, why: str) -> None:
    (tmp_path / "config.json").write_bytes(text)
    with pytest.raises(ModelInvalid, match=why):
        load_config(tmp_path)


def test_a_missing_file_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match=r"config\.json"):
        load_config(tmp_path)
