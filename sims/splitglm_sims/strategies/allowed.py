"""Allowed plans as strategies need them: the cheapest, the nearest to a wish, a short list, a plan with drafts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from splitglm_core.errors import InputError, NoFeasiblePlan
from splitglm_core.plan import Arm, Codec, SplitPlan
from splitglm_partitioner.arms import Block, Candidates, enumerate_arms, make_plan
from splitglm_partitioner.drafts import DraftStatistics
from splitglm_partitioner.policy import decide
from splitglm_partitioner.request import Request, Situation

# Where an arm is not allowed, what comes nearest to it: first what leaves the head where it was, then what moves least.
NEAREST_ARMS: dict[Arm, tuple[Arm, ...]] = {
    Arm.DEVICE: (Arm.DEVICE, Arm.USHAPE, Arm.SPLIT, Arm.CLOUD),
    Arm.CLOUD: (Arm.CLOUD, Arm.SPLIT, Arm.USHAPE, Arm.DEVICE),
    Arm.SPLIT: (Arm.SPLIT, Arm.USHAPE, Arm.CLOUD, Arm.DEVICE),
    Arm.USHAPE: (Arm.USHAPE, Arm.SPLIT, Arm.DEVICE, Arm.CLOUD),
}


def changed(situation: Situation, **changes: object) -> Situation:
    """``situation`` with fields of its request replaced."""
    request: Request = replace(situation.request, **changes)  # type: ignore[arg-type]
    return replace(situation, request=request)


def cheapest(situation: Situation) -> SplitPlan:
    """The plan of lowest predicted value (``policy.decide``). Where none can keep the deadline, the cheapest late one.

    Raises:
        NoFeasiblePlan: nothing is allowed, deadline or not.
    """
    try:
        return decide(situation).plan
    except NoFeasiblePlan:
        if situation.request.deadline_s is None:
            raise
        return decide(changed(situation, deadline_s=None)).plan


def allowed(situation: Situation) -> Candidates:
    """``enumerate_arms``, refused where it leaves nothing.

    Raises:
        NoFeasiblePlan: nothing is allowed.
    """
    candidates = enumerate_arms(situation)
    if not candidates.blocks:
        reasons = "; ".join(f"{e.arm.value}: {e.detail}" for e in candidates.exclusions)
        raise NoFeasiblePlan(f"no plan satisfies the request. {reasons}", "give the device more memory or a cloud")
    return candidates


def nearest(candidates: Candidates, arm: Arm, *, s: int, t: int, codec: Codec | None) -> SplitPlan:
    """The allowed plan nearest to a wish: its arm if any of it is allowed (else in the order of ``NEAREST_ARMS``),
    then the cut that moves fewest layers to the other machine.

    Args:
        s, t: wished cut; any integers.
        codec: wished; None, or one that is not allowed, gives the first allowed one.
    """

    def distance(block: Block) -> tuple[int, int]:
        return NEAREST_ARMS[arm].index(block.arm), abs(_clamped(block, s) - s) + abs(block.t - t)

    block = min(candidates.blocks, key=distance)
    chosen = codec if codec in candidates.codecs else next(iter(candidates.codecs), Codec.BF16)
    return make_plan(candidates.layers, block.arm, _clamped(block, s), block.t, chosen, candidates.chunk_tokens)


def shortlist(candidates: Candidates, *, cuts: int = 2) -> Iterator[SplitPlan]:
    """Without drafts, for every arm, ``t`` and codec: ``cuts`` >= 2 values of ``s`` spread evenly over the allowed
    range, both ends included. Cost is near-linear in ``s``, so its ends matter most."""
    for block in candidates.blocks:
        span = block.s_stop - 1 - block.s_start
        chosen = sorted({block.s_start + round(span * i / (cuts - 1)) for i in range(cuts)})
        for codec in candidates.codecs if block.arm in (Arm.SPLIT, Arm.USHAPE) else (Codec.BF16,):
            for s in chosen:
                yield make_plan(candidates.layers, block.arm, s, block.t, codec, candidates.chunk_tokens)


def usable(statistics: DraftStatistics, plan: SplitPlan) -> bool:
    """Whether the drafter can serve ``plan``: its arm, and the front layers that it needs."""
    return plan.arm in statistics.arms and plan.s >= statistics.front_layers


def drafter_named(situation: Situation, name: str) -> DraftStatistics:
    """The drafter's statistics. InputError when the device has none of that name; the message lists what it has."""
    for statistics in situation.drafts:
        if statistics.name == name:
            return statistics
    names = ", ".join(sorted(statistics.name for statistics in situation.drafts)) or "none"
    raise InputError(f"the device has no drafter named {name!r} for this genre; it has: {names}")


def with_drafts(plan: SplitPlan, statistics: DraftStatistics, draft_tokens: int) -> SplitPlan:
    """``plan`` with that many tokens drafted per round, at most as many as are known of; unchanged where it cannot."""
    length = min(draft_tokens, len(statistics.survival))
    if length < 1 or not usable(statistics, plan):
        return plan
    return replace(plan, drafter=statistics.name, draft_tokens=length)


def _clamped(block: Block, s: int) -> int:
    return min(max(s, block.s_start), block.s_stop - 1)
