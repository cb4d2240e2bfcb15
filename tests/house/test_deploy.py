"""What deploy/ draws and alerts on are the metrics that a server has, and every metric is drawn."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from splitglm_cloud.engine.stats import EngineStats
from splitglm_cloud.metrics import Metrics, class_label
from splitglm_cloud.settings import CloudSettings
from splitglm_cloud.settings_spec import known_settings
from splitglm_cloud.status import WorkerStatus
from splitglm_core import telemetry
from splitglm_core.criticality import Criticality
from splitglm_glm.store import HOME_VARIABLE

DEPLOY = Path(__file__).parents[2] / "deploy"
NAMES = {value for key, value in vars(telemetry).items() if key.isupper() and isinstance(value, str)} - {
    telemetry.PREFIX
}
DASHBOARD: dict[str, Any] = json.loads((DEPLOY / "grafana" / "splitglm.json").read_text(encoding="utf-8"))
ALERTS: dict[str, Any] = yaml.safe_load((DEPLOY / "prometheus-alerts.yml").read_text(encoding="utf-8"))
RULES = [rule for group in ALERTS["groups"] for rule in group["rules"]]
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
EXPRESSIONS = [target["expr"] for panel in PANELS for target in panel["targets"]] + [rule["expr"] for rule in RULES]


def live_page() -> str:
    """/metrics of a server with something of everything."""
    metrics = Metrics()
    stats = EngineStats(rows_by_layer=(3, 2), batches_by_layer=(1, 1), kv_budget_bytes=100, kv_used_bytes=10)
    metrics.engine.watch(lambda: stats, lambda: [WorkerStatus(number=0, pid=1, state="ready")])
    for criticality in Criticality:
        for outcome in telemetry.STEP_OUTCOMES:
            metrics.steps.labels(class_label(criticality), outcome).inc()
        for outcome in telemetry.OPEN_OUTCOMES:
            metrics.opens.labels(class_label(criticality), outcome).inc()
        metrics.first_token.labels(class_label(criticality)).observe(1)
        metrics.next_token.labels(class_label(criticality)).observe(1)
    for stage in telemetry.STAGES:
        metrics.stage.labels(stage).observe(1)
    metrics.handshakes.labels("ok").inc()
    metrics.errors.labels("OVERLOADED").inc()
    for kind in ("prefill", "generated"):
        metrics.tokens.labels(kind).inc()
    for direction in ("up", "down"):
        metrics.wire_bytes.labels(direction).inc()
    for result in telemetry.REBUILD_RESULTS:
        metrics.rebuilds.labels(result).inc()
    return generate_latest(metrics.registry).decode()


SAMPLES = [sample for family in text_string_to_metric_families(live_page()) for sample in family.samples]


def selections(expression: str) -> list[tuple[str, str]]:
    """Each metric of a PromQL expression with what is in its braces."""
    return re.findall(r"\b(splitglm_\w+)(?:\{([^}]*)\})?", expression)


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_an_expression_asks_for_metrics_and_labels_that_exist(expression: str) -> None:
    assert selections(expression) or "up{" in expression
    assert all(expression.count(a) == expression.count(b) for a, b in ("()", "[]", "{}"))
    for name, braces in selections(expression):
        assert re.sub(r"_(bucket|sum|count)$", "", name) in NAMES
        mine = [sample for sample in SAMPLES if sample.name == name]
        assert mine, f"{name} is not on the page"
        for label, how, value in re.findall(r'(\w+)(=~|!=|=)"([^"]*)"', braces):
            if label == "instance":
                continue
            known = {sample.labels.get(label) for sample in mine}
            wanted = value.split("|") if how == "=~" else [value]
            assert set(wanted) <= known, (label, value, known)
    for label in re.findall(r"by \(([^)]*)\)", expression):
        for name, _ in selections(expression):
            labels = {key for sample in SAMPLES if sample.name == name for key in sample.labels} | {"instance"}
            assert set(label.replace(" ", "").split(",")) <= labels, (name, label)


KINDS = {family.name: family.type for family in text_string_to_metric_families(live_page())}


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_rates_are_of_counters_and_levels_of_gauges(expression: str) -> None:
    rated = re.findall(r"\b(?:rate|increase)\((splitglm_\w+)", expression)
    for name, _ in selections(expression):
        counts = name.endswith(("_total", "_bucket", "_sum", "_count"))
        assert KINDS[re.sub(r"_(total|bucket|sum|count)$", "", name)] in (
            ("counter", "histogram") if counts else ("gauge",)
        )
        assert (name in rated) is counts


def test_every_metric_is_drawn_or_alerted_on() -> None:
    used = {re.sub(r"_(bucket|sum|count)$", "", name) for text in EXPRESSIONS for name, _ in selections(text)}
    assert NAMES - used == set()


def test_the_dashboard_is_one_that_grafana_takes() -> None:
    assert DASHBOARD["schemaVersion"] >= 36 and DASHBOARD["title"] and DASHBOARD["uid"]
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(ids) == len(set(ids))
    variables = {variable["name"] for variable in DASHBOARD["templating"]["list"]}
    assert {"datasource", "instance"} <= variables
    cells: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        assert at["x"] >= 0 and at["x"] + at["w"] <= 24
        mine = {(at["x"] + i, at["y"] + j) for i in range(at["w"]) for j in range(at["h"])}
        assert not mine & cells, panel["title"]
        cells |= mine
    for panel in PANELS:
        assert panel["targets"] and panel["fieldConfig"]["defaults"]["unit"]
        assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])
        for target in panel["targets"]:
            assert target["expr"] and target["datasource"]["uid"] == "${datasource}"


def test_every_alert_says_what_is_wrong_and_how_bad_it_is() -> None:
    assert len({rule["alert"] for rule in RULES}) == len(RULES) >= 4
    for rule in RULES:
        assert rule["labels"]["severity"] in ("page", "warn") and "instance" in rule["annotations"]["summary"]


def test_prometheus_scrapes_the_port_of_the_example_and_loads_the_alerts() -> None:
    config = yaml.safe_load((DEPLOY / "prometheus.yml").read_text(encoding="utf-8"))
    example = (DEPLOY / "cloud.example.toml").read_text(encoding="utf-8")
    (job,) = config["scrape_configs"]
    port = job["static_configs"][0]["targets"][0].rpartition(":")[2]
    assert f"metrics_port = {port}\n" in example
    assert all((DEPLOY / name).exists() for name in config["rule_files"])
    assert any(f'job="{job["job_name"]}"' in text for text in EXPRESSIONS)


def test_the_documents_list_every_metric_and_every_alert() -> None:
    page = (DEPLOY.parent / "docs" / "operation.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^\| `(splitglm_\w+)` \|", page, re.MULTILINE)) == NAMES
    assert [rule["alert"] for rule in RULES if f"`{rule['alert']}`" not in page] == []


def test_the_unit_runs_commands_and_settings_that_exist() -> None:
    unit = (DEPLOY / "splitglm-cloud.service").read_text(encoding="utf-8")
    lines = dict(line.split("=", 1) for line in unit.splitlines() if re.match(r"[A-Z]\w*=", line))
    flags = {known.flag for known in known_settings(CloudSettings).values()} | {"--config"}
    for command in (lines["ExecStartPre"], lines["ExecStart"]):
        words = command.split()
        assert words[:2] == ["/opt/splitglm/bin/splitglm", "cloud"] and words[2] in ("serve", "config")
        assert {word for word in words if word.startswith("--")} <= flags
    variables = {known.setting.also_env for known in known_settings(CloudSettings).values()} | {HOME_VARIABLE}
    assert {pair.partition("=")[0] for pair in lines["Environment"].split()} <= variables
    assert float(lines["TimeoutStopSec"]) > CloudSettings(model="m").drain_grace_s + 5
    assert float(lines["LimitNOFILE"]) > CloudSettings(model="m").max_streams + 128
    assert lines["RuntimeDirectoryMode"] == "0700"  # or no status socket is made there
