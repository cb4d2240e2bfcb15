"""Joules by the processor's counters, from files as the system writes them."""

from __future__ import annotations

from pathlib import Path

import pytest

from splitglm_core.errors import DeviceError
from splitglm_edge.rapl import EnergyCounters, measured_watts

WRAP_UJ = 1_000_000_000


class Machine:
    """Two packages and a zone below one of them, 30 W idle in all."""

    def __init__(self, root: Path) -> None:
        self.zones = [root / "intel-rapl:0", root / "intel-rapl:1"]
        for zone in (*self.zones, root / "intel-rapl:0:0"):
            zone.mkdir()
            (zone / "energy_uj").write_text("0\n")
            (zone / "max_energy_range_uj").write_text(f"{WRAP_UJ}\n")
        self.time_s = 0.0
        self.total_uj = WRAP_UJ - 10_000_000  # of each; it wraps round soon

    def now_s(self) -> float:
        return self.time_s

    def run(self, seconds: float, watts: float = 30.0) -> None:
        self.time_s += seconds
        self.total_uj += int(0.5e6 * watts * seconds)
        for zone in self.zones:
            (zone / "energy_uj").write_text(f"{self.total_uj % WRAP_UJ}\n")


def test_the_power_of_work_is_what_it_adds_to_an_idle_machine(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    machine.run(0.0)
    counters = EnergyCounters(tmp_path)
    watts = measured_watts(counters, lambda: machine.run(0.1, 42.5), now_s=machine.now_s, rest=machine.run)
    assert watts == pytest.approx(12.5, rel=0.01)
    assert counters.joules() == pytest.approx(2 * 30.0 + 2 * 42.5, rel=0.06)  # the last pass ends after two seconds


def test_work_that_the_counters_do_not_show_has_no_power(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    counters = EnergyCounters(tmp_path)
    with pytest.raises(DeviceError, match="do not show") as error:
        measured_watts(counters, lambda: machine.run(0.1, 20.0), now_s=machine.now_s, rest=machine.run)
    assert "--compute-watts" in error.value.hint


@pytest.mark.parametrize("damage", ["nothing", "no zones", "no range", "no number"])
def test_a_machine_without_counters_says_so(tmp_path: Path, damage: str) -> None:
    root = tmp_path / "powercap"
    if damage != "nothing":
        root.mkdir()
    if damage in ("no range", "no number"):
        Machine(root)
        (root / "intel-rapl:1" / "max_energy_range_uj").unlink()
        if damage == "no number":
            (root / "intel-rapl:1" / "max_energy_range_uj").write_text("many")
    with pytest.raises(DeviceError, match="RAPL") as error:
        EnergyCounters(root)
    assert "--compute-watts" in error.value.hint


def test_counters_that_only_the_administrator_may_read_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Machine(tmp_path)
    read = Path.read_text

    def refuse(self: Path, *arguments: object, **options: object) -> str:
        if self.name == "energy_uj":
            raise PermissionError(13, "Permission denied")
        return read(self)

    monkeypatch.setattr(Path, "read_text", refuse)
    with pytest.raises(DeviceError, match="administrator"):
        EnergyCounters(tmp_path)
