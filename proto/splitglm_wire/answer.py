"""The reply of the last applied step, kept for a device that lost it, and what makes a step the same step again."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace

from splitglm_wire.frames import Result, Step


@dataclass(slots=True)
class Answer:
    """Tokens are kept as numbers, not as frames: a reply may have a hundred thousand.

    Attributes:
        step_digest: ``digest`` of the step.
        history: tokens of the whole reply up to the end of the step.
        first: where this step's tokens begin in ``history``.
        base: positions after the step's rows.
        end: the last part.
    """

    step_digest: bytes
    history: list[int]
    first: int
    base: int
    end: Result

    def parts(self, known: tuple[int, ...]) -> list[Result]:
        """What a device lacks that has the tokens ``known`` of the whole reply; the last part in any case."""
        same = known == tuple(self.history[: len(known)])
        skip = min(max(0, len(known) - self.first), self.end.index) if same else 0
        return [self._token(index) for index in range(skip, self.end.index)] + [self.end]

    def _token(self, index: int) -> Result:
        return replace(
            self.end,
            index=index,
            last=False,
            kv_length=self.base + index,
            rows=1,
            queue_us=0,
            sweep_us=0,
            compute_us=0,
            payload=self.history[self.first + index].to_bytes(4, "little"),
        )


def digest(step: Step) -> bytes:
    """Identity of a step's content: everything but the handle and fence, which change on a new stream."""
    head = f"{step.seq}|{step.base}|{step.rows_kind:d}|{step.rows}|{step.reply:d}|{step.generate}|".encode()
    return hashlib.sha256(head + bytes(step.payload)).digest()
