"""The alerts and the board in ``etc``: Prometheus' own tool reads them, and each alert fires and stays silent."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_support import PROMTOOL, ROOT, RULES, needs_promtool, page_block
from rules_cases import CASES, MORE, Case, Series

from obatchd.cli import obatchctl
from obatchd.metrics.catalogue import KINDS

BOARD = ROOT / "etc" / "grafana" / "obatchd.json"
# Of Prometheus and node_exporter themselves.
OTHERS = {"up", "ALERTS", "node_textfile_mtime_seconds", "process_resident_memory_bytes"}
ALERTS: list[dict[str, Any]] = [
    rule for group in yaml.safe_load(RULES.read_text("utf-8"))["groups"] for rule in group["rules"]
]
DASHBOARD: dict[str, Any] = json.loads(BOARD.read_text("utf-8"))


def promtool(*arguments: str | Path, said: bytes = b"") -> str:
    done = subprocess.run([str(PROMTOOL), *map(str, arguments)], capture_output=True, check=False, input=said)
    assert done.returncode == 0, (done.stdout + done.stderr).decode()
    return done.stdout.decode()


def named(expression: str) -> set[str]:
    """The metrics in a PromQL expression, those of a histogram by its own name."""
    found = set(
        re.findall(r"\b(?:obatch|node_textfile|process)_\w+|\bup\b|\bALERTS\b", re.sub(r'"[^"]*"', "", expression))
    )
    return {re.sub(r"(_seconds)_(bucket|sum|count)$", r"\1", name) for name in found}


def panels(found: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for panel in found:
        yield panel
        yield from panels(panel.get("panels", []))


def queries() -> list[str]:
    """Every expression of the board, its variables included, with something in the place of these."""
    asked = [target["expr"] for panel in panels(DASHBOARD["panels"]) for target in panel.get("targets", [])]
    asked += [
        re.sub(r"^label_values\((.*), *\w+\)$", r"\1", variable["query"]["query"])
        for variable in DASHBOARD["templating"]["list"]
        if variable["type"] == "query"
    ]
    return [re.sub(r"\$__rate_interval|\$__range", "5m", re.sub(r"\$(instance|gpu)\b", ".*", one)) for one in asked]


def test_every_metric_of_rules_and_board_is_one_of_ours() -> None:
    known = {kind.name for kind in KINDS} | OTHERS
    for expression in [rule["expr"] for rule in ALERTS] + queries():
        assert named(expression), expression
        assert named(expression) <= known, expression


def test_every_alert_says_what_is_wrong_and_what_to_type() -> None:
    for rule in ALERTS:
        assert rule["labels"]["severity"] in ("info", "warning", "critical")
        assert "{{ $labels.instance }}" in rule["annotations"]["summary"] or rule["alert"] == "ObatchAbsent"
        program, command, *_ = rule["annotations"]["runbook"].split()
        assert program == "obatchctl"
        assert command in obatchctl._COMMANDS


def test_every_alert_has_cases() -> None:
    assert [rule["alert"] for rule in ALERTS if rule["alert"] not in CASES] == []
    assert CASES.keys() - {rule["alert"] for rule in ALERTS} == set()


@needs_promtool
def test_prometheus_takes_the_rules() -> None:
    assert f"{len(ALERTS)} rules found" in promtool("check", "rules", RULES)


DEBIANS = """
global:
  scrape_interval:     15s # Set the scrape interval to every 15 seconds. Default is every 1 minute.

# Load rules once and periodically evaluate them according to the global 'evaluation_interval'.
rule_files:
  # - "first_rules.yml"
  # - "second_rules.yml"

scrape_configs:
  - job_name: 'prometheus'

    # Override the global default and scrape targets from this job every 5 seconds.
    scrape_interval: 5s
    static_configs:
      - targets: ['localhost:9090']
"""  # of its package prometheus, in short


@needs_promtool
def test_what_the_page_tells_to_write_goes_into_debians_file(tmp_path: Path) -> None:
    """Each of its lines that Debian's file has already stays where it is, and what is beneath goes beneath that."""
    text, place = DEBIANS, ""
    for line in reversed(page_block("scrape_configs:").splitlines()):
        if line[0] == " ":
            place = f"{line}\n{place}"
            continue
        assert text.count(f"\n{line}\n") == 1
        text, place = text.replace(f"\n{line}\n", f"\n{line}\n{place}"), ""
    (tmp_path / "obatchd.key").write_text("obk_secret\n")
    shutil.copy(RULES, tmp_path)
    file = tmp_path / "prometheus.yml"
    file.write_text(text.replace("/etc/prometheus/", f"{tmp_path}/"))
    assert f"{len(ALERTS)} rules found" in promtool("check", "config", file)
    assert "SUCCESS" in promtool("check", "config", file)
    assert [job["job_name"] for job in yaml.safe_load(text)["scrape_configs"]] == ["obatchd", "prometheus"]


@needs_promtool
def test_every_alert_fires_and_stays_silent(tmp_path: Path) -> None:
    tests = []
    for alert, case in [*CASES.items(), *MORE]:
        tests.append(_asked(alert, case.at, case.fires, fires=True))
        tests += [_asked(alert, case.at, series, fires=False) for series in case.silent]
    file = tmp_path / "cases.yml"
    file.write_text(json.dumps({"rule_files": [str(RULES)], "evaluation_interval": "1m", "tests": tests}))
    promtool("test", "rules", file)


@needs_promtool
@pytest.mark.parametrize("wrong", ["fires", "silent"])
def test_the_test_of_the_alerts_notices_what_is_wrong(tmp_path: Path, wrong: str) -> None:
    """Else a tool that looks at nothing would pass."""
    case: Case = CASES["ObatchDown"]
    series = case.silent[0] if wrong == "fires" else case.fires
    asked = _asked("ObatchDown", case.at, series, fires=wrong == "fires")
    file = tmp_path / "cases.yml"
    file.write_text(json.dumps({"rule_files": [str(RULES)], "evaluation_interval": "1m", "tests": [asked]}))
    done = subprocess.run([str(PROMTOOL), "test", "rules", str(file)], capture_output=True, check=False)
    assert done.returncode == 1


def _asked(alert: str, at: int, series: Series, *, fires: bool) -> dict[str, Any]:
    expression = f'count by (alertname) (ALERTS{{alertname="{alert}",alertstate="firing"}})'
    expected = [{"labels": f'{{alertname="{alert}"}}', "value": 1}] if fires else []
    return {
        "interval": "1m",
        "input_series": [{"series": name, "values": values} for name, values in series.items()],
        "promql_expr_test": [{"expr": expression, "eval_time": f"{at}m", "exp_samples": expected}],
    }


@needs_promtool
def test_prometheus_understands_every_query_of_the_board(tmp_path: Path) -> None:
    rules = [{"record": f"board:{number}", "expr": expression} for number, expression in enumerate(queries())]
    file = tmp_path / "board.yml"
    file.write_text(json.dumps({"groups": [{"name": "board", "rules": rules}]}))
    assert f"{len(rules)} rules found" in promtool("check", "rules", file)


def test_the_board_can_be_provisioned_from_a_file() -> None:
    """``__inputs`` are filled by hand alone, and a datasource that is named by its uid is another one elsewhere."""
    assert DASHBOARD["uid"] == "obatchd"
    assert DASHBOARD["schemaVersion"] >= 39
    assert DASHBOARD["editable"] is True
    assert "__inputs" not in DASHBOARD
    variables = {variable["name"]: variable for variable in DASHBOARD["templating"]["list"]}
    assert (variables["datasource"]["type"], variables["datasource"]["query"]) == ("datasource", "prometheus")
    assert variables.keys() == {"datasource", "instance", "gpu"}
    shown = [panel for panel in panels(DASHBOARD["panels"]) if panel["type"] != "row"]
    assert len({panel["id"] for panel in panels(DASHBOARD["panels"])}) == len(list(panels(DASHBOARD["panels"])))
    for panel in shown:
        assert panel["type"] in ("timeseries", "stat", "state-timeline", "table")
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        assert panel["fieldConfig"]["defaults"]["unit"]
        assert panel["description"]


def test_hosts_can_be_told_apart_and_28_cards_have_a_line_each() -> None:
    """Every host has a gpu0; a line that is thinner than its name shows none."""
    for panel in panels(DASHBOARD["panels"]):
        legends = [target["legendFormat"] for target in panel.get("targets", [])]
        of_one = [one for one in legends if re.search(r"\{\{(server|gpu)\}\}", one)]
        assert [one for one in of_one if "{{instance}}" not in one] == [], panel["title"]
        if panel["type"] == "state-timeline" and of_one:
            assert panel["gridPos"]["h"] * 30 / 28 > 16, panel["title"]  # 30 pixels to one of Grafana's rows


def test_no_panel_lies_on_another() -> None:
    taken: dict[tuple[int, int], str] = {}
    for panel in panels(DASHBOARD["panels"]):
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        for x in range(place["x"], place["x"] + place["w"]):
            for y in range(place["y"], place["y"] + place["h"]):
                assert taken.setdefault((x, y), panel["title"]) == panel["title"]
