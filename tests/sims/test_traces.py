"""Trace files: three public forms, strict readers, and a rate function whose integral and inverse agree."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from splitglm_core.errors import InputError
from splitglm_sims.traces import MAX_FILE_BYTES, RateTrace, load_csv, load_trace, parse_columns, parse_mahimahi

MBIT = 1e6 / 8
TRACES = Path(__file__).parents[2].parent / "shared" / "traces"

CSV = """Timestamp,Speed,DL_bitrate,UL_bitrate
2020.01.16_12.10.03,1,1000,2
2020.01.16_12.10.03,1,3000,2
2020.01.16_12.10.04,1,8000,4
2020.01.16_12.10.07,1,0,4
"""


@st.composite
def rate_traces(draw: st.DrawFn) -> RateTrace:
    lengths = draw(st.lists(st.floats(1e-3, 10.0), min_size=1, max_size=8))
    rates = draw(
        st.lists(st.one_of(st.just(0.0), st.floats(10.0, 1e7)), min_size=len(lengths), max_size=len(lengths)).filter(
            any
        )
    )
    starts = [sum(lengths[:i]) for i in range(len(lengths) + 1)]
    assume(sum(a * b for a, b in zip(lengths, rates, strict=True)) >= 10.0)
    return RateTrace(tuple(starts[:-1]), tuple(rates), starts[-1])


@given(trace=rate_traces(), start_s=st.floats(0.0, 500.0), size=st.integers(1, 10**7))
def test_a_piece_of_data_finishes_when_the_trace_has_carried_exactly_its_bytes(
    trace: RateTrace, start_s: float, size: int
) -> None:
    finish_s = trace.finish_s(start_s, size)
    carried = trace.bytes_before(finish_s) - trace.bytes_before(start_s)
    assert finish_s >= start_s
    assert carried == pytest.approx(size, rel=1e-6, abs=0.1)


@given(trace=rate_traces(), start_s=st.floats(0.0, 500.0), first=st.integers(1, 10**6), second=st.integers(1, 10**6))
def test_one_piece_takes_as_long_as_its_two_halves_one_after_the_other(
    trace: RateTrace, start_s: float, first: int, second: int
) -> None:
    apart = trace.finish_s(trace.finish_s(start_s, first), second)
    whole = trace.finish_s(start_s, first + second)
    # Compared in bytes: within an outage the moments may differ by the outage for a rounding error of a millibyte.
    assert trace.bytes_before(apart) == pytest.approx(trace.bytes_before(whole), rel=1e-6, abs=0.1)


def test_a_trace_repeats_with_its_period() -> None:
    trace = RateTrace((0.0, 1.0), (1000.0, 0.0), 3.0)
    assert [trace.rate_at(t) for t in (0.0, 0.5, 1.0, 2.9, 3.0, 3.5, 4.0)] == [1000, 1000, 0, 0, 1000, 1000, 0]
    assert trace.mean_bytes_per_s == pytest.approx(1000 / 3)
    assert trace.finish_s(0.0, 1000) == pytest.approx(1.0, abs=1e-5)
    assert trace.finish_s(0.5, 1000) == pytest.approx(3.5, abs=1e-5)
    assert trace.finish_s(1.7, 3000) == pytest.approx(10.0, abs=1e-5)


def test_a_mahimahi_packet_is_through_at_its_millisecond() -> None:
    trace = parse_mahimahi(["2", "2", "5", "10"])
    assert trace.period_s == 0.01
    assert trace.bytes_before(0.010) == pytest.approx(4 * 1500)
    finishes = [trace.finish_s(0.0, 1500 * packets) for packets in (1, 2, 3, 4, 5)]
    assert finishes == pytest.approx([0.0015, 0.002, 0.005, 0.010, 0.0115], abs=1e-6)


def test_a_mahimahi_opportunity_at_zero_falls_on_the_end_of_the_period() -> None:
    assert parse_mahimahi(["0", "4"]) == parse_mahimahi(["4", "4"])


def test_consecutive_mahimahi_milliseconds_keep_their_rates() -> None:
    trace = parse_mahimahi(["1", "2", "2", "3"])
    assert [trace.rate_at(t) for t in (0.0005, 0.0015, 0.0025)] == [1.5e6, 3e6, 1.5e6]


def test_columns_hold_a_rate_until_the_next_line() -> None:
    trace = parse_columns(["10.0\t8", "", "10.5 0", "12.5 16"])
    assert trace.starts_s == (0.0, 0.5, 2.5)
    assert trace.bytes_per_s == (8 * MBIT, 0.0, 16 * MBIT)
    assert trace.period_s == 4.5


def test_hairpin_columns_are_read_and_checked() -> None:
    assert parse_columns(["0.000 18.72 18.5ms 0.00", "0.015 20.59 17.0ms 0.00"]).rate_at(0.0) == 18.72 * MBIT
    with pytest.raises(InputError, match="line 2"):
        parse_columns(["0.000 18.72 18.5ms 0.00", "0.015 20.59 slow 0.00"])


def test_csv_rows_of_one_instant_are_averaged_and_gaps_hold(tmp_path: Path) -> None:
    path = tmp_path / "walk.csv"
    path.write_text(CSV)
    trace = load_csv(path)
    assert trace.starts_s == (0.0, 1.0, 4.0)
    assert trace.bytes_per_s == pytest.approx((2 * MBIT, 8 * MBIT, 0.0))
    assert load_trace(path) == trace
    assert load_csv(path, rate_column="UL_bitrate").rate_at(2.0) == pytest.approx(4000 / 8)


@pytest.mark.parametrize(
    ("lines", "complaint"),
    [
        ([], "after millisecond 0"),
        (["0", "0"], "after millisecond 0"),
        (["1", "x"], "line 2"),
        (["1", "-2"], "line 2"),
        (["1.5"], "line 1"),
        (["5", "4"], "goes back"),
        (["9" * 30], "line 1"),
    ],
)
def test_a_broken_mahimahi_file_is_refused_with_its_place(lines: list[str], complaint: str) -> None:
    with pytest.raises(InputError, match=complaint):
        parse_mahimahi(lines)


@pytest.mark.parametrize(
    ("lines", "complaint"),
    [
        (["0 1"], "at least two"),
        (["0 1", "0 2"], "increase strictly"),
        (["1 1", "0 2"], "increase strictly"),
        (["0 1", "1 -2"], "line 2"),
        (["0 1", "1 nan"], "line 2"),
        (["0 1", "1 inf"], "line 2"),
        (["0 1", "1 2 3"], "3 columns"),
        (["0 0", "1 0"], "at least one byte"),
        (["0 1", "1 1e30"], "rates of a trace"),
        (["1e308 1", "1.7e308 1"], "a finite number"),
    ],
)
def test_broken_columns_are_refused_with_their_place(lines: list[str], complaint: str) -> None:
    with pytest.raises(InputError, match=complaint):
        parse_columns(lines)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("a,b\n1,2\n", "no column 'Timestamp'"),
        (CSV + "2020.01.16_12.10.08,1,5\n", "line 6 has 3 columns"),
        (CSV + "2020.01.16_12.10.05,1,5,5\n", "line 6 goes back"),
        (CSV + "yesterday,1,5,5\n", "line 6 .*not a time"),
        (CSV + "2020.01.16_12.10.08,1,-,5\n", "line 6 .*no number"),
    ],
)
def test_a_broken_csv_file_is_refused_with_its_place(tmp_path: Path, text: str, complaint: str) -> None:
    path = tmp_path / "broken.csv"
    path.write_text(text)
    with pytest.raises(InputError, match=complaint):
        load_trace(path)


def test_a_missing_or_binary_file_is_the_users_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot read"):
        load_trace(tmp_path / "absent")
    binary = tmp_path / "binary"
    binary.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="cannot read"):
        load_trace(binary)
    os.mkfifo(tmp_path / "pipe")
    for name in ("pipe", "."):
        with pytest.raises(InputError, match="no such file"):
            load_trace(tmp_path / name)
    with (tmp_path / "endless").open("wb") as endless:
        endless.truncate(MAX_FILE_BYTES + 1)  # sparse
    with pytest.raises(InputError, match="more than"):
        load_trace(tmp_path / "endless")


@pytest.mark.parametrize(
    ("name", "seconds", "mbit"),
    [  # duration and mean as the collection's provenance note states them, but for the last one's mean: the note
        # averages rows, of which some seconds have several and some none; held over its gaps the trace has 130.2
        ("mahimahi/ATT-LTE-driving-2016.down", 120, 4.56),
        ("mahimahi/ATT-LTE-driving-2016.up", 120, 1.91),
        ("sparktraces/Hairpin-wifi-trace11.log", 238, 4.47),
        ("sparktraces/Hairpin-eth-trace9.log", 146, 11.91),
        ("norway-hsdpa/norway_bus_11", 317, 1.26),
        ("irish-5g/Download-Driving-B_2020.01.16_12.10.03.csv", 386, 130.2),
    ],
)
def test_public_traces_load_with_the_published_length_and_mean(name: str, seconds: float, mbit: float) -> None:
    path = TRACES / name
    if not path.exists():
        pytest.skip(f"the public trace {name} is not on this machine (its licence keeps it out of the repository)")
    trace = load_trace(path)
    assert trace.period_s == pytest.approx(seconds, rel=0.01)
    assert trace.mean_bytes_per_s == pytest.approx(mbit * MBIT, rel=0.03)
