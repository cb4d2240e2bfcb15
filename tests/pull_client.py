"""A pull in a process of its own, which can be held at a point of its progress and killed there."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

# One progress line each; with HOLD_AT set, waits for ever at the first line that starts with it.
CLIENT = textwrap.dedent(
    """
    import json, os, sys, threading
    from pathlib import Path
    from splitglm_core.errors import SplitGlmError
    from splitglm_glm.pull import pull
    from splitglm_glm.store import ModelStore

    def progress(stage, done, total):
        print(stage, done, total, flush=True)
        hold = os.environ.get("HOLD_AT")
        if hold and stage == hold and done > int(os.environ.get("HOLD_BYTES", "0")):
            print("HELD", flush=True)
            threading.Event().wait()

    try:
        options = json.loads(sys.argv[3])
        print("DONE", pull(sys.argv[1], ModelStore(Path(sys.argv[2])), progress=progress, **options), flush=True)
    except SplitGlmError as error:
        print("ERROR", type(error).__name__, error.one_line(), flush=True)
    """
)


def command(what: str, store: Path, **options: Any) -> list[str]:
    return [sys.executable, "-c", CLIENT, what, str(store), json.dumps(options)]


def kill_when_held(argv: list[str], env: dict[str, str]) -> None:
    """Run a pull and kill it, for good and without warning, at the point where it holds itself."""
    with subprocess.Popen(argv, env=env, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert any(line == "HELD\n" for line in process.stdout), "the pull ended before it was killed"
        process.kill()
    assert process.returncode < 0


def files_of(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}
