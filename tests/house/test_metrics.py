"""Every metric and every log event is in the documentation, and no other; alerts speak of metrics that there are."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from prometheus_client.metrics import MetricWrapperBase

from gateway.ledger.contract import State
from gateway.telemetry.metrics import Metrics
from tests.house.project import PROJECT, blocks, table_rows, text_of

PAGE = text_of("docs/metrics.md")
ALERTS = yaml.safe_load(text_of("config/prometheus/alerts.yml"))
RULES = [rule for group in ALERTS["groups"] for rule in group["rules"]]
NAME = re.compile(r"\bgateway_[a-z_]+")


def exposed() -> dict[str, tuple[str, frozenset[str]]]:
    """Every metric as it is exposed: its type and its labels."""
    metrics = Metrics()
    return {
        f"{name}_total" if kind == "counter" else name: (kind, frozenset(labels))
        for name, kind, labels in _families(metrics)
    }


def _families(metrics: Metrics) -> Iterator[tuple[str, str, Any]]:
    for collector in metrics.registry._collector_to_names:
        if isinstance(collector, MetricWrapperBase):
            yield collector._name, str(collector._type), collector._labelnames
    for family in metrics.collect():
        yield family.name, family.type, getattr(family, "_labelnames")  # noqa: B009 -- not in the stubs


def test_the_metrics_of_the_documentation_are_those_that_are_exposed() -> None:
    documented = {
        row[0].strip("`"): (row[1], frozenset(re.findall(r"`(\w+)`", row[2])))
        for row in table_rows(PAGE, after="## Every metric")
    }

    assert documented == exposed()


def test_every_label_is_explained_in_the_documentation() -> None:
    explained = {
        label for row in table_rows(PAGE, after="## Labels") for label in re.findall(r"`(\w+)`", row[0])
    }

    assert explained == set().union(*(labels for _, labels in exposed().values()))


@pytest.mark.parametrize(
    "expression",
    [*(rule["expr"] for rule in RULES), *blocks(PAGE, language="promql")],
    ids=lambda expression: expression.strip()[:40],
)
def test_every_expression_speaks_of_metrics_and_labels_that_there_are(expression: str) -> None:
    known = exposed()
    names = {re.sub(r"_(bucket|count|sum)$", "", name) for name in NAME.findall(expression)}

    assert names <= set(known)
    for name, matchers in re.findall(r"\b(gateway_[a-z_]+)\{([^}]*)\}", expression):
        labels = set(re.findall(r"(\w+)\s*[=!]", matchers))
        assert labels <= known[re.sub(r"_(bucket|count|sum)$", "", name)][1], name


def test_every_alert_says_what_it_is_and_how_bad() -> None:
    assert len(RULES) >= 4
    for rule in RULES:
        assert set(rule["annotations"]) == {"summary", "description"}, rule["alert"]
        assert rule["labels"]["severity"] in ("info", "warning", "critical")


def test_the_scrape_configuration_goes_where_the_metrics_are() -> None:
    scrape = yaml.safe_load(text_of("config/prometheus/prometheus.yml"))
    listens = yaml.safe_load(text_of("config/gateway.yaml"))["operations"]
    (job,) = scrape["scrape_configs"]

    assert job["static_configs"] == [{"targets": [f"{listens['host']}:{listens['port']}"]}]
    assert 'up{job="gateway"}' in RULES[0]["expr"]
    assert job["job_name"] == "gateway"
    assert scrape["rule_files"] == ["alerts.yml"]


def test_every_event_in_the_log_is_in_the_documentation_and_no_other() -> None:
    logged = set(_events())
    page = text_of("docs/operations.md")
    documented = {row[0].strip("`") for row in table_rows(page, after="Others:")} | {"request"}

    assert documented == logged


def _events() -> Iterator[str]:
    for path in (PROJECT / "gateway").rglob("*.py"):
        if "sandbox" in path.parts:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            match node:
                case ast.Call(
                    func=ast.Attribute(attr="debug" | "info" | "warning" | "error" | "exception", value=log),
                    args=[ast.Constant(value=str(event)), *_],
                ) if "log" in ast.unparse(log):
                    yield event


@pytest.mark.parametrize("state", State)
def test_every_state_of_the_journal_is_explained_where_the_money_is(state: State) -> None:
    assert state.value in text_of("docs/money.md")
