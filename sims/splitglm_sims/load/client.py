"""One simulated session: opens, sends its prompt, then one step after each answer, and writes down when what came.

It speaks through the product's own ``DeviceSession``. Every latency counts from when the thing was *meant* to happen:
the session from its place in the schedule, a step from the answer before it plus the thinking time, so that a cloud
(or a generator) that stalls is charged with all the waiting it caused. [Open loop: Schroeder et al., NSDI 2006;
"coordinated omission": Gil Tene.]
"""

from __future__ import annotations

import asyncio
import copy
import math
import os
import time
import zlib
from typing import Final

import numpy as np

from splitglm_core.errors import DeadlineExceeded, LinkError, Overloaded, SplitGlmError, Unavailable
from splitglm_core.plan import Arm
from splitglm_core.sampling import SamplingParams
from splitglm_edge.faults import SessionLost, from_error_frame
from splitglm_partitioner.request import PREFILL_IN_FLIGHT
from splitglm_sims.load.record import Ended, Outcome, Record, Stage
from splitglm_sims.load.rows import RowBank, prompt_ids
from splitglm_sims.load.scenario import Kind, Scenario
from splitglm_sims.load.schedule import SessionPlan
from splitglm_sims.load.stream import Inbox, LoadStream
from splitglm_sims.load.streams import NoPlace, Streams
from splitglm_wire import codec
from splitglm_wire.device import DeviceSession, State
from splitglm_wire.events import Attached, Event, Gap, HiddenArrived, Refused, StepDone, TokenArrived
from splitglm_wire.frames import Reply, Rows

RETRY_PAUSE_S: Final = 0.1
"""Where a refusal names no pause."""


class LoadSession:
    """One session of a run.

    Args:
        start_s: monotonic time at which the run starts.
        bank: hidden states to send.
        vocab: bound of token ids.

    Attributes:
        answers: tokens as they came, or the CRC-32 of each hidden state that the device's head would have taken.
    """

    def __init__(
        self, scenario: Scenario, plan: SessionPlan, *, start_s: float, bank: RowBank, vocab: int, record: Record
    ) -> None:
        self.answers: list[int] = []
        self._scenario = scenario
        self._kind: Kind = scenario.kinds[plan.kind]
        self._plan = plan
        self._run_start_s = start_s
        self._start_s = self._intended_s = start_s + plan.at_s
        self._bank = bank
        self._vocab = vocab
        self._record = record
        self._at_s: list[float] = []
        self._ttft_s = math.nan
        self._steps_s = 0.0
        self._reading = True  # False from where this side slowed its reading on purpose
        self._reason = ""
        self._now_s = 0.0  # arrival of the newest frame
        self._events: list[Event] = []
        self._stream: LoadStream
        self._inbox: Inbox
        self._machine: DeviceSession

    async def run(self, streams: Streams) -> Ended:
        """Live the whole session; whatever happens ends up in the record."""
        try:
            stopped = await self._attempts(streams)
            outcome = Outcome.STOPPED if stopped else Outcome.OK
        except NoPlace:
            outcome, self._reason = Outcome.FAILED, "no free stream"
        except (Overloaded, Unavailable) as error:
            outcome, self._reason = Outcome.REFUSED, self._reason or error.code
        except SplitGlmError as error:
            deadline = self._reason == "DEADLINE"
            outcome = Outcome.REFUSED if deadline else Outcome.FAILED
            self._reason = self._reason or type(error).__name__
        plan, scenario = self._plan, self._scenario
        steps = max(1, len(self.answers) - 1)
        # A session that stopped before its first answer was served as far as it wanted.
        slow = self._ttft_s > (scenario.slo_ttft_s or math.inf)
        slow |= self._steps_s / steps > (scenario.slo_step_s or math.inf)
        good = outcome in (Outcome.OK, Outcome.STOPPED)
        if good and len(self._at_s) > 1 and self._reading:
            self._add(Stage.TPOT, (self._at_s[-1] - self._at_s[0]) / (len(self._at_s) - 1))
        ended = Ended(
            phase=plan.phase,
            kind=plan.kind,
            counted=plan.counted,
            at_s=plan.at_s,
            outcome=outcome,
            reason=self._reason if outcome in (Outcome.REFUSED, Outcome.FAILED) else "",
            ttft_s=self._ttft_s,
            answers=len(self.answers),
            good=good and not slow,
        )
        self._record.end(ended, self._at_s)
        return ended

    async def _attempts(self, streams: Streams) -> bool:
        """Converse, again after a refusal if the scenario says so. True when the session stopped early as planned."""
        for left in reversed(range(self._scenario.retries + 1)):
            try:
                stream = await streams.take(self._plan)
                try:
                    return await self._converse(stream)
                finally:
                    await streams.give_back(self._plan, stream)
            except (Overloaded, Unavailable, SessionLost) as error:
                if not isinstance(error, SessionLost):
                    self._add(Stage.REFUSAL, time.monotonic() - self._intended_s)
                if not left:
                    raise
                await asyncio.sleep(getattr(error, "retry_after_s", None) or RETRY_PAUSE_S)
                self._intended_s, self._reason = time.monotonic(), ""
        return False

    async def _converse(self, stream: LoadStream) -> bool:
        """One session in the cloud, from its open to its end; answers of an earlier attempt are part of its prompt."""
        self._stream = stream
        handle, self._inbox = stream.open_inbox()
        self._machine = machine = DeviceSession(handle=handle, session_id=os.urandom(16))
        self._events.clear()
        try:
            self._open()
            if self._plan.plan.arm is Arm.CLOUD:
                return await self._generate()
            return await self._exchange()
        finally:
            refused = machine.state in (State.BROKEN, State.CLOSED)  # as a whole: there is nothing to close
            if not (self._plan.vanishes or self._plan.leaks or refused):
                stream.send(machine.close())
            stream.drop_inbox(handle)

    def _open(self) -> None:
        plan, deadline_s = self._plan, self._kind.deadline_s
        frame = self._machine.open(
            plan=plan.plan,
            sampling=SamplingParams(),
            context=plan.prompt_rows + plan.tokens,
            keep=0,
            generated=() if plan.plan.arm is Arm.USHAPE else tuple(self.answers),
            deadline_ms=0 if deadline_s is None else max(1, int(1000 * deadline_s)),
            criticality=self._kind.criticality,
        )
        self._stream.send(frame)

    async def _generate(self) -> bool:
        """Cloud arm: ids up, then the cloud generates by itself."""
        plan = self._plan
        ids = prompt_ids(plan.index, plan.prompt_rows, self._vocab) + self.answers
        chunks = [ids[i : i + self._kind.chunk_rows] for i in range(0, len(ids), self._kind.chunk_rows)]
        for chunk in chunks[:-1]:
            await self._room()
            self._step(Rows.IDS, len(chunk), _packed(chunk), Reply.ACK)
        ticket = self._step(
            Rows.IDS, len(chunks[-1]), _packed(chunks[-1]), Reply.TOKEN, generate=plan.tokens - len(self.answers)
        )
        cancelled = False
        while True:
            if self._stops() and not cancelled:
                frame = self._machine.cancel(ticket)
                if plan.vanishes or not self.answers or frame is None:
                    return True
                self._stream.send(frame)
                cancelled = True
            event = await self._event()
            if isinstance(event, TokenArrived):
                self._answered(event.token)
            elif isinstance(event, StepDone) and event.ticket == ticket:
                return cancelled

    async def _exchange(self) -> bool:
        """Split and U-shape: hidden states up; a token or hidden states down, and the next step after each."""
        plan, kind = self._plan, self._kind
        chunk = min(kind.chunk_rows, codec.max_rows(kind.codec, self._bank.hidden))
        base, end = 0, plan.prompt_rows + len(self.answers)
        ticket = -1
        while len(self.answers) < plan.tokens:
            while base < end:
                rows = min(chunk, end - base)
                await self._room()
                reply = self._reply(base + rows == end)
                payload = self._bank.payload(kind.codec, base, rows)
                ticket = self._step(Rows.HIDDEN, rows, payload, reply, generate=int(reply is Reply.TOKEN))
                base += rows
            if self._stops():
                return True
            self._answered(await self._answer(ticket))
            if self._stops():
                return True
            end += 1
            if len(self.answers) < plan.tokens:
                await self._think()
        return False

    def _reply(self, last: bool) -> Reply:
        plan = self._plan.plan
        if plan.arm is Arm.SPLIT:
            return Reply.TOKEN if last else Reply.ACK
        if len(plan.tail):
            return Reply.ALL_HIDDEN
        return Reply.LAST_HIDDEN if last else Reply.ACK

    async def _answer(self, ticket: int) -> int:
        """The content of the answer to a step."""
        value = 0
        while True:
            event = await self._event()
            if isinstance(event, TokenArrived):
                value = event.token
            elif isinstance(event, HiddenArrived):
                value = zlib.crc32(event.payload)
            elif isinstance(event, StepDone) and event.ticket == ticket:
                return value

    async def _room(self) -> None:
        """Until the pipeline of prefill steps has room for one more, as on a device."""
        while self._machine.in_flight >= PREFILL_IN_FLIGHT:
            await self._event()

    async def _think(self) -> None:
        """The device's own layers; the next step is meant to go up when they end."""
        if self._plan.think_s:
            await asyncio.sleep(max(0.0, self._intended_s - time.monotonic()))
        self._add(Stage.LAG, time.monotonic() - self._intended_s)

    def _step(self, kind: Rows, rows: int, payload: bytes, reply: Reply, *, generate: int = 0) -> int:
        ticket, frame = self._machine.step(rows_kind=kind, rows=rows, payload=payload, reply=reply, generate=generate)
        self._stream.send(frame)
        return ticket

    def _answered(self, value: int) -> None:
        number, at_s = len(self.answers), self._now_s
        if number == 0:
            self._ttft_s = at_s - self._start_s
            self._add(Stage.TTFT, self._ttft_s)
            self._slow_down()
        else:
            self._steps_s += at_s - self._intended_s
            if self._reading:
                self._add(Stage.STEP, at_s - self._intended_s)
        self.answers.append(value)
        self._at_s.append(at_s - self._run_start_s)
        pauses = self._plan.think_s
        self._intended_s = at_s + (pauses[number] if number < len(pauses) else 0.0)

    def _slow_down(self) -> None:
        if self._plan.slow_read_s:
            self._reading = False
            self._stream.pause_reading()
            asyncio.get_running_loop().call_later(self._plan.slow_read_s, self._stream.resume_reading)

    def _stops(self) -> bool:
        return self._plan.stop_after is not None and len(self.answers) >= self._plan.stop_after

    async def _event(self) -> Event:
        """The next event.

        Raises:
            Overloaded, Unavailable and others: the cloud refused.
            SessionLost: it no longer holds the session.
            LinkError: the stream ended.
            DeadlineExceeded: nothing came within the scenario's patience.
        """
        while not self._events:
            try:
                async with asyncio.timeout(self._scenario.patience_s):
                    received = await self._inbox.get()
            except TimeoutError:
                self._reason = "no answer"
                raise DeadlineExceeded("the cloud did not answer in time") from None
            if received is None:
                # A copy: an error that many sessions raise would collect the frames of all of them.
                raise copy.copy(self._stream.error) or LinkError("the connection ended")
            frame, self._now_s = received
            self._events += self._machine.receive(frame)[0]
        event = self._events.pop(0)
        if isinstance(event, Attached):
            self._add(Stage.OPEN, self._now_s - self._start_s)
        elif isinstance(event, Gap):
            self._reason = "GAP"
            raise SessionLost("the cloud no longer holds this session")
        elif isinstance(event, Refused):
            self._reason = event.error.code.name
            raise from_error_frame(event.error)
        return event

    def _add(self, stage: Stage, seconds: float) -> None:
        if self._plan.counted:
            self._record.add(self._plan.phase, self._plan.kind, stage, seconds)


def _packed(ids: list[int]) -> bytes:
    return np.array(ids, "<u4").tobytes()
