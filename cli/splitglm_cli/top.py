"""``splitglm top``: one cloud, live."""

from __future__ import annotations

import contextlib
import json
import os
import select
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Final

import typer

from splitglm_cli.clouds import Pid, RuntimeDir, documents, found_servers, server_text
from splitglm_cli.options import Debug, Json
from splitglm_cloud.status import ServerStatus
from splitglm_core.errors import InputError, LinkError, SplitGlmError

_AROUND_SESSIONS: Final = 12
"""Lines of the screen that are not sessions."""
_WITHOUT_SCREEN: Final = 40


def top(
    pid: Pid = None,
    interval_s: Annotated[
        float, typer.Option("--interval", metavar="SECONDS", min=0.1, max=3600.0, help="Between two looks.")
    ] = 1.0,
    once: Annotated[bool, typer.Option("--once", help="Look twice, print once, end: with rates, for scripts.")] = False,
    runtime_dir: RuntimeDir = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Watch a cloud of this machine: queue, batches, memory, workers and sessions. q or Ctrl-C ends it."""
    first = _look(runtime_dir, pid)
    if not once and not as_json and sys.stdout.isatty():
        _live(first, interval_s, runtime_dir)
        return
    before, rounds = first, 0
    while not once or rounds == 0:
        time.sleep(interval_s)
        try:
            status = _look(runtime_dir, first.pid)
        except (InputError, LinkError):
            if rounds == 0:
                raise
            return  # it has ended
        if as_json:
            print(json.dumps(documents([status])), flush=True)
        else:
            print(server_text(status, before, most_sessions=_WITHOUT_SCREEN), end="\n\n", flush=True)
        before, rounds = status, rounds + 1


def _look(directory: Path | None, pid: int | None) -> ServerStatus:
    """The one server that is meant.

    Raises:
        InputError: there is none, or more than one.
        LinkError, ProtocolError: it does not answer.
    """
    answers = found_servers(directory, pid)
    if not answers:
        raise InputError("no cloud of this user runs here", "splitglm cloud serve MODEL starts one")
    if len(answers) > 1 and pid is None:
        raise InputError("several clouds run here", "give the PID that splitglm ps shows")
    answer = answers[0]
    if isinstance(answer, SplitGlmError):
        raise answer
    return answer


def _live(first: ServerStatus, interval_s: float, directory: Path | None) -> None:
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    console = Console()
    before = status = first
    with _single_keys(), Live(console=console, screen=True, auto_refresh=False) as live:
        while True:
            room = max(1, console.size.height - _AROUND_SESSIONS - len(status.workers))
            text = Text(server_text(status, before, most_sessions=room), no_wrap=True, overflow="crop")
            live.update(text, refresh=True)
            if _pressed_q(interval_s):
                return
            before = status
            try:
                status = _look(directory, first.pid)
            except (InputError, LinkError):
                return  # it has ended


@contextlib.contextmanager
def _single_keys() -> Iterator[None]:
    """Keys come one by one and are not shown, while standard input is a terminal that can do so."""
    try:
        import termios
        import tty

        number = sys.stdin.fileno()
        saved = termios.tcgetattr(number)
    except (ImportError, OSError, ValueError, termios.error):
        yield
        return
    try:
        tty.setcbreak(number)
        yield
    finally:
        termios.tcsetattr(number, termios.TCSADRAIN, saved)


def _pressed_q(wait_s: float) -> bool:
    """Wait for a key so long; other keys only cut the wait short."""
    if not sys.stdin.isatty():
        time.sleep(wait_s)
        return False
    ready, _, _ = select.select([sys.stdin], [], [], wait_s)
    return bool(ready) and os.read(sys.stdin.fileno(), 1).lower() in (b"q", b"")
