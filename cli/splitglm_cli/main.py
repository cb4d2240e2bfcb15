"""The one place where an error becomes one line on standard error and an exit code.

Exit codes: those of ``splitglm_core.errors.STATUS_TABLE``; 2 for a command line that cannot be parsed (the convention
of the option parser), 1 when whoever read our output went away, 0 otherwise. docs/cli.md lists them all.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from types import FrameType
from typing import Final, NoReturn

from splitglm_cli.invocation import Invocation
from splitglm_core.errors import DeviceError, InputError, SplitGlmError, StorageFull, status_of
from splitglm_glm.huge_pages import relaunch_with_huge_pages

PROGRAM: Final = "splitglm"
READER_GONE: Final = 1
INTERRUPTED: Final = status_of(KeyboardInterrupt()).exit_code
# These hold weights in memory for more than a moment.
_LONG_RUNNING: Final = ("run", "chat", "demo", "cloud")
_FOR_SIMULATION: Final = ("simpy", "matplotlib")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line ``argv`` (default: this process's) and return the exit code."""
    if argv is None:
        argv = sys.argv[1:]
        signal.signal(signal.SIGTERM, _terminate)
        # Before anything heavy is loaded: the process image is replaced, and what was loaded is loaded again.
        if argv and argv[0] in _LONG_RUNNING and "--help" not in argv:
            relaunch_with_huge_pages()
    invocation = Invocation(debug=bool(os.environ.get("SPLITGLM_DEBUG")))
    try:
        code = _dispatch(list(argv), invocation)
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        _forget_stdout()
        return READER_GONE
    except (Exception, KeyboardInterrupt) as error:
        return _report(error, debug=invocation.debug)


def _dispatch(argv: list[str], invocation: Invocation) -> int:
    import typer

    from splitglm_cli.app import app

    try:
        code = app(args=argv, prog_name=PROGRAM, standalone_mode=False, obj=invocation)
    except typer.TyperException as error:
        where = getattr(getattr(error, "ctx", None), "command_path", PROGRAM)
        _say(f"{one_line(error.format_message()).rstrip('.')}. Try: {where} --help")
        return error.exit_code
    except typer.Abort:
        return _report(KeyboardInterrupt(), debug=False)
    except SystemExit as error:  # SIGTERM, or what the option parser does when a pipe breaks
        return error.code if isinstance(error.code, int) else READER_GONE
    if code == INTERRUPTED:
        return _report(KeyboardInterrupt(), debug=False)
    return code if isinstance(code, int) else 0


def _report(error: BaseException, *, debug: bool) -> int:
    """Say what went wrong in one line; a traceback only when asked for."""
    if debug:
        traceback.print_exception(error)
    known = as_ours(error)
    if known is not None:
        _say(known.one_line())
        return status_of(known).exit_code
    if isinstance(error, KeyboardInterrupt):
        _say("interrupted")
    else:
        kind, text = type(error).__name__, one_line(str(error))[:200]
        advice = "" if debug else " (run with --debug for the traceback, and please report it)"
        _say(f"internal error {kind}: {text}{advice}")
    return status_of(error).exit_code


def _terminate(number: int, frame: FrameType | None) -> NoReturn:
    """SIGTERM unwinds like Ctrl-C, so that sessions and child processes end with us."""
    raise SystemExit(128 + number)


def as_ours(error: BaseException) -> SplitGlmError | None:
    """The error of our own tree that ``error`` is or amounts to; None for a fault of ours."""
    if isinstance(error, SplitGlmError):
        return error
    if isinstance(error, OSError):
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return StorageFull(f"the disk is full{_where(error)}", "free some space, then run the same command again")
        if error.errno is not None:
            return DeviceError(f"{error.strerror}{_where(error)}", "check path and permissions")
    if isinstance(error, RuntimeError) and str(error).startswith("Could not determine home directory"):
        return InputError("a path begins with ~ and a name that no user of this machine has", "write the whole path")
    if isinstance(error, MemoryError):
        return DeviceError("this machine has not enough memory", "use --precision int4, or a smaller --context")
    if isinstance(error, ModuleNotFoundError):
        package = (error.name or "a package").partition(".")[0]
        extra = "sims" if package in _FOR_SIMULATION else "edge,cloud"
        return DeviceError(f"the package {package} is not installed", f"pip install 'splitglm[{extra}]'")
    return None


def one_line(text: str) -> str:
    """``text`` without line breaks and other control characters."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def _where(error: OSError) -> str:
    return f": {error.filename}" if error.filename else ""


def _say(text: str) -> None:
    # With nobody to read it the exit code still tells.
    with contextlib.suppress(OSError, ValueError):
        print(f"{PROGRAM}: {one_line(text)}", file=sys.stderr, flush=True)


def _forget_stdout() -> None:
    """Keep the interpreter from complaining about the broken pipe once more at its end."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
