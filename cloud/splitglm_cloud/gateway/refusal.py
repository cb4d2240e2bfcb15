"""What a device is told when the server does not do what it asks. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from splitglm_wire.frames import Error, ErrorCode, Frame, Scope, Step


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why not. Nothing was done and nothing changed.

    Attributes:
        text: one of ours, never content.
        retry_after_s: when it may be otherwise; 0 without a guess.
    """

    code: ErrorCode
    text: str
    retry_after_s: float = 0.0

    def of_step(self, step: Step, *, have: int) -> Error:
        """Only this step is refused; the session stands at ``have`` positions."""
        return self._error(step, Scope.STEP, seq=step.seq, have=have)

    def of_session(self, frame: Frame) -> Error:
        """All that the device wants of the session is refused."""
        return self._error(frame, Scope.SESSION, seq=0, have=0)

    def _error(self, frame: Frame, scope: Scope, *, seq: int, have: int) -> Error:
        return Error(
            handle=frame.handle,
            fence=getattr(frame, "fence", 0),
            seq=seq,
            code=self.code,
            scope=scope,
            resumable=self.code is ErrorCode.OVERLOADED,
            retry_after_ms=round(1000 * self.retry_after_s),
            have=have,
            text=self.text,
        )
