"""Graph directories: complete, resumable, tied to their checkpoint, never trusted when damaged."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from glm_factory import write_tiny_checkpoint

from splitglm_core.errors import InternalError, ModelInvalid, StorageFull
from splitglm_core.plan import Precision
from splitglm_glm.checkpoint import Checkpoint
from splitglm_glm.export import build
from splitglm_glm.export.build import ensure_graphs
from splitglm_glm.export.manifest import BUILDER_VERSION, GraphsManifest, part_names

PARTS = part_names(2)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Checkpoint:
    return Checkpoint.open(write_tiny_checkpoint(tmp_path / "model", layers=2, tied=True))


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir() if path.suffix in (".onnx", ".bin")}


@pytest.mark.parametrize("precision", list(Precision))
def test_every_part_is_built_and_recorded(checkpoint: Checkpoint, tmp_path: Path, precision: Precision) -> None:
    seen: list[tuple[str, int, int]] = []
    directory = ensure_graphs(checkpoint, precision, tmp_path / "g", progress=lambda *step: seen.append(step))
    manifest = GraphsManifest.open(directory, checkpoint.fingerprint, precision)
    before = [] if precision is Precision.FP32 else [("calibration", 0, len(PARTS))]
    assert seen == before + [(part, i + 1, len(PARTS)) for i, part in enumerate(PARTS)]
    assert set(manifest.parts) == set(PARTS)
    assert [manifest.problem(directory, part) for part in PARTS] == [None] * len(PARTS)
    assert not list(directory.glob("*.part"))


@pytest.mark.parametrize("precision", list(Precision))
def test_external_data_is_a_plain_name_within_the_file(
    checkpoint: Checkpoint, tmp_path: Path, precision: Precision
) -> None:
    directory = ensure_graphs(checkpoint, precision, tmp_path / "g")
    for part in PARTS:
        model = onnx.load(directory / f"{part}.onnx", load_external_data=False)
        for tensor in model.graph.initializer:
            where = {entry.key: entry.value for entry in tensor.external_data}
            if where:
                assert Path(where["location"]).name == where["location"]
                size = (directory / where["location"]).stat().st_size
                assert int(where["offset"]) + int(where["length"]) <= size


def test_a_tied_vocabulary_is_stored_once(checkpoint: Checkpoint, tmp_path: Path) -> None:
    directory = ensure_graphs(checkpoint, Precision.INT8, tmp_path / "g")
    assert not (directory / "embedding.bin").exists()
    untied = Checkpoint.open(write_tiny_checkpoint(tmp_path / "untied", layers=2, tied=False))
    other = ensure_graphs(untied, Precision.INT8, tmp_path / "g2")
    assert (other / "embedding.bin").stat().st_size > 0


def test_an_interrupted_build_goes_on_where_it_stopped(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = contents(ensure_graphs(checkpoint, Precision.INT4, tmp_path / "whole"))
    started: list[str] = []
    original = build._staged_data

    def staged_data(directory: Path, part: str) -> object:
        started.append(part)
        if len(started) == 3:
            raise KeyboardInterrupt
        return original(directory, part)

    monkeypatch.setattr(build, "_staged_data", staged_data)
    with pytest.raises(KeyboardInterrupt):
        ensure_graphs(checkpoint, Precision.INT4, tmp_path / "g")
    assert not list((tmp_path / "g").glob("*.part"))
    ensure_graphs(checkpoint, Precision.INT4, tmp_path / "g")
    assert started == ["head", "layer-000", "layer-001", "layer-001"]
    assert contents(tmp_path / "g") == whole


def test_a_second_run_reads_no_weights(checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ensure_graphs(checkpoint, Precision.INT8, tmp_path / "g")
    monkeypatch.setattr(Checkpoint, "tensor", lambda self, name: pytest.fail(f"{name} was read again"))
    ensure_graphs(checkpoint, Precision.INT8, tmp_path / "g")


def test_only_the_parts_asked_for_are_built(checkpoint: Checkpoint, tmp_path: Path) -> None:
    directory = ensure_graphs(checkpoint, Precision.INT8, tmp_path / "g", parts=["layer-001"])
    assert sorted(contents(directory)) == ["layer-001.bin", "layer-001.onnx"]
    manifest = GraphsManifest.open(directory, checkpoint.fingerprint, Precision.INT8)
    with pytest.raises(ModelInvalid, match="layer-000 has not been built") as caught:
        manifest.require(directory, "layer-000")
    assert "splitglm pull" in caught.value.hint
    with pytest.raises(InternalError):
        ensure_graphs(checkpoint, Precision.INT8, tmp_path / "g", parts=["layer-002"])


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("name", "damage"),
    [("layer-000.bin", truncate), ("layer-000.onnx", flip), ("layer-000.bin", Path.unlink), ("head.bin", truncate)],
)
def test_a_damaged_part_is_refused_and_rebuilt(checkpoint: Checkpoint, tmp_path: Path, name: str, damage) -> None:
    directory = ensure_graphs(checkpoint, Precision.INT8, tmp_path / "g")
    whole = contents(directory)
    damage(directory / name)
    manifest = GraphsManifest.open(directory, checkpoint.fingerprint, Precision.INT8)
    with pytest.raises(ModelInvalid):
        manifest.require(directory, name.partition(".")[0])
    ensure_graphs(checkpoint, Precision.INT8, directory)
    assert contents(directory) == whole


def test_graphs_of_another_checkpoint_or_builder_are_not_trusted(checkpoint: Checkpoint, tmp_path: Path) -> None:
    directory = ensure_graphs(checkpoint, Precision.INT8, tmp_path / "g")
    before = contents(directory)
    other = Checkpoint.open(write_tiny_checkpoint(tmp_path / "other", layers=2, tied=True, seed=5))
    for fingerprint, precision in ((other.fingerprint, Precision.INT8), (checkpoint.fingerprint, Precision.INT4)):
        with pytest.raises(ModelInvalid, match="another checkpoint, precision or splitglm version"):
            GraphsManifest.open(directory, fingerprint, precision)
    ensure_graphs(other, Precision.INT8, directory)
    assert contents(directory)["layer-000.bin"] != before["layer-000.bin"]
    manifest = GraphsManifest.open(directory, other.fingerprint, Precision.INT8)
    dataclasses.replace(manifest, builder=BUILDER_VERSION - 1).write(directory)
    with pytest.raises(ModelInvalid):
        GraphsManifest.open(directory, other.fingerprint, Precision.INT8)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"parts": 3}', "\x00", json.dumps({"parts": {"a": {"../b": {}}}})])
def test_a_manifest_that_is_not_one_counts_as_absent(checkpoint: Checkpoint, tmp_path: Path, text: str) -> None:
    (tmp_path / "g").mkdir()
    (tmp_path / "g" / "graphs.json").write_text(text)
    assert GraphsManifest.read(tmp_path / "g") is None
    ensure_graphs(checkpoint, Precision.INT8, tmp_path / "g", parts=["layer-000"])
    assert GraphsManifest.open(tmp_path / "g", checkpoint.fingerprint, Precision.INT8).parts.keys() == {"layer-000"}


def test_a_manifest_survives_a_round_trip(checkpoint: Checkpoint, tmp_path: Path) -> None:
    directory = ensure_graphs(checkpoint, Precision.INT4, tmp_path / "g")
    manifest = GraphsManifest.open(directory, checkpoint.fingerprint, Precision.INT4)
    assert GraphsManifest.from_json(manifest.to_json()) == manifest
    assert manifest.recipe["layer"]["bits"] == 4  # type: ignore[index]


def test_a_full_disk_is_named_and_leaves_no_half_part(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(build.os, "fsync", full)
    with pytest.raises(StorageFull):
        ensure_graphs(checkpoint, Precision.INT8, tmp_path / "g")
    monkeypatch.undo()
    assert contents(tmp_path / "g") == {}
    ensure_graphs(checkpoint, Precision.INT8, tmp_path / "g")


def test_leftovers_of_a_killed_build_are_removed(checkpoint: Checkpoint, tmp_path: Path) -> None:
    (tmp_path / "g").mkdir()
    (tmp_path / "g" / "layer-000.bin.4242.part").write_bytes(np.zeros(100).tobytes())
    ensure_graphs(checkpoint, Precision.INT8, tmp_path / "g", parts=["layer-000"])
    assert not list((tmp_path / "g").glob("*.part"))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_vocabulary_rows_are_read_without_the_rest(tmp_path: Path, dtype: str) -> None:
    checkpoint = Checkpoint.open(write_tiny_checkpoint(tmp_path, layers=1, dtype=dtype))
    for rows, table in (
        (checkpoint.embedding_rows, checkpoint.embedding()),
        (checkpoint.head_rows, checkpoint.head()),
    ):
        np.testing.assert_array_equal(rows(3, 50), table[3:50])
        np.testing.assert_array_equal(rows(0, len(table)), table)
        assert rows(5, 5).shape == (0, table.shape[1])
