"""What a strategy may know before the first request: everything of a scene that does not depend on its world."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from splitglm_core.shapes import ModelShape
from splitglm_partitioner.drafts import DraftStatistics
from splitglm_partitioner.profiles import CloudProfile, DeviceProfile
from splitglm_sims.world.scene import Scene


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What was measured beforehand.

    Attributes:
        model, device: the model, and the device as profiled when idle.
        cloud: as in its manifest; None without one.
        drafts: the drafters at hand with the statistics of a warm-up run, by genre.
    """

    model: ModelShape
    device: DeviceProfile
    cloud: CloudProfile | None = None
    drafts: Mapping[str, tuple[DraftStatistics, ...]] = field(default_factory=dict)

    @classmethod
    def of(cls, scene: Scene) -> Facts:
        """The facts of ``scene``: profiles, never courses, traces or jobs."""
        return cls(model=scene.model, device=scene.device.profile, cloud=scene.cloud.profile, drafts=dict(scene.drafts))
