"""A real Prometheus scrapes a fleet in which one thing after the other goes wrong: series change, alerts become true.

The short one takes a minute. ``scripts/test-long`` goes on until alerts fire with the time that they are shipped with.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import pytest
from daemon_support import Daemon, Document, jsonl, kill_server, prompts, wait_for
from port_support import free_ports
from programs_support import Programs, certificate, over_http
from prometheus_support import Prometheus, Target, needs_prometheus, node_exporter, scraping
from test_metric_rules import ALERTS, queries

from obatchd.simulator.timeline import GpuEvent, write_script

pytestmark = [needs_prometheus, pytest.mark.root]
STRACE = shutil.which("strace")
MEBIBYTE = 1024**2
SICK, STUCK, LONE, WELL, GONE = range(5)  # the hosts
NOWHERE = -1  # of an alert without a host
Alert = tuple[str, int]  # its name, and its host
READ_OFTEN: Document = {"poll_s": 0.5, "slow_poll_s": 1}
FAULTS: list[Document] = [
    {"kind": "status", "marker": "doomed", "status": 400, "message": "simulated"},
    {"kind": "busy", "marker": "unlucky"},
]
WORKS: Document = {"service_s": {"kind": "uniform", "low": 0.02, "high": 0.2}, "faults": FAULTS}
NEVER: Document = dict.fromkeys(("idle_gpu_s", "leak_s", "slow_s", "vram_s"), 36_000)
HOSTS: list[tuple[Document, Document]] = [  # settings and stand-ins of the first four
    (
        {
            "gpus": {**READ_OFTEN, "use": "simulated:6"},
            "servers": {"starts_limit": 6, "slow_retry_s": 36_000, "backoff_max_s": 0.1},
            "dispatch": {"poison_crashes": 1000, "stall_s": 3},
            "watchdog": {**NEVER, "probe_s": 1, "repeats": 2},
            "disk": {"min_free_bytes": 32 * MEBIBYTE, "min_free_inodes": 0},
            "burnin": {"canary_runs": 3, "canary_s": 3},
        },
        WORKS,
    ),
    (  # its servers never answer, and nothing ends them
        {
            "gpus": {**READ_OFTEN, "use": "simulated:2", "silent_warn_s": 2, "silent_s": 36_000},
            "servers": {"slots": 2},
            "dispatch": {"stall_s": 36_000},
            "watchdog": {**NEVER, "probe_s": 1},
        },
        {"faults": [{"kind": "hang"}]},
    ),
    ({"gpus": {**READ_OFTEN, "use": "simulated:1"}, "servers": {"slots": 16}}, WORKS),
    ({}, WORKS),
]
# What is true once everything has gone wrong. Those of the third host come from a file, through node_exporter.
WRONG: dict[int, set[str]] = {
    SICK: {
        "ObatchBurninFailed", "ObatchDegraded", "ObatchDiskFillsUp", "ObatchDiskLow", "ObatchFailures", "ObatchGpuGone",
        "ObatchGpuHot", "ObatchGpuMemoryErrors", "ObatchGpuQuarantined", "ObatchGpuRemapFailed", "ObatchGpuSlowed",
        "ObatchGpuWarns", "ObatchGpuXid", "ObatchJobsHeldUp", "ObatchServerDown", "ObatchServerRestarts",
    },
    STUCK: {
        "ObatchBlind", "ObatchDegraded", "ObatchDropsBlocked", "ObatchJobsLate", "ObatchQueueGrows", "ObatchStuck",
    },
    LONE: {"ObatchGpuQuarantined", "ObatchGpuRemapFailed", "ObatchHeld", "ObatchKernelLogUnread"},
    WELL: set(),
    GONE: {"ObatchDown"},
}  # fmt: skip

NOT_OURS: set[Alert] = {("ObatchDiskFillsUp", host) for host in (STUCK, LONE, WELL)}  # the disk of this machine
A_MOMENT_S = 60.0  # within ten minutes: as when work begins, and the mean of minutes is not yet what it is at present
SLOW: set[Alert] = {("ObatchQueueGrows", STUCK)}  # which looks at the mean of ten minutes


class Scene(NamedTuple):
    """The daemons of the first four hosts, and the Prometheus that scrapes all."""

    found: list[Programs]
    instances: list[str]  # the label of every host
    disk: Path  # of the spool of the sick one
    prometheus: Prometheus

    def d(self, host: int) -> Daemon:
        return self.found[host].d

    def true(self) -> set[Alert]:
        """Every alert whose expression is true now, and where."""
        found = set()
        for rule in ALERTS:
            for point in self.prometheus.query(rule["expr"]):
                found.add((rule["alert"], self.host(point.labels)))
        return found - NOT_OURS

    def firing(self) -> set[Alert]:
        found = self.prometheus.alerts("firing")
        return {(alert, self.host({"instance": instance})) for alert, instance in found} - NOT_OURS

    def host(self, labels: Mapping[str, str]) -> int:
        return self.instances.index(labels["instance"]) if labels.get("instance") else NOWHERE

    def until_true(self, *wanted: Alert, timeout_s: float = 30) -> None:
        deadline_s = time.monotonic() + timeout_s
        while missing := set(wanted) - self.true():
            assert time.monotonic() < deadline_s, f"not true within {timeout_s:g} s: {missing}"
            time.sleep(0.2)

    def number(self, expression: str, host: int) -> float:
        """The one value of an expression, in which ``HOST`` stands for the label of the host."""
        return self.prometheus.number(expression.replace("HOST", f'instance="{self.instances[host]}"'))

    def until(self, expression: str, host: int, timeout_s: float = 20) -> None:
        """Wait until an expression has a result, with ``HOST`` as before."""
        asked = expression.replace("HOST", f'instance="{self.instances[host]}"')
        wait_for(lambda: self.prometheus.query(asked), timeout_s, asked)


@contextlib.contextmanager
def scene_of(
    make_daemon: Callable[..., Daemon], disk: Path, tmp_path: Path, gpus: int, every_s: int = 1
) -> Iterator[Scene]:
    """Nothing but Prometheus runs yet. ``gpus``: of the host that is well."""
    first, found, targets = free_ports(7), [], []
    text = tmp_path / "text"
    with contextlib.ExitStack() as stack:
        for host, (settings, stand_ins) in enumerate(HOSTS):
            more: Document = {"http": {"listen": f"127.0.0.1:{first + host}"}}
            if host == LONE:
                more["metrics"] = {"textfile": str(text / "obatch.prom"), "textfile_s": 1}
            if host == STUCK:
                signed, private = certificate(tmp_path, "stuck")
                more["http"] |= {"tls_certificate": str(signed), "tls_key": str(private)}
            if host == WELL:
                more["gpus"] = {**READ_OFTEN, "use": f"simulated:{gpus}"}
            where = {"spool": disk / "s"} if host == SICK else {}
            found.append(over_http(make_daemon, {**settings, **more}, simulator=stand_ins, **where))
            found[-1].port = first + host
            (key := key_file(found[-1].d)).touch()
            targets.append(Target(f"127.0.0.1:{first + host}", key, signed if host == STUCK else None))
        found[SICK].d.root = disk  # drops are written beside the spool, on the same file system
        targets[LONE] = stack.enter_context(node_exporter(text, first + 5))
        targets.append(Target(f"127.0.0.1:{first + GONE}", tmp_path / "no-key"))
        prometheus = stack.enter_context(scraping(tmp_path / "prometheus", targets, first + 6, every_s=every_s))
        yield Scene(found, [target.address for target in targets], disk, prometheus)


def key_file(d: Daemon) -> Path:
    """Where Prometheus reads its key."""
    return d.config_file.with_name("key")


# Steps.


def begin(scene: Scene) -> None:
    """No daemon is there; then four are, with which nothing is wrong but that one cannot read the kernel's log."""
    http = [host for host in range(5) if host != LONE]
    scene.until_true(*[("ObatchDown", host) for host in http], ("ObatchAbsent", NOWHERE))
    log = scene.d(LONE).spool / "work" / "simulator" / "kernel.log"
    log.mkdir(parents=True)  # which cannot be read
    for found in scene.found:
        found.d.launch()
    for found in scene.found:
        wait_for(lambda d=found.d: d.control("status").returncode in (0, 1), 60, "the daemon answers")
        key_file(found.d).write_text(found.make_key("--scope", "metrics"))
        found.d.ready()
    only = {("ObatchDown", GONE), ("ObatchKernelLogUnread", LONE)}
    wait_for(lambda: scene.true() == only, 30, f"{scene.true()} is {only}")


def storm(scene: Scene, host: int, jobs: int, name: str, *, doomed: int, cancel: bool) -> list[Document]:
    """Jobs with good, doomed and broken requests, one of which is cancelled. Returns their summaries."""
    d, dropped = scene.d(host), {}
    for number in range(jobs):
        bad = [{"id": f"d{number}-{one}", "prompt": f"doomed {one}"} for one in range(doomed)]
        broken = [{"id": f"b{number}", "no": "prompt"}]
        dropped[f"{name}{number}.jsonl"] = prompts(100, f"{name}{number}") + bad + broken
    d.drop_all(dropped)
    if cancel:
        assert d.control("cancel", d.job(f"{name}{jobs - 1}.jsonl", 60).id).returncode == 0
    return [d.done(one, 120).summary for one in dropped]


def counters_are_the_sums(scene: Scene, host: int, summaries: list[Document]) -> None:
    """As soon as Prometheus has looked again."""
    finished = len(summaries)
    scene.until(f"sum(obatch_jobs_finished_total{{HOST}}) == {finished}", host)
    for outcome in ("succeeded", "failed", "cancelled", "expired"):
        told = scene.number(f'obatch_requests_total{{HOST,outcome="{outcome}"}}', host)
        assert told == sum(one[outcome] for one in summaries), outcome
    codes = {code for one in summaries for code in one["failures"]} - {"cancelled"}
    for code in codes:
        told = scene.number(f'obatch_request_failures_total{{HOST,code="{code}"}}', host)
        assert told == sum(one["failures"].get(code, {"requests": 0})["requests"] for one in summaries), code
    assert scene.number("sum(obatch_request_failures_total{HOST})", host) == sum(one["failed"] for one in summaries)
    if any(one["cancelled"] for one in summaries):
        return  # servers may have answered some of those
    for kind in ("prompt", "response"):
        told = scene.number(f"sum(obatch_{kind}_tokens_total{{HOST}})", host)
        assert told == sum(one[f"{kind}_tokens"] for one in summaries), kind
    assert scene.number("sum(obatch_request_seconds_count{HOST})", host) == sum(one["succeeded"] for one in summaries)


def a_queue_that_is_stuck(scene: Scene) -> None:
    d = scene.d(STUCK)
    d.drop("stuck", {"job.toml": b'deadline = "20m"\n', "p.jsonl": jsonl(prompts(50))})
    scene.until("obatch_requests_queued{HOST} > 40 and on () sum(obatch_server_requests_in_flight{HOST}) == 4", STUCK)
    scene.until_true(("ObatchStuck", STUCK), ("ObatchJobsLate", STUCK))


@contextlib.contextmanager
def a_drop_that_cannot_be_taken(scene: Scene) -> Iterator[None]:
    """A mount point cannot be renamed."""
    d = scene.d(STUCK)
    content, place = d.root / "mounted", d.inbox / "mounted.jsonl"
    content.write_bytes(jsonl(prompts(1)))
    place.touch()
    subprocess.run(["mount", "--bind", content, place], check=True)
    try:
        scene.until('obatch_drops{HOST,state="blocked"} == 1', STUCK)
        yield
    finally:
        subprocess.run(["umount", "-l", place], check=True)


def a_request_of_somebody_who_waits(scene: Scene, host: int) -> None:
    chat = {"model": "tiny", "messages": [{"role": "user", "content": "now?"}], "stream": False}
    assert scene.found[host].call("POST", "/api/chat", chat).status == 200
    scene.until("obatch_interactive_first_token_seconds_count{HOST} == 1", host)


def a_server_that_hangs_once(scene: Scene) -> None:
    d = scene.d(SICK)
    d.faults({"kind": "hang", "marker": "asleep", "count": 4}, *FAULTS, server=5)
    d.drop("asleep.jsonl", prompts(60, "asleep"))
    scene.until('obatch_server_watchdog_findings_total{HOST,server="gpu5",finding="stalled"} >= 1', SICK)
    d.done("asleep.jsonl", 60)
    d.ready()


def gpus_that_go_bad(scene: Scene) -> None:
    """One of them in the middle of its burn-in."""
    d = scene.d(SICK)
    started = d.control("burnin", "start", "--gpus", "5", "--duration", "10s")
    assert started.returncode == 0, started.stderr
    scene.until("obatch_burnin_elapsed_seconds{HOST} >= 1", SICK, 30)
    words = "pid=4242, name=runner, DBE (double bit error)"
    write_script(
        d.spool / "work" / "simulator",
        {
            "1": [GpuEvent("xid", xid=48), GpuEvent("grow", per_s={"ecc_uncorrected": 0.5})],
            "2": [GpuEvent("heat", temp_c=90), GpuEvent("throttle")],
            "3": [GpuEvent("set", values={"remap_failed": True})],
            "4": [GpuEvent("lost")],
            "5": [GpuEvent("set", values={"ecc_uncorrected": 2}), GpuEvent("xid", xid=48, line=words)],
        },
    )
    write_script(scene.d(STUCK).spool / "work" / "simulator", {"0": [GpuEvent("hang")]})
    for series in (
        'obatch_gpu_xids_total{HOST,gpu="1",xid="48"} == 1',
        'obatch_gpu_health{HOST,gpu="1",level="quarantine"} == 1',
        'obatch_gpu_temperature_celsius{HOST,gpu="2"} >= 90',
        'obatch_gpu_remap_failed{HOST,gpu="3"} == 1',
        'obatch_gpu_up{HOST,gpu="4"} == 0',
        'obatch_burnin_verdict{HOST,gpu="5",verdict="FAIL"} == 1',
    ):
        scene.until(series, SICK, 40)
    scene.until("obatch_probe_up{HOST} == 0", STUCK)


def a_server_that_fails(scene: Scene) -> None:
    d = scene.d(SICK)

    def failed() -> bool:
        server = d.servers()[0]
        if server["state"] in ("ready", "starting") and server["pid"]:
            with contextlib.suppress(ProcessLookupError):
                kill_server(server)
        return bool(server["state"] == "failed")

    wait_for(failed, 60, "it is given up")
    scene.until('obatch_server_state{HOST,server="gpu0",state="failed"} == 1', SICK)
    scene.until('obatch_server_restarts_total{HOST,server="gpu0"} > 3', SICK)


def a_disk_that_is_full(scene: Scene) -> None:
    before = scene.number("obatch_disk_free_bytes{HOST}", SICK)
    with open(scene.disk / "filler", "wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(b"x" * MEBIBYTE)
    scene.until("obatch_disk_low{HOST} == 1", SICK)
    assert scene.number("obatch_disk_free_bytes{HOST}", SICK) < 32 * MEBIBYTE < before
    assert scene.number('obatch_hold{HOST,reason="disk"}', SICK) == 1


def the_disk_is_mended(scene: Scene) -> None:
    (scene.disk / "filler").unlink()
    scene.until("obatch_disk_low{HOST} == 0", SICK)
    wait_for(lambda: ("ObatchDiskLow", SICK) not in scene.true(), 10, "its alert is over")


@contextlib.contextmanager
def a_slow_disk(d: Daemon) -> Iterator[None]:
    """Every flush of the daemon takes seconds longer meanwhile."""
    calls = "fsync,fdatasync,syncfs"
    command = [str(STRACE), "-f", "-q", "-o", "/dev/null", "-e", f"trace={calls}"]
    command += ["-e", f"inject={calls}:delay_enter=5000000", "-p", str(d.pid)]
    strace = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        yield
    finally:
        strace.send_signal(signal.SIGINT)  # it lets go of what it traces
        strace.wait(30)


def a_disk_that_is_too_slow(scene: Scene) -> None:
    d = scene.d(LONE)
    d.drop("warm.jsonl", prompts(1, "warm"))
    d.done("warm.jsonl")
    d.drop("slow.jsonl", prompts(3000, "slow"))
    wait_for(lambda: d.succeeded() > 20, 20, "results come")
    with a_slow_disk(d):
        scene.until_true(("ObatchResultsWait", LONE))
    d.done("slow.jsonl", 60)
    scene.until("obatch_results_waiting{HOST} == 0", LONE)


def the_only_gpu_of_a_host(scene: Scene) -> None:
    write_script(scene.d(LONE).spool / "work" / "simulator", {"0": [GpuEvent("set", values={"remap_failed": True})]})
    scene.until('obatch_hold{HOST,reason="quarantine"} == 1', LONE)


def everything_goes_wrong(scene: Scene) -> set[Alert]:
    """All that is true then."""
    wanted = {(alert, host) for host, alerts in WRONG.items() for alert in alerts}
    a_server_that_hangs_once(scene)
    gpus_that_go_bad(scene)
    scene.d(SICK).drop("unlucky.jsonl", prompts(5, "unlucky"))
    scene.until("obatch_jobs_held_up{HOST} == 1", SICK)
    a_server_that_fails(scene)
    the_only_gpu_of_a_host(scene)
    a_disk_that_is_full(scene)
    scene.until_true(*wanted - SLOW)
    assert sorted(scene.true() - SLOW) == sorted(wanted - SLOW)
    return wanted


def every_expression_answers(scene: Scene, since_s: float) -> None:
    """Of the board, each of its panels for the time since then; of the rules, none with an error."""
    until_s = time.time()
    empty = [one for one in queries() if not scene.prometheus.over(one, since_s, until_s)]
    assert empty == []
    rules = scene.prometheus.rules()
    assert {rule["name"] for rule in rules} == {rule["alert"] for rule in ALERTS}
    assert [rule for rule in rules if rule["health"] != "ok" or rule.get("lastError")] == []


def a_server_that_hangs_again_and_again(scene: Scene) -> None:
    d = scene.d(SICK)
    d.drop("hangs.jsonl", prompts(2000, "hangs"))
    d.job("hangs.jsonl")
    for restarts in (1, 2):
        d.faults({"kind": "hang", "at": 10}, *FAULTS, server=3)  # not the one token after a restart
        wait_for(lambda wanted=restarts: d.servers()[3]["restarts"] == wanted, 60, "it is restarted")
        wait_for(lambda: d.servers()[3]["state"] in ("ready", "draining"), 30, "it is back")
    d.done("hangs.jsonl", 120)
    scene.until_true(("ObatchServerDrained", SICK))


def a_daemon_that_is_killed(scene: Scene) -> None:
    """The file that it wrote stays."""
    scene.d(LONE).kill()
    scene.until_true(("ObatchFileOld", LONE), ("ObatchReadingsOld", LONE), timeout_s=200)


def waits_s(rule: Document) -> float:
    """How long its expression has to be true."""
    number, unit = re.fullmatch(r"(\d+)([smh])", rule.get("for", "0s")).groups()  # type: ignore[union-attr]
    return float(number) * {"s": 1, "m": 60, "h": 3600}[unit]


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_ten_minutes_in_which_alerts_fire_and_a_fleet_of_28_gpus_has_none(
    make_daemon: Callable[..., Daemon], small_disk: Callable[[str], Path], tmp_path: Path
) -> None:
    began_s, every_s = time.time(), 5
    with scene_of(make_daemon, small_disk("size=512m"), tmp_path, gpus=28, every_s=every_s) as scene:
        begin(scene)
        works_s = time.time()
        counters_are_the_sums(scene, SICK, storm(scene, SICK, 40, "storm", doomed=30, cancel=True))
        a_request_of_somebody_who_waits(scene, SICK)
        a_queue_that_is_stuck(scene)
        if STRACE is not None:
            a_disk_that_is_too_slow(scene)
        with a_drop_that_cannot_be_taken(scene):
            a_server_that_hangs_again_and_again(scene)
            assert scene.d(SICK).control("servers", "resume", "gpu3").returncode == 0
            wrong = everything_goes_wrong(scene)
            wrong_s, summaries = time.time(), []
            while time.time() < wrong_s + 640:
                summaries += storm(scene, WELL, 8, f"round{len(summaries)}-", doomed=1, cancel=False)
            counters_are_the_sums(scene, WELL, summaries)
            every_expression_answers(scene, began_s)
            # After ten minutes an XID is history, and a card that heat slowed down for six of them is in quarantine.
            over = {("ObatchGpuXid", SICK), ("ObatchGpuWarns", SICK)}
            assert sorted(scene.true()) == sorted(wrong - over)
            due = {rule["alert"] for rule in ALERTS if wrong_s + waits_s(rule) + 3 * every_s < time.time()}
            assert sorted(scene.firing()) == sorted(one for one in wrong - over if one[0] in due)
        counted_s = int(time.time() - works_s)
        ever = f'count_over_time(ALERTS{{instance="{scene.instances[WELL]}"}}[{counted_s}s])'
        told = [
            (one.labels["alertname"], one.labels["alertstate"], one.value * every_s)
            for one in scene.prometheus.query(ever)
            if (one.labels["alertname"], WELL) not in NOT_OURS
        ]
        # The time that an expression has to be true is there for moments on a busy machine: they are short, and few.
        assert [one for one in told if one[1] == "firing" or one[2] > A_MOMENT_S] == []
        assert scene.number(f"min_over_time(up{{HOST}}[{counted_s}s])", WELL) == 1
        assert scene.number(f"sum(resets(obatch_requests_total{{HOST}}[{counted_s}s]))", WELL) == 0
        the_disk_is_mended(scene)
        a_daemon_that_is_killed(scene)
        for name, expression in {
            "scrapes": f"count_over_time(scrape_duration_seconds{{HOST}}[{counted_s}s])",
            "series of a scrape": "scrape_samples_scraped{HOST}",
            "median of a scrape, ms": f"1000 * quantile_over_time(0.5, scrape_duration_seconds{{HOST}}[{counted_s}s])",
            "slowest scrape, ms": f"1000 * max_over_time(scrape_duration_seconds{{HOST}}[{counted_s}s])",
            "requests": "sum(obatch_requests_total{HOST})",
        }.items():
            print(f"28 GPUs, {name}: {scene.number(expression, WELL):.1f}")
        print(f"28 GPUs, for a moment: {told}")
        print(f"fired: {sorted(scene.firing())}")


@pytest.mark.near
@pytest.mark.timeout(240)
def test_each_fault_changes_its_series_and_makes_its_alert_true_there_and_nowhere_else(
    make_daemon: Callable[..., Daemon], small_disk: Callable[[str], Path], tmp_path: Path
) -> None:
    began_s = time.time()
    with scene_of(make_daemon, small_disk("size=512m"), tmp_path, gpus=2) as scene:
        begin(scene)
        counters_are_the_sums(scene, SICK, storm(scene, SICK, 10, "storm", doomed=30, cancel=True))
        counters_are_the_sums(scene, WELL, storm(scene, WELL, 2, "calm", doomed=1, cancel=False))
        a_request_of_somebody_who_waits(scene, SICK)
        a_queue_that_is_stuck(scene)
        with a_drop_that_cannot_be_taken(scene):
            everything_goes_wrong(scene)
            every_expression_answers(scene, began_s)
        the_disk_is_mended(scene)
