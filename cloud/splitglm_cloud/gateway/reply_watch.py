"""One session's replies as the gateway sees them: how long each part took, for histograms, traces and ``splitglm top``.

A reply has no frame that ends it: it is over when another begins, when its session goes, or after ``SILENCE_S`` without
work. Where the tail runs on the device, every chunk of a prompt is answered with as many rows as it has: its last such
answer counts as the first token. Times are of the gateway: from a step's acceptance to its answer, without device and
link.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from splitglm_cloud.metrics import Metrics, class_label
from splitglm_core.criticality import Criticality
from splitglm_core.plan import SplitPlan
from splitglm_wire.actions import Configure, Output
from splitglm_wire.frames import ErrorCode, Step

FEW_ROWS: Final = 32
"""A step of a reply under way brings one row, or those of a draft; more are a prompt's."""
SILENCE_S: Final = 30.0
MAX_PARTS: Final = 64
"""Parts of one reply that are traced singly; all are in its sums."""


@dataclass(frozen=True, slots=True)
class Part:
    """A stretch of a reply's time: ``queue``, ``sweep``, ``back`` or ``rebuild``."""

    name: str
    start_s: float
    end_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplyRecord:
    """A finished reply. No content, and no id that gives a right: ``session`` is this process's own number.

    Attributes:
        rows: positions that came up.
        answers: that went down after the prompt was complete: a token or a few rows of hidden states each.
        outcome: ``ok``, or the name of the error code that ended it last.
    """

    session: int
    criticality: Criticality
    plan: SplitPlan
    start_s: float
    end_s: float
    first_answer_s: float | None
    rows: int
    answers: int
    queue_s: float
    sweep_s: float
    back_s: float
    rebuild_s: float
    outcome: str
    parts: tuple[Part, ...]


@dataclass(slots=True)
class _Reply:
    """The reply at hand."""

    start_s: float
    end_s: float
    first_s: float | None = None
    prompt_s: float | None = None  # of the last answer to many rows
    rows: int = 0
    answers: int = 0
    queue_s: float = 0.0
    sweep_s: float = 0.0
    back_s: float = 0.0
    rebuild_s: float = 0.0
    outcome: str = "ok"
    parts: list[Part] = field(default_factory=list)

    def part(self, name: str, start_s: float, end_s: float) -> None:
        if len(self.parts) < MAX_PARTS:
            self.parts.append(Part(name, start_s, end_s))


class ReplyWatch:
    """Told by the session's table what happens; ``now_s`` is monotonic.

    Args:
        session: the process's own number of the session.
        on_reply: receives every finished reply.
    """

    def __init__(self, session: int, metrics: Metrics, on_reply: Callable[[ReplyRecord], None] | None) -> None:
        self._session = session
        self._metrics = metrics
        self._on_reply = on_reply
        self.criticality = Criticality.CRITICAL
        self._label = class_label(self.criticality)
        self._plan: SplitPlan | None = None
        self._reply: _Reply | None = None
        self._step_s: float | None = None  # when the running step was accepted, or gave its last answer
        self._rebuild_s: float | None = None

    @property
    def rebuilding(self) -> bool:
        return self._rebuild_s is not None

    @property
    def answers_per_s(self) -> float:
        """Of the reply at hand, since its first answer; 0 before the second."""
        reply = self._reply
        if reply is None or reply.first_s is None or reply.end_s <= reply.first_s:
            return 0.0
        return max(0, reply.answers - 1) / (reply.end_s - reply.first_s)

    def configured(self, config: Configure, now_s: float) -> None:
        """A reply begins, or goes on under another plan or stream (then it has generated tokens)."""
        if not config.generated:
            self.ended(now_s)
        self._plan, self.criticality = config.plan, config.criticality
        self._label = class_label(config.criticality)

    def submitted(self, step: Step, now_s: float) -> None:
        """A step was handed to the executor."""
        if self._reply is None:
            self._reply = _Reply(now_s, now_s)
        reply = self._reply
        if reply.first_s is None and reply.prompt_s is not None and step.rows <= FEW_ROWS:
            self._first(reply, reply.prompt_s)
        reply.rows += step.rows
        reply.end_s = self._step_s = now_s

    def answered(self, output: Output, now_s: float) -> None:
        """A part of the running step's answer."""
        queue_s, sweep_s, back_s = (1e-6 * us for us in (output.queue_us, output.sweep_us, output.compute_us))
        for stage, seconds in (("queue", queue_s), ("sweep", sweep_s), ("back", back_s)):
            self._metrics.in_stage[stage].observe(seconds)
        reply, step_s = self._reply, self._step_s
        if reply is None or step_s is None:
            return
        reply.queue_s += queue_s
        reply.sweep_s += sweep_s
        reply.back_s += back_s
        reply.end_s = now_s
        if self._on_reply is not None:
            boarded_s = now_s - back_s
            if output.queue_us:
                reply.part("queue", boarded_s - sweep_s - queue_s, boarded_s - sweep_s)
            if output.sweep_us:
                reply.part("sweep", boarded_s - sweep_s, boarded_s)
            reply.part("back", boarded_s, now_s)
        if output.rows > FEW_ROWS:
            reply.prompt_s = now_s
        elif output.rows and reply.first_s is None:
            self._first(reply, now_s)
        elif output.rows:
            reply.answers += 1
            self._metrics.next_token.labels(self._label).observe(now_s - step_s)
        self._step_s = None if output.last else now_s
        if output.last:
            self._count("ok")

    def failed(self, code: ErrorCode, now_s: float) -> None:
        """The running step ended without an answer: refused where there was no time or memory for it."""
        self._step_s = None
        if self._reply is not None:
            self._reply.outcome, self._reply.end_s = code.name, now_s
        self._count("refused" if code is ErrorCode.OVERLOADED else "failed")

    def refused(self, code: ErrorCode) -> None:
        """A step was not taken."""
        if self._reply is not None:
            self._reply.outcome = code.name
        self._count("refused")

    def rebuild_began(self, now_s: float) -> None:
        """The session's keys and values are computed anew from what it sent."""
        self._rebuild_s = now_s

    def rebuild_ended(self, now_s: float, *, ok: bool) -> None:
        """They are there again, or were given up; harmless when no rebuild is under way."""
        if self._rebuild_s is None:
            return
        if self._reply is not None:
            self._reply.rebuild_s += now_s - self._rebuild_s
            if self._on_reply is not None:
                self._reply.part("rebuild", self._rebuild_s, now_s)
        self._rebuild_s = None
        self._metrics.rebuilds.labels("ok" if ok else "failed").inc()

    def swept(self, now_s: float) -> None:
        """Time passes; to be called now and then."""
        if self._step_s is None and self._reply is not None and now_s - self._reply.end_s > SILENCE_S:
            self.ended(now_s)

    def ended(self, now_s: float) -> None:
        """The reply at hand is over, if there is one."""
        self.rebuild_ended(now_s, ok=False)
        if self._step_s is not None:
            self._count("lost")
        reply, self._reply, self._step_s = self._reply, None, None
        if reply is not None and self._plan is not None and self._on_reply is not None:
            self._on_reply(
                ReplyRecord(
                    session=self._session,
                    criticality=self.criticality,
                    plan=self._plan,
                    start_s=reply.start_s,
                    end_s=reply.end_s,
                    first_answer_s=reply.first_s,
                    rows=reply.rows,
                    answers=reply.answers,
                    queue_s=reply.queue_s,
                    sweep_s=reply.sweep_s,
                    back_s=reply.back_s,
                    rebuild_s=reply.rebuild_s,
                    outcome=reply.outcome,
                    parts=tuple(reply.parts),
                )
            )

    def _first(self, reply: _Reply, first_s: float) -> None:
        reply.first_s, reply.answers = first_s, 1
        self._metrics.first_token.labels(self._label).observe(first_s - reply.start_s)

    def _count(self, outcome: str) -> None:
        self._metrics.steps.labels(self._label, outcome).inc()
