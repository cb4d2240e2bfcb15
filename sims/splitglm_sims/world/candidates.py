"""Which plans are tried to find the best one in hindsight

Every layer emits the same width, so the cost of a plan is near-linear in its cut and the best cut of an arm lies at an
end of the allowed range (the fact that makes the policy's answers explainable; DESIGN 2). So of each arm, tail and
codec the lowest, the middle and the highest allowed cut are tried, and the plan of an open session. Drafts are tried at
the length that yields most tokens per second, one less and one more.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from splitglm_core.plan import Arm, Codec, SplitPlan
from splitglm_partitioner.arms import Block, enumerate_arms, make_plan
from splitglm_partitioner.drafts import DraftStatistics
from splitglm_partitioner.request import Situation


def candidates(situation: Situation) -> tuple[SplitPlan, ...]:
    """Plans worth trying, without repetition and without drafts."""
    allowed = enumerate_arms(situation)
    plans: dict[SplitPlan, None] = {}
    for block in allowed.blocks:
        cuts = dict.fromkeys((block.s_start, (block.s_start + block.s_stop - 1) // 2, block.s_stop - 1))
        for codec in allowed.codecs if block.arm in (Arm.SPLIT, Arm.USHAPE) else (Codec.BF16,):
            for s in cuts:
                plans[make_plan(allowed.layers, block.arm, s, block.t, codec, allowed.chunk_tokens)] = None
    warm = situation.request.warm
    if warm is not None and any(_inside(warm.plan, block) for block in allowed.blocks):
        plans[warm.plan] = None
    return tuple(plans)


def _inside(plan: SplitPlan, block: Block) -> bool:
    return plan.arm is block.arm and plan.t == block.t and block.s_start <= plan.s < block.s_stop


def drafted(plan: SplitPlan, drafters: Iterable[DraftStatistics], round_s: dict[int, float]) -> tuple[SplitPlan, ...]:
    """``plan``, cut as late as the drafter needs, each drafter of its arm at its best length and the two around it.

    Args:
        round_s: by rows (1 is no draft), the seconds of a round without its drafting.
    """
    plans = []
    for drafter in drafters:
        if plan.arm not in drafter.arms or plan.t <= drafter.front_layers:
            continue
        fitting = replace(plan, s=max(plan.s, drafter.front_layers))
        longest = len(drafter.survival)

        def pace(length: int, drafter: DraftStatistics = drafter) -> float:
            seconds = round_s[1 + length] + length * drafter.s_per_token
            return drafter.tokens_per_round(length) / max(seconds, 1e-12)

        best = max(range(1, longest + 1), key=pace)
        plans += [
            replace(fitting, drafter=drafter.name, draft_tokens=length)
            for length in range(max(1, best - 1), min(longest, best + 1) + 1)
        ]
    return tuple(plans)
