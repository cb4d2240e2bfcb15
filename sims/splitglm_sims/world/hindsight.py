"""The best plan of a job in hindsight: every candidate is run where the device stands"""

from __future__ import annotations

from collections.abc import Callable

from splitglm_core.errors import InternalError
from splitglm_core.plan import Arm, Codec, SplitPlan
from splitglm_partitioner.drafts import DraftStatistics
from splitglm_partitioner.lanes import TOKEN_BYTES
from splitglm_partitioner.request import Situation
from splitglm_sims.world.candidates import candidates, drafted
from splitglm_sims.world.effort import Effort
from splitglm_sims.world.trial import Trial


def best_of(situation: Situation, attempt: Callable[[SplitPlan], Trial]) -> tuple[SplitPlan, Trial]:
    """The plan of lowest value among ``candidates`` and, of each arm and codec, the best of them with drafts.

    The first of equals. A drafter's best length is that on the link as first probed; its two neighbours are tried too.

    Raises:
        InternalError: no plan is allowed.
    """
    kinds: dict[tuple[Arm, Codec], tuple[SplitPlan, Trial]] = {}
    for plan in candidates(situation):
        trial, kind = attempt(plan), (plan.arm, plan.codec)
        if kind not in kinds or trial.value < kinds[kind][1].value:
            kinds[kind] = plan, trial
    tried = list(kinds.values())
    for plain, _ in kinds.values():
        tried += [(plan, attempt(plan)) for plan in with_drafts(plain, situation)]
    if not tried:
        raise InternalError("no plan is allowed for a job, not even on the device alone")
    return min(tried, key=lambda pair: pair[1].value)


def with_drafts(plan: SplitPlan, situation: Situation) -> tuple[SplitPlan, ...]:
    """``plan`` with each of the situation's drafters that can serve it, at three lengths each."""
    if plan.arm is Arm.DEVICE or situation.cloud is None or not situation.drafts:
        return ()
    longest = max(len(drafter.survival) for drafter in situation.drafts)
    effort = Effort(plan, situation.model, situation.device, situation.cloud)
    out: list[SplitPlan] = []
    for drafter in situation.drafts:
        out += drafted(plan, (drafter,), _round_seconds(effort, situation, drafter, longest))
    return tuple(out)


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
