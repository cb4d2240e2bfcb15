"""One job under one plan, from a given moment: for real, or on a copy of the device to see what would have been"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from splitglm_core.plan import SplitPlan
from splitglm_partitioner.observations import Outcome
from splitglm_partitioner.request import Situation
from splitglm_sims.world.account import Account
from splitglm_sims.world.alone import LonePort, run_out
from splitglm_sims.world.draws import Draws
from splitglm_sims.world.handset import Handset
from splitglm_sims.world.judging import forbidden, one_after_the_other
from splitglm_sims.world.link import Link
from splitglm_sims.world.reply import run_reply

LATE: Final = "the deadline passed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """What a plan came to.

    Attributes:
        end_s: when the device was free again.
        judged: ``outcome``; of a failed reply, what was spent and the whole reply on the device alone after it. That is
            the penalty for failing, also where the device could not hold the model.
        value: the objective of ``judged``.
        failed: why there is no answer.
    """

    end_s: float
    outcome: Outcome
    judged: Outcome
    value: float
    failed: str | None


def run_trial(
    handset: Handset,
    index: int,
    plan: SplitPlan,
    situation: Situation,
    *,
    link: Link,
    account: Account,
    draws: Draws,
    now_s: float,
) -> Trial:
    """Run job ``index`` under ``plan`` in a world where nothing but ``link`` can be changed by it.

    Args:
        situation: with what is true of the device.
        link: used, and left as the reply leaves it.
        account: open, with what was spent on it before.
    """
    refused = forbidden(plan, situation)
    if refused is not None:
        account.failed = refused
        return conclude(handset, index, account, draws, now_s)
    scene = handset.scene
    reply = handset.reply(index, plan, situation, draws)
    port = LonePort(link, scene.link, scene.cloud, draws, handset.believed, stranded=reply.alone is None)
    end_s = run_out(run_reply(reply, port, draws, account, now_s), port)
    return conclude(handset, index, account, draws, end_s)


def conclude(handset: Handset, index: int, account: Account, draws: Draws, end_s: float) -> Trial:
    """Judge a reply that ended, or was given up, at ``end_s``."""
    scene, job = handset.scene, handset.scene.jobs[index]
    price = scene.cloud.profile.price_per_layer_token
    if account.failed is None and job.deadline_s is not None and end_s > account.start_s + job.deadline_s:
        account.failed = LATE
        end_s = _cut(account, account.start_s + job.deadline_s, end_s)
    outcome = account.outcome(end_s, scene.device.profile.power, price)
    judged = outcome
    if account.failed is not None:
        judged = one_after_the_other(outcome, handset.instead(index, draws, end_s))
    value = scene.objective.value_of(judged)
    return Trial(end_s=end_s, outcome=outcome, judged=judged, value=value, failed=account.failed)


def _cut(account: Account, at_s: float, end_s: float) -> float:
    """The reply ends at ``at_s``: of the tokens after the first, those that evenly came until then."""
    if account.first_s >= at_s:
        account.tokens = 0
    elif account.tokens > 1:
        ratio = (at_s - account.first_s) / (end_s - account.first_s)
        account.tokens = 1 + int((account.tokens - 1) * ratio)
    return at_s


def candidates_tried(handset: Handset, index: int, situation: Situation, now_s: float) -> Callable[[SplitPlan], Trial]:
    """A function that tells what a plan would come to if it began at ``now_s``; nothing is changed by asking.

    It answers from the device's state as it is now, also when it is asked later.
    """
    link, true = handset.link.copy(), handset.true_situation(situation, now_s)
    draws = handset.draws(index)

    def attempt(plan: SplitPlan) -> Trial:
        return run_trial(handset, index, plan, true, link=link.copy(), account=Account(now_s), draws=draws, now_s=now_s)

    return attempt
