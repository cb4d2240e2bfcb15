"""What a server tells people of the same user on the same machine: ``splitglm ps`` and ``splitglm top``. Values only.

Nothing here gives a right or shows content: a session is named by a number of this process, not by its id.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

from splitglm_cloud.engine.stats import EngineStats
from splitglm_core.errors import ProtocolError

STATUS_FORMAT: Final = 1
SESSION_STATES: Final = ("away", "idle", "running", "rebuilding")


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionStatus:
    """One session.

    Attributes:
        number: of this process; the same in traces.
        tenant: whose it is.
        criticality: class of its reply at hand, such as ``critical``.
        arm: kind of its plan; ``s`` and ``t`` are its cut.
        positions: of its keys and values.
        state: ``away`` (its device is not connected), ``idle``, ``running`` (a step waits or is computed) or
            ``rebuilding`` (its keys and values are computed anew).
        age_s: since it was opened.
        answers_per_s: of the reply at hand; an answer is a token or, with the tail on the device, a step's rows.
        kv_bytes: what its positions take.
        up_bytes, down_bytes: payloads.
    """

    number: int
    tenant: str
    criticality: str
    arm: str
    s: int
    t: int
    positions: int
    state: str
    age_s: float
    answers_per_s: float
    kv_bytes: int
    up_bytes: int
    down_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerStatus:
    """One worker process.

    Attributes:
        number: its place among the server's workers.
        pid: 0 while there is no process.
        state: one of ``telemetry.WORKER_STATES``.
        restarts: how often this place had to be filled again.
        sessions: that it holds.
        last_end: why its process ended last time; empty if it never did.
    """

    number: int
    pid: int
    state: str
    restarts: int = 0
    sessions: int = 0
    last_end: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerStatus:
    """A server at one moment.

    Attributes:
        runner: runtime and device.
        listen: address with the port that was bound.
        ready, draining: whether new work is taken, and whether it is shutting down.
        uptime_s: since it listens.
        streams: open connections.
        engine: all engines together.
    """

    pid: int
    version: str
    model: str
    runner: str
    executor: str
    listen: str
    ready: bool
    draining: bool
    uptime_s: float
    streams: int
    engine: EngineStats
    workers: tuple[WorkerStatus, ...] = ()
    sessions: tuple[SessionStatus, ...] = field(default=())

    def to_document(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {"format": STATUS_FORMAT, **dataclasses.asdict(self)}

    @classmethod
    def from_document(cls, document: Any) -> ServerStatus:
        """What ``to_document`` wrote, perhaps by another version.

        Raises:
            ProtocolError: it is not of this form.
        """
        if not isinstance(document, dict) or document.get("format") != STATUS_FORMAT:
            raise ProtocolError(
                "the server's status has another format", "use the splitglm that the server was started with"
            )
        try:
            parts = {
                **document,
                "engine": _made(EngineStats, document["engine"]),
                "workers": tuple(_made(WorkerStatus, worker) for worker in document["workers"]),
                "sessions": tuple(_made(SessionStatus, session) for session in document["sessions"]),
            }
            return _made(cls, parts)
        except (KeyError, TypeError, ValueError):
            raise ProtocolError("the server's status cannot be read") from None


T = TypeVar("T")


def _made(kind: type[T], values: dict[str, Any]) -> T:
    names = [item.name for item in dataclasses.fields(kind)]  # type: ignore[arg-type]
    return kind(**{name: _frozen(values[name]) for name in names if name in values})


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
