"""What a reply cost: measured while it runs, summed up when it ends."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

from splitglm_core.plan import SplitPlan
from splitglm_wire.device import StepDone


@dataclass(frozen=True, slots=True, kw_only=True)
class Stats:
    """The account of one reply.

    Attributes:
        plan: what ran at the end (see ``fallbacks`` for what ran before).
        why: the policy's reasons, in words.
        prompt_tokens: tokens of the prompt, kept ones included.
        kept_tokens: tokens whose keys and values were kept from the turn before.
        new_tokens: tokens generated.
        ttft_s: seconds from the call to the first token.
        ready_s: of them, until the plan was ready to run (the cloud was reached and asked, caches made). What is
            predicted counts from then on.
        tokens_per_s: generated tokens after the first over the time after the first; 0 with fewer than two.
        total_s: seconds from the call to the end.
        bytes_up, bytes_down: sealed records of this reply, probes not counted.
        stage_s: seconds by stage on the device (front, encode, wait, decode, tail, head); ``wait`` is link and cloud.
        cloud_compute_s, cloud_queue_s, cloud_sweep_s: as the cloud reports them: computing, waiting for a sweep to
            begin, waiting for it to come round; they overlap ``wait`` and, in prefill, ``front``.
        round_trips: steps answered by the cloud.
        reconnects: times the stream broke and the session went on.
        fallbacks: why the plan changed on the way, oldest first.
        finish: ``stop`` (end token or stop string), ``length``, ``cancelled`` or ``error``.
        predicted_ttft_s, predicted_per_token_s: what the policy expected of its plan.
    """

    plan: SplitPlan
    why: str
    prompt_tokens: int
    kept_tokens: int
    new_tokens: int
    ttft_s: float
    ready_s: float
    tokens_per_s: float
    total_s: float
    bytes_up: int
    bytes_down: int
    stage_s: Mapping[str, float]
    cloud_compute_s: float
    cloud_queue_s: float
    cloud_sweep_s: float
    round_trips: int
    reconnects: int
    fallbacks: tuple[str, ...]
    finish: str
    predicted_ttft_s: float
    predicted_per_token_s: float

    def as_dict(self) -> dict[str, object]:
        """Plain values for JSON."""
        plan = self.plan
        return {
            "plan": {
                "arm": plan.arm.value,
                "layers": plan.layers,
                "s": plan.s,
                "t": plan.t,
                "head": plan.head.value,
                "codec": plan.codec.value,
                "chunk_tokens": plan.chunk_tokens,
            },
            **{
                name: getattr(self, name)
                for name in self.__dataclass_fields__
                if name not in ("plan", "stage_s", "fallbacks")
            },
            "stage_s": dict(self.stage_s),
            "fallbacks": list(self.fallbacks),
        }


@dataclass(slots=True)
class Meter:
    """Collects one reply's times. Used by one thread.

    Attributes:
        prepared_s: when the plan was chosen and ready to run: connecting and asking the link lie before.
        first_upload_s: when the first step went up, as ``prepared_s``; 0 while none has.
        paused_s: while the reader had the word, until the newest token: what he takes is not the plan's doing.
    """

    started_s: float = field(default_factory=time.perf_counter)
    stage_s: dict[str, float] = field(default_factory=dict)
    cloud_compute_s: float = 0.0
    cloud_queue_s: float = 0.0
    cloud_sweep_s: float = 0.0
    round_trips: int = 0
    kept_tokens: int = 0
    first_token_s: float = 0.0
    last_token_s: float = 0.0
    tokens: int = 0
    prepared_s: float = 0.0
    first_upload_s: float = 0.0
    paused_s: float = 0.0
    _pausing_s: float = 0.0

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        started_s = time.perf_counter()
        try:
            yield
        finally:
            self.stage_s[name] = self.stage_s.get(name, 0.0) + time.perf_counter() - started_s

    def answered(self, done: StepDone) -> None:
        self.round_trips += 1
        self.cloud_compute_s += done.compute_s
        self.cloud_queue_s += done.queue_s
        self.cloud_sweep_s += done.sweep_s

    def prepared(self) -> None:
        """The plan is ready to run."""
        self.prepared_s = time.perf_counter()

    def uploads(self) -> None:
        """A step is going up."""
        self.first_upload_s = self.first_upload_s or time.perf_counter()

    @contextmanager
    def pause(self) -> Iterator[None]:
        """The reader has the word."""
        started_s = time.perf_counter()
        try:
            yield
        finally:
            self._pausing_s += time.perf_counter() - started_s

    def token(self) -> None:
        self.paused_s = self._pausing_s
        self.last_token_s = time.perf_counter()
        if self.tokens == 0:
            self.first_token_s = self.last_token_s
        self.tokens += 1

    @property
    def ttft_s(self) -> float:
        return self.first_token_s - self.started_s if self.tokens else 0.0

    @property
    def ready_s(self) -> float:
        """Seconds from the call until the plan was ready; 0 before."""
        return max(0.0, self.prepared_s - self.started_s) if self.prepared_s else 0.0

    def total_s(self) -> float:
        """Seconds since the call."""
        return time.perf_counter() - self.started_s

    @property
    def tokens_per_s(self) -> float:
        return (self.tokens - 1) / (self.last_token_s - self.first_token_s) if self.tokens > 1 else 0.0
