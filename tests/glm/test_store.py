"""The store: names, look-up, removal, graphs, damage, abandoned pulls, full disks."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
import textwrap
import threading
from collections import namedtuple
from pathlib import Path

import pytest
from glm_factory import write_tiny_checkpoint

from splitglm_core.errors import DeviceError, InputError, ModelInvalid, ModelNotFound, StorageFull
from splitglm_core.plan import Precision
from splitglm_glm import staging
from splitglm_glm.checkpoint import Checkpoint
from splitglm_glm.pull import pull
from splitglm_glm.store import HOME_VARIABLE, ModelStore, Source, name_of


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    return ModelStore(tmp_path / "store")


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    return write_tiny_checkpoint(tmp_path / "tiny")


def test_the_root_is_the_argument_then_the_variable_then_the_cache_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(HOME_VARIABLE, str(tmp_path / "home"))
    assert ModelStore(tmp_path / "mine").root == tmp_path / "mine"
    assert ModelStore().root == tmp_path / "home"
    monkeypatch.delenv(HOME_VARIABLE)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert ModelStore().root.name == "splitglm"
    assert list(tmp_path.iterdir()) == [], "looking at a store created something"


def test_an_empty_store_lists_nothing_and_says_how_to_fill_it(store: ModelStore) -> None:
    assert store.list() == ()
    with pytest.raises(ModelNotFound) as caught:
        store.find("smollm2-135m")
    assert caught.value.hint == "splitglm pull smollm2-135m"


def test_a_pulled_model_is_found_by_name_and_any_checkpoint_by_path(store: ModelStore, tiny: Path) -> None:
    directory = pull(str(tiny), store)
    assert directory == store.root / "models" / "tiny" == store.find("tiny")
    assert store.find(tiny) == tiny
    (model,) = store.list()
    assert (model.name, model.problem) == ("tiny", "")
    assert model.source == Source(kind="local", origin=str(tiny), revision=model.fingerprint)
    assert model.size_bytes == sum(path.stat().st_size for path in directory.iterdir())
    assert Checkpoint.open(directory).fingerprint.hex() == model.fingerprint == Checkpoint.open(tiny).fingerprint.hex()


def test_hub_ids_become_names(store: ModelStore) -> None:
    assert name_of("zai-org/glm-edge-1.5b-chat") == "zai-org--glm-edge-1.5b-chat"
    assert name_of("a/b/c") is None and name_of("../x") is None


@pytest.mark.parametrize("name", ["", "..", "../x", "a/b", "/etc", ".hidden", "a..b", "x" * 200, "a b", "a\0", "con:"])
def test_names_never_leave_the_store(store: ModelStore, name: str) -> None:
    with pytest.raises(InputError):
        store.model_dir(name)
    with pytest.raises((InputError, ModelNotFound)):
        store.remove(name)


def test_remove_takes_the_model_and_its_graphs_and_nothing_else(store: ModelStore, tiny: Path, tmp_path: Path) -> None:
    other = write_tiny_checkpoint(tmp_path / "other", seed=1)
    for path in (tiny, other):
        graphs = store.graphs_dir(pull(str(path), store), Precision.INT4)
        graphs.mkdir(parents=True)
        (graphs / "layer-000.onnx").write_bytes(b"x" * 10)
    assert [model.graphs_bytes for model in store.list()] == [10, 10]
    gone = store.show("tiny").fingerprint[:16]
    store.remove("tiny")
    assert [model.name for model in store.list()] == ["other"]
    assert not (store.root / "graphs" / gone).exists()
    assert store.show("other").graphs_bytes == 10
    with pytest.raises(ModelNotFound):
        store.remove("tiny")
    assert tiny.exists()


def test_graphs_stay_while_another_model_has_the_same_content(store: ModelStore, tiny: Path) -> None:
    graphs = store.graphs_dir(pull(str(tiny), store), Precision.INT8)
    graphs.mkdir(parents=True)
    pull(str(tiny), store, name="twin")
    store.remove("tiny")
    assert graphs.exists()
    store.remove("twin")
    assert not graphs.exists()


def test_graphs_of_a_checkpoint_outside_lie_in_the_store(store: ModelStore, tiny: Path) -> None:
    graphs = store.graphs_dir(tiny, Precision.INT4)
    assert graphs == store.root / "graphs" / Checkpoint.open(tiny).fingerprint.hex()[:16] / "int4"


def test_a_damaged_model_is_listed_with_its_problem_and_can_be_removed(store: ModelStore, tiny: Path) -> None:
    directory = pull(str(tiny), store)
    (directory / "source.json").write_text("{}")
    assert "malformed" in store.show("tiny").problem
    (directory / "config.json").unlink()
    assert store.list()[0].problem != ""
    store.remove("tiny")
    assert store.list() == ()


@pytest.mark.parametrize("text", ["", "[]", '{"kind": 1}', '{"kind": "a", "origin": "b", "revision": "c"}'])
def test_a_malformed_source_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "source.json").write_text(text)
    with pytest.raises(ModelInvalid):
        Source.load(tmp_path)


def test_pulls_that_nobody_resumes_are_swept_after_a_week_unless_someone_works_on_them(
    store: ModelStore, tiny: Path
) -> None:
    week_ago_s = tiny.stat().st_mtime - staging.ABANDONED_S - 60
    for name in ("old", "busy", "young"):
        path = store.root / "staging" / name / "tree" / "part"
        path.parent.mkdir(parents=True)
        path.write_bytes(b"x")
        if name != "young":
            for each in (path, path.parent, path.parent.parent):
                os.utime(each, (week_ago_s, week_ago_s))
    with staging.exclusive(store.root / "locks" / "busy.lock"):
        pull(str(tiny), store)
    assert sorted(path.name for path in (store.root / "staging").iterdir()) == ["busy", "young"]


def test_a_lock_lets_one_in_at_a_time_and_tells_the_other(tmp_path: Path) -> None:
    inside, waiting, order = threading.Event(), threading.Event(), []

    def second() -> None:
        inside.wait(30)
        with staging.exclusive(tmp_path / "x.lock", lambda *_: waiting.set()):
            order.append("second")

    thread = threading.Thread(target=second)
    thread.start()
    with staging.exclusive(tmp_path / "x.lock"):
        inside.set()
        assert waiting.wait(30)
        order.append("first")
    thread.join()
    assert order == ["first", "second"]


def test_too_little_space_is_refused_before_anything_is_written(
    store: ModelStore, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**9, 10**9, staging.RESERVE_BYTES + 1000))
    with pytest.raises(StorageFull) as caught:
        pull(str(tiny), store)
    size = sum(path.stat().st_size for path in tiny.iterdir())
    assert f"{size:,} bytes are needed" in caught.value.what
    assert list((store.root / "staging").iterdir()) == [] and store.list() == ()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="/dev/full is how Linux offers a full disk")
def test_a_disk_that_fills_up_is_our_error(tmp_path: Path) -> None:
    with (
        pytest.raises(StorageFull, match="5,000 bytes are needed"),
        staging.disk_errors(tmp_path, 5000),
        Path("/dev/full").open("wb", buffering=0) as file,
    ):
        file.write(b"x")


@pytest.mark.parametrize("code", [errno.EACCES, errno.EROFS, errno.EXDEV])
def test_a_store_that_cannot_be_written_is_our_error(tmp_path: Path, code: int) -> None:
    with pytest.raises(DeviceError) as caught, staging.disk_errors(tmp_path):
        raise OSError(code, os.strerror(code))
    assert HOME_VARIABLE in caught.value.hint


def test_a_real_full_disk_ends_the_pull_and_leaves_nothing_behind(tmp_path: Path) -> None:
    """On a small file system of its own, where the check before the pull is fooled on purpose."""
    tiny = write_tiny_checkpoint(tmp_path / "big", hidden=256, vocab=8000)
    mount = tmp_path / "mount"
    mount.mkdir()
    code = textwrap.dedent(
        """
        import json, shutil, sys
        from collections import namedtuple
        from pathlib import Path
        from splitglm_core.errors import StorageFull
        from splitglm_glm.pull import pull
        from splitglm_glm.store import ModelStore
        real = shutil.disk_usage
        store = ModelStore(Path(sys.argv[2]))
        shutil.disk_usage = lambda path: namedtuple("usage", "total used free")(0, 0, 10**12)
        try:
            pull(sys.argv[1], store)
        except StorageFull as error:
            shutil.disk_usage = real
            left = [str(p) for p in store.root.rglob("*") if p.is_file() and p.suffix != ".lock"]
            print(json.dumps([error.what, left, real(store.root).used]))
        """
    )
    shell = 'mount -t tmpfs -o size=4m none "$2" || exit 77; shift 2; exec "$@"'
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", shell, "sh", "-", str(mount), sys.executable, "-c", code, str(tiny), str(mount)]
        if shutil.which("unshare")
        else ["false"],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        pytest.skip(f"no small file system can be mounted here: {done.stderr[-200:]}")
    what, left, used_bytes = json.loads(done.stdout)
    assert "is full" in what and left == [] and used_bytes < 100_000
