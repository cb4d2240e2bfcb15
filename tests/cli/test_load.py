"""``splitglm load``: scenarios are named, a run against a cloud is told in a table or as JSON, mistakes in one line."""

from __future__ import annotations

from pathlib import Path

import pytest
from cli_runs import Run, Served, one_line_error

from splitglm_sims.load.scenario import shipped

SCENARIO = """
name = "short"
[[phases]]
name = "only"
seconds = 1.0
rate_per_s = 6.0
[[kinds]]
name = "cloud"
arm = "cloud"
tokens = [3, 4]
[[kinds]]
name = "split"
arm = "split"
tokens = [3, 4]
"""


def test_the_shipped_scenarios_are_listed_without_a_model(splitglm: Run) -> None:
    outcome = splitglm("load", "--list")
    assert outcome.code == 0
    assert [line.split()[0] for line in outcome.out.splitlines()] == shipped()


def test_a_scenario_file_is_run_and_told_as_json(splitglm: Run, tiny: str, cloud: Served, tmp_path: Path) -> None:
    path = tmp_path / "short.toml"
    path.write_text(SCENARIO)
    outcome = splitglm("load", tiny, str(path), *cloud.trusted, "--json", "--quiet")
    assert outcome.code == 0, outcome.err
    document = outcome.document()
    [phase] = document["phases"]
    assert document["scenario"] == "short" and phase["name"] == "only"
    assert phase["ok"] > 0 and not phase["refused"] and not phase["failed"]
    assert phase["ok"] == sum(kind["ok"] for kind in phase["kinds"])
    assert phase["ttft"]["count"] == phase["ok"] and phase["ttft"]["p50_s"] > 0.0


def test_flags_make_a_scenario_and_a_table_tells_of_it(splitglm: Run, tiny: str, cloud: Served) -> None:
    wanted = ("--sessions", "5", "--rate", "10", "--tokens", "2", "--arm", "ushape", "--seed", "3")
    outcome = splitglm("load", tiny, *wanted, *cloud.trusted)
    assert outcome.code == 0, outcome.err
    header, row, verdict = outcome.out.splitlines()
    assert header.startswith("phase") and row.startswith("10/s")
    assert verdict.startswith(("valid: ", "VOID: "))
    assert "sending" in outcome.err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("nonsense",), "there is no scenario 'nonsense'"),
        (("steady", "--rate", "2"), "a scenario states its own rates"),
        (("--rate", "0"), "--rate must be positive"),
        (("--cores", "x"), "--cores 'x' is not a list"),
    ],
)
def test_a_mistake_is_told_in_one_line(
    splitglm: Run, tiny: str, cloud: Served, arguments: tuple[str, ...], said: str
) -> None:
    outcome = splitglm("load", tiny, *arguments, *cloud.trusted)
    assert outcome.code == 64
    assert said in one_line_error(outcome)


def test_a_load_needs_a_cloud(splitglm: Run, tiny: str) -> None:
    assert "a load needs a cloud" in one_line_error(splitglm("load", tiny, "steady"))
