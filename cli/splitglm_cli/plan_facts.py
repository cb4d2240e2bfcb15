"""What a decision was made on, for ``splitglm plan``: link, cloud and device as known now, sensors, steering."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from splitglm_partitioner.decision import Decision
    from splitglm_partitioner.factors import ArmFactors
    from splitglm_partitioner.governor import Vitals
    from splitglm_partitioner.profiles import CloudProfile, DeviceProfile, LinkEstimate

_STEERING: Final = {
    "cheapest": "the cheapest plan runs",
    "kept": "another arm is cheaper, but not by enough to leave the one that served such requests last",
    "switched": "the cheapest plan runs; it is of another arm than served such requests last",
    "explored": "an arm that has not run for long is tried; what that may cost is within its budget",
}


def plan_facts(decision: Decision, profile: DeviceProfile, vitals: Vitals) -> list[tuple[str, str]]:
    """Lines of ``text_facts``.

    Args:
        profile: the device as it was profiled, for what bounds it now.
    """
    situation = decision.situation
    facts = []
    if situation.link is not None:
        facts.append(("link", _link(situation.link)))
    if situation.cloud is not None:
        facts.append(("cloud", _cloud(situation.cloud)))
    facts.append(("device", "; ".join(_device(situation.device, profile))))
    facts.append(("sensors", ", ".join(_sensors(vitals)) or "none"))
    if situation.factors:
        facts.append(("learnt", "\n".join(_learnt(factors) for factors in situation.factors)))
    facts += [("steering", words) for words in _steering(decision)]
    return facts


def _link(link: LinkEstimate) -> str:
    parts = [f"RTT {1e3 * link.rtt_s:.1f} ms (deviation {1e3 * link.rtt_var_s:.1f} ms)"]
    for name, rate, error in (
        ("up", link.uplink_bytes_per_s, link.uplink_rel_error),
        ("down", link.downlink_bytes_per_s, link.downlink_rel_error),
    ):
        parts.append(f"{name} {rate / 1e6:.2f} MB/s (within {100 * error:.0f} %)")
    if link.promotion_s > 0.0:
        parts.append(f"{1e3 * link.promotion_s:.0f} ms to wake up")
    if link.window_bytes is not None:
        parts.append(f"{link.window_bytes / 1e3:.0f} kB before the first acknowledgement")
    return ", ".join(parts)


def _cloud(cloud: CloudProfile) -> str:
    waits = f"a step waits {1e3 * cloud.queue_s:.1f} ms in the queue and {1e3 * cloud.sweep_s:.1f} ms for its layer"
    return f"{waits}; passes take {cloud.slowdown:.2f} times what its profile says"


def _device(now: DeviceProfile, profile: DeviceProfile) -> Iterator[str]:
    yield f"passes take {now.slowdown:.2f} times what its profile says"
    if now.max_layers < profile.max_layers:
        yield f"the governor allows {now.max_layers} of {now.layers} layers"
    if now.memory_bytes_free < profile.memory_bytes_free:
        yield f"the governor allows {now.memory_bytes_free / 1e6:,.0f} MB, so that others keep theirs"
    yield "power " + ("not stated" if now.power is None else f"{now.power.compute_w:g} W while it computes")


def _learnt(factors: ArmFactors) -> str:
    """What replies of an arm took, against what the model of cost says."""
    return (
        f"{factors.arm.value}: TTFT {factors.ttft:.2f} times the model's, further tokens {factors.per_token:.2f} times"
    )


def _sensors(vitals: Vitals) -> Iterator[str]:
    if vitals.temperature_c is not None:
        yield f"{vitals.temperature_c:.0f} degC"
    if vitals.memory_bytes_available is not None:
        yield f"{vitals.memory_bytes_available / 1e9:.1f} GB of memory available"
    if vitals.battery_ratio is not None:
        yield f"battery {100 * vitals.battery_ratio:.0f} %" + (", discharging" if vitals.on_battery else "")
    if vitals.load_ratio is not None:
        yield f"others run {vitals.load_ratio:.2f} threads per core"


def _steering(decision: Decision) -> Iterator[str]:
    """What hysteresis and exploration did; nothing for a plain search."""
    said = dict(pair.split("=", 1) for pair in decision.why.split(";")).get("steering")
    if said is not None:
        yield _STEERING.get(said, said)
