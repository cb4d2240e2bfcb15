"""Where the engine runs. ``Executor`` is the interface; ``inline`` and ``process`` are its implementations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from splitglm_cloud.engine.events import Owner
from splitglm_cloud.engine.stats import EngineStats
from splitglm_cloud.execution.seats import WorkerFacts
from splitglm_wire.cloud import Configure
from splitglm_wire.frames import Step


class Commands(Protocol):
    """What sessions ask of an executor. Every method returns at once; none of them raises for a session's fault."""

    def configure(self, session: int, config: Configure, owner: Owner) -> None: ...

    def submit(self, session: int, step: Step) -> None: ...

    def abort(self, session: int, seq: int) -> None: ...

    def cut(self, session: int, length: int) -> None: ...

    def drop(self, session: int) -> None: ...

    def stats(self) -> EngineStats:
        """What the engines said of themselves last, at most some tens of milliseconds ago; never blocks."""

    @property
    def ready(self) -> bool:
        """Whether steps are computed now; False while every worker is starting or being replaced."""


class Executor(Commands, Protocol):
    """Runs sessions' steps somewhere.

    Events come back through the ``emit`` that an implementation was made with, on a thread of its own. Through
    ``on_lost`` come the sessions of an engine that broke: what they held is gone, and what they ran gets no answer.
    """

    def stop(self, timeout_s: float) -> bool:
        """Finish the running batch and free everything. False when it did not end in time."""

    def workers(self) -> Sequence[WorkerFacts]:
        """Processes that compute; none where the engine is a thread."""
