"""A cloud of one's own: ``splitglm cloud serve`` as a child process that never outlives its parent."""

from __future__ import annotations

import contextlib
import json
import queue
import subprocess
import sys
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final

from splitglm_core.errors import DeviceError

READY_TIMEOUT_S: Final = 300.0
"""Building the graphs of a model for the first time is included."""
_STOP_TIMEOUT_S: Final = 8.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadyCloud:
    """What a started cloud said about itself."""

    address: str
    key: str
    pid: int
    runner: str


class CloudProcess:
    """Starts a server on a free loopback port and stops it on the way out, however that is left.

    Even when this process is killed the child ends: its standard input is a pipe that closes with us.
    """

    def __init__(self, model: str, *, arguments: tuple[str, ...] = ()) -> None:
        self._model = model
        self._arguments = arguments
        self._cleanup = contextlib.ExitStack()
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> ReadyCloud:
        try:
            return self._start()
        except BaseException:
            self._stop()
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    def _start(self) -> ReadyCloud:
        folder = Path(self._cleanup.enter_context(tempfile.TemporaryDirectory(prefix="splitglm-cloud-")))
        errors = self._cleanup.enter_context((folder / "stderr").open("w+", encoding="utf-8"))
        process = self._process = subprocess.Popen(
            [
                *(sys.executable, "-m", "splitglm_cli", "cloud", "serve", self._model),
                *("--listen", "127.0.0.1:0", "--key-file", str(folder / "node.key"), "--json"),
                *("--until-stdin-closes", *self._arguments),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            encoding="utf-8",
            # Ctrl-C is ours: we end our sessions first and then the server.
            start_new_session=True,
        )
        ready = _first_line(process)
        if ready.get("event") != "ready":
            errors.seek(0)
            last = (errors.read().strip().splitlines() or ["no message"])[-1]
            raise DeviceError(f"the cloud process did not start: {last.removeprefix('splitglm: ')}")
        (folder / "node.key").unlink(missing_ok=True)  # it lives in the server's memory now, for as long as that
        return ReadyCloud(address=ready["address"], key=ready["key"], pid=ready["pid"], runner=ready["runner"])

    def _stop(self) -> None:
        process = self._process
        if process is not None:
            if process.stdin is not None:
                with contextlib.suppress(OSError):
                    process.stdin.close()  # the end of its input tells it to drain and stop
            for stop in (None, process.terminate, process.kill):
                if stop is not None:
                    stop()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(_STOP_TIMEOUT_S)
                    break
            if process.stdout is not None:
                process.stdout.close()
        self._cleanup.close()


def _first_line(process: subprocess.Popen[str]) -> dict[str, Any]:
    """The JSON object that the process writes when it is ready; empty when it ends or dawdles."""
    lines: queue.SimpleQueue[str] = queue.SimpleQueue()
    output = process.stdout
    if output is None:
        return {}
    threading.Thread(target=lambda: lines.put(output.readline()), daemon=True).start()
    try:
        message = json.loads(lines.get(timeout=READY_TIMEOUT_S))
    except (queue.Empty, ValueError):
        return {}
    return message if isinstance(message, dict) else {}
