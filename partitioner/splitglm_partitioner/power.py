"""Joules of the device: what a profile must state for energy to be weighed."""

from __future__ import annotations

from dataclasses import dataclass

from splitglm_partitioner.bounds import check_number

MAX_WATTS = 1e5


@dataclass(frozen=True, slots=True, kw_only=True)
class PowerProfile:
    """Power above that of the idle device, measured or taken from its data sheet.

    The radio follows the linear model of Huang et al. (MobiSys 2012): a base power while it is connected and joules for
    each byte in either direction.

    Attributes:
        compute_w: while layers, head, drafter or codec run.
        radio_w: while a reply uses the link, waiting included.
        uplink_j_per_byte, downlink_j_per_byte: on top of ``radio_w``.
    """

    compute_w: float
    radio_w: float
    uplink_j_per_byte: float
    downlink_j_per_byte: float

    def __post_init__(self) -> None:
        check_number("compute_w", self.compute_w, 0.0, MAX_WATTS)
        check_number("radio_w", self.radio_w, 0.0, MAX_WATTS)
        check_number("uplink_j_per_byte", self.uplink_j_per_byte, 0.0, 1.0)
        check_number("downlink_j_per_byte", self.downlink_j_per_byte, 0.0, 1.0)
