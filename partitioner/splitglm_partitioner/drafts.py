"""What is known of a drafter: what a drafted token costs, and how many of them the target keeps."""

from __future__ import annotations

from dataclasses import dataclass

from splitglm_core.errors import InputError
from splitglm_core.plan import Arm
from splitglm_partitioner.bounds import MAX_LAYERS, check_count, check_number, check_seconds

MAX_DRAFT_TOKENS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class DraftStatistics:
    """One drafter in one genre of text.

    Attributes:
        name: as in ``SplitPlan.drafter``.
        s_per_token: seconds to draft one token, on the device or, for one ``in_cloud``, in the cloud.
        survival: entry ``j`` is the chance that the first ``j + 1`` drafted tokens are all kept; never rising. Real
            acceptance is not independent from token to token (arXiv 2606.20591), so the prefix chances themselves are
            kept and not one rate. Its length bounds the draft length.
        front_layers: the drafter needs the output of that many front layers, so ``s >= front_layers``; 0 for one that
            needs none.
        shares_front: the front passes of drafted tokens are part of ``s_per_token`` (early exit): verification repeats
            only layers ``[front_layers, s)`` for them.
        arms: where it can be used.
        in_cloud: the cloud itself drafts, beside the layers that verify (multi-token prediction, co-located
            speculation: arXiv 2606.25091). A round then makes no trip: the cloud goes on alone, as without drafts.
    """

    name: str
    s_per_token: float
    survival: tuple[float, ...]
    front_layers: int = 0
    shares_front: bool = False
    arms: tuple[Arm, ...] = (Arm.CLOUD, Arm.SPLIT, Arm.USHAPE)
    in_cloud: bool = False

    def __post_init__(self) -> None:
        if not self.name or self.name == "none":
            raise InputError("a drafter has a name, and it is not 'none'")
        check_seconds("s_per_token", self.s_per_token)
        check_count("draft lengths", len(self.survival), 1, MAX_DRAFT_TOKENS)
        for value in self.survival:
            check_number("survival", value, 0.0, 1.0)
        if any(a < b for a, b in zip(self.survival, self.survival[1:], strict=False)):
            raise InputError(f"the survival of drafter {self.name} rises: a longer prefix cannot be kept more often")
        check_count("front_layers", self.front_layers, 0, MAX_LAYERS)
        if self.shares_front and self.front_layers == 0:
            raise InputError(f"drafter {self.name} shares no front when it needs none")
        if Arm.DEVICE in self.arms or not self.arms:
            raise InputError("drafts are verified in the cloud: a drafter names arms that use it")
        if self.in_cloud and (self.arms != (Arm.CLOUD,) or self.front_layers):
            raise InputError(f"drafter {self.name} is in the cloud, so it serves the cloud-only arm and needs no front")

    def tokens_per_round(self, draft_tokens: int) -> float:
        """Expected tokens of one round trip: ``1 + sum of survival`` (Leviathan et al. 2023 for equal chances)."""
        check_count("draft_tokens", draft_tokens, 0, len(self.survival))
        return 1.0 + sum(self.survival[:draft_tokens])
