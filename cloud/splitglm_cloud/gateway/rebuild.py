"""Between the sessions and the executor: what a worker loses is computed anew from the log, and nobody notices.

A sans-IO machine. Above it has the executor's commands, below it gives orders for the executor; the executor's events
go through it on their way up. Keys and values may vanish at any time (evicted, or lost with their worker): an idle
session is rebuilt in front of its next step, a running one at once. Of a step that generates, the tokens already
delivered are inputs of the rebuilt part, so what the sessions see is exactly the continuation. Where the log does not
reach, ``Evicted`` goes up: then only the device can rebuild.

Every submission has a number of its own, beyond those of the wire's steps, which a device uses again for what was
refused; events of any other number than the awaited one are echoes of what was given up.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Final

from splitglm_cloud.engine.events import Event, Evicted, Failure, Owner
from splitglm_cloud.gateway.reaction import Command, Order, Reaction, Rebuild
from splitglm_cloud.gateway.received import ReceivedLog
from splitglm_cloud.gateway.replay import Run, portion
from splitglm_cloud.gateway.turns import Turns
from splitglm_core.clock import Clock
from splitglm_core.plan import Codec
from splitglm_wire.actions import Abort, Configure, Cut, Drop, Output, Submit
from splitglm_wire.frames import ErrorCode, Reply, Step

FIRST_NUMBER: Final = 1 << 32
"""Sequence numbers of the wire are 32 bits wide."""


@dataclass(slots=True, eq=False)
class _Session:
    """What is known of a session.

    Attributes:
        length: positions it has for its owner, between steps.
        held: the executor is configured for it and has all of them.
        coded: the codec that the executor is configured for.
        said: tokens since the configuration, when the sampler needs them.
        losses: workers lost while they computed its step, since it last made progress.
    """

    config: Configure
    owner: Owner
    deadline_s: float
    length: int = 0
    held: bool = False
    coded: Codec | None = None
    said: list[int] = field(default_factory=list)
    losses: int = 0
    run: Run | None = None


class Rebuilder:
    """The commands of an executor for sessions that survive what happens to it.

    Args:
        at_once: rebuilds at once.
        max_losses: a step is refused for good when so many workers in a row were lost computing it.
    """

    def __init__(self, *, log: ReceivedLog, clock: Clock, at_once: int = 2, max_losses: int = 3) -> None:
        self.rebuilds = 0  # begun so far
        self._log = log
        self._clock = clock
        self._max_losses = max_losses
        self._turns = Turns(at_once)
        self._sessions: dict[int, _Session] = {}
        self._numbers = itertools.count(FIRST_NUMBER)
        self._reaction = Reaction()

    def __len__(self) -> int:
        return len(self._sessions)

    @property
    def rebuilding(self) -> int:
        return self._turns.having

    @property
    def waiting(self) -> int:
        """Sessions whose step waits until it is their turn to be rebuilt."""
        return self._turns.waiting

    def configure(self, session: int, config: Configure, owner: Owner) -> Reaction:
        deadline_s = self._clock.now_s() + config.deadline_ms / 1000 if config.deadline_ms else math.inf
        held = self._sessions.get(session)
        if held is None:
            held = self._sessions[session] = _Session(config, owner, deadline_s)
        self._interrupt(session, held)
        held.config, held.owner, held.deadline_s, held.said = config, owner, deadline_s, []
        held.length = min(held.length, config.keep)
        self._log.cut(session, held.length)
        if held.held or not held.length:
            self._configure(session, held, config.plan.codec, keep=held.length)
            held.held = True
        return self._done()

    def submit(self, session: int, step: Step) -> Reaction:
        held = self._sessions.get(session)
        if held is None or held.run is not None:
            self._tell(session, Failure(step.seq, ErrorCode.INTERNAL, "the session cannot take this step now"))
            return self._done()
        held.run = run = Run(step, self._clock.now_s())
        self._log.hold(session)
        if step.base != held.length:
            self._give_back(session, held, run)  # its owner is about to hear that positions are gone
        elif self._is_suspect(held) or (not held.held and step.base):
            self._ask(session, held, run)
        elif held.held:
            run.number, run.final, run.at = next(self._numbers), True, step.base
            self._order(session, Submit(replace(step, seq=run.number)))
        else:
            self._advance(session, held, run, at=0)
        return self._done()

    def abort(self, session: int, seq: int) -> Reaction:
        held = self._sessions.get(session)
        run = held.run if held is not None else None
        if held is None or run is None or run.step.seq != seq:
            return self._done()
        run.aborted = True
        if run.tokens and session in self._turns:
            # It has its tokens: computing it anew would serve nobody.
            self._order(session, Drop())
            held.held = False
            self._tell(session, Output(seq, 0, b"", last=True))
            self._finish(session, held, run)
        elif run.final and run.number is not None:
            self._order(session, Abort(run.number))
        return self._done()

    def cut(self, session: int, length: int) -> Reaction:
        held = self._sessions.get(session)
        if held is not None:
            self._interrupt(session, held)
            held.length = min(held.length, length)
            self._log.cut(session, held.length)
            if held.held:
                self._order(session, Cut(held.length))
        return self._done()

    def drop(self, session: int) -> Reaction:
        if self._sessions.pop(session, None) is not None:
            self._order(session, Drop())
        self._turns.leave(session)
        self._log.forget(session)
        return self._done()

    def on_event(self, session: int, event: Event) -> Reaction:
        """Take what the executor says of a session."""
        held = self._sessions.get(session)
        if held is None:
            return self._done()
        run = held.run
        match event:
            case Evicted(seq=None) if run is None:
                held.held = False
                self._rest(session, held)
            case Evicted(seq=None) if run is not None and run.number is None:
                held.held = False
                self._ask(session, held, run)
            case Evicted(seq=None) if run is not None and run.at:
                # It happened before the submission came to the executor, which cannot apply it.
                self._recover(session, held, run)
            case Evicted() if run is not None and event.seq is not None and event.seq == run.number:
                self._recover(session, held, run)
            case Output() if run is not None and event.seq == run.number:
                if run.final:
                    self._deliver(session, held, run, event)
                else:
                    self._advance(session, held, run, at=run.stop)
            case Failure() if run is not None and event.seq == run.number:
                if not run.final:
                    self._order(session, Cut(0))  # a part of a session is of no use
                    held.held = False
                self._fail(session, held, run, replace(event, seq=run.step.seq))
            case _:
                pass
        return self._done()

    def lost(self, sessions: Iterable[int]) -> Reaction:
        """The worker that held these sessions is gone with everything it held; nothing more comes from it."""
        for session in sessions:
            held = self._sessions.get(session)
            if held is None:
                continue
            held.held, run = False, held.run
            if run is None:
                self._rest(session, held)
            elif run.number is None:
                self._ask(session, held, run)  # it waited with its keys and values; the log may not reach
            else:
                self._order(session, Drop())  # should another worker have begun with it meanwhile
                held.losses += 1
                if held.losses < self._max_losses:
                    self._recover(session, held, run)
                    continue
                text = "a worker was lost each time it computed this step"
                self._fail(session, held, run, Failure(run.step.seq, ErrorCode.INTERNAL, text))
        return self._done()

    def _is_suspect(self, held: _Session) -> bool:
        return held.losses >= self._max_losses - 1

    def _recover(self, session: int, held: _Session, run: Run) -> None:
        """What the executor had of the session is gone while its step was computed."""
        self._note(session, Rebuild.FAILED)
        held.held, run.number, run.final = False, None, False
        run.since_s = self._clock.now_s()
        self._ask(session, held, run)

    def _ask(self, session: int, held: _Session, run: Run) -> None:
        if not held.held and not self._log.covers(session, run.step.base):
            self._give_back(session, held, run)
        else:
            self._turns.ask(session, held.config.criticality, suspect=self._is_suspect(held))

    def _begin(self, session: int, held: _Session, run: Run) -> None:
        """It is the session's turn."""
        if self._clock.now_s() > held.deadline_s:
            self._fail(
                session, held, run, Failure(run.step.seq, ErrorCode.DEADLINE, "the deadline passed before the step ran")
            )
        elif held.held:
            self._advance(session, held, run, at=run.step.base)
        else:
            self.rebuilds += 1
            self._note(session, Rebuild.BEGAN)
            self._advance(session, held, run, at=0)

    def _advance(self, session: int, held: _Session, run: Run, *, at: int) -> None:
        """Submit the next portion: rows from before the step, or the step itself."""
        run.number = next(self._numbers)
        step, coded, run.final = portion(run, self._log, session, at=at, number=run.number)
        coded = coded or held.config.plan.codec
        if (at == 0 and not held.held) or coded is not held.coded:
            self._configure(session, held, coded, keep=at)
        run.at, run.stop = at, at + step.rows
        self._order(session, Submit(step))
        if run.final:
            held.held = True
            self._note(session, Rebuild.OK)
            run.waited_us = int(1e6 * (self._clock.now_s() - run.since_s))
            if run.aborted:
                self._order(session, Abort(run.number))

    def _configure(self, session: int, held: _Session, coded: Codec, *, keep: int) -> None:
        """Prepare the executor: the reply as configured, with the time and the tokens that have passed since."""
        config, run = held.config, held.run
        said = tuple(held.said) + tuple(run.tokens if run is not None and config.sampling.needs_history else ())
        left_ms = max(1, int(1000 * (held.deadline_s - self._clock.now_s()))) if config.deadline_ms else 0
        plan = config.plan if coded is config.plan.codec else replace(config.plan, codec=coded)
        held.coded = coded
        now = replace(config, plan=plan, generated=config.generated + said, keep=keep, deadline_ms=left_ms)
        self._reaction.orders.append(Order(session, now, held.owner))

    def _deliver(self, session: int, held: _Session, run: Run, output: Output) -> None:
        self._turns.leave(session)
        held.losses = 0
        output = replace(output, seq=run.step.seq, queue_us=output.queue_us + run.waited_us)
        run.waited_us = 0
        if run.step.reply is Reply.TOKEN and output.rows:
            run.tokens.append(int.from_bytes(output.payload, "little"))
        self._tell(session, output)
        if output.last:
            self._finish(session, held, run)

    def _finish(self, session: int, held: _Session, run: Run) -> None:
        """The step was applied: its rows and tokens are a part of the session now."""
        held.length = run.length
        if held.config.sampling.needs_history:
            held.said += run.tokens
        for entry in run.entries(held.config.plan.codec):
            for loser in self._log.append(session, entry):
                if loser != session:
                    self._rest(loser, self._sessions[loser])
        self._rest(session, held)

    def _fail(self, session: int, held: _Session, run: Run, failure: Failure) -> None:
        self._note(session, Rebuild.FAILED)
        self._tell(session, failure)
        self._rest(session, held)

    def _give_back(self, session: int, held: _Session, run: Run) -> None:
        """The log does not reach: only the device can rebuild."""
        self._note(session, Rebuild.LEFT)
        held.held, held.length = False, 0
        self._log.cut(session, 0)
        self._tell(session, Evicted(run.step.seq))
        self._rest(session, held)

    def _interrupt(self, session: int, held: _Session) -> None:
        """The owner turns to something else while a step is under way: it is void, and what it left behind too."""
        if held.run is not None:
            if held.run.number is not None:
                self._order(session, Drop())
                held.held = False
            text = "the step was given up for another command"
            self._fail(session, held, held.run, Failure(held.run.step.seq, ErrorCode.INTERNAL, text))

    def _rest(self, session: int, held: _Session) -> None:
        """No step is under way; a session that nobody here can restore is its device's."""
        held.run = None
        self._turns.leave(session)
        self._log.rest(session)
        if not held.held and not self._log.covers(session, held.length):
            held.length = 0
            self._log.cut(session, 0)
            self._note(session, Rebuild.LEFT)
            self._tell(session, Evicted(None))

    def _order(self, session: int, action: Command) -> None:
        self._reaction.orders.append(Order(session, action))

    def _tell(self, session: int, event: Event) -> None:
        self._reaction.events.append((session, event))

    def _note(self, session: int, rebuild: Rebuild) -> None:
        self._reaction.rebuilds.append((session, rebuild))

    def _done(self) -> Reaction:
        """What has come of a call, after whoever may now rebuild has begun."""
        while (session := self._turns.next()) is not None:
            held = self._sessions[session]
            if held.run is not None:
                self._begin(session, held, held.run)
        reaction, self._reaction = self._reaction, Reaction()
        return reaction
