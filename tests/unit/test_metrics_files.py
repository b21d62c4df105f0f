"""What is written about the metrics elsewhere: the document, the alerts and the dashboard know those that there are."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any, Final

import pytest
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard as GrafanaDashboard
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics

from tapotun_trio.admin.metrics import render

from .test_metrics import WHOLE

ROOT: Final = Path(__file__).parents[2]
DOCUMENT: Final = (ROOT / "docs" / "metrics.md").read_text()
ALERTS: Final = (ROOT / "conf" / "prometheus" / "alerts.yml").read_text()
ALERT_TESTS: Final = (ROOT / "tests" / "netns" / "alerts.test.yml").read_text()
DASHBOARD: Final[dict[str, Any]] = json.loads((ROOT / "conf" / "grafana" / "tapotun.json").read_text())

SCRAPED: Final = {"job", "instance"}  # labels that Prometheus adds
WORDS: Final = {
    "sum",
    "count",
    "rate",
    "increase",
    "changes",
    "vector",
    "by",
    "without",
    "on",
    "and",
    "or",
}  # of PromQL, in use


def exported() -> dict[str, tuple[str, set[str]]]:
    """Type and labels by the name of the sample, of a page on which every family has one."""
    found = {}
    for family in parse_openmetrics(render(WHOLE)[0].decode()):  # type: ignore[no-untyped-call]
        assert family.samples, f"{family.name} has no sample in this page"
        for sample in family.samples:
            found[sample.name] = (family.type, set(sample.labels))
    return found


METRICS: Final = exported()
LABELS: Final = SCRAPED.union(*(labels for _, labels in METRICS.values()))


# ------------------------------------------------------------------ the document


def test_the_document_has_every_metric_and_no_other() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \| ([^|]+) \| ([^|]*)\|$", DOCUMENT, re.M)
    assert {name: (kind, set(re.findall(r"`(\w+)`", labels))) for name, kind, labels, _ in rows} == METRICS
    assert [name for name, *_ in rows] == list(METRICS)


def test_whatever_the_document_mentions_exists() -> None:
    assert set(re.findall(r"\b(?:tapotun|process)_\w+", DOCUMENT)) == METRICS.keys()


def test_the_document_has_every_alert() -> None:
    alerts = re.findall(r"- alert: (\w+)", ALERTS)
    assert re.findall(r"^\| `(Tapotun\w+)` \|", DOCUMENT, re.M) == alerts
    assert len(set(alerts)) == len(alerts) > 5


def test_the_document_names_the_files() -> None:
    paths = re.findall(r"\]\(\.\./(conf/[^)]+)\)", DOCUMENT)
    assert len(paths) == 3
    assert [it for it in paths if not (ROOT / it).is_file()] == []


# ------------------------------------------------------------------ PromQL


def wrong(expression: str) -> Iterator[str]:
    """What of it names no metric and no label of ours. The syntax is promtool's to check: tests/netns."""
    expression = re.sub(r'"[^"]*"', '""', expression)  # a value may be anything
    expression = re.sub(r"\[[^]]*\]", "", expression)  # a duration

    def selector(match: re.Match[str]) -> str:
        name, labels = match[1], re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", match[2])
        found.extend(
            f"{name} has no label {it}" for it in labels if it not in SCRAPED | METRICS.get(name, ("", set()))[1]
        )
        return name

    def grouping(match: re.Match[str]) -> str:
        found.extend(f"nothing has a label {it}" for it in re.findall(r"\w+", match[2]) if it not in LABELS)
        return match[1]

    found: list[str] = []
    expression = re.sub(r"\b(\w+)\s*\{([^}]*)\}", selector, expression)
    expression = re.sub(r"\b(by|without|on)\s*\(([^)]*)\)", grouping, expression)
    yield from found
    for word in re.findall(r"[A-Za-z_]\w*", expression):
        if word not in METRICS.keys() | WORDS | {"up"}:
            yield f"there is no metric {word}"


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ('sum by (client) (rate(tapotun_client_receive_bytes_total{client=~"a b{"}[5m])) * 8 > 1.5', []),
        ("tapotun_client_receive_bytes_totl", ["there is no metric tapotun_client_receive_bytes_totl"]),
        ('up{kind="x"} == 0', ["up has no label kind"]),
        ('tapotun_client_connected{kind!=""}', ["tapotun_client_connected has no label kind"]),
        ("sum without (raeson) (tapotun_client_reconnects_total)", ["nothing has a label raeson"]),
    ],
)
def test_what_is_wrong_is_found(expression: str, expected: list[str]) -> None:
    assert list(wrong(expression)) == expected


# ------------------------------------------------------------------ the alerts


def alert_expressions() -> dict[str, str]:
    """By alert. The file is YAML, of which this reads what we write: one line, or a folded block."""
    pattern = r"- alert: (\w+)\n +expr: (?:>-\n((?: {10}.*\n)+)|(.+)\n)"
    return {name: " ".join((block or line).split()) for name, block, line in re.findall(pattern, ALERTS)}


@pytest.mark.parametrize("alert", alert_expressions())
def test_an_alert_looks_at_metrics_that_exist(alert: str) -> None:
    assert list(wrong(alert_expressions()[alert])) == []


def test_every_alert_has_an_expression_that_was_read_here() -> None:
    assert len(alert_expressions()) == ALERTS.count("expr:") == ALERTS.count("- alert:")


def test_what_the_alerts_say_exists() -> None:
    for text in (ALERTS, ALERT_TESTS):
        assert set(re.findall(r"\b(?:tapotun|process)_\w+", text)) <= METRICS.keys()
    assert set(re.findall(r"\$labels\.(\w+)", ALERTS)) <= LABELS


def test_every_alert_has_a_test() -> None:
    assert set(re.findall(r"Tapotun\w+", ALERT_TESTS)) == alert_expressions().keys()


# ------------------------------------------------------------------ the dashboard


def targets() -> list[tuple[str, str, str]]:
    """Panel, expression, legend."""
    return [
        (panel["title"], target["expr"], target["legendFormat"])
        for panel in DASHBOARD["panels"]
        for target in panel.get("targets", [])
    ]


@pytest.mark.parametrize(("title", "expression", "legend"), targets())
def test_a_panel_shows_metrics_that_exist(title: str, expression: str, legend: str) -> None:
    assert list(wrong(expression)) == []
    assert set(re.findall(r"\{\{(\w+)\}\}", legend)) <= LABELS
    assert 'instance=~"$instance"' in expression, f"{title} does not look at the instance that was chosen"


def test_the_dashboards_variables() -> None:
    variables = {it["name"]: it for it in DASHBOARD["templating"]["list"]}
    assert list(variables) == ["datasource", "instance", "interface", "client"]
    for variable in list(variables.values())[1:]:
        metric, label = re.fullmatch(r"label_values\((.+), (\w+)\)", variable["query"]["query"]).groups()  # type: ignore[union-attr]
        assert list(wrong(metric)) == []
        assert label == variable["name"]
        assert label in LABELS
    used = set(re.findall(r"\$\{?(\w+)", json.dumps(DASHBOARD["panels"])))
    assert used == {*variables, "__rate_interval"}


# Grafana writes these into every dashboard that it exports; its schema does not have them.
EXPORTED: Final = {"annotations.list.builtIn", "templating.list.definition"}


def lost(before: Any, after: Any, path: str = "") -> Iterator[str]:
    """The paths of what is in `before` and not, or different, in `after`."""
    if isinstance(before, dict) and isinstance(after, dict):
        for key, value in before.items():
            inner = f"{path}.{key}".lstrip(".")
            yield from lost(value, after[key], inner) if key in after else [inner]
    elif isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        for one, other in zip(before, after, strict=True):
            yield from lost(one, other, path)
    elif before != after:
        yield path


def test_grafana_s_own_model_knows_every_field() -> None:
    """Read into the classes that Grafana generates from its schema, panels and queries too, and written again."""
    register_default_plugins()
    read = GrafanaDashboard.from_json(DASHBOARD)
    assert set(lost(DASHBOARD, json.loads(JSONEncoder().encode(read)))) == EXPORTED
    wrong = copy.deepcopy(DASHBOARD)
    [*_, panel] = wrong["panels"]
    panel["options"]["shwoHeader"] = True
    written = json.loads(JSONEncoder().encode(GrafanaDashboard.from_json(wrong)))
    assert set(lost(wrong, written)) - EXPORTED == {"panels.options.shwoHeader"}


def test_the_dashboard_stands_alone() -> None:
    """Nothing of the machine it was made on, nothing from elsewhere, nothing on top of something else."""
    text = json.dumps(DASHBOARD)
    assert "://" not in text
    assert set(re.findall(r'"uid": "([^"]*)"', text)) == {"tapotun", "${datasource}", "-- Grafana --"}
    assert DASHBOARD["schemaVersion"] >= 36  # older ones are migrated, in ways that nobody here has looked at
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    places = [panel["gridPos"] for panel in panels]
    assert all(it["x"] >= 0 and it["x"] + it["w"] <= 24 for it in places)
    for one, other in combinations(places, 2):
        beside = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        below = one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
        assert beside or below, (one, other)
