"""The executor as the sessions see it: what it loses is rebuilt behind their back. The shell around ``Rebuilder``.

Everything here runs on the event loop's thread. Orders reach the executor at once and in order; events reach the
sessions only from outside of their own calls, so a table that asks something never finds itself told something.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable

from splitglm_cloud.engine.events import Emit, Event, Owner
from splitglm_cloud.engine.stats import EngineStats
from splitglm_cloud.execution.executor import Commands
from splitglm_cloud.gateway.reaction import Reaction, Rebuild
from splitglm_cloud.gateway.rebuild import Rebuilder
from splitglm_wire.actions import Abort, Configure, Cut, Drop, Submit
from splitglm_wire.frames import Step


class Back:
    """An executor's commands, with its losses hidden.

    Args:
        tell: receives (session, event); ``Evicted`` only for what no rebuild here can restore.
        soon: runs a function after the present call, as ``loop.call_soon`` does.
        watch: receives (session, how its rebuild goes); must not call back.
    """

    def __init__(
        self,
        *,
        rebuilder: Rebuilder,
        executor: Commands,
        tell: Emit,
        soon: Callable[[Callable[[], None]], object],
        watch: Callable[[int, Rebuild], None] = lambda session, rebuild: None,
    ) -> None:
        self._rebuilder = rebuilder
        self._executor = executor
        self._tell = tell
        self._soon = soon
        self._watch = watch
        self._events: deque[tuple[int, Event]] = deque()
        self._telling = False  # or about to

    @property
    def ready(self) -> bool:
        return self._executor.ready

    def stats(self) -> EngineStats:
        return self._executor.stats()

    def configure(self, session: int, config: Configure, owner: Owner) -> None:
        self._later(self._rebuilder.configure(session, config, owner))

    def submit(self, session: int, step: Step) -> None:
        self._later(self._rebuilder.submit(session, step))

    def abort(self, session: int, seq: int) -> None:
        self._later(self._rebuilder.abort(session, seq))

    def cut(self, session: int, length: int) -> None:
        self._later(self._rebuilder.cut(session, length))

    def drop(self, session: int) -> None:
        self._later(self._rebuilder.drop(session))

    def on_event(self, session: int, event: Event) -> None:
        """The executor said this of a session."""
        self._carry_out(self._rebuilder.on_event(session, event))
        self._flush()

    def on_lost(self, sessions: Iterable[int]) -> None:
        """The executor lost a worker that held these sessions."""
        self._carry_out(self._rebuilder.lost(sessions))
        self._flush()

    def _later(self, reaction: Reaction) -> None:
        self._carry_out(reaction)
        if self._events and not self._telling:
            self._telling = True
            self._soon(self._resume)

    def _resume(self) -> None:
        self._telling = False
        self._flush()

    def _flush(self) -> None:
        """Tell the sessions all there is; what they ask in turn adds to it."""
        if self._telling:
            return
        self._telling = True
        try:
            while self._events:
                self._tell(*self._events.popleft())
        finally:
            self._telling = False

    def _carry_out(self, reaction: Reaction) -> None:
        for order in reaction.orders:
            match order.action:
                case Configure():
                    self._executor.configure(order.session, order.action, order.owner)
                case Submit():
                    self._executor.submit(order.session, order.action.step)
                case Abort():
                    self._executor.abort(order.session, order.action.seq)
                case Cut():
                    self._executor.cut(order.session, order.action.length)
                case Drop():
                    self._executor.drop(order.session)
        for session, rebuild in reaction.rebuilds:
            self._watch(session, rebuild)
        self._events += reaction.events
