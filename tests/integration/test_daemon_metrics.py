"""The metrics of a whole daemon: what a scrape has after a storm of jobs, who may read it, and the file."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from daemon_support import Daemon, prompts, wait_for
from programs_support import Programs, over_http
from test_metric_rules import ALERTS, OTHERS, named, queries

from obatchd.simulator.timeline import GpuEvent, write_script

Samples = dict[str, float]
CONFIG: dict[str, Any] = {
    "gpus": {"use": "simulated:2", "poll_s": 0.1, "slow_poll_s": 0.2},
    "burnin": {"canary_runs": 3, "canary_s": 3},
    "dispatch": {"max_attempts": 2, "strikes": 1000},  # no server starts anew, and forgets its faults
}
SIMULATOR: dict[str, Any] = {"service_s": {"kind": "fixed", "value": 0.02}}


def scraped(text: str) -> Samples:
    lines = [line.rpartition(" ") for line in text.split("\n") if line and not line.startswith("#")]
    return {name: float(value) for name, _, value in lines}


def told(d: Daemon) -> Samples:
    return scraped(d.client.get("metrics")["text"])


@pytest.fixture
def programs(make_daemon: Callable[..., Daemon]) -> Callable[..., Programs]:
    return lambda config=CONFIG, **more: over_http(make_daemon, config, simulator=SIMULATOR, **more)


def total(found: Samples, name: str, **labels: str) -> float:
    wanted = [f'{label}="{value}"' for label, value in labels.items()]
    return sum(
        value for key, value in found.items() if re.match(rf"{name}(?:{{|$)", key) and all(w in key for w in wanted)
    )


def grew(before: Samples, after: Samples) -> None:
    counters = [name for name in before if re.search(r"_total\b|_bucket\b|_count\b", name)]
    assert counters
    assert [name for name in counters if after.get(name, -1.0) < before[name]] == []


@pytest.mark.timeout(240)
def test_a_storm_of_jobs_is_counted_and_every_metric_of_rules_and_board_is_there(
    programs: Callable[..., Programs],
) -> None:
    found = programs()
    d = found.d.start().ready()
    d.faults({"kind": "status", "marker": "doomed", "status": 500, "message": "simulated"})
    looks = [told(d)]
    for number in range(5):
        doomed = [{"id": f"d{number}-{one}", "prompt": f"doomed {one}"} for one in range(3)]
        bad = [{"id": f"b{number}", "no": "prompt"}]
        d.drop(f"storm{number}.jsonl", prompts(20, f"s{number}") + doomed + bad)
    summaries = []
    for number in range(5):
        summaries.append(d.done(f"storm{number}.jsonl", 60).summary)
        looks.append(told(d))
        if number == 2:
            d.client.post("reload")
    wait_for(lambda: told(d)['obatch_jobs_finished_total{result="done"}'] == 5)
    looks.append(told(d))
    for before, after in pairwise(looks):
        grew(before, after)
    last = looks[-1]
    for outcome in ("succeeded", "failed", "cancelled", "expired"):
        assert total(last, "obatch_requests_total", outcome=outcome) == sum(one[outcome] for one in summaries)
    assert {code for one in summaries for code in one["failures"]} == {"server_error", "missing_prompt"}
    for code in ("server_error", "missing_prompt"):
        failed = sum(one["failures"][code]["requests"] for one in summaries)
        assert total(last, "obatch_request_failures_total", code=code) == failed
    assert total(last, "obatch_attempts_failed_total", code="server_error", kind="server") == 5 * 3 * 2
    for kind in ("prompt", "response"):
        assert total(last, f"obatch_{kind}_tokens_total") == sum(one[f"{kind}_tokens"] for one in summaries)
    assert total(last, "obatch_request_seconds_count") == sum(one["succeeded"] for one in summaries)

    # One more request each of the kinds that only sometimes have a value.
    chat = {"model": "tiny", "messages": [{"role": "user", "content": "now?"}], "stream": False}
    assert found.call("POST", "/api/chat", chat).status == 200
    assert d.control("burnin", "start", "--gpus", "1", "--duration", "10s").returncode == 0
    wait_for(lambda: d.status()["burnin"] is None, 60, "the burn-in is over")
    write_script(d.spool / "work" / "simulator", {"1": [GpuEvent("xid", xid=13)]})
    wait_for(lambda: total(told(d), "obatch_gpu_xids_total", gpu="1", xid="13") == 1, 20, "the XID is counted")
    d.drop("after.jsonl", prompts(3, "after"))
    d.done("after.jsonl")
    # A server that is watched finds something: counted by the watchdog alone, so it is not played here.
    text = d.client.get("metrics")["text"]
    there = set(re.findall(r"^# TYPE (\w+)", text, re.MULTILINE))
    wanted: set[str] = set()
    for expression in [rule["expr"] for rule in ALERTS] + queries():
        wanted |= named(expression)
    unmet = wanted - there - (OTHERS - {name for name in OTHERS if name.startswith("process_")})
    # Nothing is found, and no host has joined.
    assert unmet <= {"obatch_server_watchdog_findings_total", "obatch_gpu_finding", "obatch_host_up"}
    assert total(scraped(text), "obatch_http_requests_total", route="/api/chat", status="200") == 1
    secrets = ("now?", "storm", "doomed", "after-", "s0-", "b0", str(d.spool))
    assert [word for word in secrets if word in text] == []


def test_who_may_read_metrics(programs: Callable[..., Programs]) -> None:
    found = programs()
    found.d.start().ready()
    assert found.call("GET", "/metrics").error["code"] == "insufficient_scope"
    key = found.make_key("--scope", "metrics")
    answer = found.call("GET", "/metrics", Authorization=f"Bearer {key}")
    assert answer.status == 200 and answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert scraped(answer.body.decode())["obatch_probe_up"] == 1.0
    assert found.call("GET", "/metrics", Authorization="").status == 401
    assert found.call("GET", "/metrics", Authorization="Bearer obk_wrong").status == 401
    assert found.call("GET", "/metrics", Authorization="", Host="rebound.example").status == 421
    assert found.call("POST", "/metrics", Authorization=f"Bearer {key}").status in (404, 405)
    assert found.call("POST", "/api/pull", {"model": "x"}).status == 403  # a handler that several routes have
    config = json.loads(json.dumps(CONFIG)) | {"http": {"listen": f"127.0.0.1:{found.port}"}, "metrics": {"open": True}}
    found.d.configure(config)
    assert "metrics.open" in found.d.client.post("reload")["changed"]
    assert found.call("GET", "/metrics", Authorization="").status == 200
    assert found.call("GET", "/v1/models", Authorization="").status == 401
    counted = scraped(found.call("GET", "/metrics", Authorization="").body.decode())
    assert total(counted, "obatch_http_requests_total", route="/metrics", status="401") == 2
    assert total(counted, "obatch_http_requests_total", method="POST", route="/api/pull", status="403") == 1
    assert total(counted, "obatch_http_requests_total", route="/v1/models", status="401") == 1


def test_the_file_and_the_command_say_the_same(make_daemon: Callable[..., Daemon], tmp_path: Path) -> None:
    path = tmp_path / "obatch.prom"
    d = make_daemon({**CONFIG, "metrics": {"textfile": str(path), "textfile_s": 0.2}}).start().ready()
    d.drop("job.jsonl", prompts(3))
    d.done("job.jsonl")
    wait_for(lambda: path.exists() and 'obatch_requests_total{outcome="succeeded"} 3.0' in path.read_text())
    printed = d.control("metrics")
    assert printed.returncode == 0 and printed.stdout.startswith("# HELP obatch_build_info")
    assert scraped(printed.stdout)['obatch_requests_total{outcome="succeeded"}'] == 3.0
    assert json.loads(d.control("metrics", "--json").stdout)["text"].startswith("# HELP obatch_build_info")
    began_s = time.time()
    wait_for(lambda: path.stat().st_mtime > began_s, what="it is written again")
    assert d.stop() == 0
    assert not path.exists()
