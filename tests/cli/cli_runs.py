"""How tests run the command: in this process, as a process, as a server."""

from __future__ import annotations

import json
import re
import selectors
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from splitglm_core.telemetry import SESSIONS_OPEN

COMMAND = (sys.executable, "-m", "splitglm_cli")
LAYERS = 4
CONTEXT = 16384


@dataclass(frozen=True)
class Outcome:
    """What one run of the command left behind."""

    code: int
    out: str
    err: str

    def document(self) -> Any:
        return json.loads(self.out)


Run = Callable[..., Outcome]
"""The ``splitglm`` fixture."""


@dataclass(frozen=True)
class Served:
    """A running ``cloud serve``."""

    process: subprocess.Popen[str]
    ready: dict[str, Any]

    @property
    def address(self) -> str:
        return str(self.ready["address"])

    @property
    def key(self) -> str:
        return str(self.ready["key"])

    @property
    def trusted(self) -> list[str]:
        """Flags with which a device reaches it."""
        return ["--cloud", self.address, "--cloud-key", self.key]

    def sessions_open(self) -> int:
        """As /metrics says now."""
        with urllib.request.urlopen(self.ready["metrics"], timeout=5) as reply:
            text = reply.read().decode()
        found = re.search(rf"^{SESSIONS_OPEN} (\S+)$", text, re.MULTILINE)
        assert found, text
        return int(float(found.group(1)))


def start(*arguments: str, **options: Any) -> subprocess.Popen[str]:
    """A command line as a process of its own."""
    given: dict[str, Any] = {
        "stdin": subprocess.PIPE,
        "stdout": subprocess.PIPE,
        "stderr": subprocess.PIPE,
        "text": True,
    }
    return subprocess.Popen([*COMMAND, *arguments], **(given | options))


def readline(process: subprocess.Popen[str], timeout_s: float = 60.0) -> str:
    """The next line of its standard output."""
    assert process.stdout is not None
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        assert selector.select(timeout_s), "nothing was written in time"
    return process.stdout.readline()


def finish(process: subprocess.Popen[str], timeout_s: float = 60.0) -> Outcome:
    """Wait for its end."""
    out, err = process.communicate(timeout=timeout_s)
    return Outcome(process.returncode, out, err)


def serve(model: str, *arguments: str) -> Iterator[Served]:
    """A server until the caller is done with it."""
    process = start(
        *("cloud", "serve", model, "--listen", "127.0.0.1:0", "--metrics-port", "0", "--json"),
        *("--until-stdin-closes", *arguments),
    )
    try:
        line = readline(process)
        assert line, process.stderr.read() if process.stderr else ""
        yield Served(process, json.loads(line))
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.communicate(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()


def one_line_error(outcome: Outcome) -> str:
    """The message of a failed run: its only line of standard error, but for progress on a slow machine."""
    assert outcome.out == ""
    lines = [line for line in outcome.err.strip().splitlines() if not re.fullmatch(r"[\w ]+: \d+ %", line)]
    assert len(lines) == 1 and lines[0].startswith("splitglm: "), outcome.err
    assert "Traceback" not in outcome.err
    return lines[0]
