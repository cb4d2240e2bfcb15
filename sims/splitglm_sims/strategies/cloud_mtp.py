"""Multi-token prediction in the cloud, as published: the drafter of the cloud-only baseline that drafts for itself.

GLM-4.5 to 5.x carry one trained next-token layer, which engines run three times per step (SGLang's recipe: three
draft tokens). Nobody measured it here. Published tokens per step with three drafts are 2.2 to 2.5 (2.49 for
DeepSeek-V4-Pro in InferenceX); equal chances of ``KEPT`` give 2.35. A draft costs the cloud one layer and its head.
"""

from __future__ import annotations

from collections.abc import Mapping

from splitglm_core.plan import Arm
from splitglm_partitioner.drafts import DraftStatistics
from splitglm_partitioner.profiles import CloudProfile

NAME = "cloud-mtp"
KEPT = 0.65
DRAFT_TOKENS = 3


def cloud_mtp(cloud: CloudProfile) -> DraftStatistics:
    """The statistics on a cloud of that speed, the same for every genre."""
    return DraftStatistics(
        name=NAME,
        s_per_token=cloud.times.decode_s[-1] + (cloud.head_s or 0.0),
        survival=tuple(KEPT ** (j + 1) for j in range(DRAFT_TOKENS)),
        arms=(Arm.CLOUD,),
        in_cloud=True,
    )


def with_cloud_mtp(
    drafts: Mapping[str, tuple[DraftStatistics, ...]], cloud: CloudProfile, genres: tuple[str, ...] = ()
) -> dict[str, tuple[DraftStatistics, ...]]:
    """``drafts`` with it in every genre, and in ``genres`` that it lacks."""
    own = cloud_mtp(cloud)
    out = {genre: (*known, own) for genre, known in drafts.items()}
    return {genre: (own,) for genre in genres if genre not in out} | out
