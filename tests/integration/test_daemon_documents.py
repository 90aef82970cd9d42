"""The documents of a whole daemon in every state, compared field by field with those that were recorded."""

from __future__ import annotations

import http.client
import json
import socket
import sys
import threading
from collections.abc import Callable
from pathlib import Path

from daemon_support import Daemon, Document, jsonl, prompts, wait_for
from document_shapes import Documents
from port_support import free_ports

from obatchd.client.runtime import CONTROL_SOCKET, read_record
from obatchd.simulator.timeline import GpuEvent, write_script

Make = Callable[..., Daemon]
GPUS: Document = {"use": "simulated:3", "poll_s": 0.1, "slow_poll_s": 0.2}
SLOW: Document = {"service_s": {"kind": "fixed", "value": 0.4}}
_KEEP = "import sys; open(sys.argv[1], 'a').write(sys.stdin.read())"


def asked(d: Daemon, path: str, method: str = "GET", body: Document | None = None) -> list[Document]:
    """The documents of an answer, whatever its status: one, or one a line."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(read_record(d.spool).runtime_dir / CONTROL_SOCKET))
        request = http.client.HTTPConnection("localhost")
        request.sock = connection
        request.request(method, path, json.dumps(body) if body else None)
        with request.getresponse() as response:
            return [json.loads(line) for line in response.read().splitlines()]


def alarms_of(told: Path) -> dict[str, Document]:
    """The latest alarm of each kind."""
    lines = told.read_text().splitlines() if told.exists() else []
    return {alarm["kind"]: alarm for alarm in map(json.loads, lines)}


def test_an_idle_daemon(make_daemon: Make) -> None:
    see = Documents("idle")
    d = make_daemon({"gpus": GPUS}).start().ready()
    wait_for(lambda: d.client.get("gpus/0")["slow_reading"], what="every kind of reading")
    see.see("status", d.status())
    for path in ("ping", "servers", "gpus", "gpus/0", "jobs", "models", "burnin"):
        see.see(f"GET /v1/{path}", d.client.get(path))
    see.see("GET /v1/gpu-events", d.client.get("gpu-events"))
    for path in ("/healthz", "/readyz"):
        see.see(f"GET {path}", *asked(d, path))
    see.see("not found", *asked(d, "/v1/jobs/none"))
    see.see("no such route", *asked(d, "/v1/none"))
    see.see("bad request", *asked(d, "/v1/jobs?limit=x"))
    see.see("a line of a server's log", next(iter(d.client.server_log("gpu0", 5, follow=False))))
    see.see("server action", d.client.post("servers/gpu2/drain"))
    see.see("POST /v1/reload", d.client.post("reload"))
    d.configure({"gpus": GPUS | {"use": "simulated:2"}, "model": "simulated"})
    see.see("POST /v1/reload of changed settings", d.client.post("reload"))
    for action in ("pause", "resume", "drain", "undrain"):
        see.see(f"POST /v1/{action}", d.client.post(action))
    see.check()


def test_jobs_from_the_drop_to_the_end(make_daemon: Make, tmp_path: Path) -> None:
    see, told = Documents("jobs"), tmp_path / "told"
    alarms = {"command": [sys.executable, "-c", _KEEP, str(told)], "on": ["job_done", "disk_low"]}
    config = {"gpus": GPUS, "alarms": alarms, "dispatch": {"max_attempts": 1, "strikes": 100}}
    d = make_daemon({**config, "limits": {"open_jobs": 3}}, simulator=SLOW).start().ready()
    d.faults({"kind": "status", "marker": "BAD"})
    d.client.post("pause")
    d.drop("first.jsonl", [*prompts(160, "first"), *prompts(2, "BAD")])  # outlasts the looks at those that wait for it
    first = d.job("first.jsonl")
    d.drop("waits.jsonl", prompts(5, "waits"))
    waits = d.job("waits.jsonl")
    wait_for(lambda: d.client.get(f"jobs/{waits.id}")["position"], what="a position")
    see.see("job that waits", d.client.get(f"jobs/{waits.id}"))
    d.client.post("resume")
    wait_for(lambda: d.client.get(f"jobs/{first.id}")["tokens_per_s"], what="some answers")
    wait_for(lambda: d.client.get(f"jobs/{waits.id}")["expected_start_at"], what="a forecast with their pace")
    wait_for(lambda: first.status["eta_s"] and not first.status["position"], what="the same in its file")
    see.see("job that runs", d.client.get(f"jobs/{first.id}"))
    see.see("status.json of a job that runs", first.status)
    see.see("GET /v1/jobs", d.client.get("jobs"))
    see.see("status with jobs", d.status())
    see.see("job that is paused", d.client.post(f"jobs/{waits.id}/pause"))
    wait_for(lambda: not d.client.get(f"jobs/{waits.id}")["position"], what="a forecast without it")
    (tmp_path / "given.jsonl").write_bytes(jsonl(prompts(300, "given")))
    submitted = d.client.submit(tmp_path / "given.jsonl", {"deadline": 3600, "system_message": "Be short."})
    see.see("submission", submitted)
    wait_for(lambda: d.client.get(f"jobs/{submitted['job']}")["expected_start_at"], what="a forecast with it")
    d.drop("blocked.jsonl", prompts(1))
    wait_for(lambda: d.status()["inbox"]["blocked"], what="a drop that waits for its owner's limit")
    see.see("status with a blocked drop", d.status())
    see.see("job that is cancelled", d.client.post(f"jobs/{submitted['job']}/cancel"))
    cancelled = d.done("given.jsonl")
    see.see("summary.json of a cancelled job", cancelled.summary)
    see.see("job that is resumed", d.client.post(f"jobs/{waits.id}/resume"))
    d.done("waits.jsonl")
    done = d.done("first.jsonl")
    see.see("summary.json", done.summary)
    see.see("status.json of a job that is done", done.status)
    wait_for(lambda: d.client.get(f"jobs/{first.id}")["state"] == "done", what="the index knows")
    see.see("job that is done", d.client.get(f"jobs/{first.id}"))
    see.see("retry", d.client.post(f"jobs/{first.id}/retry"))
    see.see("job that is removed", d.client.delete(f"jobs/{cancelled.id}"))
    (tmp_path / "bad.csv").write_bytes(b"a,b\n1,2\n")
    assert d.control("submit", tmp_path / "bad.csv").returncode == 1
    wait_for(lambda: d.client.get("jobs", state="refused")["jobs"], what="a refused job")
    see.see("jobs that are refused", d.client.get("jobs", state="refused"))
    see.see("alarm job_done", wait_for(lambda: alarms_of(told).get("job_done"), what="an alarm"))
    d.configure({**config, "disk": {"min_free_bytes": 10**15}})
    d.client.post("reload")
    see.see("alarm disk_low", wait_for(lambda: alarms_of(told).get("disk_low"), what="an alarm"))
    wait_for(lambda: d.status()["disk"]["low"])
    see.see("status of a full disk", d.status())
    see.check()


def test_models_that_are_pulled_and_removed(make_daemon: Make) -> None:
    see = Documents("models")
    d = make_daemon({"gpus": GPUS}, simulator={"pull_s": 2.0}).start().ready()
    steps: list[Document] = []

    def pull() -> None:
        steps.extend(d.client.pull("new"))

    thread = threading.Thread(target=pull)
    thread.start()
    wait_for(lambda: any(p["completed_bytes"] for p in d.status()["pulls"]), what="a pull")
    see.see("status with a pull", d.status())
    thread.join()
    see.see("steps of a pull", steps)
    see.see("GET /v1/models", d.client.get("models"))
    see.see("removed", d.client.delete("models/new"))
    see.see("refused pull", asked(d, "/v1/models/pull", "POST", {"model": "missing"}))
    d.drop("job.jsonl", prompts(5, model="tiny"))
    d.done("job.jsonl")
    see.see("status with a loaded model", d.status())
    see.check()


def test_gpus_that_are_ill_lent_and_well_again(make_daemon: Make, tmp_path: Path) -> None:
    see, told = Documents("gpus"), tmp_path / "told"
    alarms = {"command": [sys.executable, "-c", _KEEP, str(told)], "on": ["quarantine", "server_failed"]}
    d = make_daemon({"gpus": GPUS, "alarms": alarms}, simulator=SLOW).start().ready()
    wait_for(lambda: d.client.get("gpus/2")["slow_reading"], what="every kind of reading")
    see.see("quarantine", d.client.post("gpus/0/quarantine?reason=noisy"))
    see.see("alarm quarantine", wait_for(lambda: alarms_of(told).get("quarantine"), what="an alarm"))
    faults = [
        GpuEvent("xid", xid=48, line="pid=4242, name=runner, DBE"),
        GpuEvent("set", values={"remap_failed": True}),
    ]
    write_script(d.spool / "work" / "simulator", {"1": [*faults, GpuEvent("foreign", pid=1)], "2": [GpuEvent("lost")]})
    wait_for(lambda: len(d.client.get("gpus/1")["findings"]) > 1, what="two findings")
    wait_for(lambda: [s["state"] for s in d.servers()] == ["quarantined"] * 3, what="every GPU is out of use")
    see.see("gpus in quarantine", d.client.get("gpus"))
    for index in range(3):
        see.see(f"gpu {index} in quarantine", d.client.get(f"gpus/{index}"))
    see.see("events", d.client.get("gpu-events"))
    see.see("status without a GPU", d.status())
    write_script(d.spool / "work" / "simulator", {})
    wait_for(lambda: d.client.get("gpus/1")["reading"]["trouble"] == "", what="it is repaired")
    see.see("release", d.client.post("gpus/1/release"))
    see.see("release of an accepted GPU", d.client.post("gpus/0/release"))
    see.see("lend", d.client.post("gpus/0/lend?for_s=3600"))
    see.see("gpu that is lent", d.client.get("gpus/0"))
    see.see("take back", d.client.post("gpus/0/take-back"))
    see.see("no such gpu", *asked(d, "/v1/gpus/7"))
    see.check()


def test_burn_in_runs(make_daemon: Make, tmp_path: Path) -> None:
    see, told = Documents("burnin"), tmp_path / "told"
    alarms = {"command": [sys.executable, "-c", _KEEP, str(told)], "on": ["burn_in_finished"]}
    simulator = {"tokens_per_s": 400.0, "prompt_tokens_per_s": 40_000.0}
    d = make_daemon({"gpus": GPUS, "alarms": alarms, "burnin": {"canary_runs": 3, "canary_s": 3}}, simulator=simulator)
    d.start().ready()
    see.see("no run", *asked(d, "/v1/burnin/status"))
    see.see("start", d.client.post("burnin", body={"gpus": ["0", "1"], "duration": "10s"}))
    wait_for(lambda: (run := d.status()["burnin"]) and run["elapsed_s"] > 3, what="some load")
    see.see("daemon while it runs", d.status())
    see.see("status while it runs", d.client.get("burnin/status"))
    see.see("report while it runs", d.client.get("burnin/reports/latest"))
    see.see("list while it runs", d.client.get("burnin"))
    see.see("servers while it runs", d.client.get("servers"))
    line = "pid=4242, name=runner, DBE (double bit error)"
    faults = [GpuEvent("set", values={"ecc_uncorrected": 2}), GpuEvent("xid", xid=48, line=line)]
    write_script(d.spool / "work" / "simulator", {"1": faults, "2": [GpuEvent("mismatch")]})
    wait_for(lambda: len(d.client.get("burnin/status")["gpus"][1]["reasons"]) > 1, what="reasons")
    d.kill()
    d.start()
    wait_for(lambda: d.status()["burnin"] is None, 40, "the run is over")
    see.see("status of a finished run", d.client.get("burnin/status"))
    see.see("report of a finished run", d.client.get("burnin/reports/latest"))
    see.see("list of finished runs", d.client.get("burnin"))
    see.see("alarm burn_in_finished", wait_for(lambda: alarms_of(told).get("burn_in_finished"), what="an alarm"))
    write_script(d.spool / "work" / "simulator", {})
    d.client.post("burnin", body={"gpus": ["2"], "duration": "1h"})
    see.see("status of a run that prepares", d.client.get("burnin/status"))
    see.see("stop", d.client.post("burnin/stop"))
    see.see("nothing to stop", *asked(d, "/v1/burnin/stop", "POST"))
    see.see("a run that cannot be begun", *asked(d, "/v1/burnin", "POST", {"profile": "none"}))
    next((d.spool / "work" / "burnin").glob("*.jsonl")).write_text("{")
    see.see("list with a damaged run", d.client.get("burnin"))
    see.check()


def test_a_daemon_of_remote_servers_and_a_submission_that_is_refused(make_daemon: Make, tmp_path: Path) -> None:
    see, first = Documents("remote"), free_ports(1)
    make_daemon({"gpus": GPUS | {"use": "simulated:1"}, "servers": {"base_port": first, "slots": 4}}).start().ready()
    own = f'model = "tiny"\n[http]\nlisten = ""\n[ollama_instances]\n"127.0.0.1:{first}" = 0\n'
    d = make_daemon(own).start().ready()
    d.drop("job.jsonl", prompts(5))
    see.see("summary.json", d.done("job.jsonl").summary)
    see.see("status", d.status())
    see.see("GET /v1/gpus", d.client.get("gpus"))
    (tmp_path / "a.jsonl").write_bytes(b"")
    answer: Document = json.loads(d.control("submit", "--json", tmp_path / "a.jsonl").stdout)
    see.see("obatchctl submit", answer)
    see.check()
