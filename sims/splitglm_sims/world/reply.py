"""The agent's reply as a program: what ``splitglm_edge`` does between request and last token, in virtual time

It follows ``decoding_hidden``, ``decoding_cloud`` and ``reply``: one thread that computes, sends without waiting, looks
for answers, and waits only when it must. It yields ``(now, block)`` where it looks or waits and is sent the next
answer, or None; so the same program runs against a formula (``alone``) and against a scheduler in a SimPy world
(``crowd``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from splitglm_core.errors import InternalError
from splitglm_core.plan import Arm
from splitglm_partitioner.drafts import DraftStatistics
from splitglm_partitioner.request import PREFILL_IN_FLIGHT
from splitglm_sims.world import seen
from splitglm_sims.world.account import Account, Pace
from splitglm_sims.world.alone import Program
from splitglm_sims.world.drafting import kept_tokens
from splitglm_sims.world.draws import Draws
from splitglm_sims.world.effort import Effort
from splitglm_sims.world.port import Answer, Port, Step, Stream

LINK_LOST: Final = "the cloud was lost and nothing else can finish the reply"


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """What is to be generated, and how.

    Attributes:
        cached_tokens: leading prompt tokens that the caches hold.
        new_tokens: tokens that the answer will have; the program does not look ahead by it.
        most_tokens: that the caller allows.
        alone: the device-only plan's effort, to fall back to; None where the device cannot hold the model.
        genre: for what is told of drafts.
    """

    effort: Effort
    prompt_tokens: int
    cached_tokens: int
    new_tokens: int
    most_tokens: int
    pace: Pace
    drafter: DraftStatistics | None = None
    alone: Effort | None = None
    genre: str = ""


class _Gone(Exception):
    """Internal: the cloud is lost at ``now_s``."""

    def __init__(self, now_s: float) -> None:
        super().__init__()
        self.now_s = now_s


def run_reply(reply: Reply, port: Port, draws: Draws, account: Account, now_s: float) -> Program[float]:
    """Generate; returns when the last token is there, or when it is known that there will be none."""
    arm = reply.effort.plan.arm
    try:
        if arm is Arm.DEVICE:
            return on_device(reply, reply.effort, account, now_s)
        if arm is Arm.CLOUD:
            drafts_here = reply.drafter is not None and not reply.drafter.in_cloud
            now_s = yield from _cloud(reply, port, account, now_s, streams=not drafts_here)
        else:
            now_s = yield from _hidden_prefill(reply, port, account, now_s)
        if account.tokens < reply.new_tokens:
            now_s = yield from _rounds(reply, port, draws, account, now_s)
        return now_s
    except _Gone as gone:
        if reply.alone is None:
            account.failed = LINK_LOST
            return gone.now_s
        account.gone_s = gone.now_s
        return on_device(reply, reply.alone, account, gone.now_s)


def on_device(reply: Reply, effort: Effort, account: Account, now_s: float) -> float:
    """Every layer on the device, tokens generated before included in the prompt. One stretch: nothing interferes."""
    pace, done = reply.pace, account.tokens
    cached = reply.cached_tokens if effort is reply.effort else 0
    one = effort.round(1)
    start_s = now_s
    for chunk in effort.prefill(reply.prompt_tokens + done, cached):
        factor = pace.at(now_s)
        seen.device_pass(account, now_s, chunk.rows, effort.plan.s, chunk.context, chunk.front_s * factor)
        now_s += chunk.device_s * factor
    now_s += one.after_s * pace.at(now_s)
    account.deliver(now_s, 1)
    context = reply.prompt_tokens + account.tokens - 1
    left = reply.new_tokens - account.tokens
    fixed_s = one.device_s + one.after_s + one.front.base_s
    if left > 0:
        seen.device_pass(account, now_s, 1, effort.plan.s, context, one.front.at(context) * pace.at(now_s))
    if pace.steady:
        mean = context + (left - 1) / 2
        now_s += left * (fixed_s + one.front.per_token_s * mean) * pace.at(now_s)
    else:
        for position in range(context, context + left):
            now_s += (fixed_s + one.front.per_token_s * position) * pace.at(now_s)
    account.tokens += left
    account.busy_s += now_s - start_s
    return now_s


def _hidden_prefill(reply: Reply, port: Port, account: Account, now_s: float) -> Program[float]:
    """Chunks through front, link and back; where there is a tail, their answers through that."""
    effort, pace = reply.effort, reply.pace
    deep, samples = effort.deep, effort.plan.arm is Arm.USHAPE
    chunks = effort.prefill(reply.prompt_tokens, reply.cached_tokens)
    one = effort.round(1)
    head_s = one.head_s
    width = effort.plan.t - effort.plan.s
    open_steps = 0
    for index, chunk in enumerate(chunks):
        factor = pace.at(now_s)
        seen.device_pass(account, now_s, chunk.rows, effort.plan.s, chunk.context, chunk.front_s * factor)
        busy_s = chunk.device_s * factor + chunk.seal_s
        account.busy_s += busy_s
        now_s += busy_s
        last = index == len(chunks) - 1
        compute_s = chunk.back_s + (head_s if last else 0.0)
        port.send(
            now_s,
            Step(
                index,
                False,
                chunk.rows,
                chunk.context,
                compute_s,
                chunk.up_bytes,
                chunk.down_bytes,
                int(last and not samples),
                not open_steps,
            ),
        )
        account.up_bytes += chunk.up_bytes
        account.layer_tokens += width * chunk.rows
        open_steps += 1
        most = 0 if last else PREFILL_IN_FLIGHT
        while open_steps > most or (deep and open_steps):
            answer = yield now_s, open_steps > most
            if answer is None:
                break
            answer = _present(account, answer)
            now_s = max(now_s, answer.at_s)
            open_steps -= 1
            account.down_bytes += answer.down_bytes
            seen.answer(account, answer, effort)
            answered = chunks[answer.step.place]
            busy_s = answered.open_s + answered.tail_s * pace.at(now_s)
            account.busy_s += busy_s
            now_s += busy_s
    if samples:
        busy_s = effort.device.active.head_s * pace.at(now_s)
        account.busy_s += busy_s
        now_s += busy_s
    account.deliver(now_s, 1)
    return now_s


def _cloud(reply: Reply, port: Port, account: Account, now_s: float, *, streams: bool) -> Program[float]:
    """Ids up; a cloud that goes on alone, or only the first token where the device drafts."""
    effort = reply.effort
    chunks = effort.prefill(reply.prompt_tokens, reply.cached_tokens)
    head_s, layers = effort.round(1).head_s, effort.plan.layers
    stream = None
    if streams:
        drafts = effort.plan.draft_tokens if reply.drafter is not None else 0
        stream = Stream(effort, reply.prompt_tokens, reply.new_tokens, reply.most_tokens, reply.drafter, drafts)
    open_steps = 0
    for index, chunk in enumerate(chunks):
        account.busy_s += chunk.seal_s
        now_s += chunk.seal_s
        last = index == len(chunks) - 1
        compute_s = chunk.back_s + (head_s if last else 0.0)
        port.send(
            now_s,
            Step(
                index,
                False,
                chunk.rows,
                chunk.context,
                compute_s,
                chunk.up_bytes,
                chunk.down_bytes,
                int(last),
                not open_steps,
                stream if last else None,
            ),
        )
        account.up_bytes += chunk.up_bytes
        account.layer_tokens += layers * chunk.rows
        open_steps += 1
        while open_steps > (0 if last else PREFILL_IN_FLIGHT):
            answer = yield now_s, True
            if answer is None:
                break
            if answer.step.stream is not None:
                _take_stream(reply, account, answer, chunk.open_s)
            answer = _present(account, answer)
            now_s = max(now_s, answer.at_s)
            open_steps -= 1
            if answer.step.stream is None:
                account.down_bytes += answer.down_bytes
            seen.answer(account, answer, effort)
            if last and not open_steps:
                now_s += chunk.open_s  # of the newest token: the others were opened while it was on its way
                if stream is None:
                    account.busy_s += chunk.open_s
                    account.deliver(now_s, 1)
    return now_s


def _take_stream(reply: Reply, account: Account, answer: Answer, open_s: float) -> None:
    if answer.tokens:
        account.deliver(answer.first_s + open_s, answer.tokens)
    account.down_bytes += answer.down_bytes
    account.busy_s += open_s * (1 + answer.rounds)
    account.layer_tokens += reply.effort.plan.layers * answer.rows


def _rounds(reply: Reply, port: Port, draws: Draws, account: Account, now_s: float) -> Program[float]:
    """Decoding with a trip per round: one known token, drafts behind it, and as many tokens as were kept."""
    effort, pace, drafter = reply.effort, reply.pace, reply.drafter
    layers, width = effort.plan.s, effort.plan.t - effort.plan.s
    samples = effort.plan.arm is Arm.USHAPE
    single = effort.round(1)
    while account.tokens < reply.new_tokens:
        done = account.tokens
        context = reply.prompt_tokens + done - 1
        work, gained, kept, drafting_s = single, 1, 0, 0.0
        if drafter is not None:
            drafted = min(effort.plan.draft_tokens, reply.most_tokens - done - 1)
            if drafted > 0:
                work = effort.round(1 + drafted)
                drafting_s = drafted * drafter.s_per_token
                if drafter.shares_front:
                    drafting_s -= effort.shared(drafter.front_layers, work.rows).at(context)
                kept = kept_tokens(drafter, drafted, draws, done)
                gained = min(1 + kept, reply.new_tokens - done)
        factor = pace.at(now_s)
        front_s = work.front.at(context)
        busy_s = (front_s + work.device_s + drafting_s) * factor + work.seal_s
        account.busy_s += busy_s
        if not drafting_s:
            seen.device_pass(account, now_s + busy_s, work.rows, layers, context, front_s * factor)
        now_s += busy_s
        compute_s = work.back.at(context) + work.head_s
        rows, heads = work.rows, 0 if samples else work.rows
        port.send(now_s, Step(done, True, rows, context, compute_s, work.up_bytes, work.down_bytes, heads, True))
        account.up_bytes += work.up_bytes
        account.layer_tokens += width * work.rows
        answer = _present(account, (yield now_s, True))
        account.down_bytes += answer.down_bytes
        now_s = max(now_s, answer.at_s)
        seen.answer(account, answer, effort)
        busy_s = work.open_s + (work.tail.at(context) + work.after_s) * pace.at(now_s)
        account.busy_s += busy_s
        now_s += busy_s
        if work.rows > 1 and drafter is not None:
            seen.draft_round(account, now_s, drafter.name, reply.genre, work.rows - 1, kept)
        account.deliver(now_s, gained)
    return now_s


def _present(account: Account, answer: Answer | None) -> Answer:
    """The answer that was waited for.

    Raises:
        _Gone: the cloud was lost; the device goes on alone if it can.
        InternalError: the world returned from a wait without an answer.
    """
    if answer is None:
        raise InternalError("a wait ended without an answer")
    account.used_link(answer.sent_s)
    if answer.lost:
        raise _Gone(answer.at_s)
    return answer
