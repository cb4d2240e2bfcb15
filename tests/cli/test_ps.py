"""``ps`` and ``top``: the clouds of this machine and what they do, for people and for scripts."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cli_runs import COMMAND, LAYERS, Run, Served, finish, one_line_error, serve, start

from splitglm_cli.clouds import seconds_text, server_text, size_text
from splitglm_cloud.engine.stats import EngineStats
from splitglm_cloud.status import ServerStatus, SessionStatus, WorkerStatus

BASE = ServerStatus(
    pid=1, version="1", model="tiny", runner="onnx", executor="process", listen="127.0.0.1:1", ready=True,
    draining=False, uptime_s=10.0, streams=2,
    engine=EngineStats(
        kv_used_bytes=1_500_000, kv_budget_bytes=3_000_000, rows_by_layer=(40, 20), batches_by_layer=(4, 4), sweeps=4,
        busy_s=1.0,
    ),
    workers=(WorkerStatus(number=0, pid=9, state="down", restarts=3, last_end="killed: no sign of life"),),
)  # fmt: skip


@pytest.fixture(scope="module")
def talking(cloud: Served, tiny: str) -> Iterator[int]:
    """The process id of a cloud that holds the session of a chat."""
    chat = start("chat", tiny, *cloud.trusted, "--split", "2", "--privacy", "open", "--max-tokens", "8", "--ignore-eos")
    assert chat.stdin is not None
    chat.stdin.write("hello\n")
    chat.stdin.flush()
    deadline_s = time.monotonic() + 60
    while cloud.sessions_open() == 0 or not settled(cloud.process.pid):
        assert time.monotonic() < deadline_s and chat.poll() is None
    yield cloud.process.pid
    chat.communicate(timeout=30)


def settled(pid: int) -> bool:
    """The first reply is complete."""
    (server,) = json.loads(subprocess.run([*COMMAND, "ps", str(pid), "--json"], capture_output=True).stdout)["servers"]
    return any(session["positions"] > 8 and session["state"] == "idle" for session in server["sessions"])


def test_ps_lists_the_clouds_of_this_machine(splitglm: Run, cloud: Served, tiny: str) -> None:
    outcome = splitglm("ps")
    line = next(line for line in outcome.out.splitlines() if line.startswith(str(cloud.process.pid)))
    assert outcome.code == 0 and tiny in line and cloud.address in line and "ready" in line
    (server,) = splitglm("ps", str(cloud.process.pid), "--json").document()["servers"]
    assert (server["pid"], server["model"], server["listen"]) == (cloud.process.pid, tiny, cloud.address)


def test_ps_of_one_cloud_shows_its_sessions(splitglm: Run, cloud: Served, talking: int) -> None:
    text = splitglm("ps", str(talking)).out
    (row,) = [line for line in text.splitlines() if f"split [2, {LAYERS})" in line]
    assert "critical" in row and "idle" in row
    (server,) = splitglm("ps", str(talking), "--json").document()["servers"]
    (session,) = server["sessions"]
    assert session["positions"] > 0 and session["up_bytes"] > 0 and session["kv_bytes"] > 0
    assert server["engine"]["batches_by_layer"][LAYERS - 1] > 0
    assert cloud.key not in json.dumps(server)


def test_top_once_looks_twice_and_ends(splitglm: Run, talking: int) -> None:
    outcome = splitglm("top", str(talking), "--once", "--interval", "0.1")
    assert outcome.code == 0 and "rates" in outcome.out and f"process {talking}" in outcome.out
    document = splitglm("top", str(talking), "--once", "--interval", "0.1", "--json").document()
    assert document["servers"][0]["pid"] == talking and document["problems"] == []


def test_top_goes_on_in_plain_lines_where_there_is_no_terminal(talking: int) -> None:
    process = start("top", str(talking), "--interval", "0.1", "--json")
    assert process.stdout is not None
    lines = [json.loads(process.stdout.readline()) for _ in range(2)]
    assert lines[0]["servers"][0]["uptime_s"] < lines[1]["servers"][0]["uptime_s"]
    process.send_signal(signal.SIGINT)
    outcome = finish(process)
    assert outcome.code == 130 and "Traceback" not in outcome.err


def test_top_draws_on_a_terminal_and_q_ends_it(talking: int) -> None:
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [*COMMAND, "top", str(talking), "--interval", "30"], stdin=theirs, stdout=theirs, stderr=theirs
    )
    os.close(theirs)
    seen = b""
    while b"kv " not in seen:
        assert select.select([ours], [], [], 30)[0], seen
        seen += os.read(ours, 65536)
    os.write(ours, b"q")
    assert process.wait(20) == 0
    os.close(ours)


def test_a_cloud_that_ended_is_listed_no_more(splitglm: Run, tiny: str) -> None:
    for served in serve(tiny):
        pid = str(served.process.pid)
        assert pid in splitglm("ps").out
        served.process.kill()
        served.process.wait()
        assert pid not in splitglm("ps").out
        folder = Path(os.environ["SPLITGLM_RUNTIME_DIR"])
        assert [path.name for path in folder.iterdir() if path.name.startswith(pid)] == []
    outcome = splitglm("ps", pid)
    assert outcome.code == 64 and pid in one_line_error(outcome)


def test_a_cloud_can_keep_its_status_to_itself(splitglm: Run, tiny: str) -> None:
    for served in serve(tiny, "--no-status"):
        assert str(served.process.pid) not in splitglm("ps").out


def test_without_a_cloud_ps_and_top_say_so(splitglm: Run, tmp_path: Path) -> None:
    outcome = splitglm("ps", "--runtime-dir", str(tmp_path / "none"))
    assert (outcome.code, outcome.out) == (0, "") and "cloud serve" in outcome.err
    assert splitglm("ps", "--runtime-dir", str(tmp_path / "none"), "--json").document() == {
        "servers": [], "problems": []}  # fmt: skip
    top = splitglm("top", "--runtime-dir", str(tmp_path / "none"))
    assert top.code == 64 and "cloud serve" in one_line_error(top)
    tmp_path.chmod(0o755)
    assert splitglm("ps", "--runtime-dir", str(tmp_path)).code == 71


def session(number: int, **changes: Any) -> SessionStatus:
    one = SessionStatus(
        number=number, tenant="lab", criticality="critical", arm="split", s=1, t=2, positions=5, state="idle",
        age_s=61.0, answers_per_s=2.5, kv_bytes=1000, up_bytes=10, down_bytes=20,
    )  # fmt: skip
    return replace(one, **changes)


def test_rates_come_from_two_looks() -> None:
    later = replace(
        BASE, uptime_s=12.0,
        engine=replace(BASE.engine, rows_by_layer=(60, 40), batches_by_layer=(9, 9), sweeps=9, busy_s=2.0),
    )  # fmt: skip
    text = server_text(later, BASE)
    assert "10.0 rows/s through all layers, 4.0 rows a batch, 2.5 sweeps/s, busy 50%" in text
    assert "rates" not in server_text(later)
    assert "1.5 MB of 3.0 MB (50%)" in text and "killed: no sign of life" in text


def test_busy_sessions_come_first_and_the_rest_is_counted() -> None:
    many = (*(session(i) for i in range(1, 6)), session(6, state="running", tenant="a\x1b[2Jb"))
    lines = server_text(replace(BASE, sessions=many), most_sessions=2).splitlines()
    assert lines[-1] == "4 more sessions"
    rows = [line for line in lines if "split [1, 2)" in line]
    assert [row.split()[0] for row in rows] == ["6", "1"]
    assert "\x1b" not in "".join(lines)


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0s"), (59.9, "59s"), (187, "3m07s"), (5 * 3600 + 720, "5h12m"), (3e5, "3d11h")]
)
def test_durations_are_short(seconds: float, text: str) -> None:
    assert seconds_text(seconds) == text


@pytest.mark.parametrize(
    ("size", "text"), [(0, "0 B"), (999, "999 B"), (1200, "1.2 kB"), (123_456, "123 kB"), (4_300_000_000, "4.3 GB")]
)
def test_sizes_are_short(size: int, text: str) -> None:
    assert size_text(size) == text
