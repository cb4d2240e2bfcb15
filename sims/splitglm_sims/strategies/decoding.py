"""Ways of decoding over a link with a fixed drafter and length: one token per trip, lookup, HAT, draft and verify.

All are lossless: a token is what the target itself gives. They differ in who drafts and what travels:

* ``one_token_per_trip``: split or U-shape without drafts, the layer-split straw man of SpecEdge (arXiv 2505.17052);
* ``lookup``: n-grams found in the text so far, U-shape. coder903/split-inference (commit 4601c5f): embedding and head
  stay on the device; n-grams of 3 were fastest there, whose first token is the last known one, so 2 are proposed;
* ``hat_like``: HAT (arXiv 2503.18989): U-shape, the device's front with an adapter drafts, hidden states of the drafts
  travel. Its draft length could not be read in the paper and is an option; its dynamic chunks are the cost model's
  matter, which overlaps chunks for every plan;
* ``draft_verify``: synchronous speculation over the link, a whole small model on the device drafts, ids go up: the
  setting of DSD (arXiv 2511.21669), SpecEdge and *Speculation at a Distance* (arXiv 2606.25091); chains, not trees.

How many drafts are kept is the drafter's statistics in the scene. The cut is the cheapest of the arm by the profile, at
least what the drafter needs; where the arm is not allowed, the nearest allowed plan runs.
"""

from __future__ import annotations

from dataclasses import replace

from splitglm_core.plan import Arm, SplitPlan
from splitglm_partitioner.request import Situation
from splitglm_sims.strategies.allowed import allowed, changed, cheapest, drafter_named, nearest, with_drafts
from splitglm_sims.strategies.facts import Facts
from splitglm_sims.strategies.passive import Passive
from splitglm_sims.strategies.strategy import Task


def plan_with_drafts(situation: Situation, arms: tuple[Arm, ...], drafter: str, draft_tokens: int) -> SplitPlan:
    """The cheapest allowed cut by the profile of the first of ``arms`` that is allowed, with drafts where it can.

    Raises:
        InputError: the device has no such drafter (``drafter`` other than ``"none"``).
        NoFeasiblePlan: nothing at all is allowed.
    """
    candidates = allowed(situation)
    statistics = None if drafter == "none" else drafter_named(situation, drafter)
    present = {block.arm for block in candidates.blocks}
    arm = next((arm for arm in arms if arm in present), None)
    if arm is None:
        plan = nearest(candidates, arms[0], s=0, t=candidates.layers, codec=None)
    else:
        only = replace(situation.request.fixed, arm=arm)
        plan = cheapest(replace(changed(situation, fixed=only, deadline_s=None), drafts=()))
    if statistics is None:
        return plan
    if statistics.front_layers > plan.s:
        plan = nearest(candidates, plan.arm, s=statistics.front_layers, t=plan.t, codec=plan.codec)
    return with_drafts(plan, statistics, draft_tokens)


class Decoding(Passive):
    """One way of decoding, on the profile's best cut."""

    def __init__(self, arms: tuple[Arm, ...], drafter: str = "none", draft_tokens: int = 0) -> None:
        self._arms, self._drafter, self._draft_tokens = arms, drafter, draft_tokens

    def choose(self, task: Task) -> SplitPlan:
        return plan_with_drafts(task.situation, self._arms, self._drafter, self._draft_tokens)


def one_token_per_trip(situation_facts: Facts, seed: int) -> Decoding:
    """Split (U-shape where the answer must stay) without drafts."""
    return Decoding((Arm.SPLIT, Arm.USHAPE))


def lookup(situation_facts: Facts, seed: int, *, drafter: str = "lookup", draft_tokens: int = 2) -> Decoding:
    """U-shape with n-gram drafts."""
    return Decoding((Arm.USHAPE, Arm.SPLIT), drafter, draft_tokens)


def hat_like(situation_facts: Facts, seed: int, *, drafter: str = "exit12", draft_tokens: int = 4) -> Decoding:
    """U-shape whose front drafts."""
    return Decoding((Arm.USHAPE,), drafter, draft_tokens)


def draft_verify(situation_facts: Facts, seed: int, *, drafter: str = "draft-int4", draft_tokens: int = 4) -> Decoding:
    """A small model drafts on the device, the cloud verifies ids."""
    return Decoding((Arm.CLOUD,), drafter, draft_tokens)
