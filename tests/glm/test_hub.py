"""Pulling from a hub: pinned, resumed after a kill or a cut, checked by hash, refused before any needless byte."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from glm_factory import write_tiny_checkpoint
from hub_server import COMMITS, HubServer
from pull_client import command, files_of, kill_when_held

from splitglm_glm.checkpoint import Checkpoint
from splitglm_glm.store import ModelStore, Source

WEIGHTS = "model.safetensors"


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
