"""What the agent would tell its estimators of a pass or an exchange: no more than a real device could know"""

from __future__ import annotations

from typing import Final

from splitglm_core.plan import Arm
from splitglm_partitioner.observations import CloudStep, DevicePass, Direction, DraftRound, RoundTrip, Transfer
from splitglm_sims.world.account import Account
from splitglm_sims.world.effort import Effort
from splitglm_sims.world.port import Answer

BIG_BYTES: Final = 16 << 10
"""A transfer from this size on says something of the rate."""
SMALL_BYTES: Final = 1 << 10
"""An exchange of no more, both ways together, says something of the round trip."""


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
    step, plan = got.step, effort.plan
    told.append(
        CloudStep(
            at_s=got.at_s,
            rows=step.rows,
            start=plan.s,
            stop=plan.t,
            context_tokens=step.context,
            queue_s=got.queue_s,
            sweep_s=got.sweep_s,
            compute_s=got.compute_s,
            alone=step.alone,
        )
    )
    if got.rounds:
        rows = max(1, round(got.rows / got.rounds))
        told.append(
            CloudStep(
                at_s=got.at_s,
                rows=rows,
                start=plan.s,
                stop=plan.t,
                context_tokens=step.context + step.rows + got.tokens // 2,
                queue_s=got.rounds_queue_s / got.rounds,
                sweep_s=got.sweep_s,
                compute_s=got.rounds_compute_s / got.rounds,
                alone=step.alone,
            )
        )
    if step.up_bytes >= BIG_BYTES:
        told.append(_transfer(got.at_s, Direction.UP, step.up_bytes, got.up_s, got.idle_s))
    if step.down_bytes >= BIG_BYTES:
        told.append(_transfer(got.at_s, Direction.DOWN, step.down_bytes, got.down_s, got.idle_s))
    if step.alone and plan.arm is not Arm.DEVICE and step.up_bytes + step.down_bytes <= SMALL_BYTES:
        first_s = got.first_s if step.stream is not None else got.at_s
        trip_s = first_s - got.sent_s - got.overhead_s - got.queue_s - got.sweep_s - got.compute_s
        told.append(RoundTrip(at_s=first_s, seconds=max(0.0, trip_s), idle_s=got.idle_s))


def _transfer(at_s: float, direction: Direction, size: int, seconds: float, idle_s: float) -> Transfer:
    return Transfer(
        at_s=at_s, direction=direction, transfer_bytes=size, seconds=max(seconds, 1e-9), idle_s=min(idle_s, 1e6)
    )


def round_trip(account: Account, at_s: float, seconds: float, idle_s: float) -> None:
    if account.told is not None:
        account.told.append(RoundTrip(at_s=at_s, seconds=seconds, idle_s=min(idle_s, 1e6)))


def probed(account: Account, at_s: float, up_bytes: int, down_bytes: int, seconds: float) -> None:
    """A probe of one direction; the round trip is taken off."""
    if account.told is not None:
        up = up_bytes > down_bytes
        way, size = (Direction.UP, up_bytes) if up else (Direction.DOWN, down_bytes)
        account.told.append(_transfer(at_s, way, size, seconds, 0.0))
