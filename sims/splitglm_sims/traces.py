"""Link traces: how many bytes per second one direction of a link could carry, as measured somewhere.

Three public forms are read: Mahimahi packet-delivery files (Winstein et al., NSDI 2013), two-column ``time_s Mbps``
files (Pensieve's form; Hairpin's adds a round-trip time and a loss column, which are checked and left aside) and CSV
with a header (G-NetTrack Pro's form). Readers are strict: a line that cannot be read is an ``InputError`` that names
file and line, never a guess. No trace is part of this package; the published ones carry licences of their own.
"""

from __future__ import annotations

import csv
import math
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Final

from splitglm_core.errors import InputError

MAHIMAHI_PACKET_BYTES: Final = 1500  # one delivery opportunity, by the definition of the format
MAX_LINES: Final = 5_000_000  # an hour at 16 Mbit/s in Mahimahi's form; a longer file is a mistake
MAX_FILE_BYTES: Final = 1 << 28
MAX_RATE_BYTES_PER_S: Final = 1.25e11  # one Tbit/s: beyond it a unit was mixed up
_BYTES_PER_MBIT: Final = 1e6 / 8
_SLACK_BYTES: Final = 1e-3  # rounding must not push a packet that just fits beyond the outage that follows


@dataclass(frozen=True, slots=True)
class RateTrace:
    """A piecewise-constant rate that repeats with ``period_s``.

    Attributes:
        starts_s: when each piece begins; the first is 0, strictly increasing.
        bytes_per_s: rate of each piece; 0 is an outage.
        period_s: length of the trace, greater than the last start.
    """

    starts_s: tuple[float, ...]
    bytes_per_s: tuple[float, ...]
    period_s: float
    # bytes carried before each start, and by the whole period at the end: one more entry than there are pieces
    _carried: tuple[float, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not self.starts_s or len(self.starts_s) != len(self.bytes_per_s):
            raise InputError("a rate trace needs as many rates as starts, and at least one")
        ends = (*self.starts_s[1:], self.period_s)
        if self.starts_s[0] != 0.0 or not all(a < b < math.inf for a, b in zip(self.starts_s, ends, strict=True)):
            raise InputError("the starts of a rate trace begin at 0 and increase strictly up to its period")
        if not all(0.0 <= rate <= MAX_RATE_BYTES_PER_S for rate in self.bytes_per_s):
            raise InputError(f"the rates of a trace lie in [0, {MAX_RATE_BYTES_PER_S:g}] bytes/s")
        pieces = ((end - start) * rate for start, end, rate in zip(self.starts_s, ends, self.bytes_per_s, strict=True))
        object.__setattr__(self, "_carried", tuple(accumulate(pieces, initial=0.0)))
        if not 1.0 <= self._carried[-1] < math.inf:
            raise InputError("a rate trace must carry at least one byte in its period, and a finite number of them")

    @property
    def mean_bytes_per_s(self) -> float:
        return self._carried[-1] / self.period_s

    def rate_at(self, time_s: float) -> float:
        """Bytes per second at ``time_s`` >= 0."""
        return self.bytes_per_s[bisect_right(self.starts_s, time_s % self.period_s) - 1]

    def bytes_before(self, time_s: float) -> float:
        """Bytes that the link could carry in ``[0, time_s)``."""
        cycles, within = divmod(time_s, self.period_s)
        piece = bisect_right(self.starts_s, within) - 1
        inside = self._carried[piece] + (within - self.starts_s[piece]) * self.bytes_per_s[piece]
        return cycles * self._carried[-1] + inside

    def finish_s(self, start_s: float, size: int) -> float:
        """When the last of ``size`` bytes leaves if the first may leave at ``start_s`` and nothing else is sent."""
        if size <= 0:
            return start_s
        cycles, rest = divmod(self.bytes_before(start_s) + size - _SLACK_BYTES, self._carried[-1])
        if rest == 0.0:  # exactly a whole number of periods: the last byte leaves within the earlier one
            cycles, rest = cycles - 1, self._carried[-1]
        piece = bisect_left(self._carried, rest) - 1
        within = self.starts_s[piece] + (rest - self._carried[piece]) / self.bytes_per_s[piece]
        return max(start_s, cycles * self.period_s + within)

    @classmethod
    def constant(cls, bytes_per_s: float) -> RateTrace:
        return cls((0.0,), (bytes_per_s,), 1.0)


def load_trace(path: Path) -> RateTrace:
    """Reads a trace of any of the three forms: ``.csv`` by name, the others by their number of columns."""
    if path.suffix.lower() == ".csv":
        return load_csv(path)
    lines = read_lines(path)
    first = next((line for line in lines if line.strip()), "")
    return parse_mahimahi(lines, str(path)) if len(first.split()) == 1 else parse_columns(lines, str(path))


def load_mahimahi(path: Path) -> RateTrace:
    return parse_mahimahi(read_lines(path), str(path))


def load_columns(path: Path) -> RateTrace:
    return parse_columns(read_lines(path), str(path))


def parse_mahimahi(lines: Iterable[str], name: str = "trace") -> RateTrace:
    """One integer per line: the millisecond at which one packet of 1500 bytes can be delivered.

    An opportunity at millisecond ``m`` becomes the rate of the millisecond that ends there, so a packet is through at
    ``m`` exactly. The file repeats at its last timestamp, which makes an opportunity at 0 one at the period's end.
    """
    stamps: list[int] = []
    for number, line in enumerate(lines, 1):
        text = line.strip()
        if not text:
            continue
        if not (text.isascii() and text.isdigit() and len(text) <= 12):
            raise _bad(name, number, "is not a millisecond count")
        stamps.append(int(text))
        if len(stamps) > 1 and stamps[-1] < stamps[-2]:
            raise _bad(name, number, "goes back in time")
    if not stamps or stamps[-1] == 0:
        raise InputError(f"{name}: a Mahimahi trace needs a delivery after millisecond 0")
    period_ms = stamps[-1]
    packets: dict[int, int] = {}
    for stamp in stamps:
        slot = (stamp - 1) % period_ms
        packets[slot] = packets.get(slot, 0) + 1
    points = {0: 0}
    for slot in sorted(packets):
        points[slot] = packets[slot]
        if slot + 1 < period_ms:
            points[slot + 1] = 0  # until the next opportunity, which may be at once
    return RateTrace(
        tuple(slot / 1e3 for slot in points),
        tuple(count * MAHIMAHI_PACKET_BYTES * 1e3 for count in points.values()),
        period_ms / 1e3,
    )


def parse_columns(lines: Iterable[str], name: str = "trace") -> RateTrace:
    """``time_s Mbps`` per line, or Hairpin's ``time_s Mbps RTTms loss``; a rate holds until the next line."""
    rows: list[tuple[float, float]] = []
    for number, line in enumerate(lines, 1):
        cells = line.split()
        if not cells:
            continue
        if len(cells) not in (2, 4):
            raise _bad(name, number, f"has {len(cells)} columns instead of 2 or 4")
        if len(cells) == 4:
            _number(cells[2].removesuffix("ms"), name, number)
            _number(cells[3], name, number)
        rows.append((_number(cells[0], name, number), _number(cells[1], name, number) * _BYTES_PER_MBIT))
    return _held(rows, name)


def load_csv(
    path: Path,
    *,
    time_column: str = "Timestamp",
    rate_column: str = "DL_bitrate",
    time_format: str | None = "%Y.%m.%d_%H.%M.%S",
    bits_per_unit: float = 1000.0,
) -> RateTrace:
    """A CSV file with a header; the defaults are G-NetTrack Pro's, whose bit rates are in kbit/s.

    Args:
        time_column: seconds, or a date read by ``time_format`` (``strptime``); ``None`` means seconds.
        rate_column: bit rate in units of ``bits_per_unit``. Rows of one instant are averaged.
    """
    name = str(path)
    readings: dict[float, list[float]] = {}
    table = csv.reader(read_lines(path), strict=True)
    try:
        header = next(table, [])
        missing = [column for column in (time_column, rate_column) if column not in header]
        if missing:
            raise InputError(f"{name}: no column {missing[0]!r}", f"use one of {', '.join(header[:40])}")
        time_at, rate_at = header.index(time_column), header.index(rate_column)
        for cells in table:
            number = table.line_num
            if len(cells) != len(header):
                raise _bad(name, number, f"has {len(cells)} columns instead of {len(header)}")
            time_s = _time(cells[time_at], time_format, name, number)
            if readings and time_s < next(reversed(readings)):
                raise _bad(name, number, "goes back in time")
            rate = _number(cells[rate_at], name, number) * bits_per_unit / 8
            readings.setdefault(time_s, []).append(rate)
    except csv.Error as error:
        raise _bad(name, table.line_num, f"is not CSV: {error}") from error
    return _held([(time_s, sum(rates) / len(rates)) for time_s, rates in readings.items()], name)


def _held(rows: Sequence[tuple[float, float]], name: str) -> RateTrace:
    """Zero-order hold; the last row holds as long as the one before it did."""
    if len(rows) < 2:
        raise InputError(f"{name}: a trace needs at least two instants")
    origin = rows[0][0]
    starts = tuple(time_s - origin for time_s, _ in rows)
    if not all(a < b for a, b in pairwise(starts)):
        raise InputError(f"{name}: the times of a trace must increase strictly")
    return RateTrace(starts, tuple(rate for _, rate in rows), starts[-1] + (starts[-1] - starts[-2]))


def read_lines(path: Path) -> list[str]:
    """The lines of a trace file. InputError when it cannot be read, is no regular file or is too long."""
    try:
        if not path.is_file():
            raise InputError(f"cannot read the trace {path}: there is no such file")
        if path.stat().st_size > MAX_FILE_BYTES:
            raise InputError(f"{path}: more than {MAX_FILE_BYTES} bytes")
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read the trace {path}: {error}") from error
    if len(lines) > MAX_LINES:
        raise InputError(f"{path}: more than {MAX_LINES} lines")
    return lines


def _number(text: str, name: str, line: int) -> float:
    try:
        value = float(text)
    except ValueError:
        raise _bad(name, line, f"holds {text[:20]!r}, which is no number") from None
    if not (math.isfinite(value) and value >= 0):
        raise _bad(name, line, f"holds {text[:20]!r}, which is not finite and >= 0")
    return value


def _time(text: str, time_format: str | None, name: str, line: int) -> float:
    if time_format is None:
        return _number(text, name, line)
    try:
        return (datetime.strptime(text, time_format) - datetime(1970, 1, 1)).total_seconds()
    except ValueError:
        raise _bad(name, line, f"holds {text[:30]!r}, which is not a time of the form {time_format}") from None


def _bad(name: str, line: int, what: str) -> InputError:
    return InputError(f"{name}, line {line} {what}", "check that the file has the form its loader reads")
