"""What the model's times of one arm are multiplied by, as ``calibration`` learnt it"""

from __future__ import annotations

from dataclasses import dataclass

from splitglm_core.plan import Arm
from splitglm_partitioner.bounds import check_number

# A machine that is off by more is not slow but broken; the loads and links that estimators follow are not in it.
MAX_FACTOR = 32.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmFactors:
    """Factors of the model's TTFT and seconds per further token, each in ``[1 / MAX_FACTOR, MAX_FACTOR]``."""

    arm: Arm
    ttft: float = 1.0
    per_token: float = 1.0

    def __post_init__(self) -> None:
        check_number("ttft factor", self.ttft, 1.0 / MAX_FACTOR, MAX_FACTOR)
        check_number("per-token factor", self.per_token, 1.0 / MAX_FACTOR, MAX_FACTOR)


def factors_of(arm: Arm, known: tuple[ArmFactors, ...]) -> ArmFactors:
    """Those of ``arm`` in ``known``; 1 when it is absent."""
    for factors in known:
        if factors.arm is arm:
            return factors
    return ArmFactors(arm=arm)
