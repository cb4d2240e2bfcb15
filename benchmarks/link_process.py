"""An emulated link as a process of its own: in the measured process, the interpreter lock would be part of the link."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager


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
