"""How long the device waits for its cloud before it does something else."""

from __future__ import annotations

from dataclasses import dataclass

from splitglm_core.errors import InputError


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeouts:
    """Seconds of patience, each for another kind of silence.

    Attributes:
        connect_s: for a connection and its handshake.
        silence_s: after which a cloud that does not even answer a ping counts as gone, however long a step may take.
            Time for bytes still on their way up is added.
        step_s: for one answer of a cloud that is alive.
        busy_s: for a busy cloud to take what it refused, in all and without progress; then the device does it alone, or
            the caller is told.
        rejoin_s: to get a lost cloud back when nothing else can finish the reply.
    """

    connect_s: float = 5.0
    silence_s: float = 1.5
    step_s: float = 30.0
    busy_s: float = 5.0
    rejoin_s: float = 15.0

    def __post_init__(self) -> None:
        if not all(0.0 < value <= 86400.0 for value in (self.connect_s, self.silence_s, self.step_s)):
            raise InputError("connect_s, silence_s and step_s must lie in (0, 86400] seconds")
        if not (0.0 <= self.rejoin_s <= 86400.0 and 0.0 <= self.busy_s <= 86400.0):
            raise InputError("rejoin_s and busy_s must lie in [0, 86400] seconds")
