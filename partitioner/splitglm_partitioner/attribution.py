"""Whether what a prediction missed is the model's own: since its decision nothing moved that an estimator follows.

Two signs that something did: an estimator found a change while the reply ran; or the same plan would be priced
otherwise by what is estimated at the end, which shows too what changes step by step, such as the waits in a cloud, and
what was a guess at the decision.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import replace

from splitglm_core.errors import InputError
from splitglm_partitioner.cost import cost_in
from splitglm_partitioner.decision import Decision
from splitglm_partitioner.drafts import DraftStatistics
from splitglm_partitioner.profiles import CloudProfile, LinkEstimate

# A price that moved by less has not moved: estimates scatter.
SAME_WITHIN = 0.1
# Replies under way, of which it is known when they began; those of an agent are far fewer.
MAX_RUNNING = 256


class Running:
    """When the replies under way began."""

    def __init__(self) -> None:
        self._began: OrderedDict[int, tuple[Decision, float]] = OrderedDict()

    def began(self, decision: Decision, now_s: float) -> None:
        """A reply begins. Of more than ``MAX_RUNNING`` the oldest is forgotten."""
        self._began[id(decision)] = decision, now_s  # what is kept keeps its id
        if len(self._began) > MAX_RUNNING:
            self._began.popitem(last=False)

    def ended(self, decision: Decision) -> float | None:
        """When it began; None when that was not told, or was told too long ago."""
        kept = self._began.pop(id(decision), None)
        return None if kept is None else kept[1]


def priced_alike(
    decision: Decision,
    *,
    slowdown: float,
    link: LinkEstimate,
    cloud: CloudProfile | None,
    drafts: tuple[DraftStatistics, ...],
) -> bool:
    """Whether present estimates give the decided plan the times that it was decided by, within ``SAME_WITHIN``.

    What only holds of a moment, the radio's sleep, the window and the bytes ahead, is taken as it was.
    """
    before = decision.situation
    now = replace(before, device=replace(before.device, slowdown=slowdown), drafts=drafts)
    if before.link is not None:
        moment = before.link
        link = replace(
            link,
            uplink_queue_s=moment.uplink_queue_s,
            promotion_s=moment.promotion_s,
            window_bytes=moment.window_bytes,
        )
        now = replace(now, link=link, cloud=cloud)
    try:
        cost = cost_in(now, decision.plan)
    except InputError:
        return False  # another cloud by now, or without the drafter
    was = decision.breakdown
    pairs = (was.ttft_s, cost.ttft_s), (was.per_token_s, cost.per_token_s)
    return all(abs(a - b) <= SAME_WITHIN * max(a, b) for a, b in pairs)
