"""Predicted against actual: kept for every reply, logged, and never in a reply's way."""

from __future__ import annotations

import json
import os
import resource
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from running_cloud import PATIENT, RunningCloud, open_agent

from splitglm_core.errors import DeviceError, InputError
from splitglm_core.plan import Arm
from splitglm_edge import Agent, CloudAddress, Generation, decision_log
from splitglm_edge.decision_log import DecisionLog, read_lines
from splitglm_edge.faults import SessionLost
from splitglm_edge.predictions import KEPT
from splitglm_partitioner.bounds import MAX_SECONDS
from splitglm_partitioner.decision import Decision
from splitglm_partitioner.decision_log import replay
from splitglm_partitioner.layer_times import LayerTimes
from splitglm_partitioner.observations import ReplyEnded
from splitglm_partitioner.power import PowerProfile

Ask = Callable[..., Generation]


@pytest.mark.parametrize("arm", ["device", "cloud", "split", "ushape"])
def test_every_reply_is_kept_with_both_sides_of_every_term(agent: Agent, ask: Ask, arm: str) -> None:
    before = len(agent.predictions())
    generation = ask(agent, arm)
    generation.result()
    *_, newest = agent.predictions()
    assert len(agent.predictions()) == min(before + 1, KEPT)
    assert newest.comparable and newest.new_tokens == 40 and newest.finish == "length"
    assert generation.stats is not None and newest.decision.plan == generation.stats.plan
    assert newest.predicted.keys() == newest.measured.keys() >= {"ttft_s", "per_token_s", "total_s"}
    assert ("queue_s" in newest.measured) == ("sweep_s" in newest.measured) == (arm != "device")
    assert ("front_s" in newest.measured) == (arm != "cloud")
    assert 0.0 < newest.measured["ttft_s"] <= generation.stats.ttft_s
    if arm != "device":  # payload of 40 prompt rows and 39 steps, exactly as the model counts it
        assert newest.measured["uplink_bytes"] == newest.predicted["uplink_bytes"]


def test_a_reply_teaches_what_answers_of_its_genre_are_like(
    agent: Agent, ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended: list[ReplyEnded] = []
    tell = agent._advice.ended
    monkeypatch.setattr(agent._advice, "ended", lambda decision, it: (tell(decision, it), ended.append(it)))
    for _ in range(4):
        ask(agent, "device", genre="terse", max_tokens=3).result()
    assert [(it.genre, it.outcome.new_tokens, it.max_new_tokens) for it in ended] == [("terse", 3, 3)] * 4
    assert agent._advice.expected_new_tokens("terse", 1000) >= 3
    request = ask(agent, "device", ignore_eos=False, genre="terse", max_tokens=3)._reply._prepare(
        0, None, use_cloud=True
    )
    assert request.decision.situation.request.max_new_tokens == 3


def test_a_reply_that_was_stopped_or_replanned_teaches_nothing(
    agent: Agent, ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[Decision, ReplyEnded]] = []
    monkeypatch.setattr(agent._advice, "ended", lambda *it: told.append(it))
    generation = ask(agent, "device")
    next(generation)
    generation.close()
    newest = agent.predictions()[-1]
    assert (newest.finish, newest.comparable) == ("cancelled", False) and newest.measured["ttft_s"] > 0.0
    lost, then = ask(agent, "split"), ask(agent, "device")._reply._prepare
    first = lost._reply._prepare
    monkeypatch.setattr(
        lost._reply,
        "_prepare",
        lambda done, left_s, *, use_cloud: (then if done else first)(
            done, left_s, use_cloud=False if done else use_cloud
        ),
    )
    while len(lost.token_ids) < 3:
        next(lost)
    talk = lost._reply._conversation
    began, remote = talk.decoder, talk.remote
    assert began is not None and remote is not None
    with monkeypatch.context() as patch:
        for name in ("wait", "poll"):
            patch.setattr(type(remote), name, _lost)
        lost.result()
    newest = agent.predictions()[-1]
    assert newest.decision.plan.arm is Arm.DEVICE and not newest.comparable
    assert [it.comparable for _, it in told] == [False, False]
    assert told[1][0].plan == told[1][1].plan == began.plan, "what the plan that failed cost is its own"
    assert told[1][1].outcome.new_tokens == 40


def _lost(_self: object) -> None:
    raise SessionLost("lost for the test")


def test_an_answer_does_not_fail_for_what_a_cloud_states_of_itself(
    model: Path, home: Path, cloud: RunningCloud, ask: Ask
) -> None:
    with open_agent(model, home, cloud) as agent:
        _, profile = agent.link()
        slowest = LayerTimes.uniform(4, decode_s=MAX_SECONDS, prefill_s_per_token=MAX_SECONDS, chunk_tokens=64)
        agent._advice.connected(replace(profile, times=slowest))
        assert len(ask(agent, "cloud", max_tokens=3).result()) > 0
        newest = agent.predictions()[-1]
        assert newest.comparable and newest.predicted["ttft_s"] > MAX_SECONDS


def test_what_the_reader_takes_is_not_the_plans_time(agent: Agent, ask: Ask) -> None:
    generation = ask(agent, "device", max_tokens=4)
    pause = threading.Event()
    for _ in generation:
        pause.wait(0.2)  # a reader who thinks
    assert generation.stats is not None and generation.stats.total_s > 0.2
    assert agent.predictions()[-1].measured["total_s"] < 0.15


def test_the_radios_seconds_begin_with_the_first_upload(
    model: Path, home: Path, cloud: RunningCloud, ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half a second of front passes before anything is sent costs computing, and no radio."""
    power = PowerProfile(compute_w=0.0, radio_w=2.0, uplink_j_per_byte=0.0, downlink_j_per_byte=0.0)
    with open_agent(model, home, cloud) as built:
        agent = Agent(
            checkpoint=built.checkpoint,
            stack=built._stack,
            profile=replace(built.profile, power=power),
            cloud=CloudAddress(address=cloud.address, key=cloud.key),
            context=built.context,
            timeouts=PATIENT,
        )
        embed, slow = agent._front.embed, threading.Event()

        def late(ids: Any) -> Any:
            if not slow.is_set():
                slow.set()
                threading.Event().wait(0.5)
            return embed(ids)

        monkeypatch.setattr(agent._front, "embed", late)
        with agent:
            ask(agent, "split", max_tokens=3).result()
            measured = agent.predictions()[-1].measured
    assert measured["ttft_s"] > 0.5
    assert 0.0 < measured["energy_j"] <= 2.0 * (measured["total_s"] - 0.5)


def test_a_log_line_recomputes_its_decision_and_holds_no_text(
    model: Path, home: Path, cloud: RunningCloud, ask: Ask, tmp_path: Path
) -> None:
    path = tmp_path / "decisions.jsonl"
    path.write_text("")
    path.chmod(0o644)
    with open_agent(model, home, cloud, decision_log=path) as agent:
        for arm in ("device", "ushape"):
            ask(agent, arm, max_tokens=5, genre="a secret of mine").result()
        predictions = agent.predictions()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    lines = list(read_lines(path))
    assert len(lines) == 2 and "secret" not in path.read_text()
    for line, prediction in zip(lines, predictions, strict=True):
        again = replay(line["decision"])
        assert (again.plan, again.value, again.why) == (
            prediction.decision.plan, prediction.decision.value, prediction.decision.why
        )  # fmt: skip
        assert line["measured"] == prediction.measured and line["predicted"] == prediction.predicted


def test_a_full_log_gives_way_to_a_new_one_and_lines_stay_whole(tmp_path: Path) -> None:
    path = tmp_path / "log"
    log = DecisionLog(path, max_bytes=4000)
    threads = [
        threading.Thread(target=lambda n=n: [log.append(json.dumps([n, i, "x" * 60])) for i in range(20)])
        for n in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert {file.name for file in tmp_path.iterdir()} == {"log", "log.1"}
    for file in tmp_path.iterdir():
        assert file.stat().st_size <= 4000 and stat.S_IMODE(file.stat().st_mode) == 0o600
        assert all(len(json.loads(line)) == 3 for line in file.read_text().splitlines())


_WRITER = """
import sys
from pathlib import Path
from splitglm_edge.decision_log import DecisionLog

log = DecisionLog(Path(sys.argv[1]), max_bytes=6000)
print(flush=True)
sys.stdin.readline()
for number in range(100):
    log.append(f'["{sys.argv[2]}", {number}]'.ljust(49))
"""


def test_two_processes_that_fill_a_log_lose_no_line_of_the_newest(tmp_path: Path) -> None:
    """200 lines of 50 bytes: one of them rotates, once, and the other goes on in the new file."""
    path = tmp_path / "log"
    writers = [
        subprocess.Popen([sys.executable, "-c", _WRITER, path, name], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        for name in ("a", "b")
    ]
    for writer in writers:
        assert writer.stdout is not None and writer.stdout.readline()
    for writer in writers:
        assert writer.stdin is not None
        writer.stdin.write(b"\n")
        writer.stdin.flush()
    assert [(writer.communicate(timeout=30), writer.returncode)[1] for writer in writers] == [0, 0]
    files = [tmp_path / "log.1", path]
    lines = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    assert sorted(map(tuple, lines)) == [(name, number) for name in ("a", "b") for number in range(100)]
    assert files[0].stat().st_size == 6000 and files[1].stat().st_size == 4000


def test_who_waited_for_a_renamed_log_goes_on_in_the_new_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "log"
    log = DecisionLog(path, max_bytes=100)
    log.append("x" * 80)
    lock, renamed = decision_log._lock, []

    def rotated_meanwhile(file: int) -> None:
        lock(file)
        if not renamed:
            renamed.append(path.replace(tmp_path / "log.1"))

    monkeypatch.setattr(decision_log, "_lock", rotated_meanwhile)
    log.append("y" * 80)
    assert (tmp_path / "log.1").read_text() == "x" * 80 + "\n", "it was not replaced by a second rotation"
    assert path.read_text() == "y" * 80 + "\n"


def test_a_log_that_cannot_be_written_is_told_at_once_and_later_costs_no_reply(tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match="cannot be written"):
        DecisionLog(tmp_path / "absent" / "log")
    path = tmp_path / "log"
    log = DecisionLog(path)
    path.unlink()
    path.mkdir()
    log.append("{}")
    assert list(path.iterdir()) == []


def test_only_a_regular_file_is_taken_for_a_log_and_no_other_changes_its_mode(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe, 0o640)
    with pytest.raises(DeviceError, match="cannot be written"):
        DecisionLog(pipe)  # without a reader: at once
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        with pytest.raises(DeviceError, match="not a regular file"):
            DecisionLog(pipe)
    finally:
        os.close(reader)
    assert stat.S_IMODE(pipe.stat().st_mode) == 0o640


def test_a_line_that_the_disk_took_in_part_is_taken_back(tmp_path: Path) -> None:
    path = tmp_path / "log"
    log = DecisionLog(path)
    log.append("[1]")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, before[1]))
    try:
        log.append('["a long line"]')
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    log.append("[2]")
    assert path.read_text() == "[1]\n[2]\n"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ttft_s", "NaN"),
        ("ttft_s", "Infinity"),
        ("ttft_s", "1" + 400 * "0"),
        ("ttft_s", "true"),
        ("\\u001b[31m", "1.0"),
    ],
    ids=["nan", "infinite", "beyond floats", "bool", "escape sequence"],
)
def test_a_term_that_cannot_be_counted_or_shown_is_refused(tmp_path: Path, name: str, value: str) -> None:
    path = tmp_path / "log"
    rest = '"version":1,"at_s":0.0,"decision":{},"new_tokens":1,"comparable":true,"finish":"stop"'
    path.write_text(f'{{{rest},"predicted":{{"{name}":{value}}},"measured":{{}}}}')
    with pytest.raises(InputError, match="finite numbers"):
        list(read_lines(path))


@pytest.mark.parametrize(
    "text",
    ["{", "[]", "null", "{}", '{"version": 1}', "\xff", "[" * 100_000, "x" * (2 << 20)],
    ids=["cut", "array", "null", "empty", "short", "binary", "deep", "long"],
)
def test_a_file_that_is_no_decision_log_is_refused_by_line(tmp_path: Path, text: str) -> None:
    path = tmp_path / "log"
    path.write_bytes(os.linesep.encode() + text.encode("latin-1"))
    with pytest.raises(InputError, match="line 2"):
        list(read_lines(path))
    with pytest.raises(InputError, match="cannot be read"):
        list(read_lines(tmp_path / "absent"))
