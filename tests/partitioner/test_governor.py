"""The governor: the front shrinks in heat, memory is left to others, and no bound flaps."""

from __future__ import annotations

import dataclasses
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from partitioner_factory import make_device

from splitglm_core.errors import InputError
from splitglm_partitioner.governor import (
    Battery,
    Governor,
    GovernorSettings,
    GovernorState,
    Ruling,
    Vitals,
    govern,
)
from splitglm_partitioner.power import PowerProfile

SETTINGS = GovernorSettings()
DEVICE = make_device(32, memory_bytes_free=4 << 30)
POWER = PowerProfile(compute_w=5.0, radio_w=1.0, uplink_j_per_byte=1e-6, downlink_j_per_byte=1e-6)
HOT, WARM, COOL = Vitals(temperature_c=80.0), Vitals(temperature_c=72.0), Vitals(temperature_c=60.0)


def layers_over(vitals: list[Vitals], every_s: float = 10.0, **changes: object) -> list[int]:
    governor = Governor(dataclasses.replace(SETTINGS, **changes))  # type: ignore[arg-type]
    return [governor.rule(now, DEVICE, i * every_s).max_layers for i, now in enumerate(vitals)]


def test_a_device_without_sensors_is_bounded_by_its_profile_alone() -> None:
    state, ruling = govern(GovernorState(), Vitals(), DEVICE, SETTINGS, 0.0)
    assert state == GovernorState()
    assert ruling == Ruling(max_layers=32, hard_max_layers=32, memory_bytes_free=4 << 30, energy_weight=0.0, reasons=())
    assert ruling.applied(DEVICE) == DEVICE


def test_above_75_degrees_the_front_shrinks_step_by_step() -> None:
    assert layers_over([COOL, HOT, HOT, HOT, HOT]) == [32, 24, 18, 13, 9]
    assert layers_over([Vitals(temperature_c=75.0)] * 3) == [32, 32, 32]
    assert layers_over([HOT] * 40)[-1] == 1  # ids stay at home to the last


def test_it_shrinks_at_most_once_per_stated_time_however_often_it_is_asked() -> None:
    assert layers_over([HOT] * 11, every_s=1.0) == [24] * 10 + [18]


def test_asking_twice_at_one_time_rules_the_same() -> None:
    governor = Governor()
    assert governor.rule(HOT, DEVICE, 5.0) == governor.rule(HOT, DEVICE, 5.0)


def test_it_grows_back_slowly_when_cool_and_not_before() -> None:
    layers = layers_over([HOT, HOT, WARM, WARM, WARM, WARM, WARM, WARM, WARM, *[COOL] * 40])
    assert layers[1:9] == [18] * 8
    assert layers[9] == 22
    assert layers[-1] == 32
    assert all(b - a <= 4 for a, b in pairwise(layers[1:]))
    assert layers.index(32, 9) - 9 >= 3 * 6  # three further returns, a minute each


def test_the_first_cut_starts_from_what_is_in_use() -> None:
    _, ruling = govern(GovernorState(), HOT, DEVICE, SETTINGS, 0.0, layers_in_use=8)
    assert ruling.max_layers == 6
    _, ruling = govern(GovernorState(), HOT, DEVICE, SETTINGS, 0.0, layers_in_use=0)
    assert ruling.max_layers == 24


def test_heat_is_advice_and_the_hard_bound_leaves_a_device_without_a_cloud_its_plan() -> None:
    _, ruling = govern(GovernorState(), HOT, DEVICE, SETTINGS, 0.0)
    assert ruling.applied(DEVICE).max_layers == 24
    assert ruling.applied(DEVICE, hard_only=True).max_layers == 32
    assert ruling.reasons == ("at 80 degC the device runs at most 24 of 32 layers until it is cool",)


def memory(available: int, held: int = 0) -> Vitals:
    return Vitals(memory_bytes_available=available, memory_bytes_held=held)


def test_memory_that_others_need_is_not_used_at_once_and_taken_back_only_when_plenty_is_left() -> None:
    governor, low, high = Governor(), SETTINGS.memory_low_bytes, SETTINGS.memory_high_bytes
    held = 1 << 30
    asked = [
        governor.rule(memory(left, held), DEVICE, 0.0).memory_bytes_free
        for left in (
            2 << 30,
            low,
            low // 2,
            low,
            high - 1,
            high,
        )
    ]
    assert asked == [held + (2 << 30) - low, held, held - low // 2, held - low // 2, held - low // 2, held + high - low]


def test_memory_bounds_hold_even_where_no_advice_is_heeded_and_never_exceed_the_profile() -> None:
    _, ruling = govern(GovernorState(), memory(1 << 30), DEVICE, SETTINGS, 0.0)
    assert ruling.applied(DEVICE, hard_only=True).memory_bytes_free == (1 << 30) - SETTINGS.memory_low_bytes
    assert "MB of memory" in ruling.reasons[0]
    _, ruling = govern(GovernorState(), memory(64 << 30), DEVICE, SETTINGS, 0.0)
    assert (ruling.memory_bytes_free, ruling.reasons) == (DEVICE.memory_bytes_free, ())
    _, ruling = govern(GovernorState(), memory(0), DEVICE, SETTINGS, 0.0)
    assert ruling.memory_bytes_free == 0


def battery(ratio: float | None, on_battery: bool | None = True) -> Vitals:
    return Vitals(battery_ratio=ratio, on_battery=on_battery)


def test_a_low_battery_caps_the_layers_and_a_critical_one_harder() -> None:
    for ratio, layers, level in ((0.5, 32, Battery.FINE), (0.2, 16, Battery.LOW), (0.1, 8, Battery.CRITICAL)):
        state, ruling = govern(GovernorState(), battery(ratio), DEVICE, SETTINGS, 0.0)
        assert (state.battery, ruling.max_layers, ruling.hard_max_layers) == (level, layers, 32)
        assert ruling.energy_weight == 0.0  # no joules are known


def test_joules_weigh_only_when_the_profile_states_power() -> None:
    stated = dataclasses.replace(DEVICE, power=POWER)
    _, low = govern(GovernorState(), battery(0.15), stated, SETTINGS, 0.0)
    _, critical = govern(GovernorState(), battery(0.05), stated, SETTINGS, 0.0)
    assert 0.0 < low.energy_weight < critical.energy_weight
    assert "a joule counts as 0.2 s" in low.reasons[0]


def test_on_mains_power_no_charge_is_low() -> None:
    state, ruling = govern(GovernorState(battery=Battery.LOW), battery(0.01, on_battery=False), DEVICE, SETTINGS, 0.0)
    assert (state.battery, ruling.max_layers) == (Battery.FINE, 32)


def test_a_charge_that_wavers_around_a_level_does_not_flap() -> None:
    governor = Governor()
    charges = [0.3, 0.2, 0.21, 0.199, 0.24, 0.2, 0.25, 0.26]
    layers = [governor.rule(battery(charge), DEVICE, float(i)).max_layers for i, charge in enumerate(charges)]
    assert layers == [32, 16, 16, 16, 16, 16, 16, 32]


def test_a_sensor_that_falls_silent_leaves_its_bound_as_it_was() -> None:
    state, _ = govern(GovernorState(), HOT, DEVICE, SETTINGS, 0.0)
    state, _ = govern(state, memory(1 << 29), DEVICE, SETTINGS, 1.0)
    after, ruling = govern(state, Vitals(), DEVICE, SETTINGS, 1e6)
    assert after == state
    assert ruling.max_layers == 24


@given(st.lists(st.floats(-20.0, 120.0), min_size=1, max_size=80), st.floats(1.0, 120.0))
def test_the_cut_turns_around_no_more_often_than_the_temperature_crosses_the_gap(
    temperatures: list[float], every_s: float
) -> None:
    layers = layers_over([Vitals(temperature_c=value) for value in temperatures], every_s=every_s)
    moves = [b - a for a, b in zip([32, *layers], layers, strict=False) if b != a]
    turns = sum(a * b < 0 for a, b in pairwise(moves))
    travel = sum(abs(b - a) for a, b in pairwise(temperatures))
    assert turns <= travel / (SETTINGS.hot_c - SETTINGS.cool_c)
    assert all(1 <= value <= 32 for value in layers)


@given(
    st.lists(
        st.builds(
            Vitals,
            temperature_c=st.none() | st.floats(-50, 150),
            memory_bytes_available=st.none() | st.integers(0, 1 << 40),
            battery_ratio=st.none() | st.floats(0, 1),
            on_battery=st.none() | st.booleans(),
        ),
        max_size=40,
    ),
    st.integers(0, 32),
)
def test_whatever_the_sensors_say_the_bounded_device_is_a_valid_one(seen: list[Vitals], max_layers: int) -> None:
    governor, device = Governor(), dataclasses.replace(DEVICE, max_layers=max_layers, power=POWER)
    for i, vitals in enumerate(seen):
        ruling = governor.rule(dataclasses.replace(vitals, memory_bytes_held=1 << 28), device, 7.0 * i)
        bounded = ruling.applied(device)  # DeviceProfile checks its own ranges
        assert bounded.max_layers <= ruling.hard_max_layers == max_layers
        assert bounded.memory_bytes_free <= device.memory_bytes_free
        tightened = bounded != device or ruling.energy_weight > 0.0
        assert not tightened or ruling.reasons


@pytest.mark.parametrize(
    "changes",
    [
        {"hot_c": 60.0},
        {"shrink_ratio": 1.0},
        {"memory_high_bytes": 0},
        {"battery_critical_ratio": 0.5},
        {"cool_c": float("nan")},
    ],
)
def test_settings_that_contradict_each_other_are_refused(changes: dict[str, float]) -> None:
    with pytest.raises(InputError):
        dataclasses.replace(SETTINGS, **changes)  # type: ignore[arg-type]
