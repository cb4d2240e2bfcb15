"""What this machine's sensors say: temperature, memory, battery, load; None where there is no such sensor.

Read from the files of the system, at most once a second; who asks while another thread reads gets the reading before.
"""

from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Callable
from typing import Final

import psutil

from splitglm_partitioner.governor import Vitals

FRESH_S: Final = 1.0
_PROCESSOR: Final = ("coretemp", "k10temp", "zenpower", "cpu_thermal", "cpu-thermal", "soc_thermal", "acpitz")
"""Drivers whose temperature is the processor's; where none is known by name the hottest sensor counts."""


class Sensors:
    """Thread-safe. ``read`` does not wait for anybody.

    Args:
        now_s: monotonic.
    """

    def __init__(self, now_s: Callable[[], float] = time.monotonic) -> None:
        self._now_s = now_s
        self._reading = threading.Lock()
        self._last: tuple[float, Vitals] | None = None
        self._used = (now_s(), _own_cpu_s())

    def read(self) -> Vitals:
        """The vitals, ``FRESH_S`` old at most unless another thread is reading them just now."""
        last = self._last
        if last is not None and self._now_s() - last[0] < FRESH_S:
            return last[1]
        if not self._reading.acquire(blocking=last is None):
            return last[1] if last is not None else Vitals()
        try:
            vitals = Vitals(
                temperature_c=_temperature_c(),
                memory_bytes_available=_memory_bytes(),
                battery_ratio=(power := _battery())[0],
                on_battery=power[1],
                load_ratio=self._load_ratio(),
            )
            self._last = (self._now_s(), vitals)
            return vitals
        finally:
            self._reading.release()

    def _load_ratio(self) -> float | None:
        """Runnable threads of others per core: the load average less the processors that this process kept busy."""
        try:
            load = psutil.getloadavg()[0]
        except (AttributeError, OSError):
            return None
        now_s, own_s = self._now_s(), _own_cpu_s()
        (before_s, own_before_s), self._used = self._used, (now_s, own_s)
        own = (own_s - own_before_s) / (now_s - before_s) if now_s > before_s else 0.0
        return min(max(0.0, load - own) / (os.cpu_count() or 1), 1e6) if math.isfinite(load) else None


def _own_cpu_s() -> float:
    times = os.times()
    return times.user + times.system


def _memory_bytes() -> int | None:
    try:
        return max(0, int(psutil.virtual_memory().available))
    except (OSError, RuntimeError):
        return None


def _temperature_c() -> float | None:
    """Of the hottest processor sensor, within what a processor can have."""
    read = getattr(psutil, "sensors_temperatures", None)  # not on every system
    if read is None:
        return None
    try:
        found = read()
    except (OSError, RuntimeError, ValueError):
        return None
    named = [entry for name in _PROCESSOR for entry in found.get(name, ())]
    entries = named or [entry for entries in found.values() for entry in entries]
    values = [entry.current for entry in entries if entry.current is not None and -40.0 < entry.current < 150.0]
    return float(max(values)) if values else None


def _battery() -> tuple[float | None, bool | None]:
    """Charge from 0 to 1, and whether the machine runs on it."""
    read = getattr(psutil, "sensors_battery", None)
    if read is None:
        return None, None
    try:
        battery = read()
    except (OSError, RuntimeError, ValueError):
        return None, None
    if battery is None or not math.isfinite(battery.percent):
        return None, None
    plugged = battery.power_plugged
    return min(max(battery.percent / 100.0, 0.0), 1.0), None if plugged is None else not plugged
