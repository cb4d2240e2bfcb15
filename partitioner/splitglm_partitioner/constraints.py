"""What can forbid a plan, and what to relax"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from splitglm_core.plan import Arm


class Constraint(Enum):
    """What can forbid a plan. The value is the word used in logs."""

    FIXED = "fixed"
    PRIVACY = "privacy"
    DEVICE_HEAD = "head-on-device"
    CLOUD = "cloud"
    SERVED = "cloud-layers"
    CLOUD_EMBEDDING = "cloud-embedding"
    CLOUD_HEAD = "cloud-head"
    CODEC = "codec"
    PRICE = "price"
    MEMORY = "device-memory"
    MAX_LAYERS = "device-layers"
    DEADLINE = "deadline"
    ENERGY = "energy"

    @property
    def remedy(self) -> str:
        """What the caller may relax."""
        return _REMEDIES[self]


_REMEDIES = {
    Constraint.FIXED: "fix fewer of arm, s, t and codec",
    Constraint.PRIVACY: "allow a more open privacy class or a smaller s_min",
    Constraint.DEVICE_HEAD: "do not require the head on the device",
    Constraint.CLOUD: "configure or reach a cloud",
    Constraint.SERVED: "use a cloud that serves more layers",
    Constraint.CLOUD_EMBEDDING: "use a cloud with an embedding",
    Constraint.CLOUD_HEAD: "use a cloud with a head",
    Constraint.CODEC: "accept a codec that the cloud offers",
    Constraint.PRICE: "set the cloud_cost weight to 0 or use a cloud that states a price",
    Constraint.MEMORY: "free device memory, use a lower precision or shorten prompt and answer",
    Constraint.MAX_LAYERS: "raise the device's max_layers",
    Constraint.DEADLINE: "allow a longer deadline or a shorter answer",
    Constraint.ENERGY: "allow more joules or a shorter answer",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Exclusion:
    """Why no plan of ``arm`` is allowed: the constraint that removed the last of them."""

    arm: Arm
    constraint: Constraint
    detail: str
