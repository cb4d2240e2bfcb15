"""A step under way, and how it is computed anew: which rows go in again, in which portions, before it goes on. Pure."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field, replace

from splitglm_cloud.gateway.received import Entry, ReceivedLog
from splitglm_core.plan import Codec
from splitglm_wire.frames import Reply, Rows, Step
from splitglm_wire.limits import MAX_ROWS


@dataclass(slots=True, eq=False)
class Run:
    """The step that a session has under way.

    Attributes:
        step: as its device sent it.
        since_s: when it came, or when what was computed of it was lost.
        tokens: what it has generated so far and the device was told.
        number: of the submission whose events count; None while it waits for its turn.
        at: position at which that submission begins.
        stop: positions held when it has been applied.
        final: it is the step itself, or its remainder; otherwise only rows that come before.
        waited_us: what its next output has to tell of waiting and computing anew.
    """

    step: Step
    since_s: float
    tokens: list[int] = field(default_factory=list)
    number: int | None = None
    at: int = 0
    stop: int = 0
    final: bool = False
    aborted: bool = False
    waited_us: int = 0

    @property
    def length(self) -> int:
        """Positions after what it has done: its rows and its tokens; the newest token was not run."""
        return self.step.base + self.step.rows + max(0, len(self.tokens) - 1)

    def entries(self, coded: Codec) -> list[Entry]:
        """What it has added to the session, for the log."""
        step = self.step
        added = [Entry(step.base, step.rows, step.rows_kind, coded, step.payload)]
        if len(self.tokens) > 1:
            said = self.tokens[:-1]
            added.append(Entry(step.base + step.rows, len(said), Rows.IDS, coded, pack_ids(said)))
        return added


def portion(run: Run, log: ReceivedLog, session: int, *, at: int, number: int) -> tuple[Step, Codec | None, bool]:
    """The submission that goes on from position ``at``: the step, the codec of its
    rows (None: the plan's), and whether it is the last.

    Tokens that were delivered are inputs now: they are never sampled again. Rows before the step, and delivered tokens
    that do not fit one step with the rest, are only applied.
    """
    step = run.step
    if at < step.base:
        entry = log.entry(session, at)
        coded = entry.codec if entry.kind is Rows.HIDDEN else None
        return _applied(entry.kind, at, entry.rows, entry.payload, number), coded, False
    if not run.tokens:
        return replace(step, seq=number), None, True
    skip = at - step.base
    rows = step.rows + len(run.tokens) - skip
    ids = bytes(step.payload) + pack_ids(run.tokens)
    if rows > MAX_ROWS:
        payload = ids[4 * skip : 4 * (skip + MAX_ROWS)]
        return _applied(Rows.IDS, at, MAX_ROWS, payload, number), None, False
    left = step.generate - len(run.tokens)
    return replace(step, seq=number, base=at, rows=rows, generate=left, payload=ids[4 * skip :]), None, True


def pack_ids(ids: list[int]) -> bytes:
    return struct.pack(f"<{len(ids)}I", *ids)


def _applied(kind: Rows, base: int, rows: int, payload: bytes | memoryview, number: int) -> Step:
    """A step that is only applied; no stream sent it: handle and fence mean nothing."""
    return Step(
        handle=0,
        fence=0,
        seq=number,
        base=base,
        rows_kind=kind,
        rows=rows,
        reply=Reply.ACK,
        generate=0,
        payload=payload,
    )
