"""Whether the link is worth asking: the value of the answer against the time of the question. Pure.

A question delays the reply that waits for it. Its answer is worth what another plan would then save, averaged over what
the answer may be (the expected value of information: Howard, "Information value theory", 1966). So nothing is asked
when all answers lead to the same plan, however old the estimates are.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from splitglm_partitioner.bounds import MAX_BYTES_PER_S
from splitglm_partitioner.link_estimator import PROBE_BYTES, Probing
from splitglm_partitioner.profiles import LinkEstimate

EXTREME = 0.25
"""Chance given to a property of the link being as bad as its uncertainty allows, and to its being as good."""


@dataclass(frozen=True, slots=True)
class Stakes:
    """What the plan that looks best now would cost beyond the best one, in units of the objective, if

    Attributes:
        rates: the rates were as bad, or as good, as may be; empty when they are known.
        trip: likewise the round trip.
        load: the cloud's load were one of those possible, each with its chance; empty when it is known.
    """

    rates: list[float]
    trip: list[float]
    load: list[tuple[float, float]]


def question(stakes: Stakes, link: LinkEstimate, *, rested: bool, wakes: bool, weight: float) -> Probing:
    """What to ask.

    Args:
        rested: the link has carried nothing of late, so that the round trip is asked twice.
        wakes: the plan that looks best does not use the link, so that waking the radio is part of the price.
        weight: of a second, in units of the objective.
    """
    trip_s = link.rtt_s + link.overhead_s
    price_s = (2 if rested else 1) * trip_s + (link.promotion_s if wakes else 0.0)
    more_s = 2 * trip_s + PROBE_BYTES / link.uplink_bytes_per_s + PROBE_BYTES / link.downlink_bytes_per_s
    short = EXTREME * sum(stakes.trip) + sum(chance * stake for chance, stake in stakes.load) - weight * price_s
    more = EXTREME * sum(stakes.rates) - weight * more_s
    if more > 0.0 and short + more > 0.0:
        return Probing.RATES
    return Probing.ROUND_TRIP if short > 0.0 else Probing.NONE


def rates_may_be(link: LinkEstimate) -> tuple[LinkEstimate, LinkEstimate]:
    """The link with its rates as bad and as good as their uncertainty allows."""
    good = replace(
        link,
        uplink_bytes_per_s=min(link.uplink_bytes_per_s * (1.0 + link.uplink_rel_error), MAX_BYTES_PER_S),
        downlink_bytes_per_s=min(link.downlink_bytes_per_s * (1.0 + link.downlink_rel_error), MAX_BYTES_PER_S),
    )
    return replace(link.pessimistic(), rtt_s=link.rtt_s, rtt_var_s=link.rtt_var_s), good


def trip_may_be(link: LinkEstimate) -> tuple[LinkEstimate, LinkEstimate]:
    """The link with its round trip as bad and as good as its deviation allows."""
    good_s = max(link.rtt_s / 2.0, link.rtt_s - 4.0 * link.rtt_var_s)
    return replace(link, rtt_s=link.pessimistic().rtt_s), replace(link, rtt_s=good_s)
