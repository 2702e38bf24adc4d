"""What is given to Prometheus and to Grafana: rules that fire when they should, and a dashboard as it was made."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from deploy.monitoring.make_dashboard import JSON, ROWS, build
from orchestrator.cluster.metrics_table import METRICS, as_markdown
from tests.prometheus import tool

MONITORING = Path("deploy/monitoring")
TESTS = Path("tests/deploy/rules_test.yml")


def checked(*command: str | Path) -> None:
    ended = subprocess.run([tool("promtool"), *command], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr


def test_prometheus_takes_its_configuration_and_the_rules_in_it():
    checked("check", "config", MONITORING / "prometheus.yml")


def test_each_rule_fires_when_it_should_and_for_nobody_else(tmp_path):
    for file in (MONITORING / "rules.yml", TESTS):
        shutil.copy(file, tmp_path)
    checked("test", "rules", tmp_path / TESTS.name)


def test_each_rule_has_a_test():
    alerts = re.findall(r"- alert: (\w+)", (MONITORING / "rules.yml").read_text())
    assert len(alerts) == len(set(alerts)) > 0
    assert set(alerts) == set(re.findall(r"alertname: (\w+)", TESTS.read_text()))


def test_the_dashboard_is_what_its_script_makes():
    assert JSON.read_text() == build()


@pytest.mark.parametrize("file", [JSON, MONITORING / "rules.yml"])
def test_only_metrics_of_the_table_are_asked_for(file):
    asked = set(re.findall(r"ray_(star_r1_\w+)", file.read_text()))
    exported = {metric.name for metric in METRICS if metric.kind != "histogram"}
    exported |= {f"{metric.name}_bucket" for metric in METRICS if metric.kind == "histogram"}
    assert asked
    assert asked <= exported


def test_each_panel_tells_what_it_shows_and_fits_in_its_row():
    for row in ROWS:
        assert sum(panel.width for panel in row.panels) % 24 == 0
        assert all(panel.tells.endswith(".") and panel.curves for panel in row.panels)


def test_the_page_has_the_table():
    assert as_markdown() in Path("docs/metrics.md").read_text()
