"""A port to a cloud whose other load comes from outside: every answer can be computed when its question is sent"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator
from typing import TypeVar

from splitglm_partitioner.profiles import LinkEstimate
from splitglm_sims.world.drafting import kept_tokens
from splitglm_sims.world.draws import Draws, What
from splitglm_sims.world.link import Link
from splitglm_sims.world.port import Answer, Leg, Port, Step, Stream
from splitglm_sims.world.scene import CloudScene, LinkScene

T = TypeVar("T")
Program = Generator[tuple[float, bool], Answer | None, T]


class LonePort(Port):
    """Steps of this device are computed in order; each waits as long as the outside load makes it."""

    def __init__(
        self,
        link: Link,
        scene: LinkScene,
        cloud: CloudScene,
        draws: Draws,
        believed: LinkEstimate,
        *,
        stranded: bool = False,
    ) -> None:
        super().__init__(link, scene, draws, believed, stranded=stranded)
        self._cloud = cloud
        self._sweep_s = cloud.profile.sweep_s
        self._free_s = 0.0
        self._answers: deque[Answer] = deque()

    def send(self, now_s: float, step: Step) -> None:
        leg = self._up(now_s, step.up_bytes)
        queue_s, compute_s, done_s = self._serve(leg.arrives_s, step.compute_s, step.place, decode=step.decode)
        if step.stream is not None:
            self._answers.append(self._follow(step, leg, step.stream, queue_s, compute_s, done_s))
            return
        at_s, down_s = self._down(done_s, step.down_bytes, step.place, decode=step.decode)
        self._answers.append(
            Answer(
                at_s=at_s,
                step=step,
                sent_s=leg.sent_s,
                up_s=leg.up_s,
                down_s=down_s,
                idle_s=leg.idle_s,
                queue_s=queue_s,
                sweep_s=self._sweep_s,
                compute_s=compute_s,
                down_bytes=step.down_bytes,
                overhead_s=self._overhead_s,
            )
        )

    def take(self, now_s: float, block: bool) -> Answer | None:
        if not self._answers or not (block or self._answers[0].at_s <= now_s):
            return None
        answer = self._answers.popleft()
        if answer.step.stream is not None:
            return answer
        at_s, lost = self._waited(now_s, answer.at_s)
        return answer if at_s == answer.at_s else answer._replace(at_s=at_s, lost=lost)

    def _serve(self, arrives_s: float, seconds: float, index: int, *, decode: bool) -> tuple[float, float, float]:
        """Wait for a place, seconds of computing, and when it is done."""
        cloud, draws = self._cloud, self._draws
        queue_s = cloud.queue_s.at(arrives_s)
        if queue_s:
            queue_s *= draws.exponential(What.DECODE_QUEUE if decode else What.PREFILL_QUEUE, index)
        start_s = max(arrives_s + queue_s + self._sweep_s, self._free_s)
        compute_s = seconds * cloud.profile.slowdown * cloud.slowdown.at(start_s)
        if cloud.jitter:
            what = What.DECODE_COMPUTE if decode else What.PREFILL_COMPUTE
            compute_s *= draws.log_normal(what, index, cloud.jitter)
        self._free_s = start_s + compute_s
        return queue_s, compute_s, self._free_s

    def _follow(self, step: Step, leg: Leg, stream: Stream, queue_s: float, compute_s: float, done_s: float) -> Answer:
        """All tokens of a stream. One answer stands for them; it ends early where the link is silent too long."""
        first_s, down_s = self._down(done_s, step.down_bytes, step.place, decode=False)
        first_s, lost = self._waited(leg.sent_s, first_s)
        tokens, down_bytes = (0, 0) if lost else (1, step.down_bytes)
        rounds = rows = 0
        at_s = first_s
        queues_s = computes_s = 0.0
        drafter = stream.drafter
        while not lost and tokens < stream.tokens:
            drafted = min(stream.draft_tokens, stream.most_tokens - tokens - 1)
            work = stream.effort.round(1 + drafted)
            seconds = work.back.at(stream.prompt_tokens + tokens - 1) + work.head_s
            gained = 1
            if drafter is not None and drafted:
                seconds += drafted * drafter.s_per_token
                gained += kept_tokens(drafter, drafted, self._draws, tokens)
            gained = min(gained, stream.tokens - tokens)
            waited_s, took_s, done_s = self._serve(done_s, seconds, tokens, decode=True)
            size = gained * step.down_bytes
            before_s = at_s
            at_s, _ = self._down(done_s, size, tokens, decode=True, busy_s=self._overhead_s)
            at_s, lost = self._waited(before_s, at_s)
            if lost:
                break
            self._arrived_s = at_s
            tokens, rounds, rows = tokens + gained, rounds + 1, rows + 1 + drafted
            down_bytes += size
            queues_s, computes_s = queues_s + waited_s, computes_s + took_s
        return Answer(
            at_s=at_s,
            step=step,
            sent_s=leg.sent_s,
            up_s=leg.up_s,
            down_s=down_s,
            idle_s=leg.idle_s,
            queue_s=queue_s,
            sweep_s=self._sweep_s,
            compute_s=compute_s,
            down_bytes=down_bytes,
            overhead_s=self._overhead_s,
            first_s=first_s,
            tokens=tokens,
            rounds=rounds,
            rows=rows,
            rounds_queue_s=queues_s,
            rounds_compute_s=computes_s,
            lost=lost,
        )


def run_out(program: Program[T], port: LonePort) -> T:
    """Run a program to its end; virtual time is its own business."""
    try:
        wish = next(program)
        while True:
            wish = program.send(port.take(*wish))
    except StopIteration as end:
        return end.value  # type: ignore[no-any-return]
