"""What the truth of a world allows, and what an outcome is worth"""

from __future__ import annotations

from dataclasses import replace

from splitglm_core.errors import SplitGlmError
from splitglm_core.plan import Arm, SplitPlan
from splitglm_partitioner.arms import enumerate_arms
from splitglm_partitioner.drafts import DraftStatistics
from splitglm_partitioner.observations import Outcome
from splitglm_partitioner.request import Fixed, Situation


def forbidden(plan: SplitPlan, situation: Situation) -> str | None:
    """Why ``plan`` may not run: the rules of ``partitioner.arms`` on what is true, and on the drafters that exist.

    Deadlines are not judged here: a late reply is late when it is.
    """
    if plan.layers != situation.model.layers:
        return f"the plan is of a model with {plan.layers} layers"
    fixed = Fixed(arm=plan.arm, s=plan.s, t=plan.t if plan.arm is Arm.USHAPE else None)
    codecs = (plan.codec,) if plan.arm in (Arm.SPLIT, Arm.USHAPE) else situation.request.codecs
    try:
        request = replace(situation.request, fixed=fixed, codecs=codecs, chunk_tokens=plan.chunk_tokens, warm=None)
        allowed = enumerate_arms(replace(situation, request=request))
    except SplitGlmError as refused:
        return str(refused)
    if not allowed.blocks:
        return next((entry.detail for entry in allowed.exclusions if entry.arm is plan.arm), "no such plan")
    return _bad_drafts(plan, situation.drafts)


def _bad_drafts(plan: SplitPlan, drafters: tuple[DraftStatistics, ...]) -> str | None:
    if not plan.draft_tokens:
        return None
    drafter = next((one for one in drafters if one.name == plan.drafter), None)
    if drafter is None:
        return f"there is no drafter {plan.drafter}"
    if plan.arm not in drafter.arms or plan.draft_tokens > len(drafter.survival) or plan.s < drafter.front_layers:
        return f"drafter {plan.drafter} cannot draft {plan.draft_tokens} tokens for this plan"
    return None


def one_after_the_other(spent: Outcome, then: Outcome) -> Outcome:
    """A reply that came to nothing, and the one that was made instead."""
    joules = None if spent.energy_j is None else spent.energy_j + (then.energy_j or 0.0)
    return Outcome(
        ttft_s=spent.total_s + then.ttft_s,
        total_s=spent.total_s + then.total_s,
        new_tokens=then.new_tokens,
        uplink_bytes=spent.uplink_bytes + then.uplink_bytes,
        downlink_bytes=spent.downlink_bytes + then.downlink_bytes,
        energy_j=joules,
        price=spent.price if then.price is None else (spent.price or 0.0) + then.price,
    )
