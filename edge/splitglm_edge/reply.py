"""One reply under way: tokens become text, stop strings end it, a lost cloud is replaced, the account is kept."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator, Iterator
from typing import Protocol

from splitglm_core.criticality import Criticality
from splitglm_core.errors import DeadlineExceeded, LinkError, NoFeasiblePlan, RemoteError, SplitGlmError, Unavailable
from splitglm_core.sampling import SamplingParams
from splitglm_edge.closing import CLOSER
from splitglm_edge.conversation import Conversation, Prepared
from splitglm_edge.faults import SessionLost, Unresponsive
from splitglm_edge.predictions import Account
from splitglm_edge.stats import Meter, Stats
from splitglm_glm.stopping import StopMatcher
from splitglm_glm.tokenizer import GlmTokenizer
from splitglm_wire.frames import ErrorCode

_REJOIN_PAUSE_S = 0.25
_LONGEST_PAUSE_S = 2.0
_REPLACEABLE = frozenset(
    code.name for code in (ErrorCode.OVERLOADED, ErrorCode.UNAVAILABLE, ErrorCode.DRAINING, ErrorCode.INTERNAL)
)
"""Refusals that say nothing against the request: somebody else may finish the reply."""


class Prepare(Protocol):
    """Chooses a plan for what is left of a reply and makes its decoder ready."""

    def __call__(self, done_tokens: int, left_s: float | None, *, use_cloud: bool) -> Prepared:
        """Plan with ``done_tokens`` of the reply generated and ``left_s`` seconds to the deadline.

        Raises:
            NoFeasiblePlan, LinkError and what connecting raises.
        """


class ReplyUnderWay:
    """What a ``Generation`` runs. It does not know its ``Generation``, so that dropping that one ends this one.

    From the first piece to the end the ``CLOSER`` holds it: its generator would do I/O if the collector ended it.
    """

    def __init__(
        self,
        *,
        conversation: Conversation,
        prepare: Prepare,
        tokenizer: GlmTokenizer,
        prompt: list[int],
        max_tokens: int,
        sampling: SamplingParams,
        stop: tuple[str, ...],
        eos: tuple[int, ...],
        deadline_s: float | None,
        criticality: Criticality,
        rejoin_s: float,
        meter: Meter,
        on_account: Callable[[Account], None] | None = None,
        on_end: Callable[[], None] | None = None,
    ) -> None:
        self.token_ids: list[int] = []
        self.text = ""
        self.stats: Stats | None = None
        self.prompt = tuple(prompt)
        self.under_way = False
        self._conversation = conversation
        self._prepare = prepare
        self._decoder_text = tokenizer.stream()
        self._matcher = StopMatcher(stop)
        self._max_tokens = max_tokens
        self._sampling = sampling
        self._eos = eos
        self._deadline_s = deadline_s
        self._criticality = criticality
        self._rejoin_s = rejoin_s
        self._meter = meter
        self._on_account = on_account
        self._on_end = on_end
        self._cancelled = threading.Event()
        self._finish = "length"
        self._fallbacks: list[str] = []
        self._losses = 0  # of the cloud since the last token
        self._lost_s = 0.0  # when the first of them was noticed
        self._lost_tokens = -1
        self._stepping = threading.Lock()
        self._pieces: Generator[str, None, None] | None = None

    def cancel(self) -> None:
        """End the reply after the current token."""
        self._cancelled.set()

    def close(self) -> None:
        """End the reply now; waits for the step under way."""
        self.cancel()
        with self._stepping:
            self._started().close()

    def next_piece(self) -> str:
        """The next piece of text; ``StopIteration`` at the end."""
        with self._stepping:
            return next(self._started())

    def _started(self) -> Generator[str, None, None]:
        if self._pieces is None:  # not before: it and this object hold each other until it has ended
            self._pieces = self._run()
        return self._pieces

    def _run(self) -> Generator[str, None, None]:
        self._conversation.claim(self.close)
        CLOSER.hold(self)
        self.under_way = True
        try:
            prepared = self._prepare(0, self._left_s(), use_cloud=True)
            self._meter.prepared()
            yield from self._generate(prepared)
        finally:
            self.under_way = False
            CLOSER.release(self)
            self._conversation.release()
            if self._on_end is not None:
                self._on_end()

    def _generate(self, prepared: Prepared) -> Iterator[str]:
        began = prepared.decision
        try:
            while True:
                try:
                    yield from self._attempt(prepared)
                    break
                except (SessionLost, RemoteError) as lost:
                    if isinstance(lost, RemoteError) and lost.code not in _REPLACEABLE:
                        raise
                    if self._lost_tokens != len(self.token_ids):  # there was progress since the last loss
                        self._losses, self._lost_s, self._lost_tokens = 0, time.monotonic(), len(self.token_ids)
                    self._losses += 1
                    again = self._rebuild(prepared, lost)
                    if again is None:
                        self._finish = "cancelled"
                        break
                    prepared = again
            tail, stopped = self._matcher.push(self._decoder_text.flush())
            piece = tail if stopped else tail + self._matcher.flush()
            if piece:
                self.text += piece
                yield piece
        finally:
            self.stats = self._account(prepared)
            if self._on_account is not None:
                sums = self._conversation.sums
                self._on_account(Account(prepared.decision, self.stats, self._meter, sums, began))

    def _attempt(self, prepared: Prepared) -> Iterator[str]:
        """Generate under one plan until the reply ends; what was generated before counts as prompt."""
        left = self._max_tokens - len(self.token_ids)
        if left <= 0:
            return
        if self._cancelled.is_set():
            self._finish = "cancelled"
            return
        tokens = prepared.decoder.generate(
            [*self.prompt, *self.token_ids],
            max_tokens=left,
            sampling=self._sampling,
            stop_ids=self._eos,
            generated=tuple(self.token_ids),
            deadline_s=self._left_s(),
            criticality=self._criticality,
            cancelled=self._cancelled,
            meter=self._meter,
        )
        try:
            for token in tokens:
                self._meter.token()
                self.token_ids.append(token)
                if token in self._eos:
                    self._finish = "stop"
                    return
                piece, stopped = self._matcher.push(self._decoder_text.push(token))
                self.text += piece
                if piece:
                    with self._meter.pause():
                        yield piece
                if stopped:
                    self._finish = "stop"
                    return
                if self._cancelled.is_set():
                    self._finish = "cancelled"
                    return
                if len(self.token_ids) < self._max_tokens:
                    self._left_s()
        except GeneratorExit:
            self._finish = "cancelled"
            raise
        except BaseException:
            self._finish = "error"
            tokens.close()
            self._conversation.forget()  # its caches may no longer agree with each other
            raise
        finally:
            tokens.close()

    def _left_s(self) -> float | None:
        """Seconds to the deadline, None without one.

        Raises:
            DeadlineExceeded: there are none left.
        """
        if self._deadline_s is None:
            return None
        left_s = self._deadline_s - self._meter.total_s()
        if left_s <= 0.0:
            raise DeadlineExceeded(
                f"the reply took longer than its deadline of {self._deadline_s:g} s", "allow more time"
            )
        return left_s

    def _rebuild(self, prepared: Prepared, lost: SplitGlmError) -> Prepared | None:
        """Plan again with what is left of the world: the device alone, or the cloud when it is back.

        None when the reply was cancelled meanwhile.
        """
        self._fallbacks.append(f"{prepared.plan.arm.value}: {lost.what}")
        self._finish = "length"
        self._conversation.forget()
        # Who is busy, stuck or at fault is not asked again at once, nor is who was lost twice without a token between.
        gone = isinstance(lost, SessionLost) and not isinstance(lost, Unresponsive)
        use_cloud = gone and self._losses == 1
        pause_s = min(_LONGEST_PAUSE_S, _REJOIN_PAUSE_S * 2 ** min(self._losses - 1, 8))
        while not self._cancelled.is_set():
            try:
                return self._prepare(len(self.token_ids), self._left_s(), use_cloud=use_cloud)
            except DeadlineExceeded:
                if self._deadline_s is not None and self._meter.total_s() >= self._deadline_s:
                    raise
            except (LinkError, NoFeasiblePlan, RemoteError):
                pass
            if isinstance(lost, RemoteError) and not isinstance(lost, Unavailable):
                self._finish = "error"
                raise lost
            if time.monotonic() >= self._lost_s + self._rejoin_s:
                self._finish = "error"
                raise LinkError(
                    f"the cloud was lost after {len(self.token_ids)} tokens and nothing else can finish the reply",
                    f"{lost.what}; check the cloud and try again",
                ) from lost
            use_cloud = True  # nothing else can finish it, so its return is worth waiting for
            self._cancelled.wait(pause_s)
        return None

    def _account(self, prepared: Prepared) -> Stats:
        meter, sums = self._meter, self._conversation.sums
        return Stats(
            plan=prepared.plan,
            why=prepared.why,
            prompt_tokens=len(self.prompt),
            kept_tokens=meter.kept_tokens,
            new_tokens=len(self.token_ids),
            ttft_s=meter.ttft_s,
            ready_s=meter.ready_s,
            tokens_per_s=meter.tokens_per_s,
            total_s=meter.total_s(),
            bytes_up=sums.bytes_up,
            bytes_down=sums.bytes_down,
            stage_s=dict(meter.stage_s),
            cloud_compute_s=meter.cloud_compute_s,
            cloud_queue_s=meter.cloud_queue_s,
            cloud_sweep_s=meter.cloud_sweep_s,
            round_trips=meter.round_trips,
            reconnects=sums.reconnects,
            fallbacks=(*prepared.notes, *self._fallbacks),
            finish=self._finish,
            predicted_ttft_s=prepared.decision.breakdown.ttft_s,
            predicted_per_token_s=prepared.decision.breakdown.per_token_s,
        )
