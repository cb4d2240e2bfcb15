"""The fit: a generated link is found again from its trace, and the recorded traces give the shipped classes."""

from __future__ import annotations

import shlex
import tomllib
from importlib import resources
from pathlib import Path

import numpy as np
import pytest

from splitglm_core.errors import InputError
from splitglm_sims.links import fit as fitting
from splitglm_sims.links.files import Asymmetry, RoundTrips
from splitglm_sims.links.fit import fit, to_toml
from splitglm_sims.links.fitted import LINK_CLASSES, link_class
from splitglm_sims.links.markov import LinkState, MarkovLink, generate
from splitglm_sims.links.statistics import RateStatistics, statistics
from splitglm_sims.traces import RateTrace, load_trace

TRACES = Path(__file__).parents[3] / "shared" / "traces"
ALIKE = Asymmetry(up_per_down=0.5, because="a test")
TRIP = RoundTrips(rtt_s=0.05, jitter_s=0.001)
FILES = {
    "lte-driving": "mahimahi/ATT-LTE-driving-2016.down",
    "wifi-poor": "sparktraces/Hairpin-wifi-trace11.log",
    "ethernet-home": "sparktraces/Hairpin-eth-trace9.log",
    "hsdpa-bus": "norway-hsdpa/norway_bus_11",
    "nr5g-driving": "irish-5g/Download-Driving-B_2020.01.16_12.10.03.csv",
}
CLASSES = resources.files("splitglm_sims.links").joinpath("classes")


def recorded(name: str) -> Path:
    path = TRACES / FILES[name]
    if not path.exists():
        pytest.skip("the published traces are not part of this repository")
    return path


def close(source: RateStatistics, made: RateStatistics, *, level: float, persistence: float) -> None:
    for name in ("mean", "p5", "p50", "p95"):
        expected = getattr(source, name)
        assert getattr(made, name) == pytest.approx(expected, rel=level, abs=0.03 * source.mean), name
    assert made.autocorrelation == pytest.approx(source.autocorrelation, abs=persistence)
    assert made.outage_share == pytest.approx(source.outage_share, abs=0.01)


@pytest.mark.parametrize("seed", [1, 2])
def test_a_generated_link_is_found_again(seed: int) -> None:
    """Level within 10 %, autocorrelations within 0.15, outage share within 0.01."""
    truth = MarkovLink(
        states=(
            LinkState(name="bad", down_bytes_per_s=(4e4, 2e5), up_bytes_per_s=(2e4, 5e4), next=(0.93, 0.05, 0.02)),
            LinkState(name="good", down_bytes_per_s=(4e5, 2e6), up_bytes_per_s=(1e5, 2e5), next=(0.04, 0.95, 0.01)),
            LinkState(name="out", down_bytes_per_s=(0.0,), up_bytes_per_s=(0.0,), next=(0.3, 0.2, 0.5)),
        ),
        rtt_quantiles_s=(0.05,),
    )
    source = generate(truth, seed=seed, seconds=4000)
    found = fit([source.down], up=[source.up], round_trips=TRIP, groups=5)
    made = generate(found, seed=seed + 100, seconds=20_000)
    close(statistics(source.down), statistics(made.down), level=0.10, persistence=0.15)
    close(statistics(source.up), statistics(made.up), level=0.10, persistence=0.15)
    ways = [np.array([trace.down.bytes_per_s, trace.up.bytes_per_s]) for trace in (source, made)]
    assert np.corrcoef(ways[0])[0, 1] == pytest.approx(np.corrcoef(ways[1])[0, 1], abs=0.1)


def test_the_same_trace_gives_the_same_fit_and_its_text_reads_back(tmp_path: Path) -> None:
    trace = RateTrace(tuple(float(i) for i in range(60)), tuple(1e5 * (1 + i % 7) for i in range(60)), 60.0)
    link = fit([trace], asymmetry=ALIKE, round_trips=TRIP, rest_after_s=9.0, promotion_s=0.3)
    assert link == fit([trace], asymmetry=ALIKE, round_trips=TRIP, rest_after_s=9.0, promotion_s=0.3)
    text = to_toml(link, about='a "test"\n', source="none\\", asymmetry=ALIKE)
    read = LINK_CLASSES.parse(text, "x")
    assert (read.about, read.source) == ('a "test"\n', "none\\")
    assert read.uplink == "0.5 x downlink: a test"
    assert read.model.rest_after_s == 9.0 and read.model.memory == link.memory
    assert read.model.occupancy == pytest.approx(link.occupancy, abs=1e-6)


def test_no_transition_is_counted_between_recordings() -> None:
    low = RateTrace(tuple(float(i) for i in range(40)), (1e5,) * 40, 40.0)
    high = RateTrace(tuple(float(i) for i in range(40)), (1e6,) * 40, 40.0)
    link = fit([low, high], asymmetry=ALIKE, round_trips=TRIP, groups=2)
    assert len(link.states) == 2
    assert all(chance < 0.01 for i, s in enumerate(link.states) for j, chance in enumerate(s.next) if i != j)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"down": [RateTrace.constant(1e5)], "asymmetry": ALIKE}, "too few"),
        ({"down": []}, "either recorded uplinks or how"),
        ({"down": [RateTrace((0.0,), (1e5,), 60.0)], "up": [RateTrace.constant(1e5)] * 2}, "as many uplinks"),
        ({"down": [RateTrace((0.0,), (1.0,), 60.0)], "asymmetry": ALIKE}, "never carries anything"),
        ({"down": [RateTrace((0.0,), (1e5,), 60.0)], "asymmetry": ALIKE, "groups": 99}, "groups"),
    ],
)
def test_what_cannot_be_fitted_is_refused(arguments: dict[str, object], said: str) -> None:
    with pytest.raises(InputError, match=said):
        fit(round_trips=TRIP, **arguments)  # type: ignore[arg-type]


def test_the_command_prints_toml_and_a_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "rates"
    path.write_text("".join(f"{i} {1 + i % 5}\n" for i in range(50)), encoding="utf-8")
    assert fitting.main([str(path), "--up-per-down", "0.5", "--because", "a test", "--about", "steps"]) == 0
    printed = capsys.readouterr()
    assert tomllib.loads(printed.out)["about"] == "steps"
    assert LINK_CLASSES.parse(printed.out, "x").source == "fitted to rates"
    assert "autocorrelation at 10 s" in printed.err


def test_a_mistake_at_the_command_line_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert fitting.main([str(tmp_path / "none"), "--up-per-down", "1", "--because", "a test"]) == 64
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("name", FILES)
def test_the_command_in_a_shipped_class_gives_the_class(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    folder = recorded(name).parent
    shipped = CLASSES.joinpath(f"{name}.toml").read_text("utf-8")
    words = shlex.split(shipped.partition("\n")[0])[4:]  # after "# python -m splitglm_sims.links.fit"
    kind = link_class(name)
    arguments = [str(folder / word) if (folder / word).is_file() else word for word in words]
    assert fitting.main([*arguments, "--about", kind.about, "--source", kind.source]) == 0
    made = capsys.readouterr().out
    assert made.partition("\n")[0] == shipped.partition("\n")[0]
    again = LINK_CLASSES.parse(made, name)
    assert (again.uplink, again.model.memory) == (kind.uplink, kind.model.memory)
    assert [state.name for state in again.model.states] == [state.name for state in kind.model.states]
    for mine, theirs in zip(again.model.states, kind.model.states, strict=True):
        assert mine.down_bytes_per_s == pytest.approx(theirs.down_bytes_per_s, rel=1e-3)
        assert mine.up_bytes_per_s == pytest.approx(theirs.up_bytes_per_s, rel=1e-3)
        assert mine.next == pytest.approx(theirs.next, abs=1e-6)


@pytest.mark.parametrize("name", FILES)
def test_a_shipped_class_behaves_like_its_recording(name: str) -> None:
    """Level within 12 % (or 3 % of the mean), autocorrelations within 0.2, outage share within 0.01."""
    path = recorded(name)
    scene = link_class(name).scene(3, 20_000)
    close(statistics(load_trace(path)), statistics(scene.down), level=0.12, persistence=0.2)
    if path.with_suffix(".up").exists():
        close(statistics(load_trace(path.with_suffix(".up"))), statistics(scene.up), level=0.12, persistence=0.2)
