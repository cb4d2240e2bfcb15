"""What the agent would tell its estimators of a pass or an exchange: no more than a real device could know

As ``splitglm_edge.watching`` and ``timed_front`` do. Of a stream, whose every token tells the agent of a cloud step,
one step is told that stands for their mean.
"""

from __future__ import annotations

from typing import Final

from splitglm_partitioner.bounds import MAX_SECONDS
from splitglm_partitioner.cloud_load import Load
from splitglm_partitioner.observations import (
    CloudHint,
    CloudStep,
    DevicePass,
    Direction,
    DraftRound,
    RoundTrip,
    Transfer,
)
from splitglm_partitioner.rates import MIN_TRANSFER_BYTES
from splitglm_sims.world.account import Account
from splitglm_sims.world.effort import Effort
from splitglm_sims.world.port import Answer

_SMALL_REPLY: Final = 1 / 16
"""An upload is timed by its answer, which therefore must be small beside it."""
_RTT_SHARE: Final = 0.25
"""An exchange whose bytes take no more of a round trip than this says something of the round trip."""


def device_pass(account: Account, at_s: float, rows: int, layers: int, context: int, seconds: float) -> None:
    if account.told is not None and layers:
        account.told.append(DevicePass(at_s=at_s, rows=rows, layers=layers, context_tokens=context, seconds=seconds))


def draft_round(account: Account, at_s: float, drafter: str, genre: str, proposed: int, accepted: int) -> None:
    if account.told is not None:
        account.told.append(DraftRound(at_s=at_s, drafter=drafter, genre=genre, proposed=proposed, accepted=accepted))


def answer(account: Account, got: Answer, effort: Effort) -> None:
    """A step was answered: the cloud's own times, and what is left of the exchange."""
    told = account.told
    if told is None:
        return
    step = got.step
    head_s = step.head_rows * (effort.cloud.head_s or 0.0)
    told.append(
        _cloud_step(got, effort, step.rows, step.context, got.queue_s, _layers_s(got.compute_s, step.compute_s, head_s))
    )
    if got.rounds:
        rows, context = max(1, round(got.rows / got.rounds)), step.context + step.rows + got.tokens // 2
        work = effort.round(rows)
        compute_s = _layers_s(got.rounds_compute_s / got.rounds, work.back.at(context) + work.head_s, work.head_s)
        told.append(_cloud_step(got, effort, rows, context, got.rounds_queue_s / got.rounds, compute_s))
    if step.up_bytes >= MIN_TRANSFER_BYTES and step.down_bytes <= _SMALL_REPLY * step.up_bytes:
        told.append(_transfer(got.at_s, Direction.UP, step.up_bytes, got.up_s, got.idle_s))
    elif step.alone and not got.lost:
        # Of a stream, its first token is the answer to the prompt; the rest comes by itself.
        came_s = got.at_s if step.stream is None else got.first_s
        trip_s = came_s - got.sent_s - got.overhead_s - got.queue_s - got.sweep_s - got.compute_s - got.up_s
        if trip_s > 0.0 and got.up_s <= _RTT_SHARE * trip_s:
            told.append(RoundTrip(at_s=got.at_s, seconds=trip_s, idle_s=min(got.idle_s, MAX_SECONDS)))


def _layers_s(compute_s: float, alone_s: float, head_s: float) -> float:
    """Part of the computing that is the layers' and not the head's, by the cloud's own figures."""
    return compute_s * (1.0 - head_s / alone_s) if alone_s > 0.0 else compute_s


def _cloud_step(got: Answer, effort: Effort, rows: int, context: int, queue_s: float, compute_s: float) -> CloudStep:
    return CloudStep(
        at_s=got.at_s,
        rows=rows,
        start=effort.plan.s,
        stop=effort.plan.t,
        context_tokens=context,
        queue_s=queue_s,
        sweep_s=got.sweep_s,
        compute_s=max(0.0, compute_s),
        alone=got.step.alone,
    )


def _transfer(at_s: float, direction: Direction, size: int, seconds: float, idle_s: float) -> Transfer:
    return Transfer(
        at_s=at_s, direction=direction, transfer_bytes=size, seconds=max(seconds, 1e-9), idle_s=min(idle_s, MAX_SECONDS)
    )


def round_trip(account: Account, at_s: float, seconds: float, idle_s: float) -> None:
    if account.told is not None:
        account.told.append(RoundTrip(at_s=at_s, seconds=seconds, idle_s=min(idle_s, MAX_SECONDS)))


def hint(account: Account, at_s: float, load: Load) -> None:
    """What the cloud said of itself in the answer to a ping."""
    if account.told is not None:
        account.told.append(CloudHint(at_s=at_s, queue_s=load.queue_s, sweep_s=load.sweep_s, slowdown=load.slowdown))


def probed(account: Account, at_s: float, up_bytes: int, down_bytes: int, seconds: float) -> None:
    """A probe of one direction; the round trip is taken off."""
    if account.told is not None:
        up = up_bytes > down_bytes
        way, size = (Direction.UP, up_bytes) if up else (Direction.DOWN, down_bytes)
        account.told.append(_transfer(at_s, way, size, seconds, 0.0))
