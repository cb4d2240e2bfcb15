"""The log of received rows: what the sessions' devices sent, still coded, so that lost keys and values can be computed
anew without asking a device.

Pure bookkeeping of bytes under one budget for all sessions. A session's log holds its positions ``[0, length)`` or
nothing. When the budget is short, the sessions that rested longest lose their logs (from then on only their devices
can rebuild them); the log of a session at work is never taken for another's.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import OrderedDict
from dataclasses import dataclass
from typing import Final

from splitglm_core.errors import InternalError
from splitglm_core.plan import Codec
from splitglm_wire.codec import max_rows, payload_bytes
from splitglm_wire.frames import Rows
from splitglm_wire.limits import MAX_ROWS

PART_BYTES: Final = 256
"""What a part costs beside its payload: the objects that hold it."""


@dataclass(frozen=True, slots=True)
class Entry:
    """Rows of positions ``[base, base + rows)``; ``codec`` says how hidden states are coded and nothing about ids."""

    base: int
    rows: int
    kind: Rows
    codec: Codec
    payload: bytes | memoryview

    @property
    def stop(self) -> int:
        return self.base + self.rows


@dataclass(slots=True, eq=False)
class _Part:
    """Adjacent rows of one kind and codec, as many as fit one step."""

    base: int
    rows: int
    kind: Rows
    codec: Codec
    data: bytearray

    @property
    def stop(self) -> int:
        return self.base + self.rows

    @property
    def cost_bytes(self) -> int:
        return PART_BYTES + len(self.data)


class ReceivedLog:
    """Rows of many sessions.

    Args:
        budget_bytes: for payloads and their bookkeeping together; 0 keeps nothing.
        hidden: width of the model's hidden states.
    """

    def __init__(self, *, budget_bytes: int, hidden: int) -> None:
        self.budget_bytes = budget_bytes
        self.used_bytes = 0
        self._hidden = hidden
        self._parts: OrderedDict[int, list[_Part]] = OrderedDict()  # longest unused first
        self._at_work: set[int] = set()

    def __len__(self) -> int:
        """Sessions that have a log."""
        return len(self._parts)

    def length(self, session: int) -> int:
        parts = self._parts.get(session)
        return parts[-1].stop if parts else 0

    def covers(self, session: int, length: int) -> bool:
        """True when the first ``length`` positions can be computed anew from here."""
        return self.length(session) >= length

    def hold(self, session: int) -> None:
        """The session has begun to work: others' needs do not take its log."""
        self._at_work.add(session)
        if session in self._parts:
            self._parts.move_to_end(session)

    def rest(self, session: int) -> None:
        """The session's step has ended."""
        self._at_work.discard(session)

    def append(self, session: int, entry: Entry) -> tuple[int, ...]:
        """Add rows behind those held; later positions that are held give way to them.

        Returns:
            The sessions that lost their logs to make room, ``session`` itself if there is no room for it.
            Rows that do not follow what is held are not kept: the log before them is lost already.
        """
        self.cut(session, entry.base)
        if entry.base != self.length(session) or entry.rows < 1:
            return ()
        parts = self._parts.setdefault(session, [])
        self._parts.move_to_end(session)
        last = parts[-1] if parts else None
        if last is not None and self._fits(last, entry):
            last.data += entry.payload
            last.rows += entry.rows
            self.used_bytes += len(entry.payload)
        else:
            if last is not None:
                last.data = bytearray(last.data)  # a full part gives back what it had in reserve
            part = _Part(entry.base, entry.rows, entry.kind, entry.codec, bytearray(entry.payload))
            parts.append(part)
            self.used_bytes += part.cost_bytes
        return self._make_room(session)

    def cut(self, session: int, length: int) -> None:
        """Forget positions from ``length`` on."""
        parts = self._parts.get(session, [])
        while parts and parts[-1].stop > length:
            part = parts[-1]
            if part.base >= length:
                self.used_bytes -= parts.pop().cost_bytes
                continue
            self.used_bytes -= part.cost_bytes
            part.rows = length - part.base
            part.data = part.data[: self._size(part.kind, part.codec, part.rows, part.base)]
            self.used_bytes += part.cost_bytes
        if not parts:
            self._parts.pop(session, None)

    def forget(self, session: int) -> None:
        """Forget everything about the session."""
        self.cut(session, 0)
        self._at_work.discard(session)

    def entry(self, session: int, position: int) -> Entry:
        """The rows from ``position`` on, as many as are to be computed in one step.

        Raises:
            InternalError: no part begins at this position.
        """
        parts = self._parts.get(session, [])
        at = bisect_left(parts, position, key=lambda part: part.base)
        if at == len(parts) or parts[at].base != position:
            raise InternalError("the log of received rows is read where nothing begins")
        part = parts[at]
        return Entry(part.base, part.rows, part.kind, part.codec, bytes(part.data))

    def check_integrity(self) -> None:
        """Raise InternalError where the books do not agree."""
        used_bytes = 0
        for parts in self._parts.values():
            position = 0
            for part in parts:
                if part.base != position or len(part.data) != self._size(part.kind, part.codec, part.rows, part.base):
                    raise InternalError("a log of received rows has a hole")
                position = part.stop
                used_bytes += part.cost_bytes
            if not parts:
                raise InternalError("an empty log of received rows is kept")
        if used_bytes != self.used_bytes or used_bytes > self.budget_bytes:
            raise InternalError("the logs of received rows are not what they are counted as")

    def _fits(self, part: _Part, entry: Entry) -> bool:
        if (part.kind, part.codec) != (entry.kind, entry.codec):
            return False
        limit = MAX_ROWS if part.kind is Rows.IDS else max_rows(part.codec, self._hidden)
        return part.rows + entry.rows <= limit

    def _size(self, kind: Rows, codec: Codec, rows: int, base: int) -> int:
        return 4 * rows if kind is Rows.IDS else payload_bytes(codec, rows, self._hidden, base)

    def _make_room(self, newcomer: int) -> tuple[int, ...]:
        lost: list[int] = []
        if self.used_bytes > self.budget_bytes:
            for session in [key for key in self._parts if key != newcomer and key not in self._at_work]:
                self.cut(session, 0)
                lost.append(session)
                if self.used_bytes <= self.budget_bytes:
                    return tuple(lost)
            self.cut(newcomer, 0)
            lost.append(newcomer)
        return tuple(lost)
