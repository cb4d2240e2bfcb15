"""An executor in integer arithmetic that loses what it is told to lose, with commands and events still on their way.

Every position's state depends on the coded bytes of all rows before it, and every token on state, position and the
sampler's history: a lost, repeated or misplaced row, or a sampler with the wrong history, gives other tokens.
"""

from __future__ import annotations

import struct
import zlib
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from splitglm_cloud.engine.events import Event, Evicted, Failure, Owner
from splitglm_core.plan import Codec
from splitglm_wire.actions import Abort, Configure, Cut, Drop, Output, Submit
from splitglm_wire.codec import payload_bytes
from splitglm_wire.frames import ErrorCode, Reply, Rows, Step
from splitglm_wire.limits import MAX_ROWS

HIDDEN = 2
VOCAB = 5000


def rows_of(step: Step, codec: Codec) -> list[bytes]:
    """A step's rows as single pieces; a token's row is its id, whoever sends it."""
    rows, at = [], 0
    for position in range(step.base, step.base + step.rows):
        size = 4 if step.rows_kind is Rows.IDS else payload_bytes(codec, 1, HIDDEN, position)
        rows.append(bytes(step.payload[at : at + size]))
        at += size
    assert at == len(step.payload), "the rows are read in another codec than they were sent in"
    return rows


def run(states: list[int], rows: Sequence[bytes]) -> None:
    for row in rows:
        states.append(zlib.crc32(row, states[-1] if states else 1))


def sample(states: Sequence[int], history: Sequence[int], config: Configure) -> int:
    said = history if config.sampling.needs_history else ()
    return zlib.crc32(struct.pack(f"<{len(said) + 3}I", states[-1], len(states), config.sampling.seed, *said)) % VOCAB


def tokens_of(states: list[int], history: Sequence[int], config: Configure, generate: int) -> list[int]:
    """What a step that generates says; ``states`` grows by what it runs."""
    out: list[int] = []
    while True:
        out.append(sample(states, [*history, *out], config))
        if out[-1] in config.stop_ids or len(out) == generate:
            return out
        run(states, [struct.pack("<I", out[-1])])


@dataclass(slots=True)
class Slot:
    config: Configure
    history: list[int]
    states: list[int] = field(default_factory=list)
    step: Step | None = None
    rows: list[bytes] = field(default_factory=list)  # of the step, not yet run
    generated: int = 0
    aborted: bool = False


class LosingExecutor:
    """``work`` does one thing; ``events`` fills up and is emptied by the owner."""

    def __init__(self) -> None:
        self.slots: dict[int, Slot] = {}
        self.commands: deque[tuple[int, Any]] = deque()
        self.events: deque[tuple[int, Event] | frozenset[int]] = deque()  # a set: these sessions were lost
        self.rows_run = 0
        self.portion = 3  # rows per piece of work
        self.refuse: ErrorCode | None = None  # what comes of the next piece of work

    # The executor's commands

    def configure(self, session: int, config: Configure, owner: Owner) -> None:
        self.commands.append((session, config))

    def submit(self, session: int, step: Step) -> None:
        self.commands.append((session, Submit(step)))

    def abort(self, session: int, seq: int) -> None:
        self.commands.append((session, Abort(seq)))

    def cut(self, session: int, length: int) -> None:
        self.commands.append((session, Cut(length)))

    def drop(self, session: int) -> None:
        self.commands.append((session, Drop()))

    # What happens

    @property
    def busy(self) -> list[int]:
        return [session for session, slot in self.slots.items() if slot.step is not None]

    def hear(self) -> bool:
        """Take one command."""
        if not self.commands:
            return False
        session, command = self.commands.popleft()
        slot = self.slots.get(session)
        match command:
            case Configure():
                if slot is None or slot.config.plan.back != command.plan.back:
                    slot = self.slots[session] = Slot(command, [])
                assert slot.step is None, "configured while a step runs"
                slot.config, slot.history = command, list(command.generated)
                del slot.states[command.keep :]
            case Submit():
                assert 0 < command.step.rows <= MAX_ROWS
                if slot is None or slot.step is not None or len(slot.states) != command.step.base:
                    self._emit(session, Failure(command.step.seq, ErrorCode.INTERNAL, "not now"))
                else:
                    slot.step, slot.generated, slot.aborted = command.step, 0, False
                    slot.rows = rows_of(command.step, slot.config.plan.codec)
            case Abort():
                if slot is not None and slot.step is not None and slot.step.seq == command.seq:
                    slot.aborted = True
            case Cut():
                if slot is not None:
                    del slot.states[command.length :]
            case Drop():
                self.slots.pop(session, None)
        return True

    def work(self, session: int) -> None:
        """A piece of the session's step: some rows, or one token."""
        slot = self.slots[session]
        step = slot.step
        assert step is not None
        if self.refuse is not None:
            code, self.refuse, slot.step = self.refuse, None, None
            self._emit(session, Failure(step.seq, code, "refused", retry_after_s=0.25))
            return
        now, slot.rows = slot.rows[: self.portion], slot.rows[self.portion :]
        run(slot.states, now)
        self.rows_run += len(now)
        if slot.rows:
            return
        payload, last = b"", True
        if step.reply is Reply.TOKEN:
            token = sample(slot.states, slot.history, slot.config)
            slot.history.append(token)
            slot.generated += 1
            payload = struct.pack("<I", token)
            last = slot.aborted or token in slot.config.stop_ids or slot.generated == step.generate
            slot.rows = [payload]
        elif step.reply is not Reply.ACK:
            first = step.base if step.reply is Reply.ALL_HIDDEN else -1
            payload = struct.pack(f"<{len(slot.states[first:])}I", *slot.states[first:])
        if last:
            slot.step = None
        self._emit(session, Output(step.seq, len(payload) // 4, payload, last))

    def evict(self, session: int) -> None:
        slot = self.slots[session]
        step, slot.step = slot.step, None
        slot.states.clear()
        self._emit(session, Evicted(None if step is None else step.seq))

    def crash(self) -> None:
        """The worker dies with what it was told and had not heard; the next one knows nothing."""
        held = {session for session, command in self.commands if not isinstance(command, Drop)} | set(self.slots)
        self.slots.clear()
        self.commands.clear()
        self.events.append(frozenset(held))

    def _emit(self, session: int, event: Event) -> None:
        self.events.append((session, event))
