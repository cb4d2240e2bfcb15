"""Ctrl-C in real processes: exit 130, no session left in the cloud, no process left on the machine, a sane terminal."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import termios
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from cli_runs import COMMAND, CONTEXT, Served, finish, start

LONG = ("--max-tokens", str(CONTEXT - 100), "--ignore-eos")
CUTS = {
    "cloud": ("--split", "0", "--privacy", "open"),
    "split": ("--split", "2", "--privacy", "open"),
    "u-shape": ("--split", "1:3"),
    "device": ("--privacy", "local"),
}


def eventually(holds: Callable[[], bool], timeout_s: float = 15.0) -> bool:
    """True as soon as ``holds``; polls what another process changes, and says nothing about how long it takes."""
    deadline_s = time.monotonic() + timeout_s
    while not holds():
        if time.monotonic() > deadline_s:
            return False
        select.select([], [], [], 0.02)
    return True


@pytest.mark.parametrize("cut", CUTS)
def test_ctrl_c_mid_stream_is_exit_130_and_leaves_no_session(tiny: str, cloud: Served, cut: str) -> None:
    process = start("run", tiny, "hello", *cloud.trusted, *CUTS[cut], *LONG, text=False)
    assert process.stdout is not None and process.stdout.read(1)
    if cut != "device":
        assert cloud.sessions_open() == 1
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert err.decode() == "splitglm: interrupted\n"
    assert eventually(lambda: cloud.sessions_open() == 0)


def test_sigterm_mid_stream_leaves_no_session_either(tiny: str, cloud: Served) -> None:
    process = start("run", tiny, "hello", *cloud.trusted, *CUTS["split"], *LONG, text=False)
    assert process.stdout is not None and process.stdout.read(1)
    process.terminate()
    process.communicate(timeout=30)
    assert process.returncode == 128 + signal.SIGTERM
    assert eventually(lambda: cloud.sessions_open() == 0)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=lambda n: n.name)
def test_the_demos_cloud_process_never_outlives_the_demo(tiny: str, tmp_path: Path, number: signal.Signals) -> None:
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    process = start("demo", "--model", tiny, "--prompt", "hello", "--max-tokens", "512", env=environment)
    assert process.stdout is not None
    line = next(line for line in process.stdout if line.startswith("The cloud (process "))
    child = psutil.Process(int(line.split("process ")[1].split(",")[0]))
    process.send_signal(number)
    process.communicate(timeout=30)
    assert process.returncode in {signal.SIGINT: (130,), signal.SIGTERM: (143,)}.get(number, (-number,))
    assert eventually(lambda: not child.is_running())
    left = list(tmp_path.rglob("*"))
    assert not any(path.name.endswith(".key") for path in left)
    assert number is signal.SIGKILL or not left


@contextmanager
def terminal(
    *arguments: str,
) -> Iterator[tuple[subprocess.Popen[bytes], Callable[[bytes], None], Callable[..., str]]]:
    """A command whose three streams are a terminal it controls: the process, a way to type, and one to read on."""
    ours, theirs = os.openpty()

    def take_terminal() -> None:
        os.setsid()
        import fcntl

        fcntl.ioctl(0, termios.TIOCSCTTY, 0)

    process = subprocess.Popen(
        [*COMMAND, *arguments], stdin=theirs, stdout=theirs, stderr=theirs, preexec_fn=take_terminal
    )
    shown = bytearray()

    def until(text: str, again: bytes = b"") -> str:
        """Read on to ``text``; ``again`` is typed once more for every second without it, as a person would."""
        deadline_s = time.monotonic() + 40
        while text.encode() not in shown:
            left_s = max(0.0, deadline_s - time.monotonic())
            ready, _, _ = select.select([ours], [], [], min(left_s, 1.0) if again else left_s)
            if again and not ready and left_s:
                os.write(ours, again)
                continue
            assert ready, f"{text!r} was not shown: {shown[-500:]!r}"
            try:
                chunk = os.read(ours, 65536)
            except OSError:
                chunk = b""
            assert chunk, f"{text!r} was not shown before the end: {shown[-500:]!r}"
            shown.extend(chunk)
        end = shown.index(text.encode()) + len(text)
        seen = bytes(shown[:end])
        del shown[:end]
        return seen.decode(errors="replace")

    try:
        yield process, lambda data: os.write(ours, data) and None, until
    finally:
        process.kill()
        process.wait(10)
        os.close(ours)
        os.close(theirs)


def test_ctrl_c_in_a_chat_cancels_the_reply_and_ctrl_d_ends_the_chat(tiny: str, cloud: Served) -> None:
    with terminal("chat", tiny, *cloud.trusted, "--split", "2", "--ignore-eos", "--max-tokens", "4000") as tools:
        process, press, until = tools
        until("> ")
        press(b"\x03")
        # readline loses a signal that comes between its prompt and its wait for input.
        until("Ctrl-D or /quit ends the chat", b"\x03")
        until("> ")
        press(b"hello\r")
        assert eventually(lambda: cloud.sessions_open() == 1)
        until("\ufffd")  # the answer of a random model has begun
        press(b"\x03")
        until("cancelled")
        until("> ")
        press(b"/stats\r")
        assert "cancelled" in until("tok/s")
        until("> ")
        press(b"\x04")
        assert process.wait(30) == 0
    assert eventually(lambda: cloud.sessions_open() == 0)


def test_a_terminal_is_left_as_it_was(tiny: str) -> None:
    ours, theirs = os.openpty()
    before = termios.tcgetattr(theirs)
    process = start("run", tiny, "hello", *LONG, stdin=theirs, stdout=theirs, stderr=theirs)
    assert os.read(ours, 1)
    process.send_signal(signal.SIGINT)
    while eventually(lambda: bool(select.select([ours], [], [], 0)[0]) or process.poll() is not None):
        if process.poll() is not None:
            break
        os.read(ours, 65536)
    assert finish(process).code == 130
    assert termios.tcgetattr(theirs) == before
    os.close(ours)
    os.close(theirs)
