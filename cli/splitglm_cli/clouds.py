"""The clouds of this user on this machine, as lines of text or values for JSON; what ``ps`` and ``top`` show."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from splitglm_cli.terminal import without_controls
from splitglm_cli.text_table import text_facts, text_table
from splitglm_cloud.engine.stats import EngineStats
from splitglm_cloud.status import ServerStatus, SessionStatus
from splitglm_core.errors import InputError, SplitGlmError

RuntimeDir = Annotated[
    Path | None,
    typer.Option("--runtime-dir", metavar="DIR", envvar="SPLITGLM_RUNTIME_DIR", help="Where the servers' sockets are."),
]
Pid = Annotated[int | None, typer.Argument(metavar="PID", help="Of one server. Default: the only one, or all.")]

_SESSION_HEADINGS = (*("SESSION", "TENANT", "CLASS", "PLAN", "POSITIONS", "STATE", "AGE", "PER S", "KV", "UP", "DOWN"),)


def found_servers(directory: Path | None, pid: int | None) -> list[ServerStatus | SplitGlmError]:
    """The status of every running server, or of the one with this process id; an error for one that hangs.

    Raises:
        InputError: there is no such server.
        DeviceError: the runtime directory is not this user's alone.
    """
    from splitglm_cloud.status_files import default_runtime_dir, servers
    from splitglm_cloud.status_server import ask

    directory = directory.expanduser() if directory is not None else default_runtime_dir()
    entries = [entry for entry in servers(directory) if pid in (None, entry.pid)]
    if pid is not None and not entries:
        raise InputError(f"no cloud of this user has process id {pid}", "splitglm ps lists all")
    answers: list[ServerStatus | SplitGlmError] = []
    for entry in entries:
        try:
            answers.append(ask(directory, entry))
        except SplitGlmError as error:
            answers.append(error)
    return answers


def documents(answers: Sequence[ServerStatus | SplitGlmError]) -> dict[str, Any]:
    """For ``--json``."""
    return {
        "servers": [answer.to_document() for answer in answers if isinstance(answer, ServerStatus)],
        "problems": [answer.one_line() for answer in answers if isinstance(answer, SplitGlmError)],
    }


def servers_text(statuses: Sequence[ServerStatus]) -> str:
    """One line per server."""
    headings = ("PID", "MODEL", "ADDRESS", "STATE", "UP", "STREAMS", "SESSIONS", "KV", "RUNNER")
    rows = [
        (
            *(str(status.pid), status.model, status.listen, _state(status), seconds_text(status.uptime_s)),
            *(str(status.streams), str(len(status.sessions)), _ratio(status.engine), status.runner),
        )
        for status in statuses
    ]
    return _clean(text_table(headings, rows))


def server_text(status: ServerStatus, before: ServerStatus | None = None, *, most_sessions: int | None = None) -> str:
    """All of one server; with an earlier status of it also rates.

    Args:
        most_sessions: busy ones first; the rest is counted.
    """
    parts = [text_facts(_facts(status, before))]
    if status.workers:
        rows = [
            (str(w.number), str(w.pid or "-"), w.state, str(w.restarts), str(w.sessions), w.last_end)
            for w in status.workers
        ]
        parts.append(text_table(("WORKER", "PID", "STATE", "RESTARTS", "SESSIONS", "LAST END"), rows))
    order = sorted(status.sessions, key=lambda one: (one.state not in ("running", "rebuilding"), one.number))
    shown = order[:most_sessions]
    if shown:
        parts.append(text_table(_SESSION_HEADINGS, [_session_row(session) for session in shown]))
    if len(order) > len(shown):
        parts.append(f"{len(order) - len(shown)} more sessions")
    return _clean("\n\n".join(parts))


def size_text(size_bytes: float) -> str:
    """Three digits or so: ``0``, ``512 B``, ``1.2 MB``."""
    for unit in ("B", "kB", "MB", "GB"):
        if size_bytes < 1000:
            return f"{size_bytes:.0f} {unit}" if unit == "B" or size_bytes >= 100 else f"{size_bytes:.1f} {unit}"
        size_bytes /= 1000
    return f"{size_bytes:.1f} TB"


def seconds_text(seconds: float) -> str:
    """``42s``, ``3m07s``, ``5h12m``, ``3d04h``."""
    whole = int(seconds)
    if whole < 60:
        return f"{whole}s"
    for big, small, size in (("m", "s", 60), ("h", "m", 3600), ("d", "h", 86400)):
        if whole < size * {"m": 60, "h": 24, "d": 1 << 30}[big]:
            return f"{whole // size}{big}{whole % size // {'m': 1, 'h': 60, 'd': 3600}[big]:02d}{small}"
    return f"{whole}s"


def _facts(status: ServerStatus, before: ServerStatus | None) -> list[tuple[str, str]]:
    engine = status.engine
    waits = " + ".join(str(count) for count in engine.waiting_by_class)
    facts = [
        ("server", f"{status.model} at {status.listen}, process {status.pid}, up {seconds_text(status.uptime_s)}"),
        ("state", f"{_state(status)}; {status.runner}, {status.executor} executor, splitglm {status.version}"),
        ("streams", f"{status.streams} open, {len(status.sessions)} sessions"),
        (
            "queue",
            f"{engine.riding} aboard, {engine.waiting} waiting ({waits} by class), {engine.waiting_rows} rows, "
            f"oldest {1000 * engine.oldest_wait_s:.0f} ms",
        ),
        ("kv", f"{size_text(engine.kv_used_bytes)} of {size_text(engine.kv_budget_bytes)} ({_ratio(engine)}); "
               f"{engine.evictions} evictions, {engine.preemptions} preemptions"),
        ("sweep", f"{1000 * engine.sweep_s:.1f} ms, {engine.sweeps} so far"),
    ]  # fmt: skip
    elapsed_s = status.uptime_s - before.uptime_s if before is not None else 0.0
    if before is not None and elapsed_s > 0:
        facts.append(("rates", _rates(engine, before.engine, elapsed_s)))
    return facts


def _rates(now: EngineStats, before: EngineStats, elapsed_s: float) -> str:
    batches = sum(now.batches_by_layer) - sum(before.batches_by_layer)
    rows = sum(now.rows_by_layer) - sum(before.rows_by_layer)
    layers = max(1, len(now.rows_by_layer))
    return (
        f"{rows / layers / elapsed_s:.1f} rows/s through all layers, {rows / max(1, batches):.1f} rows a batch, "
        f"{(now.sweeps - before.sweeps) / elapsed_s:.1f} sweeps/s, busy {(now.busy_s - before.busy_s) / elapsed_s:.0%}"
    )


def _session_row(session: SessionStatus) -> tuple[str, ...]:
    return (
        *(str(session.number), session.tenant[:20] or "-", session.criticality, _plan(session)),
        *(str(session.positions), session.state, seconds_text(session.age_s), f"{session.answers_per_s:.1f}"),
        *(size_text(session.kv_bytes), size_text(session.up_bytes), size_text(session.down_bytes)),
    )


def _plan(session: SessionStatus) -> str:
    return f"{session.arm} [{session.s}, {session.t})" if session.arm else "-"


def _state(status: ServerStatus) -> str:
    return "draining" if status.draining else "ready" if status.ready else "not ready"


def _ratio(engine: EngineStats) -> str:
    return f"{engine.kv_used_bytes / max(1, engine.kv_budget_bytes):.0%}"


def _clean(text: str) -> str:
    """Names come from other processes: they must not move the cursor."""
    return without_controls(text)
