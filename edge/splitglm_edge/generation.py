"""One reply under way: tokens become text, stop strings end it, a lost cloud is replaced, the account is kept."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Generator, Iterator

from splitglm_core.errors import LinkError, NoFeasiblePlan
from splitglm_core.sampling import SamplingParams
from splitglm_edge.conversation import Conversation, Prepared
from splitglm_edge.remote import SessionLost
from splitglm_edge.stats import Meter, Stats
from splitglm_glm.stopping import StopMatcher
from splitglm_glm.tokenizer import GlmTokenizer

MAX_REBUILDS = 3


class Generation:
    """A reply: iterate over it (``for`` or ``async for``) to get text pieces as they become known.

    Attributes:
        token_ids: tokens generated so far, an end token included.
        text: the text so far.
        stats: the account; None until the reply has ended.
    """

    def __init__(
        self,
        *,
        conversation: Conversation,
        prepare: Callable[[int], Prepared],
        tokenizer: GlmTokenizer,
        prompt: list[int],
        max_tokens: int,
        sampling: SamplingParams,
        stop: tuple[str, ...],
        eos: tuple[int, ...],
        deadline_s: float | None,
        meter: Meter,
        on_end: Callable[[], None] | None = None,
    ) -> None:
        self.token_ids: list[int] = []
        self.text = ""
        self.stats: Stats | None = None
        self._conversation = conversation
        self._prepare = prepare
        self._decoder_text = tokenizer.stream()
        self._matcher = StopMatcher(stop)
        self._prompt = prompt
        self._max_tokens = max_tokens
        self._sampling = sampling
        self._eos = eos
        self._deadline_s = deadline_s
        self._meter = meter
        self._on_end = on_end
        self._cancelled = False
        self._finish = "length"
        self._fallbacks: list[str] = []
        self._pieces = self._run()

    def cancel(self) -> None:
        """End the reply after the current token; may be called from another thread."""
        self._cancelled = True

    def close(self) -> None:
        """End the reply now and free what only it holds. The conversation goes on."""
        self.cancel()
        self._pieces.close()

    def __iter__(self) -> Iterator[str]:
        return self._pieces

    async def __aiter__(self) -> AsyncIterator[str]:
        end = object()
        try:
            while (piece := await asyncio.to_thread(next, self._pieces, end)) is not end:
                yield str(piece)
        finally:
            await asyncio.to_thread(self.close)

    def result(self) -> str:
        """Run to the end and return the whole text."""
        for _ in self._pieces:
            pass
        return self.text

    def _run(self) -> Generator[str, None, None]:
        try:
            yield from self._generate(self._prepare(len(self._prompt)))
        finally:
            self._conversation.release()
            if self._on_end is not None:
                self._on_end()

    def _generate(self, prepared: Prepared) -> Iterator[str]:
        try:
            for _ in range(MAX_REBUILDS + 1):
                try:
                    yield from self._attempt(prepared)
                    break
                except SessionLost as lost:
                    prepared = self._rebuild(prepared, lost)
            else:
                raise LinkError("the cloud was lost again and again", "try again later, or run on the device")
            tail, stopped = self._matcher.push(self._decoder_text.flush())
            piece = tail if stopped else tail + self._matcher.flush()
            if piece:
                self.text += piece
                yield piece
        finally:
            self.stats = self._account(prepared)

    def _attempt(self, prepared: Prepared) -> Iterator[str]:
        """Generate under one plan until the reply ends; what was generated before counts as prompt."""
        left = self._max_tokens - len(self.token_ids)
        if left <= 0:
            return
        tokens = prepared.decoder.generate(
            self._prompt + self.token_ids,
            max_tokens=left,
            sampling=self._sampling,
            stop_ids=self._eos,
            generated=tuple(self.token_ids),
            deadline_s=self._deadline_s,
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
                    yield piece
                if stopped:
                    self._finish = "stop"
                    return
                if self._cancelled:
                    self._finish = "cancelled"
                    return
        except GeneratorExit:
            self._finish = "cancelled"
            raise
        except BaseException:
            self._conversation.forget()  # its caches may no longer agree with each other
            raise
        finally:
            tokens.close()

    def _rebuild(self, prepared: Prepared, lost: SessionLost) -> Prepared:
        """Plan again with what is left of the world: the same cloud restarted, or the device alone."""
        self._fallbacks.append(f"{prepared.plan.arm.value}: {lost.what}")
        self._conversation.forget()
        try:
            return self._prepare(len(self._prompt) + len(self.token_ids))
        except (LinkError, NoFeasiblePlan) as error:
            raise LinkError(
                f"the cloud was lost after {len(self.token_ids)} tokens and nothing else can finish the reply",
                error.hint or "check the cloud and try again",
            ) from error

    def _account(self, prepared: Prepared) -> Stats:
        meter = self._meter
        remote = prepared.remote
        return Stats(
            plan=prepared.plan,
            why=prepared.why,
            prompt_tokens=len(self._prompt),
            kept_tokens=meter.kept_tokens,
            new_tokens=len(self.token_ids),
            ttft_s=meter.ttft_s,
            tokens_per_s=meter.tokens_per_s,
            total_s=meter.total_s(),
            bytes_up=self._conversation.bytes_up,
            bytes_down=self._conversation.bytes_down,
            stage_s=dict(meter.stage_s),
            cloud_compute_s=meter.cloud_compute_s,
            cloud_queue_s=meter.cloud_queue_s,
            round_trips=meter.round_trips,
            reconnects=remote.reconnects if remote is not None else 0,
            fallbacks=(*prepared.notes, *self._fallbacks),
            finish=self._finish,
            predicted_ttft_s=prepared.predicted_ttft_s,
            predicted_per_token_s=prepared.predicted_per_token_s,
        )
