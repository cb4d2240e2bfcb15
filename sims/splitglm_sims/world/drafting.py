"""How drafts fare: which of them the target keeps, and what a round of them asks of the device"""

from __future__ import annotations

from bisect import bisect_left

from splitglm_core.plan import SplitPlan
from splitglm_partitioner.drafts import DraftStatistics
from splitglm_sims.world.draws import Draws, What


def kept_tokens(drafter: DraftStatistics, proposed: int, draws: Draws, token: int) -> int:
    """Of ``proposed`` drafts after ``token`` tokens of the answer, how many the target keeps.

    One uniform number per position of the answer decides for every drafter and draft length: the first ``j + 1`` are
    kept when it is below ``survival[j]``, so a longer draft never keeps less.
    """
    chance = draws.uniform(What.ACCEPTANCE, token)
    # survival never rises: count its entries above the draw
    return bisect_left(drafter.survival[:proposed], True, key=lambda value: value <= chance)


def drafter_of(plan: SplitPlan, drafters: tuple[DraftStatistics, ...]) -> DraftStatistics | None:
    """The drafter that ``plan`` names; None when it drafts nothing."""
    if not plan.draft_tokens:
        return None
    return next((drafter for drafter in drafters if drafter.name == plan.drafter), None)
