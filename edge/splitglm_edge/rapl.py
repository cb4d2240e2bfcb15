"""Joules by the processor's own counters (RAPL), where the system lets them be read (Linux, ``/sys/class/powercap``).

They count what the processor packages used, everything of the machine that runs on them included; so the power of our
own work is that of a busy stretch less that of an idle one. Where there are none, or only the administrator may read
them (the rule since CVE-2020-8694), that is said and nothing is guessed.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple

from splitglm_core.errors import DeviceError

ROOT: Final = Path("/sys/class/powercap")
_PACKAGE: Final = re.compile(r"intel-rapl:\d+")
"""Also AMD's; zones below a package (cores, memory controller) are parts of its count."""
_HINT: Final = "state the power instead: --compute-watts, from the data sheet or a wall meter"


class _Package(NamedTuple):
    counter: Path
    wraps_at_uj: int


class EnergyCounters:
    """The packages of this machine.

    Raises:
        DeviceError: there are none, or they may not be read.
    """

    def __init__(self, root: Path = ROOT) -> None:
        try:
            zones = sorted(zone for zone in root.iterdir() if _PACKAGE.fullmatch(zone.name))
            self._packages = [
                _Package(zone / "energy_uj", int((zone / "max_energy_range_uj").read_text())) for zone in zones
            ]
        except (OSError, ValueError):
            self._packages = []
        if not self._packages:
            raise DeviceError("this machine offers no energy counters (RAPL)", _HINT)
        self._last_uj = self._read()
        self._joules = 0.0

    def joules(self) -> float:
        """Since this object was made. To be called more often than a counter wraps round (every few minutes).

        Raises:
            DeviceError: a counter cannot be read any more.
        """
        now_uj = self._read()
        for package, before, after in zip(self._packages, self._last_uj, now_uj, strict=True):
            self._joules += 1e-6 * (after - before if after >= before else after + package.wraps_at_uj - before)
        self._last_uj = now_uj
        return self._joules

    def _read(self) -> list[int]:
        try:
            return [int(package.counter.read_text()) for package in self._packages]
        except PermissionError:
            what = "the energy counters (RAPL) are the administrator's only"
            raise DeviceError(what, f"run as root, or {_HINT}") from None
        except (OSError, ValueError):
            raise DeviceError("the energy counters (RAPL) cannot be read", _HINT) from None


def measured_watts(
    counters: EnergyCounters,
    work: Callable[[], None],
    *,
    seconds: float = 2.0,
    now_s: Callable[[], float] = time.perf_counter,
    rest: Callable[[float], None] = time.sleep,
) -> float:
    """Watts of doing ``work`` again and again, above those of the machine without it.

    Raises:
        DeviceError: the counters do not show it: they stand still, or something else on this machine used more.
    """
    began_s, before_j = now_s(), counters.joules()
    rest(seconds)
    idle_s, idle_j = now_s(), counters.joules()
    while now_s() - idle_s < seconds:
        work()
    ended_s, ended_j = now_s(), counters.joules()
    watts = (ended_j - idle_j) / (ended_s - idle_s) - (idle_j - before_j) / (idle_s - began_s)
    if not watts > 0.0:
        raise DeviceError("the energy counters (RAPL) do not show the work", f"stop other programs, or {_HINT}")
    return float(f"{watts:.3g}")
