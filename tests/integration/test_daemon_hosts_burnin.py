"""A burn-in over hosts, as its users run it: a head, hosts that joined it, stand-in GPUs."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Callable

import pytest
from cluster_support import Head, HostProcess
from daemon_support import Document, wait_for

pytestmark = pytest.mark.timeout(240)
SIMULATOR: Document = {
    "load_s": 0.2,
    "tokens_per_s": 400.0,
    "prompt_tokens_per_s": 30_000.0,
    "answer": {"kind": "uniform", "low": 60, "high": 120},
    "models": [{"name": "simulated", "kv_bytes_per_token": 256 * 1024}],
}
OF_HEAD: Document = {"model": "simulated", "servers": {"slots": 2}, "burnin": {"canary_runs": 3}}


def slow_down(head: Head, server_id: str) -> None:
    """Let one stand-in server answer as a GPU does whose clocks are too low."""
    fault = json.dumps([{"kind": "slow", "factor": 1.6}]).encode()
    url = f"{head.server(server_id)['url']}/simulator/faults"
    urllib.request.urlopen(urllib.request.Request(url, fault), timeout=5).close()


def test_a_burn_in_of_all_hosts_outlives_the_head_and_finds_the_slow_gpu_of_one(
    make_head: Callable[..., Head], make_host: Callable[..., HostProcess]
) -> None:
    head = make_head(OF_HEAD, SIMULATOR).start()
    hosts = [make_host(head, gpus=1, simulator=SIMULATOR).join().start() for _ in range(3)]
    head.has_ready(3)
    slow_down(head, "node03.gpu0")
    begun = head.control("burnin", "start", "--hosts", "all", "--duration", "45s", "--load", "model", "--no-canary")
    assert begun.returncode == 0, begun.stdout + begun.stderr
    wait_for(lambda: (run := head.status()["burnin"]) and run["elapsed_s"] > 5, 60, "some load")
    head.kill()
    head.start()
    wait_for(lambda: (run := head.status()["burnin"]) and run["elapsed_s"] > 10, 60, "the run is taken up")
    wait_for(lambda: head.status()["burnin"] is None, 120, "the run is over")
    report = head.client.get("burnin/reports/latest")
    assert [(gpu["host"], gpu["verdict"] == "FAIL") for gpu in report["gpus"]] == [
        ("node01", False), ("node02", False), ("node03", True),
    ]  # fmt: skip
    assert report["gpus"][2]["reasons"][0]["signal"] == "slow"
    assert [host["state"] for host in report["hosts"]] == ["completed"] * 3 and report["gaps"] == []
    shown = head.control("burnin", "report")
    assert shown.returncode == 1 and "node03/0" in shown.stdout and "on 3 hosts: FAIL" in shown.stdout
    assert head.has_ready(3)
    assert all(host.process and host.process.poll() is None for host in hosts)
