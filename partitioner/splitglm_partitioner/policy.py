"""The choice of a plan for one request: a pure function of what was measured and what was asked.

All allowed plans, in every chunk size and with every draft length, are priced and the cheapest by the request's
objective wins. Chunks matter to the first token only and drafts to the further ones only, so the best of each is taken
for every cut alone; where a bound on time or energy forbids that pair, all pairs of that cut are looked at. For a
transformer the price is near-linear in the cut (every layer emits the same width), so the winner tends to be an end of
the allowed range; ``why`` says which end and who set it.
"""

from __future__ import annotations

from splitglm_core.errors import NoFeasiblePlan
from splitglm_core.shapes import ModelShape
from splitglm_partitioner.arms import Candidates, enumerate_arms
from splitglm_partitioner.constraints import Exclusion
from splitglm_partitioner.decision import TIE_RELATIVE, Choice, Decision
from splitglm_partitioner.drafts import DraftStatistics
from splitglm_partitioner.factors import ArmFactors
from splitglm_partitioner.grid import grid_of
from splitglm_partitioner.profiles import CloudProfile, DeviceProfile, LinkEstimate
from splitglm_partitioner.request import Request, Situation
from splitglm_partitioner.search import Search

__all__ = ["TIE_RELATIVE", "Choice", "Decision", "choose", "decide"]


def choose(
    request: Request,
    model: ModelShape,
    device: DeviceProfile,
    link: LinkEstimate | None,
    cloud: CloudProfile | None,
    drafts: tuple[DraftStatistics, ...] = (),
    factors: tuple[ArmFactors, ...] = (),
) -> Decision:
    """Choose the plan of lowest objective value among all allowed ones.

    Ties go to fewer bytes on the wire, then to an open session, then to the smaller ``s``, then to the larger ``t``,
    then to the codec that the request names first; within a cut, to fewer drafted tokens and the earlier chunk size.

    Args:
        link, cloud: None when no cloud is configured or reachable.
        drafts: drafters that the device or the cloud has, with their statistics for this genre.
        factors: what the model's times of an arm are multiplied by, where not 1.

    Raises:
        NoFeasiblePlan: nothing is allowed; the message names each arm's constraint, the hint what to relax.
        PromptTooLong: prompt and answer exceed the model's positions.
        InputError: profiles of another model, a fixed cut that the model does not have, or energy that weighs and is
            not stated.
    """
    return decide(
        Situation(request=request, model=model, device=device, link=link, cloud=cloud, drafts=drafts, factors=factors)
    )


def decide(situation: Situation) -> Decision:
    """``choose`` for inputs already bundled."""
    candidates = enumerate_arms(situation)
    if not candidates.blocks:
        raise _infeasible(candidates.exclusions)
    search = Search(grid_of(candidates, situation.model.hidden), situation)
    found: list[tuple[int, Choice]] = []
    excluded = list(candidates.exclusions)
    for best in search.best_by_arm():
        if isinstance(best, Exclusion):
            excluded.append(best)
        else:
            choice = Choice(plan=search.plan(best), value=float(search.values[best]), situation=situation)
            found.append((best, choice))
    if not found:
        raise _infeasible(tuple(excluded))
    order = _ranked(found, search)
    winner, chosen = order[0]
    others = tuple([choice for _, choice in order[1:]])
    why = _why(search, winner, chosen, others, candidates)
    return Decision(situation=situation, chosen=chosen, runners_up=others, excluded=tuple(excluded), why=why)


def _ranked(found: list[tuple[int, Choice]], search: Search) -> list[tuple[int, Choice]]:
    """Best first: by value, and the winner's near-equals by the tie rule."""
    order = sorted(found, key=lambda pair: pair[1].value)
    least = order[0][1].value
    equals = [pair for pair in order if pair[1].value <= least + TIE_RELATIVE * abs(least)]
    if len(equals) == 1:
        return order
    return sorted(equals, key=lambda pair: search.tie_key(pair[0])) + order[len(equals) :]


def _why(search: Search, winner: int, chosen: Choice, others: tuple[Choice, ...], candidates: Candidates) -> str:
    plan = chosen.plan
    arm, s, t = plan.arm, plan.s, plan.t
    block = next(b for b in candidates.blocks if b.arm is arm and b.t == t)
    if block.s_stop - block.s_start == 1:
        cut = "only"
    else:
        cut = "low" if s == block.s_start else "high" if s == block.s_stop - 1 else "interior"
    limits = ",".join([constraint.value for narrowed, constraint in candidates.narrowed if narrowed is arm])
    parts = [f"arm={arm.value}", f"cut={cut}", f"limited-by={limits or 'none'}"]
    parts.append(f"warm={int(search.goes_on(winner))}")
    if search.situation.request.chunks:
        parts.append(f"chunk={plan.chunk_tokens}")
    if plan.draft_tokens:
        parts.append(f"draft={plan.drafter}:{plan.draft_tokens}")
    if others:
        parts.append(f"next={others[0].plan.arm.value}")
        parts.append(f"margin={others[0].value - chosen.value:.6g}")
    return ";".join(parts)


def _infeasible(excluded: tuple[Exclusion, ...]) -> NoFeasiblePlan:
    reasons = "; ".join(f"{e.arm.value}: {e.detail} ({e.constraint.value})" for e in excluded)
    remedies = dict.fromkeys(e.constraint.remedy for e in excluded)
    return NoFeasiblePlan(f"no plan satisfies the request. {reasons}", ", or ".join(remedies))
