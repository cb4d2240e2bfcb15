"""Links of which only summary statistics are published: three percentiles each way, and stated assumptions on time."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist
from typing import Final

from splitglm_core.errors import InputError
from splitglm_partitioner.bounds import check_number, check_seconds
from splitglm_sims.links.markov import LinkState, MarkovLink

_BYTES_PER_S: Final = 1e6 / 8
_Z95: Final = NormalDist().inv_cdf(0.95)
_LEVELS: Final = ("poor", "fair", "good")
_TRIM: Final = 0.01  # the generator stays within the 1st and 99th percentile: beyond them nothing is published
_POINTS: Final = 9


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkSummary:
    """What a survey says of a link, and what must be assumed because it does not say it.

    The rates of each direction follow a log-normal distribution on either side of the median, fitted to the
    percentiles. A third of the connected time each is spent in a poor, a fair and a good state.

    Attributes:
        down_mbps, up_mbps: 5th, 50th and 95th percentile.
        rtt_ms: likewise; scenes draw between the first and the last.
        dwell_s: assumed mean time in a state before the next one; the next is a neighbour.
        outage_share: assumed share of time without data.
        outage_s: assumed mean length of an outage.
        jitter_ms: assumed, as in ``LinkScene``.
        rest_after_s, promotion_s: as in ``MarkovLink``.
    """

    down_mbps: tuple[float, ...]
    up_mbps: tuple[float, ...]
    rtt_ms: tuple[float, ...]
    dwell_s: float
    outage_share: float
    outage_s: float
    jitter_ms: float
    rest_after_s: float | None = None
    promotion_s: float = 0.0

    def __post_init__(self) -> None:
        for name in ("down_mbps", "up_mbps", "rtt_ms"):
            values = getattr(self, name)
            if len(values) != 3 or not 0.0 < values[0] <= values[1] <= values[2]:
                raise InputError(f"{name} holds the 5th, 50th and 95th percentile, ascending and positive")
        check_number("dwell_s", self.dwell_s, 1.0, 1e4)
        check_number("outage_share", self.outage_share, 0.0, 0.9)
        check_number("outage_s", self.outage_s, 1.0, 1e4)
        check_number("jitter_ms", self.jitter_ms, 0.0, 1e4)
        check_seconds("promotion_s", self.promotion_s)

    def link(self) -> MarkovLink:
        """The generator, in slots of a second."""
        leave = 1.0 / self.dwell_s
        into = self.outage_share / (1.0 - self.outage_share) / self.outage_s  # balance: entered as often as left
        if leave + into > 1.0:
            raise InputError("outages so frequent and short leave no slot for the other states", "lengthen outage_s")
        third = 1.0 / (3.0 * self.outage_s)
        out = ((third, third, third, 1.0 - 3.0 * third),) if self.outage_share else ()
        tail = (into,) if self.outage_share else ()
        stay = 1.0 - leave - into
        rows = (
            (stay + leave / 2, leave / 2, 0.0, *tail),
            (leave / 2, stay, leave / 2, *tail),
            (0.0, leave / 2, stay + leave / 2, *tail),
            *out,
        )
        states = [
            LinkState(
                name=name,
                down_bytes_per_s=_third(self.down_mbps, number),
                up_bytes_per_s=_third(self.up_mbps, number),
                next=rows[number],
            )
            for number, name in enumerate(_LEVELS)
        ]
        if self.outage_share:
            states.append(LinkState(name="out", down_bytes_per_s=(0.0,), up_bytes_per_s=(0.0,), next=rows[3]))
        return MarkovLink(
            states=tuple(states),
            rtt_quantiles_s=tuple(value * 1e-3 for value in self.rtt_ms),
            jitter_s=self.jitter_ms * 1e-3,
            rest_after_s=self.rest_after_s,
            promotion_s=self.promotion_s,
        )


def _third(percentiles: tuple[float, ...], number: int) -> tuple[float, ...]:
    """Quantiles in bytes/s of one third of the distribution with these percentiles."""
    p5, p50, p95 = percentiles
    out = []
    for point in range(_POINTS):
        chance = min(1.0 - _TRIM, max(_TRIM, (number + point / (_POINTS - 1)) / 3.0))
        z = NormalDist().inv_cdf(chance) / _Z95
        out.append(p50 * (p95 / p50) ** z if z > 0 else p50 * (p50 / p5) ** z)
    return tuple(value * _BYTES_PER_S for value in out)
