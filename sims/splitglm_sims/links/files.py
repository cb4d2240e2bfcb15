"""A link from recorded traces: one file per direction, or one direction and a stated reason for the other."""

from __future__ import annotations

import csv
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from splitglm_core.errors import InputError
from splitglm_partitioner.bounds import check_number
from splitglm_sims.traces import RateTrace, load_trace, read_lines
from splitglm_sims.world.scene import INITIAL_WINDOW_BYTES, LinkScene

MAX_RTT_S: Final = 60.0
_HALF_NORMAL: Final = math.sqrt(math.pi / 2)  # sigma of a half-normal over its mean


@dataclass(frozen=True, slots=True, kw_only=True)
class Asymmetry:
    """How the direction that nobody recorded follows from the other: by one ratio, for a stated reason.

    Attributes:
        up_per_down: uplink rate as a multiple of the downlink's.
        because: where the ratio comes from; shown wherever the link is.
    """

    up_per_down: float
    because: str

    def __post_init__(self) -> None:
        check_number("up_per_down", self.up_per_down, 1e-3, 1e3)
        if not self.because.strip():
            raise InputError("a ratio of uplink to downlink needs its reason", "say where it comes from")


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundTrips:
    """Round trips of a recording, reduced to what a scene takes.

    Attributes:
        rtt_s: without queues: the 5th percentile, since a recording's larger ones hold its own queues.
        jitter_s: sigma of a half-normal delay with the mean of what lies above ``rtt_s``.
    """

    rtt_s: float
    jitter_s: float = 0.0

    def __post_init__(self) -> None:
        check_number("rtt_s", self.rtt_s, 0.0, MAX_RTT_S)
        check_number("jitter_s", self.jitter_s, 0.0, MAX_RTT_S)


def from_files(
    *,
    down: Path | None = None,
    up: Path | None = None,
    asymmetry: Asymmetry | None = None,
    round_trips: RoundTrips,
    overhead_s: float = 0.0006,
    offset_s: float = 0.0,
    rest_after_s: float = math.inf,
    promotion_s: float = 0.0,
    window_bytes: int | None = INITIAL_WINDOW_BYTES,
) -> LinkScene:
    """A scene on recorded rates; outages and low rates stay as they are, and each direction repeats at its own end.

    Args:
        down, up: any form that ``load_trace`` reads.
        asymmetry: how the direction without a file follows; required for one file, refused for two.

    Raises:
        InputError: a file cannot be read, or files and asymmetry do not fit together.
    """
    if down is None and up is None:
        raise InputError("a link from files needs a downlink or an uplink trace")
    if (down is None or up is None) != (asymmetry is not None):
        raise InputError(
            "state how the uplink follows from the downlink exactly when one of them has no trace",
            "give both traces, or one trace and an asymmetry",
        )
    traces = [None if path is None else load_trace(path) for path in (down, up)]
    ratio = 1.0 if asymmetry is None else asymmetry.up_per_down
    return LinkScene(
        down=traces[0] or scaled(_present(traces[1]), 1.0 / ratio),
        up=traces[1] or scaled(_present(traces[0]), ratio),
        rtt_s=round_trips.rtt_s,
        jitter_s=round_trips.jitter_s,
        overhead_s=overhead_s,
        offset_s=offset_s,
        rest_after_s=rest_after_s,
        promotion_s=promotion_s,
        window_bytes=window_bytes,
    )


def scaled(trace: RateTrace, factor: float) -> RateTrace:
    """The trace with every rate times ``factor``."""
    return RateTrace(trace.starts_s, tuple(rate * factor for rate in trace.bytes_per_s), trace.period_s)


def hairpin_round_trips(path: Path) -> RoundTrips:
    """From the third column of a ``time_s Mbps RTTms loss`` file (Hairpin, NSDI 2024)."""
    samples = []
    for number, line in enumerate(read_lines(path), 1):
        cells = line.split()
        if not cells:
            continue
        if len(cells) != 4 or not cells[2].endswith("ms"):
            raise _bad(path, number, "has no round-trip time in its third of four columns")
        samples.append(_milliseconds(cells[2].removesuffix("ms"), path, number))
    return _reduced(samples, path)


def ping_round_trips(path: Path, *, column: str = "PINGAVG") -> RoundTrips:
    """From a column of milliseconds in a CSV file with a header (G-NetTrack Pro's pings); ``-`` is no measurement."""
    samples = []
    table = csv.reader(read_lines(path), strict=True)
    try:
        header = next(table, [])
        if column not in header:
            raise InputError(f"{path}: no column {column!r}", f"use one of {', '.join(header[:40])}")
        at = header.index(column)
        for cells in table:
            if len(cells) != len(header):
                raise _bad(path, table.line_num, f"has {len(cells)} columns instead of {len(header)}")
            if cells[at] != "-":
                samples.append(_milliseconds(cells[at], path, table.line_num))
    except csv.Error as error:
        raise _bad(path, table.line_num, f"is not CSV: {error}") from error
    return _reduced(samples, path)


def _reduced(samples_s: list[float], path: Path) -> RoundTrips:
    if not samples_s:
        raise InputError(f"{path}: no round-trip time in the whole file")
    base_s = float(np.percentile(samples_s, 5))
    above_s = float(np.clip(np.array(samples_s) - base_s, 0.0, None).mean())
    return RoundTrips(rtt_s=base_s, jitter_s=above_s * _HALF_NORMAL)


def _present(trace: RateTrace | None) -> RateTrace:
    if trace is None:
        raise InputError("a link from files needs a downlink or an uplink trace")
    return trace


def _milliseconds(text: str, path: Path, line: int) -> float:
    try:
        value_s = float(text) * 1e-3
    except ValueError:
        raise _bad(path, line, f"holds {text[:20]!r}, which is no number of milliseconds") from None
    if not 0.0 <= value_s <= MAX_RTT_S:
        raise _bad(path, line, f"holds a round trip of {text[:20]} ms, outside [0, {MAX_RTT_S * 1e3:g}]")
    return value_s


def _bad(path: Path, line: int, what: str) -> InputError:
    return InputError(f"{path}, line {line} {what}", "check that the file has the form its loader reads")
