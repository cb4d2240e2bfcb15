"""The resource governor of the device: what its sensors say bounds what a plan may use."""

from __future__ import annotations

from dataclasses import dataclass

from splitglm_partitioner.bounds import MAX_BYTES, check_count, check_number


@dataclass(frozen=True, slots=True, kw_only=True)
class Vitals:
    """What the device's sensors say now. None: no such sensor.

    Attributes:
        temperature_c: of the hottest processor core, degrees Celsius.
        memory_bytes_available: bytes that can be had without swapping.
        battery_ratio: charge, 0 to 1.
        on_battery: whether it runs on it.
        load_ratio: runnable threads of others per core.
    """

    temperature_c: float | None = None
    memory_bytes_available: int | None = None
    battery_ratio: float | None = None
    on_battery: bool | None = None
    load_ratio: float | None = None

    def __post_init__(self) -> None:
        if self.temperature_c is not None:
            check_number("temperature_c", self.temperature_c, -100.0, 200.0)
        if self.memory_bytes_available is not None:
            check_count("memory_bytes_available", self.memory_bytes_available, 0, MAX_BYTES)
        if self.battery_ratio is not None:
            check_number("battery_ratio", self.battery_ratio, 0.0, 1.0)
        if self.load_ratio is not None:
            check_number("load_ratio", self.load_ratio, 0.0, 1e6)
