"""Real processes for benchmarks: a cloud and an emulated link in front of it, both ended however the benchmark ends."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class CloudProcess:
    address: str
    key: str  # identity key as text
    pid: int


@contextmanager
def cloud_process(model: str, *, precision: str, threads: int, options: Sequence[str] = ()) -> Iterator[CloudProcess]:
    """``splitglm cloud serve`` on a free loopback port, with an identity of its own."""
    with tempfile.TemporaryDirectory() as scratch:
        command = [sys.executable, "-m", "splitglm_cli.main", "cloud", "serve", model, "--json"]
        command += ["--listen", "127.0.0.1:0", "--key-file", str(Path(scratch) / "node.key")]
        command += ["--precision", precision, "--threads", str(threads), *options]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        try:
            line = process.stdout.readline() if process.stdout else ""
            if not line:
                raise SystemExit(f"the cloud did not start: {' '.join(command)}")
            ready = json.loads(line)
            yield CloudProcess(ready["address"], ready["key"], process.pid)
        finally:
            process.terminate()
            process.wait(timeout=20)


@contextmanager
def link_process(upstream: str, *, rtt_ms: float, mbit: float) -> Iterator[str]:
    """The link emulator in front of ``upstream``; yields the address to connect to."""
    command = [sys.executable, "-m", "splitglm_sims.link_emulator", "--upstream", upstream]
    command += ["--rtt-ms", str(rtt_ms), "--mbit", str(mbit)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONUNBUFFERED": "1"})
    try:
        found = re.search(r"127\.0\.0\.1:\d+", process.stdout.readline() if process.stdout else "")
        if found is None:
            raise SystemExit("the link emulator did not start")
        yield found[0]
    finally:
        process.terminate()
        process.wait(timeout=10)
