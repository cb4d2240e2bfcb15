"""The report says what the cells hold: goals, intervals, tables, figures; the same bytes for the same results."""

from __future__ import annotations

import json
import math
import re
import xml.etree.ElementTree as ElementTree
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from studies import LINK, SMALL, SPLIT, contents, job, made_up, record, small_study

from splitglm_core.errors import InputError
from splitglm_sims.links.fitted import Use
from splitglm_sims.study.columns import Columns, ColumnsBuilder
from splitglm_sims.study.config import LoadedStudy, Role, StrategyEntry
from splitglm_sims.study.goals import FIXED, GUARD, REGRET, Verdict, verdicts
from splitglm_sims.study.report import Section, to_json, write_report
from splitglm_sims.study.run import run_study
from splitglm_sims.study.store import Cell, Results
from splitglm_sims.study.summary import summarise
from splitglm_sims.study.tables import choices, facts, goals, number, relative_cost, strategies, times


@pytest.fixture(scope="module")
def section(tmp_path_factory: pytest.TempPathFactory) -> Section:
    folder = tmp_path_factory.mktemp("study")
    run_study(small_study(folder, SMALL + SPLIT), folder / "out", simulate=made_up)
    return Section.of(folder / "out")


def failing(study: LoadedStudy, cell: Cell) -> Columns:
    """As ``made_up``, but the judged strategy leaves one request unanswered at little cost."""
    asked = tuple(job(index) for index in range(6))
    builder = ColumnsBuilder()
    judged = cell.strategy.role is Role.JUDGED
    for index in range(6):
        failed = "the cloud was lost" if judged and index == 0 else None
        builder.add([record(index, 0.5 if judged else 1.0, 0.5, "cloud", failed=failed)], asked, LINK)
    return builder.build()


def named_nastily(study: LoadedStudy, cell: Cell) -> Columns:
    asked = (job(0),)
    builder = ColumnsBuilder()
    builder.add([record(0, 1.0, 1.0, "cloud", failed="<b>lost</b>|")], asked, LINK)
    return builder.build({"<i>": 1.0})


def found(verdicts: tuple[Verdict, ...], goal: str) -> dict[str, Verdict]:
    return {verdict.link: verdict for verdict in verdicts if verdict.goal == goal}


def test_goals_are_computed_from_the_cells_class_by_class(section: Section) -> None:
    regret, fixed, guard = (found(section.verdicts, goal) for goal in (REGRET, FIXED, GUARD))
    assert regret["lte-driving"].measured.estimate == pytest.approx(0.04) and regret["lte-driving"].met is True
    assert regret["wifi-poor"].measured.estimate == pytest.approx(0.5) and regret["wifi-poor"].met is False
    assert fixed["lte-driving"].measured.estimate == pytest.approx(1.04 / 1.2) and fixed["lte-driving"].met is True
    assert fixed["wifi-poor"].measured.estimate == pytest.approx(1.5 / 1.2) and fixed["wifi-poor"].met is False
    assert guard["wifi-poor"].rival == "cloud-only" and guard["wifi-poor"].worst_seed == pytest.approx(1.25)
    assert [verdict.met for verdict in section.verdicts].count(True) == 3
    # Equal in every world: the interval is a point.
    assert regret["lte-driving"].measured.low == pytest.approx(regret["lte-driving"].measured.high)


def test_goals_on_classes_for_tuning_are_shown_and_not_judged(section: Section) -> None:
    tuned = [replace(group, link=replace(group.link, use=Use.TUNE)) for group in section.groups]
    judged = verdicts(tuned)
    assert len(judged) == len(section.verdicts) and {verdict.met for verdict in judged} == {None}
    assert "not judged: tuning" in {row[-1] for row in goals(judged).rows}


def test_a_goal_is_not_met_by_failing(tmp_path: Path) -> None:
    run_study(small_study(tmp_path), tmp_path / "out", simulate=failing)
    section = Section.of(tmp_path / "out")
    guard = found(section.verdicts, GUARD)["lte-driving"]
    assert guard.measured.estimate == pytest.approx(0.5) and (guard.failed, guard.rival_failed) == (2, 0)
    assert guard.met is False
    judged = section.groups[0].strategies[0]
    assert judged.failures == (("the cloud was lost", 2),)


def test_the_guard_is_for_worlds_that_allow_both_sides(tmp_path: Path) -> None:
    study = small_study(tmp_path, (SMALL + SPLIT).replace('["open"]', '["no-text"]'))
    run_study(study, tmp_path / "out", simulate=made_up)
    section = Section.of(tmp_path / "out")
    assert found(section.verdicts, GUARD) == {} and len(found(section.verdicts, FIXED)) == 2


def test_the_two_sides_alone_are_no_choice_of_fixed_arms(tmp_path: Path) -> None:
    run_study(small_study(tmp_path), tmp_path / "out", simulate=made_up)
    section = Section.of(tmp_path / "out")
    assert found(section.verdicts, FIXED) == {} and len(found(section.verdicts, GUARD)) == 2


def test_workloads_of_a_class_are_pooled_seed_by_seed(tmp_path: Path) -> None:
    def uneven(study: LoadedStudy, cell: Cell) -> Columns:
        columns = made_up(study, cell)
        factor = 3.0 if cell.workload == "edit" and cell.strategy.role is Role.JUDGED else 1.0
        return replace(columns, of={**columns.of, "value": columns["value"] * factor})

    study = small_study(tmp_path, SMALL.replace('["chat"]', '["chat", "edit"]'))
    run_study(study, tmp_path / "out", simulate=uneven)
    pooled = found(Section.of(tmp_path / "out").verdicts, REGRET)["lte-driving"]
    assert pooled.measured.estimate == pytest.approx((1.04 + 3 * 1.04) / 2 - 1)


def test_a_summary_holds_what_the_records_say() -> None:
    asked = tuple(replace(job(index), deadline_s=1.5) for index in range(4))
    builder = ColumnsBuilder()
    values, arms = (1.0, 2.0, 4.0, 1.0), ("device", "cloud", "cloud", "ushape")
    builder.add((record(i, values[i], 1.0, arms[i]) for i in range(4)), asked, LINK)
    one = summarise(StrategyEntry(name="fixed"), [builder.build()])
    assert one.mean_value == 2.0 and one.regret.estimate == pytest.approx(1.0) and one.requests == 4
    assert one.arms == (0.25, 0.5, 0.0, 0.25) and one.drafted == 0.25 and one.late == 0.5
    assert one.probe_share == pytest.approx(0.1)
    assert one.total.p50_s == 1.5 and one.ttft.p50_s == pytest.approx(0.3)
    assert (one.uplink_bytes, one.downlink_bytes, one.energy_j, one.price) == (1000, 500, 2.0, 0.25)
    assert one.ttft_error.median_abs == pytest.approx(0.1) and one.per_token_error.bias == pytest.approx(-0.1)
    assert one.cumulative.y == pytest.approx((0.0, 1.0, 4.0, 4.0))


def test_strategies_that_met_different_requests_are_not_compared(tmp_path: Path) -> None:
    def shorter(study: LoadedStudy, cell: Cell) -> Columns:
        columns = made_up(study, cell)
        return (
            columns
            if cell.strategy.role is Role.JUDGED
            else replace(columns, of={name: column[:-1] for name, column in columns.of.items()})
        )

    run_study(small_study(tmp_path), tmp_path / "out", simulate=shorter)
    with pytest.raises(InputError, match="not comparable"):
        Section.of(tmp_path / "out")


def test_an_unfinished_study_has_no_report(tmp_path: Path) -> None:
    study = small_study(tmp_path)
    run_study(study, tmp_path / "out", simulate=made_up)
    next((tmp_path / "out" / "cells").iterdir()).unlink()
    with pytest.raises(InputError, match="lacks 1 cells"):
        Section.of(tmp_path / "out")


def test_tables_say_who_took_part_and_what_was_run(section: Section) -> None:
    said = dict(facts(section.results).rows)
    assert said["seeds"] == "1, 2" and said["configuration"] == section.results.config.digest
    assert said["classes for reporting"] == "lte-driving, wifi-poor" and said["classes for tuning"] == "none"
    assert said["cloud"].startswith("cpu-2core: ") and "measured: " in said["cloud"]
    assert said["conditions"] == "cloud load (assumed course), device jitter 0.05 (assumed)"
    assert said["drafters"] == said["deadlines"] == "none"
    drafting = replace(section.results.config, drafters=("lookup", "cloud-mtp"))
    said = dict(facts(Results(section.results.folder, drafting, section.results.made_by)).rows)
    assert "lookup, cloud-mtp; acceptance: " in said["drafters"] and "as published" in said["drafters"]
    rows = {row[0]: row for row in strategies(section.results.config).rows}
    assert rows["u-shape"][1] == "judged" and "arm=ushape" in rows["u-shape"][2]
    cost = relative_cost(section.groups)
    assert cost.header == ("worlds", "u-shape", "device-only", "cloud-only", "split")
    assert cost.rows[0][1].startswith("1.000 [") and cost.rows[0][3].startswith(f"{1.2 / 1.04:.3f} [")
    group = section.groups[0]
    assert [row[0] for row in times(group).rows] == ["u-shape", "device-only", "cloud-only", "split"]
    picked = dict(zip(choices(group).header, choices(group).rows[0], strict=True))
    assert picked["ushape %"] == "100" and picked["TTFT predicted"] == "off 10.0 %, bias +10.0 %"
    assert picked["made up"] == "1.50"


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0.000"), (1.2345, "1.23"), (123.4, "123"), (0.01234, "0.0123"), (1e-6, "1.00e-06"), (math.nan, "–")],
)
def test_numbers_have_three_digits(value: float, text: str) -> None:
    assert number(value) == text


class Page(HTMLParser):
    """Ids, tags and what a browser would fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.ids: Counter[str] = Counter()
        self.tags: Counter[str] = Counter()
        self.fetched: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        for name, value in attributes:
            if name == "id":
                self.ids[value or ""] += 1
            if name in ("src", "href", "xlink:href") and not (value or "").startswith("#"):
                self.fetched.append(value or "")


def test_the_page_needs_nothing_else_and_its_figures_do_not_get_in_each_others_way(
    section: Section, tmp_path: Path
) -> None:
    html, markdown = write_report([section], tmp_path)
    page = Page()
    page.feed(html.read_text())
    assert page.fetched == [] and page.tags["script"] == 0
    assert page.ids and max(page.ids.values()) == 1
    assert page.tags["svg"] == 3 + 2 * 3 == len(list((tmp_path / "figures").iterdir()))
    assert page.tags["table"] == 5 + 2 * 2
    for figure in (tmp_path / "figures").iterdir():
        root = ElementTree.fromstring(figure.read_text())
        assert root.tag.endswith("svg")
        used = set(re.findall(r'(?:href="#|url\(#)([^")]+)', figure.read_text()))
        assert used <= {node.get("id") for node in root.iter()}
    text = markdown.read_text()
    linked = re.findall(r"!\[[^\]]*\]\(([^)]+)\)", text)
    assert len(linked) == 9 and all((tmp_path / path).is_file() for path in linked)


def test_markdown_tables_are_whole(section: Section, tmp_path: Path) -> None:
    _, markdown = write_report([section], tmp_path)
    blocks = re.findall(r"(?:^\|.*\n)+", markdown.read_text(), re.MULTILINE)
    assert len(blocks) == 9
    for block in blocks:
        lines = block.splitlines()
        assert set(lines[1]) == {"|", "-"} and len(lines) > 2
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in lines}) == 1


def test_equal_results_give_equal_bytes(section: Section, tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_report([section], tmp_path / name)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_names_are_text_and_never_markup(tmp_path: Path) -> None:
    nasty = "<script>alert(1)</script>|`x`"
    text = SMALL.replace('"for tests"', f"'{nasty}'").replace('"lte-driving"', "'hsdpa-bus'")
    text = text.replace('label = "u-shape"', "label = 'u-$<b>$^'")
    run_study(small_study(tmp_path, text), tmp_path / "out", simulate=named_nastily)
    html, markdown = write_report([Section.of(tmp_path / "out")], tmp_path / "report")
    assert "&lt;script&gt;" in html.read_text() and "u-$&lt;b&gt;$^" in html.read_text()
    assert not {"<script>", "<b>", "<i>"} & set(re.findall(r"<\w+>", html.read_text()))
    assert "\\<script>" in markdown.read_text() and "\\|" in markdown.read_text()


def test_several_studies_make_one_report(section: Section, tmp_path: Path) -> None:
    html, _ = write_report([section, section], tmp_path)
    assert html.read_text().count("<h1>small</h1>") == 2
    assert len(list((tmp_path / "figures").iterdir())) == 18


def test_plain_values_are_json_without_gaps(section: Section) -> None:
    plain = to_json(section)
    assert json.loads(json.dumps(plain, allow_nan=False)) == plain
    assert len(plain["goals"]) == 6 and plain["goals"][0]["met"] is True
    first = plain["groups"][0]["strategies"][0]
    assert first["label"] == "u-shape" and first["regret"]["estimate"] == pytest.approx(0.04)
    assert first["options"] == {"arm": "ushape", "cut": "low"} and first["arms"]["ushape"] == 1.0


def test_curves_reach_the_report(section: Section) -> None:
    group = section.groups[0]
    assert group.timeline is not None and group.timeline.label == "u-shape" and len(group.timeline.at_s) == 6
    for one in group.strategies:
        assert one.total.cdf.y[-1] == 1.0 and list(one.total.cdf.y) == sorted(one.total.cdf.y)
        expected = np.cumsum([np.mean([one.totals.value[i] / 6 - seed for i, seed in enumerate((1, 2))])] * 6)
        assert one.cumulative.y == pytest.approx(tuple(expected))


def test_every_strategy_is_held_against_a_clairvoyant_one_that_took_part(tmp_path: Path) -> None:
    text = SMALL + '\n[[strategies]]\nname = "oracle"\nlabel = "device-oracle"\n'

    def seen(study: LoadedStudy, cell: Cell) -> Columns:
        if cell.strategy.name != "oracle":
            return made_up(study, cell)
        asked = tuple(job(index) for index in range(6))
        builder = ColumnsBuilder()
        builder.add((record(index, 0.8 * cell.seed, None, "cloud") for index in range(6)), asked, LINK)
        return builder.build()

    run_study(small_study(tmp_path, text), tmp_path / "out", simulate=seen)
    by_label = {one.label: one for one in Section.of(tmp_path / "out").groups[0].strategies}
    assert by_label["device-only"].over_oracle.estimate == pytest.approx(1.3 / 0.8 - 1.0)
    assert by_label["device-oracle"].over_oracle.estimate == pytest.approx(0.0)
    assert not by_label["device-oracle"].regret.known
    line = by_label["device-only"].cumulative_over_oracle
    assert line.y == pytest.approx([0.5 * 1.5 * request for request in range(1, 7)])
