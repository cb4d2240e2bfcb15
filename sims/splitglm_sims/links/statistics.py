"""The figures by which a generated link is held against its source: level, spread, persistence and outages."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from splitglm_core.errors import InputError
from splitglm_partitioner.bounds import check_number
from splitglm_sims.traces import RateTrace

LAGS_S: Final = (1.0, 5.0, 10.0)
OUTAGE_BELOW_BYTES_PER_S: Final = 1000.0
"""Less than one packet of 1500 bytes a second: nothing that a request could use."""
MAX_BINS: Final = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class RateStatistics:
    """Of one direction's rate in equal bins.

    Attributes:
        mean, p5, p50, p95: bytes per second.
        autocorrelation: at ``LAGS_S``; 0 for a rate that does not change, and at a lag longer than the trace.
        outage_share: of bins below ``OUTAGE_BELOW_BYTES_PER_S``.
    """

    mean: float
    p5: float
    p50: float
    p95: float
    autocorrelation: tuple[float, ...]
    outage_share: float


def binned(trace: RateTrace, bin_s: float = 1.0) -> NDArray[np.float64]:
    """Mean bytes per second of each whole bin of the trace's period; float64 ``[bins]``."""
    check_number("bin_s", bin_s, 1e-3, trace.period_s)
    bins = int(trace.period_s / bin_s + 1e-9)
    if bins > MAX_BINS:
        raise InputError(f"a trace of {bins} bins is too long to be looked at", "take longer bins")
    carried = np.array([trace.bytes_before(min(i * bin_s, trace.period_s)) for i in range(bins + 1)])
    rates: NDArray[np.float64] = np.diff(carried) / bin_s
    return np.clip(rates, 0.0, None)


def statistics(trace: RateTrace, bin_s: float = 1.0) -> RateStatistics:
    return statistics_of(binned(trace, bin_s), bin_s)


def statistics_of(rates: NDArray[np.float64], bin_s: float = 1.0) -> RateStatistics:
    """Of binned rates ``[bins]``."""
    p5, p50, p95 = (float(value) for value in np.percentile(rates, (5, 50, 95)))
    return RateStatistics(
        mean=float(rates.mean()),
        p5=p5,
        p50=p50,
        p95=p95,
        autocorrelation=tuple(_autocorrelation(rates, round(lag_s / bin_s)) for lag_s in LAGS_S),
        outage_share=float((rates < OUTAGE_BELOW_BYTES_PER_S).mean()),
    )


def compared(source: RateStatistics, generated: RateStatistics) -> str:
    """A Markdown table of both."""
    rows = [
        (f"{name} Mbit/s", f"{getattr(source, name) * 8e-6:.2f}", f"{getattr(generated, name) * 8e-6:.2f}")
        for name in ("mean", "p5", "p50", "p95")
    ]
    pairs = zip(LAGS_S, source.autocorrelation, generated.autocorrelation, strict=True)
    rows += [(f"autocorrelation at {lag_s:g} s", f"{a:.2f}", f"{b:.2f}") for lag_s, a, b in pairs]
    rows.append(("outage share", f"{source.outage_share:.3f}", f"{generated.outage_share:.3f}"))
    lines = ["| | source | generated |", "|---|---|---|", *(f"| {a} | {b} | {c} |" for a, b, c in rows)]
    return "\n".join(lines)


def _autocorrelation(rates: NDArray[np.float64], lag: int) -> float:
    variance = float(rates.var())
    if lag >= len(rates) or variance <= 0.0:
        return 0.0
    centred = rates - rates.mean()
    return float((centred[lag:] * centred[:-lag]).mean() / variance) if lag else 1.0
