"""One model, one fingerprint: what changes it, what does not, and when a saved manifest is believed."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tracemalloc
from pathlib import Path

import pytest
from glm_factory import write_tiny_checkpoint

from splitglm_core.errors import ModelInvalid, ModelNotFound
from splitglm_glm import fingerprint as module
from splitglm_glm.checkpoint import Checkpoint
from splitglm_glm.fingerprint import MANIFEST_FILE, Manifest, load, load_or_build


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    return write_tiny_checkpoint(tmp_path / "model", layers=1, shards=2)


def change_byte_keeping_size_and_time(path: Path) -> None:
    before = path.stat()
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_the_canonical_form_is_fixed(tmp_path: Path) -> None:
    """Spelled out byte for byte: a change here makes every deployed pair of device and cloud disagree."""
    (tmp_path / "config.json").write_bytes(b"{}")
    (tmp_path / "model.safetensors").write_bytes(b"abc")
    config, weights = hashlib.sha256(b"{}").hexdigest(), hashlib.sha256(b"abc").hexdigest()
    canonical = (
        f'{{"files":[["config.json",2,"{config}"],["model.safetensors",3,"{weights}"]],'
        '"format":"splitglm-manifest-v1"}'
    )
    found = Manifest.build(tmp_path).fingerprint
    assert found == hashlib.sha256(canonical.encode()).digest()
    assert found.hex() == "19108b2813e11056b5b2366f5cf5298b4483d0ab36aa6ab531c6b4cf25f5bfb0"


@pytest.mark.parametrize(
    "name", ["config.json", "tokenizer.json", "tokenizer_config.json", "model-00002-of-00002.safetensors"]
)
def test_every_file_that_decides_answers_changes_it(tiny: Path, name: str) -> None:
    before = Manifest.build(tiny).fingerprint
    change_byte_keeping_size_and_time(tiny / name)
    assert Manifest.build(tiny).fingerprint != before


@pytest.mark.parametrize("name", ["chat_template.jinja", "chat_template.json"])
def test_a_chat_template_file_changes_it(tiny: Path, name: str) -> None:
    before = Manifest.build(tiny).fingerprint
    (tiny / name).write_text("{{ messages }}")
    assert Manifest.build(tiny).fingerprint != before


def test_a_copy_elsewhere_with_other_times_and_notes_has_the_same(tmp_path: Path, tiny: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(tiny, copy, copy_function=shutil.copyfile)
    for file in copy.iterdir():
        os.utime(file, ns=(1, 1))
    (copy / "README.md").write_text("notes")
    (copy / "stray.safetensors").write_bytes(b"not in the index")
    assert Manifest.build(copy).fingerprint == Manifest.build(tiny).fingerprint


def test_moving_content_between_files_changes_it(tmp_path: Path) -> None:
    """The manifest is over (name, size, hash), so no two splits of the same bytes collide."""
    fingerprints = set()
    for name, (config, weights) in {"a": (b"{} ", b"x"), "b": (b"{}", b" x")}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_bytes(config)
        (tmp_path / name / "model.safetensors").write_bytes(weights)
        fingerprints.add(Manifest.build(tmp_path / name).fingerprint)
    assert len(fingerprints) == 2


def test_a_checkpoint_has_the_fingerprint_of_its_manifest(tiny: Path) -> None:
    found = Checkpoint.open(tiny).fingerprint
    assert len(found) == 32
    assert found == Manifest.build(tiny).fingerprint
    assert (tiny / MANIFEST_FILE).is_file()


def test_a_current_manifest_is_believed_without_hashing(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built = load_or_build(tiny)

    def no_hashing(*_: object) -> None:
        raise AssertionError("hashed again")

    monkeypatch.setattr(module, "_hash_file", no_hashing)
    assert load_or_build(tiny) == built
    assert load(tiny) == built


def test_verify_hashes_even_where_size_and_time_agree(tiny: Path) -> None:
    manifest = load_or_build(tiny)
    manifest.verify()
    change_byte_keeping_size_and_time(tiny / "model-00001-of-00002.safetensors")
    assert load_or_build(tiny) == manifest, "size and time agree: the saved manifest is believed"
    with pytest.raises(ModelInvalid, match=r"model-00001-of-00002\.safetensors does not match"):
        load(tiny).verify()


@pytest.mark.parametrize("change", ["size", "time", "added", "removed"])
def test_a_stale_manifest_is_built_again(tiny: Path, change: str) -> None:
    before = load_or_build(tiny)
    tokenizer = tiny / "tokenizer.json"
    if change == "size":
        tokenizer.write_text(tokenizer.read_text() + " ")
    elif change == "time":
        os.utime(tokenizer, ns=(1, 1))
    elif change == "added":
        (tiny / "chat_template.jinja").write_text("x")
    else:
        tokenizer.unlink()
    after = load_or_build(tiny)
    assert after == Manifest.build(tiny)
    assert (after.fingerprint == before.fingerprint) is (change == "time")
    assert load(tiny) == after


def test_verify_names_files_that_came_or_went(tiny: Path) -> None:
    manifest = Manifest.build(tiny)
    (tiny / "chat_template.jinja").write_text("x")
    with pytest.raises(ModelInvalid, match=r"chat_template\.jinja was added"):
        manifest.verify()
    (tiny / "chat_template.jinja").unlink()
    (tiny / "tokenizer.json").unlink()
    with pytest.raises(ModelInvalid, match=r"tokenizer\.json is missing"):
        manifest.verify()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"format": "splitglm-manifest-v1", "files": 3}',
        '{"format": "splitglm-manifest-v1", "files": [1]}',
        '{"format": "splitglm-manifest-v1", "files": [{"name": "x"}]}',
        '{"format": "splitglm-manifest-v1", "files": [], "fingerprint": "00"}',
    ],
)
def test_a_damaged_manifest_is_refused_on_its_own_and_rebuilt_in_use(tiny: Path, text: str) -> None:
    (tiny / MANIFEST_FILE).write_text(text)
    with pytest.raises(ModelInvalid) as caught:
        load(tiny)
    assert caught.value.what.strip()
    assert load_or_build(tiny) == Manifest.build(tiny)
    assert load(tiny) == Manifest.build(tiny)


def test_a_manifest_whose_hashes_were_edited_contradicts_itself(tiny: Path) -> None:
    load_or_build(tiny)
    document = json.loads((tiny / MANIFEST_FILE).read_text())
    document["files"][0]["sha256"] = "0" * 64
    (tiny / MANIFEST_FILE).write_text(json.dumps(document))
    with pytest.raises(ModelInvalid, match="contradicts itself"):
        load(tiny)


def test_a_manifest_that_cannot_be_saved_does_not_stop_the_model(tiny: Path) -> None:
    (tiny / MANIFEST_FILE).mkdir()  # the rename onto a directory fails, as a write to a read-only one would
    assert load_or_build(tiny) == Manifest.build(tiny)
    assert not list(tiny.glob(".manifest-*")), "the staged file is gone"


def test_progress_counts_every_byte_once(tiny: Path) -> None:
    seen: list[tuple[int, int]] = []
    manifest = Manifest.build(tiny, lambda done, total: seen.append((done, total)))
    total = sum(entry.size_bytes for entry in manifest.files)
    assert [done for done, _ in seen] == sorted({done for done, _ in seen})
    assert seen[-1] == (total, total)
    assert {whole for _, whole in seen} == {total}


def test_hashing_streams(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with (tmp_path / "model.safetensors").open("wb") as file:
        file.truncate(48 << 20)
    tracemalloc.start()
    try:
        Manifest.build(tmp_path)
        assert tracemalloc.get_traced_memory()[1] < 12 << 20
    finally:
        tracemalloc.stop()


def test_directories_without_a_model_are_refused(tmp_path: Path, tiny: Path) -> None:
    with pytest.raises(ModelNotFound):
        Manifest.build(tmp_path / "absent")
    (tiny / "config.json").unlink()
    with pytest.raises(ModelInvalid, match=r"config\.json"):
        Manifest.build(tiny)
    with pytest.raises(ModelNotFound):
        load(tiny)


def test_a_tokenizer_that_leads_outside_is_refused(tmp_path: Path, tiny: Path) -> None:
    (tiny / "tokenizer.json").rename(tmp_path / "elsewhere")
    (tiny / "tokenizer.json").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ModelInvalid, match="outside"):
        Manifest.build(tiny)
