"""The resource governor of the device: what its sensors say bounds what a plan may use.

Every bound has hysteresis: it is tightened at one level of its sensor and loosened only at another, so a reading that
wavers around either changes nothing. How busy others keep the processor is no bound: it shows in the passes themselves
(``device_pace.py``).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum

from splitglm_partitioner.bounds import MAX_BYTES, MAX_SECONDS, check_count, check_number
from splitglm_partitioner.profiles import DeviceProfile


@dataclass(frozen=True, slots=True, kw_only=True)
class Vitals:
    """What the device's sensors say now. None: no such sensor.

    Attributes:
        temperature_c: of the hottest processor core, degrees Celsius.
        memory_bytes_available: bytes that can be had without swapping.
        memory_bytes_held: by this process for the model, and so not among those available.
        battery_ratio: charge, 0 to 1.
        on_battery: whether it runs on it.
        load_ratio: runnable threads of others per core.
    """

    temperature_c: float | None = None
    memory_bytes_available: int | None = None
    memory_bytes_held: int = 0
    battery_ratio: float | None = None
    on_battery: bool | None = None
    load_ratio: float | None = None

    def __post_init__(self) -> None:
        if self.temperature_c is not None:
            check_number("temperature_c", self.temperature_c, -100.0, 200.0)
        if self.memory_bytes_available is not None:
            check_count("memory_bytes_available", self.memory_bytes_available, 0, MAX_BYTES)
        check_count("memory_bytes_held", self.memory_bytes_held, 0, MAX_BYTES)
        if self.battery_ratio is not None:
            check_number("battery_ratio", self.battery_ratio, 0.0, 1.0)
        if self.load_ratio is not None:
            check_number("load_ratio", self.load_ratio, 0.0, 1e6)


class Battery(Enum):
    """How far down the battery is, while the device runs on it."""

    FINE = "fine"
    LOW = "low"
    CRITICAL = "critical"


@dataclass(frozen=True, slots=True, kw_only=True)
class GovernorSettings:
    """When the device yields, and by how much.

    Attributes:
        hot_c, cool_c: above the first its layers are cut, below the second given back; in between nothing moves.
        shrink_ratio, shrink_every_s: each cut leaves this share, and there is no other before so long.
        grow_ratio, grow_every_s: each return is this share of all layers, and likewise.
        memory_low_bytes: to be left to others: what would leave less is not used.
        memory_high_bytes: with less than this left to others, what was given up is not taken back.
        battery_low_ratio, battery_critical_ratio, battery_margin: levels, and how far above one the charge must rise
            for it to end.
        low_layers_ratio, critical_layers_ratio: share of all layers that the device may run at these levels.
        low_energy_weight, critical_energy_weight: seconds that one joule is worth then.
    """

    hot_c: float = 75.0
    cool_c: float = 68.0
    shrink_ratio: float = 0.75
    shrink_every_s: float = 10.0
    grow_ratio: float = 0.125
    grow_every_s: float = 60.0
    memory_low_bytes: int = 256 << 20
    memory_high_bytes: int = 512 << 20
    battery_low_ratio: float = 0.2
    battery_critical_ratio: float = 0.1
    battery_margin: float = 0.05
    low_layers_ratio: float = 0.5
    critical_layers_ratio: float = 0.25
    low_energy_weight: float = 0.2
    critical_energy_weight: float = 1.0

    def __post_init__(self) -> None:
        check_number("cool_c", self.cool_c, -100.0, 200.0)
        check_number("hot_c", self.hot_c, self.cool_c, 200.0)
        check_number("shrink_ratio", self.shrink_ratio, 0.0, 0.99)
        check_number("grow_ratio", self.grow_ratio, 0.0, 1.0)
        for name in ("shrink_every_s", "grow_every_s"):
            check_number(name, getattr(self, name), 1e-3, MAX_SECONDS)
        check_count("memory_low_bytes", self.memory_low_bytes, 0, MAX_BYTES)
        check_count("memory_high_bytes", self.memory_high_bytes, self.memory_low_bytes, MAX_BYTES)
        check_number("battery_low_ratio", self.battery_low_ratio, 0.0, 1.0)
        check_number("battery_critical_ratio", self.battery_critical_ratio, 0.0, self.battery_low_ratio)
        check_number("battery_margin", self.battery_margin, 0.0, 1.0)
        for name in ("low_layers_ratio", "critical_layers_ratio"):
            check_number(name, getattr(self, name), 0.0, 1.0)
        for name in ("low_energy_weight", "critical_energy_weight"):
            check_number(name, getattr(self, name), 0.0, 1e9)


@dataclass(frozen=True, slots=True, kw_only=True)
class GovernorState:
    """What the governor remembers. ``heat_layers``: None while heat cuts nothing; ``memory_bytes``: None before the
    first reading.
    """

    heat_layers: int | None = None
    heat_changed_s: float = float("-inf")
    memory_bytes: int | None = None
    battery: Battery = Battery.FINE


@dataclass(frozen=True, slots=True, kw_only=True)
class Ruling:
    """What a plan may use now.

    Attributes:
        max_layers: advice, for the sake of heat and battery. Below the model's layers it rules the device-only plan
            out. A caller whose request has no plan within it (no cloud, a dead link, ``local`` privacy, a large
            ``s_min``) asks again within ``hard_max_layers``: a warm device that answers is better than none.
        hard_max_layers: what the profile allows, at any temperature.
        memory_bytes_free: hard: beyond it the system swaps or kills.
        energy_weight: seconds per joule, for a caller to use when it exceeds the request's own; 0 for none.
        reasons: in words, one for each bound that is in force.
    """

    max_layers: int
    hard_max_layers: int
    memory_bytes_free: int
    energy_weight: float
    reasons: tuple[str, ...]

    def applied(self, device: DeviceProfile, *, hard_only: bool = False) -> DeviceProfile:
        """``device`` within these bounds, or within the hard ones only."""
        layers = self.hard_max_layers if hard_only else self.max_layers
        return replace(device, max_layers=layers, memory_bytes_free=self.memory_bytes_free)


def govern(
    state: GovernorState,
    vitals: Vitals,
    device: DeviceProfile,
    settings: GovernorSettings,
    now_s: float,
    *,
    layers_in_use: int | None = None,
) -> tuple[GovernorState, Ruling]:
    """Rule on what the device may use. A sensor that says nothing leaves its bound as it was.

    Args:
        layers_in_use: on the device now: the first cut for heat starts from them, so that it is felt; None for all.
    """
    reasons: list[str] = []
    state = _heat(state, vitals, device, settings, now_s, layers_in_use)
    state = _memory(state, vitals, settings)
    state = replace(state, battery=_battery(state.battery, vitals, settings))
    layers, memory, weight = device.max_layers, device.memory_bytes_free, 0.0
    if state.heat_layers is not None and state.heat_layers < layers:
        layers = state.heat_layers
        at = "" if vitals.temperature_c is None else f"at {vitals.temperature_c:.0f} degC "
        reasons.append(f"{at}the device runs at most {layers} of {device.layers} layers until it is cool")
    if state.memory_bytes is not None and state.memory_bytes < memory:
        memory = state.memory_bytes
        reasons.append(f"{memory / 1e6:.0f} MB of memory may be used, so that others keep theirs")
    if state.battery is not Battery.FINE:
        low = state.battery is Battery.LOW
        layers = min(layers, _share(device, settings.low_layers_ratio if low else settings.critical_layers_ratio))
        if device.power is not None:
            weight = settings.low_energy_weight if low else settings.critical_energy_weight
        words = f"the battery is {state.battery.value}: at most {layers} of {device.layers} layers"
        reasons.append(words + (f", a joule counts as {weight:g} s" if weight else ""))
    ruling = Ruling(
        max_layers=layers,
        hard_max_layers=device.max_layers,
        memory_bytes_free=memory,
        energy_weight=weight,
        reasons=tuple(reasons),
    )
    return state, ruling


def _share(device: DeviceProfile, ratio: float) -> int:
    """That share of the model's layers, at least the one that keeps ids on the device."""
    return min(max(1, int(device.layers * ratio)), device.max_layers)


def _heat(
    state: GovernorState,
    vitals: Vitals,
    device: DeviceProfile,
    settings: GovernorSettings,
    now_s: float,
    layers_in_use: int | None,
) -> GovernorState:
    now_c, cut = vitals.temperature_c, state.heat_layers
    if now_c is None:
        return state
    since_s = now_s - state.heat_changed_s
    if now_c > settings.hot_c and since_s >= settings.shrink_every_s:
        if cut is None:
            # Device-only uses all; a plan that used none of them has nothing to give but the rest.
            cut = min(device.max_layers, layers_in_use or device.max_layers)
        cut = min(max(1, int(cut * settings.shrink_ratio)), device.max_layers)
        return replace(state, heat_layers=cut, heat_changed_s=now_s)
    if now_c < settings.cool_c and cut is not None and since_s >= settings.grow_every_s:
        grown = cut + max(1, int(device.layers * settings.grow_ratio))
        return replace(state, heat_layers=grown if grown < device.max_layers else None, heat_changed_s=now_s)
    return state


def _memory(state: GovernorState, vitals: Vitals, settings: GovernorSettings) -> GovernorState:
    left = vitals.memory_bytes_available
    if left is None:
        return state
    bound = min(max(0, vitals.memory_bytes_held + left - settings.memory_low_bytes), MAX_BYTES)
    # Down at once; up only when others have plenty, so that giving back and taking again do not alternate.
    if state.memory_bytes is None or bound < state.memory_bytes or left >= settings.memory_high_bytes:
        return replace(state, memory_bytes=bound)
    return state


def _battery(before: Battery, vitals: Vitals, settings: GovernorSettings) -> Battery:
    charge = vitals.battery_ratio
    if charge is None:
        return Battery.FINE if vitals.on_battery is False else before
    # A battery whose charger has no sensor may be all there is.
    if vitals.on_battery is False:
        return Battery.FINE
    margin = settings.battery_margin
    if charge <= settings.battery_critical_ratio + (margin if before is Battery.CRITICAL else 0.0):
        return Battery.CRITICAL
    if charge <= settings.battery_low_ratio + (margin if before is not Battery.FINE else 0.0):
        return Battery.LOW
    return Battery.FINE


class Governor:
    """``govern`` with its state kept. Asking twice at one time rules the same."""

    def __init__(self, settings: GovernorSettings | None = None) -> None:
        self._settings = settings or GovernorSettings()
        self._state = GovernorState()

    def rule(
        self,
        vitals: Vitals,
        device: DeviceProfile,
        now_s: float,
        *,
        layers_in_use: int | None = None,
    ) -> Ruling:
        """What the device may use now; see ``govern``."""
        self._state, ruling = govern(self._state, vitals, device, self._settings, now_s, layers_in_use=layers_in_use)
        return ruling
