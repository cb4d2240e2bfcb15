"""A cloud as a process of its own, through the command line, for tests that kill, stop and restart it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path


class CloudProcess:
    """``splitglm cloud serve MODEL``; the same key file and, once started, the same port every time."""

    def __init__(self, model: Path, home: Path, *options: str) -> None:
        self._model, self._home, self._options = model, home, options
        self.port = 0
        self.key = ""
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def start(self) -> CloudProcess:
        command = [
            sys.executable, "-m", "splitglm_cli", "cloud", "serve", str(self._model),
            "--listen", self.address, "--key-file", str(self._home / "node.key"),
            "--precision", "fp32", "--threads", "1", "--json", *self._options,
        ]  # fmt: skip
        environment = {**os.environ, "SPLITGLM_HOME": str(self._home)}
        self.process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL)
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, f"the cloud ended with {self.process.wait()} before it was ready"
        ready = json.loads(line)
        self.port, self.key = int(ready["address"].rpartition(":")[2]), ready["key"]
        return self

    def signal(self, number: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def kill(self) -> None:
        """SIGKILL, and wait until it is gone."""
        if self.process is not None:
            self.process.kill()
            self.wait()

    def wait(self) -> int:
        assert self.process is not None and self.process.stdout is not None
        code = self.process.wait(30)
        self.process.stdout.close()
        return code

    def __enter__(self) -> CloudProcess:
        return self.start()

    def __exit__(self, *exception: object) -> None:
        if self.process is not None and self.process.returncode is None:
            self.kill()
