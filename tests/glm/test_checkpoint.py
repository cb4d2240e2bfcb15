"""Checkpoints are read lazily and exactly, and every unsafe, damaged or foreign one is refused with a reason."""

from __future__ import annotations

import json
import shutil
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from glm_factory import DTYPES, write_tiny_checkpoint, write_weights
from safetensors.numpy import load_file

from splitglm_core.errors import InputError, ModelInvalid, ModelNotFound, SplitGlmError
from splitglm_glm.checkpoint import Checkpoint
from splitglm_glm.tensor_files import INDEX_FILE, MAX_HEADER_BYTES, SINGLE_FILE, read_header

LAYER_1 = "model.layers.1."


def refused(action: Callable[[], object], kind: type[SplitGlmError] = ModelInvalid) -> str:
    """The message of the refusal of ``action``, which must be fit for a person."""
    with pytest.raises(kind) as caught:
        action()
    message = caught.value.one_line()
    assert caught.value.what.strip()
    assert "\n" not in message
    assert len(message) < 1000
    return message


def rewrite(directory: Path, change: Callable[[dict[str, np.ndarray]], object]) -> None:
    """Change the tensors of a single-file checkpoint."""
    tensors = load_file(directory / SINGLE_FILE)
    change(tensors)
    write_weights(directory, tensors)


def write_raw(path: Path, header: object, data: bytes = b"", *, length: int | None = None) -> None:
    """A safetensors file with exactly this header (an object to serialise, or bytes) and data."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + data)


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    return write_tiny_checkpoint(tmp_path / "model", layers=2)


# --- what is read ---


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shards", [1, 3])
def test_tensors_widen_exactly(tmp_path: Path, dtype: str, shards: int) -> None:
    exact = load_file(write_tiny_checkpoint(tmp_path / "exact") / SINGLE_FILE)
    checkpoint = Checkpoint.open(write_tiny_checkpoint(tmp_path / "stored", dtype=dtype, shards=shards))
    for name, value in exact.items():
        read = checkpoint.tensor(name)
        assert read.dtype == np.float32
        assert np.array_equal(read, value.astype(DTYPES[dtype]).astype(np.float32))


@pytest.mark.parametrize("bias", [True, False])
def test_layers_have_the_internal_names_and_row_order(tmp_path: Path, bias: bool) -> None:
    directory = write_tiny_checkpoint(tmp_path, "glm4", attention_bias=bias)
    raw = load_file(directory / SINGLE_FILE)
    layer = Checkpoint.open(directory).layer(1)
    projections = [f"{LAYER_1}self_attn.{name}_proj" for name in "qkv"]
    assert np.array_equal(layer.qkv, np.concatenate([raw[name + ".weight"] for name in projections]))
    if bias:
        assert np.array_equal(layer.qkv_bias, np.concatenate([raw[name + ".bias"] for name in projections]))
    else:
        assert layer.qkv_bias is None
    assert np.array_equal(layer.o, raw[LAYER_1 + "self_attn.o_proj.weight"])
    assert np.array_equal(layer.gate_up, raw[LAYER_1 + "mlp.gate_up_proj.weight"])
    assert np.array_equal(layer.down, raw[LAYER_1 + "mlp.down_proj.weight"])
    assert np.array_equal(layer.input_norm, raw[LAYER_1 + "input_layernorm.weight"])
    assert np.array_equal(layer.post_attention_norm, raw[LAYER_1 + "post_attention_layernorm.weight"])
    assert np.array_equal(layer.post_self_attn_norm, raw[LAYER_1 + "post_self_attn_layernorm.weight"])
    assert np.array_equal(layer.post_mlp_norm, raw[LAYER_1 + "post_mlp_layernorm.weight"])


def test_both_namings_of_one_model_read_alike(tmp_path: Path) -> None:
    ours = Checkpoint.open(write_tiny_checkpoint(tmp_path / "hf", "glm"))
    original = Checkpoint.open(write_tiny_checkpoint(tmp_path / "original", "chatglm", shards=2))
    assert original.ignored_tensors == ("transformer.rotary_pos_emb.inv_freq",)
    assert np.array_equal(ours.embedding(), original.embedding())
    assert np.array_equal(ours.final_norm(), original.final_norm())
    assert np.array_equal(ours.head(), original.head())
    for index in range(ours.config.shape.layers):
        a, b = ours.layer(index), original.layer(index)
        for field in ("qkv", "qkv_bias", "o", "gate_up", "down", "input_norm", "post_attention_norm"):
            assert np.array_equal(getattr(a, field), getattr(b, field)), field
        assert b.post_self_attn_norm is None
        assert b.post_mlp_norm is None


def test_a_tied_head_is_the_embedding_even_where_a_copy_is_stored(tmp_path: Path) -> None:
    directory = write_tiny_checkpoint(tmp_path, tied=True)
    assert np.array_equal(Checkpoint.open(directory).head(), Checkpoint.open(directory).embedding())
    rewrite(directory, lambda t: t.update({"lm_head.weight": np.zeros((320, 64), np.float32)}))
    checkpoint = Checkpoint.open(directory)
    assert checkpoint.ignored_tensors == ("lm_head.weight",)
    assert np.array_equal(checkpoint.head(), checkpoint.embedding())


def test_reading_a_layer_reads_that_layer_only(tmp_path: Path) -> None:
    """Every other tensor is poisoned: opening and layer 1 work, the rest is refused when it is reached."""
    directory = write_tiny_checkpoint(tmp_path, layers=3)

    def poison(tensors: dict[str, np.ndarray]) -> None:
        for name, value in tensors.items():
            if not name.startswith(LAYER_1):
                value.flat[-1] = np.nan

    rewrite(directory, poison)
    checkpoint = Checkpoint.open(directory)
    assert np.isfinite(checkpoint.layer(1).down).all()
    for part in (lambda: checkpoint.layer(0), lambda: checkpoint.layer(2), checkpoint.embedding, checkpoint.final_norm):
        assert "NaN" in refused(part)


def test_memory_follows_the_layer_not_the_model(tmp_path: Path) -> None:
    directory = write_tiny_checkpoint(tmp_path, layers=12, hidden=128, intermediate=512, dtype="bfloat16")
    layer_bytes = 4 * (128 * 128 + 64 * 128 + 3 * 512 * 128)
    tracemalloc.start()
    try:
        checkpoint = Checkpoint.open(directory)
        for index in range(12):
            checkpoint.layer(index)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 4 * layer_bytes < 12 * layer_bytes


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", DTYPES)
def test_non_finite_weights_are_refused_when_they_are_read(tmp_path: Path, dtype: str, value: float) -> None:
    directory = write_tiny_checkpoint(tmp_path, layers=2, dtype=dtype)
    rewrite(directory, lambda t: t[LAYER_1 + "mlp.down_proj.weight"].__setitem__((5, 7), value))
    checkpoint = Checkpoint.open(directory)
    checkpoint.layer(0)
    assert "mlp.down_proj" in refused(lambda: checkpoint.layer(1))


@pytest.mark.parametrize(("start", "stop"), [(0, 320), (0, 1), (7, 300), (319, 320), (5, 5), (5, 2), (300, 9999)])
def test_rows_are_a_slice_of_the_whole(tiny: Path, start: int, stop: int) -> None:
    checkpoint = Checkpoint.open(tiny)
    assert np.array_equal(checkpoint.embedding_rows(start, stop), checkpoint.embedding()[start:stop])
    assert np.array_equal(checkpoint.head_rows(start, stop), checkpoint.head()[start:stop])


@pytest.mark.parametrize("index", [-1, 2, 10**9])
def test_layers_outside_the_model_are_refused(tiny: Path, index: int) -> None:
    refused(lambda: Checkpoint.open(tiny).layer(index), InputError)


def test_unknown_tensor_names_are_refused(tiny: Path) -> None:
    refused(lambda: Checkpoint.open(tiny).tensor("x" * 4000), InputError)


# --- what is missing, misshapen or foreign ---


@pytest.mark.parametrize(
    "name", ["model.embed_tokens.weight", "model.norm.weight", "lm_head.weight", LAYER_1 + "self_attn.k_proj.bias"]
)
def test_missing_tensors_are_named(tiny: Path, name: str) -> None:
    rewrite(tiny, lambda t: t.pop(name))
    assert name in refused(lambda: Checkpoint.open(tiny))


def test_many_missing_tensors_are_counted_not_listed(tiny: Path) -> None:
    rewrite(tiny, lambda t: [t.pop(name) for name in list(t) if name.startswith(LAYER_1)])
    message = refused(lambda: Checkpoint.open(tiny))
    assert "lacks 11 tensors" in message
    assert message.count(LAYER_1) == 3


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("model.embed_tokens.weight", (319, 64)),
        (LAYER_1 + "mlp.down_proj.weight", (96, 64)),
        (LAYER_1 + "self_attn.q_proj.weight", (64, 32)),
        (LAYER_1 + "input_layernorm.weight", (64, 1)),
        (LAYER_1 + "self_attn.v_proj.bias", ()),
    ],
)
def test_misshapen_tensors_are_refused_with_both_shapes(tiny: Path, name: str, shape: tuple[int, ...]) -> None:
    rewrite(tiny, lambda t: t.update({name: np.zeros(shape, np.float32)}))
    message = refused(lambda: Checkpoint.open(tiny))
    assert name in message
    assert str(list(shape)) in message


@pytest.mark.parametrize(
    "name",
    [
        LAYER_1 + "mlp.experts.0.down_proj.weight",
        LAYER_1 + "self_attn.q_norm.weight",
        LAYER_1 + "self_attn.o_proj.bias",
        LAYER_1 + "post_mlp_layernorm.weight",
        "model.layers.2.input_layernorm.weight",
        "model.visual.blocks.0.weight",
        "transformer.vision.patch.weight",
        "base_model.lora_A.weight",
        "transformer.encoder.layers.0.input_layernorm.weight",
    ],
)
def test_tensors_of_another_architecture_are_refused(tiny: Path, name: str) -> None:
    rewrite(tiny, lambda t: t.update({name: np.zeros(2, np.float32)}))
    assert name in refused(lambda: Checkpoint.open(tiny))


def test_a_bias_that_the_config_denies_is_refused(tiny: Path) -> None:
    config = json.loads((tiny / "config.json").read_text())
    (tiny / "config.json").write_text(json.dumps(config | {"attention_bias": False}))
    assert "attention_bias false" in refused(lambda: Checkpoint.open(tiny))


def test_harmless_extra_tensors_are_reported(tiny: Path) -> None:
    extra = {LAYER_1 + "self_attn.rotary_emb.inv_freq": np.ones(4, np.float32), "note": np.ones(1, np.float32)}
    rewrite(tiny, lambda t: t.update(extra))
    assert Checkpoint.open(tiny).ignored_tensors == tuple(sorted(extra))


# --- files and names ---


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "weights.pth", "last.ckpt"])
def test_pickled_weights_are_refused_by_reason(tiny: Path, name: str) -> None:
    (tiny / SINGLE_FILE).rename(tiny / name)
    message = refused(lambda: Checkpoint.open(tiny))
    assert "pickle" in message
    assert name in message


def test_a_pickle_index_does_not_lead_to_pickles(tiny: Path) -> None:
    (tiny / SINGLE_FILE).rename(tiny / "pytorch_model.bin")
    (tiny / INDEX_FILE).write_text(json.dumps({"weight_map": {"model.norm.weight": "pytorch_model.bin"}}))
    assert "not a safetensors file" in refused(lambda: Checkpoint.open(tiny))


def test_directories_without_a_model_are_refused(tmp_path: Path, tiny: Path) -> None:
    refused(lambda: Checkpoint.open(tmp_path / "absent"), ModelNotFound)
    refused(lambda: Checkpoint.open(tiny / "config.json"), ModelNotFound)
    assert "no safetensors" in refused(lambda: Checkpoint.open(tmp_path))
    (tiny / "config.json").unlink()
    assert "config.json" in refused(lambda: Checkpoint.open(tiny), ModelNotFound)


def test_several_files_need_an_index(tmp_path: Path) -> None:
    directory = write_tiny_checkpoint(tmp_path, shards=2)
    (directory / INDEX_FILE).unlink()
    assert "index" in refused(lambda: Checkpoint.open(directory))


def change_index(directory: Path, change: Callable[[dict[str, Any]], object]) -> None:
    index = json.loads((directory / INDEX_FILE).read_text())
    change(index["weight_map"])
    (directory / INDEX_FILE).write_text(json.dumps(index))


@pytest.mark.parametrize(
    "file",
    [
        "../outside.safetensors",
        "/etc/outside.safetensors",
        "sub/inside.safetensors",
        "..\\outside.safetensors",
        "nul\0.safetensors",
        "absent.safetensors",
        "x" * 300 + ".safetensors",
        "..",
        "",
        7,
        None,
    ],
)
def test_index_entries_must_be_plain_file_names(tmp_path: Path, file: object) -> None:
    directory = write_tiny_checkpoint(tmp_path / "model", shards=2)
    shutil.copy(directory / "model-00001-of-00002.safetensors", tmp_path / "outside.safetensors")
    (directory / "sub").mkdir()
    shutil.copy(directory / "model-00001-of-00002.safetensors", directory / "sub" / "inside.safetensors")
    change_index(directory, lambda m: m.update({"model.norm.weight": file}))
    refused(lambda: Checkpoint.open(directory))


def test_an_index_that_contradicts_the_files_is_refused(tmp_path: Path) -> None:
    directory = write_tiny_checkpoint(tmp_path, shards=2)
    change_index(directory, lambda m: m.update({"model.norm.weight": "model-00001-of-00002.safetensors"}))
    assert "promises" in refused(lambda: Checkpoint.open(directory))
    change_index(directory, lambda m: m.update({"phantom": m.pop("model.norm.weight")}))
    assert "phantom" in refused(lambda: Checkpoint.open(directory))


@pytest.mark.parametrize("index", [{}, {"weight_map": {}}, {"weight_map": []}])
def test_an_index_without_a_map_is_refused(tiny: Path, index: object) -> None:
    (tiny / INDEX_FILE).write_text(json.dumps(index))
    assert "weight_map" in refused(lambda: Checkpoint.open(tiny))


def test_a_tensor_stored_twice_is_refused(tmp_path: Path) -> None:
    directory = write_tiny_checkpoint(tmp_path / "model", shards=2)
    second = load_file(directory / "model-00002-of-00002.safetensors")
    name = next(iter(load_file(directory / "model-00001-of-00002.safetensors")))
    write_weights(tmp_path, second | {name: second["lm_head.weight"]})
    (tmp_path / SINGLE_FILE).replace(directory / "model-00002-of-00002.safetensors")
    assert "in both" in refused(lambda: Checkpoint.open(directory))


@pytest.mark.parametrize("name", [SINGLE_FILE, "config.json"])
def test_symbolic_links_out_of_the_directory_are_refused(tmp_path: Path, tiny: Path, name: str) -> None:
    (tiny / name).rename(tmp_path / "elsewhere")
    (tiny / name).symlink_to(tmp_path / "elsewhere")
    assert "outside" in refused(lambda: Checkpoint.open(tiny))


def test_a_directory_behind_a_link_may_link_within_itself(tmp_path: Path, tiny: Path) -> None:
    (tiny / SINGLE_FILE).rename(tiny / "blob")
    (tiny / SINGLE_FILE).symlink_to("blob")
    (tmp_path / "alias").symlink_to(tiny)
    Checkpoint.open(tmp_path / "alias").layer(0)


def test_the_layout_of_the_hugging_face_cache_is_read(tmp_path: Path, tiny: Path) -> None:
    snapshot, blobs = tmp_path / "models--x" / "snapshots" / "abc", tmp_path / "models--x" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for file in tiny.iterdir():
        shutil.copy(file, blobs / file.name)
        (snapshot / file.name).symlink_to(f"../../blobs/{file.name}")
    Checkpoint.open(snapshot).layer(0)
    (snapshot / SINGLE_FILE).unlink()
    (snapshot / SINGLE_FILE).symlink_to(tiny / SINGLE_FILE)
    assert "outside" in refused(lambda: Checkpoint.open(snapshot))


def test_a_file_that_is_not_regular_is_refused(tiny: Path) -> None:
    (tiny / SINGLE_FILE).unlink()
    (tiny / SINGLE_FILE).mkdir()
    assert "regular file" in refused(lambda: Checkpoint.open(tiny))


# --- the safetensors format ---

ENTRY = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


def test_a_well_formed_file_is_the_baseline_of_the_cases_below(tmp_path: Path) -> None:
    write_raw(tmp_path / "x", {"__metadata__": {"format": "pt"}, "a": ENTRY}, bytes(8))
    assert set(read_header(tmp_path / "x")) == {"a"}


@pytest.mark.parametrize(
    ("header", "data", "why"),
    [
        (b"", b"", "not valid JSON"),
        (b"{", b"", "not valid JSON"),
        (b"[]", b"", "not an object"),
        (b"\xff{}", b"", "not valid JSON"),
        (b'{"a":{"dtype":"F32","shape":[0],"data_offsets":[0,0]},"a":1}', b"", "given twice"),
        (b"[" * 100_000, b"", "nested too deeply"),
        ({"a": ENTRY}, bytes(7), "bytes of data"),
        ({"a": ENTRY}, bytes(9), "bytes of data"),
        ({"a": 1}, bytes(8), "dtype, shape"),
        ({"a": {"dtype": "F32", "shape": [2]}}, bytes(8), "dtype, shape"),
        ({"a": ENTRY | {"strides": [1]}}, bytes(8), "dtype, shape"),
        ({"a": ENTRY | {"dtype": "F64", "shape": [1]}}, bytes(8), "F64"),
        ({"a": ENTRY | {"dtype": "I8", "shape": [8]}}, bytes(8), "I8"),
        ({"a": ENTRY | {"dtype": "F8_E4M3", "shape": [8]}}, bytes(8), "F8_E4M3"),
        ({"a": ENTRY | {"dtype": ["F32"]}}, bytes(8), "dtype"),
        ({"a": ENTRY | {"dtype": None}}, bytes(8), "dtype"),
        ({"a": ENTRY | {"shape": [3]}}, bytes(8), "does not fill"),
        ({"a": ENTRY | {"shape": [-2]}}, bytes(8), "impossible"),
        ({"a": ENTRY | {"shape": [-1, -2]}}, bytes(8), "impossible"),
        ({"a": ENTRY | {"shape": [2.0]}}, bytes(8), "impossible"),
        ({"a": ENTRY | {"shape": [True, 2]}}, bytes(8), "impossible"),
        ({"a": ENTRY | {"shape": "2"}}, bytes(8), "impossible"),
        ({"a": ENTRY | {"shape": [1] * 8 + [2]}}, bytes(8), "impossible"),
        ({"a": ENTRY | {"shape": [2**32, 2**32, 2]}}, bytes(8), "does not fill"),  # 2**65: 2 mod 2**64 elements
        ({"a": ENTRY | {"shape": [2**62 + 2]}}, bytes(8), "impossible"),  # 8 bytes modulo 2**64
        ({"a": ENTRY | {"data_offsets": [0]}}, bytes(8), "impossible"),
        ({"a": ENTRY | {"data_offsets": [8, 0]}}, bytes(8), "does not fill"),
        ({"a": ENTRY | {"data_offsets": [-8, 0]}}, bytes(8), "impossible"),
        ({"a": ENTRY | {"data_offsets": [8, 16]}}, bytes(16), "hole"),
        ({"a": ENTRY, "b": ENTRY | {"data_offsets": [4, 12]}}, bytes(12), "overlaps"),
        ({"a": ENTRY, "b": ENTRY}, bytes(8), "overlaps"),
        ({"a": ENTRY, "b": ENTRY | {"data_offsets": [12, 20]}}, bytes(20), "hole"),
        ({"n" * 5000: ENTRY | {"shape": [3]}}, bytes(8), "does not fill"),
        ({str(i): {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for i in range(20_001)}, b"", "more than"),
    ],
)
def test_malformed_headers_are_refused(tmp_path: Path, header: object, data: bytes, why: str) -> None:
    write_raw(tmp_path / "x", header, data)
    assert why in refused(lambda: read_header(tmp_path / "x"))


@pytest.mark.parametrize("length", [3, 2**31, 2**63, 2**64 - 1])
def test_header_lengths_beyond_the_file_are_refused_before_reading(tmp_path: Path, length: int) -> None:
    write_raw(tmp_path / "x", b"{}", length=length)
    assert "end before the header" in refused(lambda: read_header(tmp_path / "x"))


def test_header_lengths_beyond_the_bound_are_refused_before_reading(tmp_path: Path) -> None:
    with (tmp_path / "x").open("wb") as file:  # sparse: a long file costs nothing
        file.write((MAX_HEADER_BYTES + 1).to_bytes(8, "little"))
        file.truncate(MAX_HEADER_BYTES + 100)
    tracemalloc.start()
    try:
        assert "longer than" in refused(lambda: read_header(tmp_path / "x"))
        assert tracemalloc.get_traced_memory()[1] < MAX_HEADER_BYTES / 8
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("size", [0, 1, 7])
def test_files_shorter_than_a_length_are_refused(tmp_path: Path, size: int) -> None:
    (tmp_path / "x").write_bytes(bytes(size))
    refused(lambda: read_header(tmp_path / "x"))


def test_a_file_cut_short_after_opening_is_refused(tiny: Path) -> None:
    checkpoint = Checkpoint.open(tiny)
    with (tiny / SINGLE_FILE).open("r+b") as file:
        file.truncate(4096)
    assert "ended inside" in refused(lambda: [checkpoint.layer(i) for i in range(2)])
    (tiny / SINGLE_FILE).unlink()
    assert "cannot be read" in refused(lambda: checkpoint.layer(0))


@pytest.mark.parametrize("keep", [0.2, 0.9, 0.999])
def test_an_incomplete_download_is_refused_at_opening(tiny: Path, keep: float) -> None:
    data = (tiny / SINGLE_FILE).read_bytes()
    (tiny / SINGLE_FILE).write_bytes(data[: int(len(data) * keep)])
    assert "not a whole safetensors file" in refused(lambda: Checkpoint.open(tiny))
