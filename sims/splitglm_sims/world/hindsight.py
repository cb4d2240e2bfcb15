"""The best plan of a job in hindsight: every candidate is run where the device stands

Also how a clairvoyant strategy finds its plan: by ``plans_worth_trying`` and ``Task.foresee``.
"""

from __future__ import annotations

from collections.abc import Callable

from splitglm_core.errors import InternalError
from splitglm_core.plan import Arm, SplitPlan
from splitglm_partitioner.drafts import DraftStatistics
from splitglm_partitioner.lanes import TOKEN_BYTES
from splitglm_partitioner.request import Situation
from splitglm_sims.world.candidates import candidates, drafted
from splitglm_sims.world.effort import Effort
from splitglm_sims.world.trial import Trial


def plans_worth_trying(situation: Situation) -> tuple[SplitPlan, ...]:
    """``candidates``, and these with drafts.

    A drafter's best length is found for the link as first probed; its two neighbours are tried too.
    """
    plans = candidates(situation)
    if not situation.drafts or situation.cloud is None or situation.link is None:
        return plans
    longest = max(len(drafter.survival) for drafter in situation.drafts)
    out = list(plans)
    for plan in plans:
        if plan.arm is not Arm.DEVICE:
            effort = Effort(plan, situation.model, situation.device, situation.cloud)
            for drafter in situation.drafts:
                out += drafted(plan, (drafter,), _round_seconds(effort, situation, drafter, longest))
    return tuple(out)


def best_of(situation: Situation, attempt: Callable[[SplitPlan], Trial]) -> tuple[SplitPlan, Trial]:
    """The candidate of lowest value; the first of equals."""
    best: tuple[SplitPlan, Trial] | None = None
    for plan in plans_worth_trying(situation):
        trial = attempt(plan)
        if best is None or trial.value < best[1].value:
            best = plan, trial
    if best is None:
        raise InternalError("no plan is allowed for a job, not even on the device alone")
    return best


def _round_seconds(effort: Effort, situation: Situation, drafter: DraftStatistics, longest: int) -> dict[int, float]:
    """By rows, a round of the plan on the link as first probed, at the prompt's context."""
    link = situation.link
    context = situation.request.prompt_tokens
    out = {}
    for rows in range(1, longest + 2):
        work = effort.round(rows)
        seconds = work.front.at(context) + work.back.at(context) + work.tail.at(context) + work.head_s
        if link is not None and not drafter.in_cloud:
            seconds += work.device_s + work.after_s + link.rtt_s + link.overhead_s
            seconds += work.up_bytes / link.uplink_bytes_per_s + max(work.down_bytes, TOKEN_BYTES) / (
                link.downlink_bytes_per_s
            )
        out[rows] = seconds
    return out
