"""Errors become one line and the exit code of the one table, which docs/cli.md repeats truly."""

from __future__ import annotations

import errno
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from cli_runs import COMMAND, Run, finish, one_line_error, start

from splitglm_cli.main import as_ours
from splitglm_core import errors
from splitglm_core.errors import STATUS_TABLE, DeviceError, StorageFull
from splitglm_glm.store import ModelStore

DOCUMENT = Path(__file__).parents[2] / "docs" / "cli.md"
OWN_CODES = {0: "success", 1: "the reader of the output went away", 2: "the command line cannot be parsed"}


def documented_codes() -> dict[int, set[str]]:
    """Rows ``| code | `Name`, `Name` | …`` of the table of exit codes."""
    rows = re.findall(r"^\| (\d+) \|([^|]*)\|", DOCUMENT.read_text(encoding="utf-8"), re.MULTILINE)
    return {int(code): set(re.findall(r"`(\w+)`", names)) for code, names in rows}


def test_the_documented_exit_codes_are_those_of_the_table() -> None:
    expected: dict[int, set[str]] = {code: set() for code in OWN_CODES}
    for kind, status in STATUS_TABLE:
        expected.setdefault(status.exit_code, set()).add(kind.__name__)
    assert documented_codes() == expected


def test_every_error_of_the_tree_has_a_row_or_inherits_one() -> None:
    kinds = [
        kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.SplitGlmError)
    ]
    listed = {kind for kind, _ in STATUS_TABLE}
    assert len(kinds) > 15
    assert all(listed & set(kind.__mro__) for kind in kinds)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "x"), StorageFull),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), StorageFull),
        (PermissionError(errno.EACCES, "Permission denied", "x"), DeviceError),
        (MemoryError(), DeviceError),
        (ModuleNotFoundError("no", name="onnxruntime.capi"), DeviceError),
    ],
)
def test_the_machines_errors_become_ours(error: BaseException, kind: type[BaseException]) -> None:
    assert type(as_ours(error)) is kind


def test_an_unforeseen_error_is_one_line_and_a_traceback_only_with_debug(
    splitglm: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: ModelStore) -> None:
        raise ZeroDivisionError("first line\nsecond line")

    monkeypatch.setattr(ModelStore, "list", broken)
    outcome = splitglm("ls")
    assert outcome.code == 70
    line = one_line_error(outcome)
    assert "internal error ZeroDivisionError: first line second line" in line and "--debug" in line
    shown = splitglm("ls", "--debug")
    assert shown.code == 70 and "Traceback" in shown.err and "in broken" in shown.err


def test_a_reader_that_goes_away_ends_the_command_quietly(tiny: str) -> None:
    read, write = os.pipe()
    os.close(read)
    process = start("run", tiny, "hello", "--max-tokens", "50", "--ignore-eos", "--quiet", stdout=write)
    os.close(write)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (1, "")


@pytest.mark.skipif(sys.platform != "linux", reason="huge pages are asked for on Linux only")
def test_long_running_verbs_relaunch_once_with_huge_pages_unless_told_not_to(tiny: str) -> None:
    policy = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    if not policy.exists() or "[never]" in policy.read_text():
        pytest.skip("this kernel gives no huge pages")
    arguments = ("run", tiny, "hello", "--max-tokens", "2", "--json")
    free = {name: value for name, value in os.environ.items() if name not in ("SPLITGLM_HUGE_PAGES", "GLIBC_TUNABLES")}
    with_pages = finish(start(*arguments, env=free))
    without = finish(start(*arguments, env={**free, "SPLITGLM_HUGE_PAGES": "0"}))
    assert with_pages.document()["machine"]["huge_pages"] == {"active": True, "reason": ""}
    assert without.document()["machine"]["huge_pages"]["active"] is False


def test_sigterm_unwinds_like_ctrl_c(tiny: str) -> None:
    process = start("chat", tiny)
    assert process.stderr is not None
    assert process.stderr.readline()  # it is ready when it says how to end
    process.send_signal(signal.SIGTERM)
    assert finish(process).code == 128 + signal.SIGTERM


def test_the_installed_script_and_the_module_are_the_same_command() -> None:
    script = Path(sys.executable).with_name("splitglm")
    if not script.exists():
        pytest.skip("splitglm is not installed as a script here")
    outputs = [subprocess.run([*c, "--help"], capture_output=True, check=True).stdout for c in ([script], COMMAND)]
    assert outputs[0] == outputs[1]
