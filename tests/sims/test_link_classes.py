"""The shipped link classes: complete, with sources, apart for tuning and reporting, and like their figures."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from splitglm_core.errors import InputError
from splitglm_sims.links.fitted import LINK_CLASSES, Use, class_names, link_class
from splitglm_sims.links.markov import quantile
from splitglm_sims.links.statistics import statistics
from splitglm_sims.links.summary import LinkSummary

FINE = np.linspace(0.0, 1.0, 10_001)
SUMMARY = """
about = "a"
source = "b"
use = "tune"
[summary]
down_mbps = [10.0, 20.0, 30.0]
up_mbps = [1.0, 2.0, 3.0]
rtt_ms = [10.0, 20.0, 30.0]
dwell_s = 5.0
outage_share = 0.1
outage_s = 4.0
jitter_ms = 1.0
"""


def test_nine_classes_ship_and_tuning_shares_none_with_reporting() -> None:
    assert set(class_names(Use.TUNE)) == {"4g-city", "nr5g-sa"}
    assert set(class_names(Use.REPORT)) == {
        "ethernet-home", "hsdpa-bus", "lte-driving", "mmwave", "nr5g-driving", "nr5g-low", "wifi-poor"
    }  # fmt: skip
    assert set(class_names()) == set(class_names(Use.TUNE)) | set(class_names(Use.REPORT))


@pytest.mark.parametrize("name", class_names())
def test_a_class_says_where_it_comes_from_and_gives_equal_scenes_for_equal_seeds(name: str) -> None:
    kind = link_class(name)
    assert kind.about and len(kind.source) > 40
    assert kind.scene(7, 300) == kind.scene(7, 300) != kind.scene(8, 300)
    assert kind.scene(7, 300).down.period_s == 300


@pytest.mark.parametrize("name", class_names())
def test_generated_rates_have_the_mean_and_outages_of_the_parameters(name: str) -> None:
    link = link_class(name).model
    scene = link_class(name).scene(11, 60_000)
    for way, trace in (("down_bytes_per_s", scene.down), ("up_bytes_per_s", scene.up)):
        means = [quantile(getattr(state, way), FINE).mean() for state in link.states]
        silent = [getattr(state, way)[-1] == 0.0 for state in link.states]
        found = statistics(trace)
        assert found.mean == pytest.approx(float(link.occupancy @ means), rel=0.05)
        assert found.outage_share == pytest.approx(float(link.occupancy @ silent), abs=0.01)


@pytest.mark.parametrize("name", ["4g-city", "mmwave", "nr5g-low", "nr5g-sa"])
def test_classes_from_summaries_have_the_published_percentiles(name: str) -> None:
    summary = link_class(name).summary
    assert summary is not None
    scene = link_class(name).scene(2, 60_000)
    for percentiles, trace in ((summary.down_mbps, scene.down), (summary.up_mbps, scene.up)):
        rates = np.array(trace.bytes_per_s) * 8e-6
        connected = rates[rates > 0.0]
        assert np.percentile(connected, (5, 50, 95)) == pytest.approx(percentiles, rel=0.06)
    trips = [link_class(name).scene(seed, 1).rtt_s * 1e3 for seed in range(300)]
    assert summary.rtt_ms[0] <= min(trips) < max(trips) <= summary.rtt_ms[2]
    assert np.median(trips) == pytest.approx(summary.rtt_ms[1], rel=0.1)


def test_a_summary_keeps_its_dwell_times_and_outages() -> None:
    link = LINK_CLASSES.parse(SUMMARY, "x").model
    assert link.occupancy == pytest.approx([0.3, 0.3, 0.3, 0.1])
    fair, out = link.states[1].next, link.states[3].next
    assert 1.0 / (1.0 - out[3]) == pytest.approx(4.0)
    assert fair[0] + fair[2] == pytest.approx(1.0 / 5.0)
    assert math.isinf(LINK_CLASSES.parse(SUMMARY, "x").scene(1, 5).rest_after_s)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("[summary]", "[sumary]"), r"mine\.toml has the unknown field 'sumary'"),
        (("dwell_s = 5.0", "dwel_s = 5.0"), r"mine\.toml\.summary has the unknown field 'dwel_s'"),
        (("dwell_s = 5.0\n", ""), r"mine\.toml\.summary lacks the field 'dwell_s'"),
        (("dwell_s = 5.0", 'dwell_s = "5"'), r"mine\.toml\.summary\.dwell_s must be a number"),
        (("dwell_s = 5.0", "dwell_s = 0.1"), r"mine\.toml\.summary: dwell_s = 0.1 is outside"),
        (("[10.0, 20.0, 30.0]", "[10.0, 5.0, 30.0]"), "down_mbps holds the 5th"),
        (('use = "tune"', 'use = "both"'), r"mine\.toml\.use must be one of tune, report"),
        (('source = "b"', 'source = ""'), "where its figures come from"),
        (("about", "about about"), "is not TOML"),
        (("[summary]", "[link]\nrtt_quantiles_s = [0.1]\nstates = []\n[summary]"), r"mine\.toml\.link: states = 0"),
    ],
)
def test_a_malformed_file_is_refused_by_name_and_key(tmp_path: Path, change: tuple[str, str], said: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(SUMMARY.replace(*change, 1), encoding="utf-8")
    with pytest.raises(InputError, match=said):
        link_class(str(path))


def test_a_users_own_file_is_a_class(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(SUMMARY, encoding="utf-8")
    assert link_class(str(path)).scene(1, 60).up.mean_bytes_per_s > 0.0


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(InputError, match="no link class '6g'") as caught:
        link_class("6g")
    assert "lte-driving" in caught.value.hint


def test_outages_too_frequent_for_their_length_are_refused() -> None:
    summary = LinkSummary(
        down_mbps=(1.0, 2.0, 3.0),
        up_mbps=(1.0, 2.0, 3.0),
        rtt_ms=(1.0, 2.0, 3.0),
        dwell_s=1.0,
        outage_share=0.5,
        outage_s=1.0,
        jitter_ms=0.0,
    )
    with pytest.raises(InputError, match="so frequent and short"):
        summary.link()
