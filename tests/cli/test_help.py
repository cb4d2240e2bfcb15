"""The command starts fast, explains itself, and refuses what it does not know in one line."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest
from cli_runs import COMMAND, Run, one_line_error

from splitglm_core.version import VERSION

VERBS = (
    *(("pull",), ("ls",), ("show",), ("rm",), ("run",), ("chat",), ("plan",), ("profile",), ("doctor",), ("demo",)),
    *(("cloud", "serve"), ("cloud", "config"), ("keys", "show"), ("keys", "pin"), ("keys", "pins")),
    *(("keys", "unpin"), ("keys", "pair"), ("ps",), ("top",), ("load",), ("replay",)),
    *(("sim", "run"), ("sim", "compare"), ("sim", "list")),
)
HEAVY = ("numpy", "onnxruntime", "onnx", "grpc", "tokenizers", "torch", "rich", "jinja2", "simpy", "matplotlib")


def test_help_starts_within_four_tenths_of_a_second() -> None:
    """The best of five starts: the machine may be busy, the program may not be slow."""
    seconds = []
    for _ in range(5):
        started_s = time.perf_counter()
        subprocess.run([*COMMAND, "--help"], check=True, capture_output=True)
        seconds.append(time.perf_counter() - started_s)
    assert min(seconds) < 0.4


def test_help_loads_nothing_heavy() -> None:
    program = "import sys, splitglm_cli.main as m; m.main(['run', '--help']); print(*sys.modules, file=sys.stderr)"
    result = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert "--split" in result.stdout
    assert not set(HEAVY) & {name.partition(".")[0] for name in result.stderr.split()}


@pytest.mark.parametrize("verb", VERBS, ids=" ".join)
def test_every_verb_explains_itself(splitglm: Run, verb: tuple[str, ...]) -> None:
    outcome = splitglm(*verb, "--help")
    assert outcome.code == 0 and outcome.err == ""
    assert f"Usage: splitglm {' '.join(verb)}" in outcome.out and "--debug" in outcome.out


@pytest.mark.parametrize("group", [(), ("cloud",), ("keys",), ("sim",)])
def test_without_a_verb_the_help_is_shown(splitglm: Run, group: tuple[str, ...]) -> None:
    outcome = splitglm(*group)
    assert outcome.code == 0 and "Commands:" in outcome.out


def test_version(splitglm: Run) -> None:
    assert splitglm("--version").out == f"splitglm {VERSION}\n"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("run", "m", "hi", "--tempature", "1"), "No such option: --tempature"),
        (("frob",), "No such command 'frob'"),
        (("run",), "Missing argument 'MODEL'"),
        (("run", "m", "hi", "--top-k", "many"), "--top-k"),
        (("run", "m", "hi", "--privacy", "secret"), "--privacy"),
        (("keys", "pin", "a:1"), "Missing argument 'KEY'"),
    ],
)
def test_a_command_line_that_cannot_be_parsed_is_one_line_and_exit_2(
    splitglm: Run, arguments: tuple[str, ...], said: str
) -> None:
    outcome = splitglm(*arguments)
    line = one_line_error(outcome)
    assert outcome.code == 2
    assert said in line and "--help" in line
