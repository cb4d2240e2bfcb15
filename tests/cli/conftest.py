"""A home of its own for the command, a tiny model in it, and a server."""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from glm_factory import write_tiny_checkpoint

from splitglm_cli.main import main

sys.path.insert(0, str(Path(__file__).parent))

from cli_runs import CONTEXT, LAYERS, Outcome, Run, Served, serve


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Store and configuration of every run in this folder; the user's own stay untouched."""
    folder = tmp_path_factory.mktemp("home")
    patch = pytest.MonkeyPatch()
    for name in [name for name in os.environ if name.startswith("SPLITGLM_")]:
        patch.delenv(name)
    patch.setenv("SPLITGLM_HOME", str(folder / "store"))
    patch.setenv("XDG_CONFIG_HOME", str(folder / "config"))
    patch.setenv("SPLITGLM_THREADS", "1")
    runtime = tempfile.mkdtemp(prefix="sg")  # short: sockets have short names
    patch.setenv("SPLITGLM_RUNTIME_DIR", runtime)
    # Every start of a process is once instead of twice; test_main.py watches the relaunch itself.
    patch.setenv("SPLITGLM_HUGE_PAGES", "0")
    yield folder
    patch.undo()
    shutil.rmtree(runtime, ignore_errors=True)


@pytest.fixture(scope="session")
def tiny(home: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The name of a stored random model of four layers, with its int8 graphs and room for answers of some seconds."""
    source = write_tiny_checkpoint(tmp_path_factory.mktemp("source") / "tiny", layers=LAYERS)
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**config, "max_position_embeddings": CONTEXT}))
    assert main(["pull", str(source), "--precision", "int8", "--quiet"]) == 0
    return "tiny"


@pytest.fixture(scope="session")
def other(home: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Another model of the same shape."""
    source = write_tiny_checkpoint(tmp_path_factory.mktemp("source") / "other", layers=LAYERS, seed=7)
    assert main(["pull", str(source), "--precision", "int8", "--quiet"]) == 0
    return "other"


@pytest.fixture
def splitglm(home: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command line in this process."""

    def run(*arguments: str) -> Outcome:
        capsys.readouterr()
        code = main(list(arguments))
        captured = capsys.readouterr()
        return Outcome(code, captured.out, captured.err)

    return run


@pytest.fixture(scope="session")
def cloud(tiny: str, home: Path) -> Iterator[Served]:
    """A cloud with the tiny model that every test may use."""
    yield from serve(tiny, "--key-file", str(home / "cloud" / "node.key"))
