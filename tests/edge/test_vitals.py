"""What the sensors of this machine say."""

from __future__ import annotations

import threading
from collections import namedtuple
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from splitglm_edge.vitals import FRESH_S, Sensors
from splitglm_partitioner.governor import Vitals

Reading = namedtuple("Reading", "current")  # as psutil's


class Clock:
    def __init__(self) -> None:
        self.time_s = 100.0

    def __call__(self) -> float:
        return self.time_s


def fake(monkeypatch: pytest.MonkeyPatch, name: str, value: Any) -> None:
    monkeypatch.setattr(psutil, name, value, raising=False)


def test_this_machine_can_be_read_and_memory_is_always_known() -> None:
    vitals = Sensors().read()
    assert vitals.memory_bytes_available is not None and vitals.memory_bytes_available > 1 << 20


def test_the_hottest_core_counts_and_what_cannot_be_a_processor_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {
        "nvme": [Reading(88.0)],
        "coretemp": [Reading(61.0), Reading(74.5), Reading(None), Reading(255.0)],
    }
    fake(monkeypatch, "sensors_temperatures", lambda: found)
    assert Sensors().read().temperature_c == 74.5
    del found["coretemp"]
    assert Sensors().read().temperature_c == 88.0  # where no processor is known by name, the hottest sensor


@pytest.mark.parametrize("charge", [(37.0, False), (101.0, True), (50.0, None)])
def test_charge_and_plug_are_told(monkeypatch: pytest.MonkeyPatch, charge: tuple[float, bool | None]) -> None:
    fake(monkeypatch, "sensors_battery", lambda: SimpleNamespace(percent=charge[0], power_plugged=charge[1]))
    vitals = Sensors().read()
    assert vitals.battery_ratio == min(1.0, charge[0] / 100)
    assert vitals.on_battery == (None if charge[1] is None else not charge[1])


@pytest.mark.parametrize("how", ["absent", "none", "broken"])
def test_sensors_that_are_not_there_or_broken_say_nothing(monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    def broken() -> None:
        raise OSError("no such device")

    for name, nothing in (("sensors_temperatures", {}), ("sensors_battery", None)):
        if how == "absent":
            monkeypatch.delattr(psutil, name, raising=False)
        else:
            fake(monkeypatch, name, broken if how == "broken" else lambda nothing=nothing: nothing)
    fake(monkeypatch, "getloadavg", broken)
    fake(monkeypatch, "virtual_memory", broken)
    assert Sensors().read() == Vitals()


def test_load_is_that_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    from splitglm_edge import vitals

    clock, own_s = Clock(), [10.0]
    monkeypatch.setattr(vitals, "_own_cpu_s", lambda: own_s[0])
    monkeypatch.setattr(vitals.os, "cpu_count", lambda: 4)
    fake(monkeypatch, "getloadavg", lambda: (3.0, 0.0, 0.0))
    sensors = Sensors(clock)
    clock.time_s, own_s[0] = 110.0, 30.0  # two of our threads were busy all the time
    assert sensors.read().load_ratio == pytest.approx(0.25)
    clock.time_s, own_s[0] = 120.0, 80.0
    assert sensors.read().load_ratio == 0.0


def test_a_reading_stands_for_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, asked = Clock(), []
    fake(monkeypatch, "sensors_temperatures", lambda: asked.append(1) or {"coretemp": [Reading(50.0 + len(asked))]})
    sensors = Sensors(clock)
    assert [sensors.read().temperature_c for _ in range(5)] == [51.0] * 5
    clock.time_s += FRESH_S
    assert sensors.read().temperature_c == 52.0 and len(asked) == 2


def test_nobody_waits_for_a_slow_sensor_that_another_thread_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, reading, go_on = Clock(), threading.Event(), threading.Event()
    fake(monkeypatch, "sensors_temperatures", lambda: {"coretemp": [Reading(50.0)]})
    sensors = Sensors(clock)
    before = sensors.read()

    def slow() -> dict[str, list[Reading]]:
        reading.set()
        assert go_on.wait(20)
        return {"coretemp": [Reading(90.0)]}

    fake(monkeypatch, "sensors_temperatures", slow)
    clock.time_s += 2 * FRESH_S
    thread = threading.Thread(target=sensors.read)
    thread.start()
    assert reading.wait(20)
    assert sensors.read() is before
    go_on.set()
    thread.join(20)
    assert sensors.read().temperature_c == 90.0
