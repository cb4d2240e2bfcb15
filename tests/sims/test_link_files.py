"""Links from recorded traces: rates and outages survive, ratios are stated, round trips are read strictly."""

from __future__ import annotations

from pathlib import Path

import pytest

from splitglm_core.errors import InputError
from splitglm_sims.links.files import (
    Asymmetry,
    RoundTrips,
    from_files,
    hairpin_round_trips,
    ping_round_trips,
    scaled,
)
from splitglm_sims.traces import RateTrace

MIB_S = 1e6 / 8
STATED = Asymmetry(up_per_down=0.25, because="a test")
QUICK = RoundTrips(rtt_s=0.03, jitter_s=0.002)


@pytest.fixture
def columns(tmp_path: Path) -> Path:
    path = tmp_path / "rates"
    path.write_text("0 8\n1 0\n2 0.002\n3 4\n", encoding="utf-8")
    return path


def test_a_file_of_one_direction_gives_the_other_by_the_stated_ratio(columns: Path) -> None:
    link = from_files(down=columns, asymmetry=STATED, round_trips=QUICK)
    assert link.down.bytes_per_s == (8 * MIB_S, 0.0, 0.002 * MIB_S, 4 * MIB_S)
    assert link.up.bytes_per_s == pytest.approx([rate / 4 for rate in link.down.bytes_per_s])
    assert (link.rtt_s, link.jitter_s) == (0.03, 0.002)
    reverse = from_files(up=columns, asymmetry=STATED, round_trips=QUICK)
    assert reverse.down.bytes_per_s == pytest.approx([rate * 4 for rate in reverse.up.bytes_per_s])


def test_two_files_need_no_ratio_and_keep_their_own_periods(columns: Path, tmp_path: Path) -> None:
    other = tmp_path / "up"
    other.write_text("500\n1000\n", encoding="utf-8")  # Mahimahi: two packets in a second
    link = from_files(down=columns, up=other, round_trips=QUICK, rest_after_s=10.0, promotion_s=0.4, offset_s=3.0)
    assert link.up.period_s == 1.0 and link.up.mean_bytes_per_s == pytest.approx(3000.0)
    assert link.down.period_s == 4.0
    assert (link.rest_after_s, link.promotion_s, link.offset_s) == (10.0, 0.4, 3.0)


def test_an_unstated_or_superfluous_ratio_is_refused(columns: Path) -> None:
    with pytest.raises(InputError, match="how the uplink follows"):
        from_files(down=columns, round_trips=QUICK)
    with pytest.raises(InputError, match="how the uplink follows"):
        from_files(down=columns, up=columns, asymmetry=STATED, round_trips=QUICK)
    with pytest.raises(InputError, match="needs a downlink or an uplink"):
        from_files(asymmetry=STATED, round_trips=QUICK)
    with pytest.raises(InputError, match="needs its reason"):
        Asymmetry(up_per_down=0.5, because=" ")


def test_a_missing_trace_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nowhere"):
        from_files(down=tmp_path / "nowhere", asymmetry=STATED, round_trips=QUICK)


def test_scaling_keeps_times() -> None:
    trace = RateTrace((0.0, 1.0), (100.0, 0.0), 3.0)
    assert scaled(trace, 2.0) == RateTrace((0.0, 1.0), (200.0, 0.0), 3.0)


def test_round_trips_of_hairpin_are_their_base_and_what_lies_above(tmp_path: Path) -> None:
    path = tmp_path / "h.log"
    path.write_text("\n".join(f"{i * 0.015:.3f} 20 {10 + i % 3}.0ms 0.00" for i in range(300)), encoding="utf-8")
    found = hairpin_round_trips(path)
    assert found.rtt_s == pytest.approx(0.010)
    assert found.jitter_s == pytest.approx(0.001 * 1.2533, rel=1e-3)  # mean 1 ms above, as a half-normal


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("0 1", "no round-trip time"),
        ("0 1 20 0", "no round-trip time"),
        ("0 1 xms 0", "no number"),
        ("0 1 -5ms 0", "outside"),
        ("0 1 nanms 0", "outside"),
        ("0 1 99999999ms 0", "outside"),
    ],
)
def test_a_bad_hairpin_line_is_named(tmp_path: Path, line: str, said: str) -> None:
    path = tmp_path / "h.log"
    path.write_text(f"0 1 5ms 0\n{line}\n", encoding="utf-8")
    with pytest.raises(InputError, match=f"line 2 .*{said}"):
        hairpin_round_trips(path)


def test_pings_of_a_csv_skip_rows_without_one(tmp_path: Path) -> None:
    path = tmp_path / "p.csv"
    path.write_text("Timestamp,PINGAVG\n0,-\n1,60\n2,-\n3,60\n", encoding="utf-8")
    assert ping_round_trips(path) == RoundTrips(rtt_s=0.06)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("Timestamp\n0\n", "no column 'PINGAVG'"),
        ("T,PINGAVG\n0,-\n", "no round-trip time in the whole file"),
        ("T,PINGAVG\n0,1\n0\n", "line 3 has 1 columns"),
        ("T,PINGAVG\n0,fast\n", "line 2 holds 'fast'"),
        ('T,PINGAVG\n0,"1\n', "is not CSV"),
    ],
)
def test_a_bad_ping_file_is_named(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "p.csv"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=said):
        ping_round_trips(path)
