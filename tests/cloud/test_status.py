"""The status socket: of one user, bounded, read-only; entries of the dead go away."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import stat
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from splitglm_cloud import status_server
from splitglm_cloud.engine.stats import EngineStats
from splitglm_cloud.health import Health
from splitglm_cloud.operation import Operation
from splitglm_cloud.settings import CloudSettings
from splitglm_cloud.status import ServerStatus, SessionStatus, WorkerStatus
from splitglm_cloud.status_files import ServerEntry, announce, default_runtime_dir, make_ours, servers, socket_path
from splitglm_cloud.status_server import MAX_CONNECTIONS, MAX_REQUEST_BYTES, REQUEST, StatusServer, ask
from splitglm_core.errors import DeviceError, LinkError, ProtocolError

SESSION = SessionStatus(
    number=3, tenant="lab", criticality="critical", arm="split", s=2, t=4, positions=17, state="running", age_s=2.5,
    answers_per_s=11.0, kv_bytes=4096, up_bytes=100, down_bytes=50,
)  # fmt: skip
STATUS = ServerStatus(
    pid=os.getpid(), version="1", model="tiny", runner="onnxruntime CPU", executor="process", listen="127.0.0.1:7411",
    ready=True, draining=False, uptime_s=60.0, streams=1, engine=EngineStats(rows_by_layer=(1, 2)),
    workers=(WorkerStatus(number=0, pid=12, state="ready"),), sessions=(SESSION,),
)  # fmt: skip


@pytest.fixture
def runtime() -> Iterator[Path]:
    """Short enough for a socket."""
    with tempfile.TemporaryDirectory(prefix="sg") as folder:
        yield Path(folder) / "run"


def modes(directory: Path) -> dict[str, int]:
    return {path.suffix: stat.S_IMODE(path.lstat().st_mode) for path in [directory, *directory.iterdir()]}


async def test_a_server_is_found_and_asked_and_gone_when_it_stops(runtime: Path) -> None:
    now = [STATUS]
    server = StatusServer(runtime, lambda: now[0])
    await server.start()
    assert modes(runtime) == {"": 0o700, ".json": 0o600, ".sock": 0o600}
    (entry,) = await asyncio.to_thread(servers, runtime)
    assert (entry.pid, entry.model, entry.listen) == (STATUS.pid, "tiny", "127.0.0.1:7411")
    assert await asyncio.to_thread(ask, runtime, entry) == STATUS
    now[0] = replace(STATUS, draining=True, sessions=())
    assert await asyncio.to_thread(ask, runtime, entry) == now[0]
    await server.stop()
    await server.stop()
    assert list(runtime.iterdir()) == [] and servers(runtime) == []
    with pytest.raises(LinkError):
        ask(runtime, entry)


async def test_several_servers_live_in_one_process_and_directory(runtime: Path) -> None:
    some = [StatusServer(runtime, lambda: STATUS), StatusServer(runtime, lambda: STATUS)]
    for server in some:
        await server.start()
    assert len(await asyncio.to_thread(servers, runtime)) == 2
    await some[0].stop()
    (left,) = await asyncio.to_thread(servers, runtime)
    assert left.name == some[1].name
    await some[1].stop()


def test_entries_of_the_dead_are_removed(runtime: Path) -> None:
    make_ours(runtime)
    dead = ServerEntry(name="999-1", pid=999, model="m", listen="l", version="1")
    announce(runtime, dead)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.fspath(socket_path(runtime, dead.name)))
        listener.listen()
        assert servers(runtime) == [dead]
    assert servers(runtime) == [] and list(runtime.iterdir()) == []
    announce(runtime, dead)  # killed between socket and entry, or its socket removed
    assert servers(runtime) == [] and list(runtime.iterdir()) == []
    (runtime / "7-1.json").write_text("{")
    assert servers(runtime) == []


def test_a_directory_that_others_may_enter_is_not_used(runtime: Path) -> None:
    assert servers(runtime) == []
    runtime.mkdir(mode=0o700)
    runtime.chmod(0o750)
    for use in (make_ours, servers):
        with pytest.raises(DeviceError, match="not this user's alone"):
            use(runtime)
    link = runtime.parent / "link"
    runtime.chmod(0o700)
    link.symlink_to(runtime)
    with pytest.raises(DeviceError, match="not this user's alone"):
        make_ours(link)


def test_a_directory_that_others_could_replace_is_not_used(runtime: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runtime.parent.chmod(0o777)
    with pytest.raises(DeviceError, match="others may replace"):
        make_ours(runtime)
    with pytest.raises(DeviceError, match="others may replace"):
        servers(runtime)
    runtime.parent.chmod(0o1777)  # as /tmp: each may only touch its own
    make_ours(runtime)
    assert servers(runtime) == []
    # Somebody was there first: /tmp/runtime-1000 of another user.
    theirs, stat_of = runtime.parent, Path.stat

    def stat_as(path: Path, **options: bool) -> os.stat_result:
        found = stat_of(path, **options)  # type: ignore[arg-type]
        return os.stat_result((*found[:4], 12345, *found[5:])) if path == theirs else found

    monkeypatch.setattr(Path, "stat", stat_as)
    with pytest.raises(DeviceError, match="others may replace"):
        make_ours(runtime)


def test_folders_that_are_made_on_the_way_are_of_this_user_alone(runtime: Path) -> None:
    before = os.umask(0)
    try:
        make_ours(runtime / "a" / "b")
    finally:
        os.umask(before)
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o700 for path in (runtime, runtime / "a", runtime / "a" / "b"))


async def test_a_directory_with_too_long_a_name_is_refused(runtime: Path) -> None:
    with pytest.raises(DeviceError, match="too long"):
        await StatusServer(runtime / ("x" * 100), lambda: STATUS).start()


async def asked(runtime: Path, name: str, data: bytes) -> bytes:
    """Whatever comes back for ``data`` until the server closes the connection."""
    reader, writer = await asyncio.open_unix_connection(socket_path(runtime, name))
    try:
        writer.write(data)
        writer.write_eof()
        return await reader.read()
    except ConnectionError:
        return b""
    finally:
        writer.close()


async def test_only_the_one_request_is_answered_and_a_long_one_is_cut_off(runtime: Path) -> None:
    server = StatusServer(runtime, lambda: STATUS)
    await server.start()
    assert ServerStatus.from_document(json.loads(await asked(runtime, server.name, REQUEST))) == STATUS
    twice = await asked(runtime, server.name, REQUEST + REQUEST)
    assert twice.count(b"\n") == 2
    for wrong in (b"\n", b'{"get": "keys"}\n', b"GET / HTTP/1.1\r\n", b"", b"x" * (4 * MAX_REQUEST_BYTES)):
        assert await asked(runtime, server.name, wrong) == b""
    assert await asked(runtime, server.name, REQUEST)
    await server.stop()


async def test_connections_are_bounded_in_number_and_time(runtime: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(status_server, "DEADLINE_S", 0.5)
    server = StatusServer(runtime, lambda: STATUS)
    await server.start()
    path = socket_path(runtime, server.name)
    silent = [await asyncio.open_unix_connection(path) for _ in range(MAX_CONNECTIONS)]
    assert await asked(runtime, server.name, REQUEST) == b""
    for reader, _ in silent:
        assert await asyncio.wait_for(reader.read(), 10) == b""  # they said nothing in time
    assert await asked(runtime, server.name, REQUEST)
    for _, writer in silent:
        writer.close()
    await server.stop()


async def test_a_snapshot_that_fails_ends_one_connection_only(runtime: Path) -> None:
    answers: list[ServerStatus | Exception] = [STATUS, RuntimeError("x"), STATUS]

    def snapshot() -> ServerStatus:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    server = StatusServer(runtime, snapshot)
    await server.start()
    assert await asked(runtime, server.name, REQUEST) == b""
    assert await asked(runtime, server.name, REQUEST)
    await server.stop()


def test_a_status_survives_the_way_and_nothing_else_is_taken_for_one() -> None:
    document = json.loads(json.dumps(STATUS.to_document()))
    assert ServerStatus.from_document(document) == STATUS
    assert ServerStatus.from_document({**document, "added_later": 1}) == STATUS
    bad = ({}, [], None, {**document, "format": 99}, {**document, "engine": None}, {**document, "sessions": [1]})
    for wrong in bad:
        with pytest.raises(ProtocolError):
            ServerStatus.from_document(wrong)
    with pytest.raises(ProtocolError):
        ServerStatus.from_document({key: value for key, value in document.items() if key != "model"})


def test_the_runtime_directory_can_be_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPLITGLM_RUNTIME_DIR", "/run/elsewhere")
    assert default_runtime_dir() == Path("/run/elsewhere")
    monkeypatch.delenv("SPLITGLM_RUNTIME_DIR")
    assert default_runtime_dir().name == "splitglm"


async def test_a_server_serves_without_its_status_socket(runtime: Path, caplog: pytest.LogCaptureFixture) -> None:
    runtime.mkdir(mode=0o755)
    operation = Operation(CloudSettings(model="m", runtime_dir=runtime), lambda: STATUS)
    await operation.start()
    assert "splitglm ps" in caplog.text
    await operation.stop()
    assert operation.on_reply is None
    silent = Operation(CloudSettings(model="m", status=False), lambda: STATUS)
    await silent.start()
    await silent.stop()


def test_ready_means_listening_and_somebody_to_compute() -> None:
    computing = [True]
    health = Health("a.Service", ready=lambda: computing[0])
    assert not health.serving
    health.listening = True
    assert health.serving
    computing[0] = False
    assert not health.serving
