"""What a scrape says: names, what is left out, bounds, and that it counts what happened."""

from __future__ import annotations

import os
import random
import re
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from dispatch_support import SMALL
from engine_support import until
from operations_support import Desk, Played, desk
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector as LibraryCollector
from prometheus_support import PROMTOOL, needs_promtool
from settings_support import in_force, reload

from obatchd.cluster.head.joined import JoinedHost
from obatchd.counters import OTHER, WORK_S, Histogram, WorkByModel
from obatchd.delivery.advice import CODES
from obatchd.dispatch.link import Link
from obatchd.gpus.model import Reading, SlowReading, XidEvent
from obatchd.jobs.places import AtWork
from obatchd.metrics.catalogue import KINDS
from obatchd.metrics.collector import Collector, Registry
from obatchd.metrics.exposition import TextFile
from obatchd.metrics.sheet import NONE, Sheet
from obatchd.ollama.faults import Cause
from obatchd.spool.drop import Blocked

DOCS = Path(__file__).parents[2] / "docs"
Samples = dict[str, float]


def samples(text: bytes) -> Samples:
    """By name and labels, as they are written."""
    lines = [line for line in text.decode().split("\n") if line and not line.startswith("#")]
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}


def families(text: bytes) -> set[str]:
    return {line.split()[2] for line in text.decode().splitlines() if line.startswith("# TYPE obatch_")}


@pytest.fixture
async def there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    async with desk(monkeypatch, tmp_path) as found:
        yield found


def told(there: Desk) -> Samples:
    return samples(there.metrics.text(process=False))


# Names.


def test_names_keep_the_rules_of_prometheus() -> None:
    for kind in KINDS:
        assert re.fullmatch(r"obatch_[a-z0-9_]+", kind.name)
        assert kind.name.endswith("_total") == (kind.type == "counter")
        assert kind.help and not kind.help.endswith(".")
        assert not set(kind.labels) & {"job", "request", "file", "instance", "le"}  # unbounded, or Prometheus' own
    assert len({kind.name for kind in KINDS}) == len(KINDS)


def test_the_table_for_people_is_the_catalogue() -> None:
    page = (DOCS / "monitoring.md").read_text("utf-8")
    rows = re.findall(r"^\| `(obatch_\w+)` \| (\w+) \| ([^|]*) \| ([^|]+) \|$", page, re.MULTILINE)
    shown = {name: (kind, tuple(re.findall(r"`(\w+)`", labels)), text) for name, kind, labels, text in rows}
    assert shown == {kind.name: (kind.type, kind.labels, kind.help) for kind in KINDS}


async def test_labels_are_those_of_the_catalogue(there: Desk) -> None:
    await everything(there)
    labels = {kind.name: set(kind.labels) for kind in KINDS}
    seen = set()
    for metric in Collector(there.sources).collect():
        for sample in metric.samples:
            name = re.sub(r"_(bucket|sum|count)$", "", sample.name) if metric.type == "histogram" else sample.name
            assert set(sample.labels) - {"le"} == labels[name], sample
            seen.add(name)
    assert {kind.name for kind in KINDS} - seen == set()


@needs_promtool
async def test_promtool_finds_nothing_against_a_scrape(there: Desk) -> None:
    await everything(there)
    text = there.metrics.text(process=True)
    done = subprocess.run([str(PROMTOOL), "check", "metrics"], input=text, capture_output=True, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, b"")


async def test_the_text_is_that_of_the_library(there: Desk) -> None:
    await everything(there)
    there.calls["GET", 'a "route" with \\ and\nmore', 200] += 1
    sheet = Collector(there.sources).look()
    text = sheet.written()
    assert text == generate_latest(registry_of(sheet))
    assert len(list(text_string_to_metric_families(text.decode()))) > 60


def test_numbers_of_any_size_are_written_as_the_library_does() -> None:
    chance = random.Random(1)
    sheet = Sheet()
    values = [
        0,
        1,
        -1,
        99,
        100,
        1e6,
        1.5e9,
        1e21,
        1e-9,
        float("inf"),
        0.1 + 0.2,
        *[chance.uniform(-1e12, 1e12) for _ in range(100)],
    ]
    for number, value in enumerate(values):
        sheet.put("obatch_owner_jobs", value, NONE.and_("uid", str(number)))
    assert sheet.written() == generate_latest(registry_of(sheet))


class Given(LibraryCollector):
    """A look that was taken before."""

    def __init__(self, sheet: Sheet) -> None:
        self.collect = sheet.metrics  # type: ignore[method-assign]


def registry_of(sheet: Sheet) -> CollectorRegistry:
    registry = CollectorRegistry()
    registry.register(Given(sheet))
    return registry


async def everything(there: Desk) -> None:
    """A daemon in which every metric has a value."""
    unused: Any = None
    host = there.hosts["node07"] = JoinedHost("node07", unused)
    session: Any = object()
    host.session = session
    reload(there.work.settings, "metrics.owners", True)
    live = await there.take(*[f"what is {number}?" for number in range(4)])
    await there.answer(live, 1, 2)
    await there.answer(live, 3, fault=Cause.BAD_REQUEST.fault("no"))
    await there.answer(live, 4)
    await there.published(live)
    there.engine.dispatcher.links["gpu0"].watchdog["stuck"] += 1
    there.engine.dispatcher.desk.figures.first_token(0.4, SMALL)
    there.calls["GET", "/v1/files", 200] += 3
    uuid, monitor = there.gpus[1].uuid, there.policy.monitor  # the server of the other one keeps its model
    reading: dict[str, Any] = {
        "memory_used_bytes": 1, "memory_total_bytes": 2, "memory_temp_c": 70, "power_w": 200.0, "power_limit_w": 350.0,
        "clock_mhz": 1500, "fan_percent": 30, "energy_j": 1e6,
    }  # fmt: skip
    limits = msgspec.structs.replace(monitor.tracks[uuid].identity, temp_max_c=85, temp_slowdown_c=92)
    monitor.identities([limits])
    names = [name for name in SlowReading.__struct_fields__ if name not in ("uuid", "at_s", "errors", "trouble")]
    monitor.slow_readings([SlowReading(uuid, time.time(), **dict.fromkeys(names, 1))])
    monitor.xids([XidEvent(13, time.time(), uuid)])
    there.read(gpu1=reading)
    await until(lambda: there.engine.conditions.free.bytes)
    await there.take("one more")
    there.burnin.brief = lambda: SimpleNamespace(elapsed_s=12.0)
    there.burnin.ended = SimpleNamespace(at_s=1.0, verdicts={uuid: "FAIL"})


# What is not known.


async def test_what_nobody_tells_is_absent_and_not_0(there: Desk) -> None:
    there.read(gpu0={"temp_c": None, "utilisation_percent": 0})
    found = told(there)
    gpu = 'gpu="0",uuid="GPU-0"'
    assert f"obatch_gpu_temperature_celsius{{{gpu}}}" not in found
    assert found[f"obatch_gpu_utilization_ratio{{{gpu}}}"] == 0.0
    assert found['obatch_gpu_temperature_celsius{gpu="1",uuid="GPU-1"}'] == 60.0
    for name in ("power_watts", "ecc_errors_total", "energy_joules_total", "remap_failed", "slowdown_seconds_total"):
        assert not any(sample.startswith(f"obatch_gpu_{name}") for sample in found), name
    assert "obatch_burnin_elapsed_seconds" not in found and "obatch_job_oldest_seconds" not in found


async def test_nobody_who_is_blind_calls_a_gpu_healthy(there: Desk) -> None:
    there.read()
    ok = 'obatch_gpu_health{gpu="0",level="ok",uuid="GPU-0"}'
    assert (told(there)[ok], told(there)["obatch_probe_up"]) == (1.0, 1.0)
    there.probe.state, there.probe.message = "unknown", "The GPU driver has said nothing for 15 s."
    found = told(there)
    assert (found[ok], found["obatch_probe_up"]) == (0.0, 0.0)
    assert found['obatch_gpu_health{gpu="0",level="unknown",uuid="GPU-0"}'] == 1.0
    assert not any(name.startswith(("obatch_gpu_temperature_celsius", "obatch_gpu_up")) for name in found)
    there.probe.state = "absent"  # gone: after an update it may not be loaded any more
    assert told(there)["obatch_probe_up"] == 0.0
    there.policy.monitor.tracks.clear()  # a host that never had one
    assert "obatch_probe_up" not in told(there)


async def test_a_gpu_that_sleeps_has_no_old_values(there: Desk) -> None:
    there.read()
    there.policy.monitor.readings([Reading(gpu.uuid, time.time(), asleep=True) for gpu in there.gpus])
    found = told(there)
    assert found['obatch_gpu_asleep{gpu="0",uuid="GPU-0"}'] == 1.0
    assert found['obatch_gpu_up{gpu="0",uuid="GPU-0"}'] == 1.0
    assert not any(name.startswith(("obatch_gpu_temperature_c", "obatch_gpu_reading")) for name in found)


async def test_a_gpu_that_is_gone_is_down(there: Desk) -> None:
    there.read()
    there.policy.monitor.readings([Reading("GPU-1", time.time(), temp_c=50)])
    found = told(there)
    assert (found['obatch_gpu_up{gpu="0",uuid="GPU-0"}'], found['obatch_gpu_up{gpu="1",uuid="GPU-1"}']) == (0.0, 1.0)


# Bounds.


def test_a_server_counts_so_many_models_by_name_and_the_others_together() -> None:
    work = WorkByModel()
    for number in range(500):
        work.recent.extend((f"model-{number}", 1, 2, 0.5, 0.1, 0.0))
        work.fold(100)
    work.recent.extend(("model-3", 1, 2, 0.5, 0.1, 0.0))
    work.fold()
    assert len(work) == 51
    assert (work["model-3"].response_tokens, work[OTHER].response_tokens) == (4, 900)


async def test_28_gpus_and_50_models_have_a_bounded_number_of_series(there: Desk) -> None:
    links = there.engine.dispatcher.links
    for number in range(28):
        work = links["gpu0"].work if number == 0 else WorkByModel()
        for model in range(200):
            work.recent.extend((f"model-{model}", 10, 20, 1.5, 1.0, 3.0))
        if number:
            server = one_more(there, number)
            links[server.id] = Link(server, there.work.settings, AtWork())
            links[server.id].work = work
    for xid in range(1000):
        there.policy.monitor.xids([XidEvent(xid, time.time(), "GPU-0")])
    found = told(there)
    by_name: dict[str, int] = {}
    for name in found:
        by_name[name.partition("{")[0]] = by_name.get(name.partition("{")[0], 0) + 1
    assert by_name["obatch_prompt_tokens_total"] == 28 * 51
    assert by_name["obatch_request_seconds_bucket"] == 51 * (len(WORK_S) + 1)
    assert by_name["obatch_gpu_xids_total"] == 101
    assert len(found) < 12_000


def one_more(there: Desk, number: int) -> Any:
    """One more server of the fleet."""
    server = Played(f"more{number}", [there.gpus[0]], there.server("gpu0")._host, [])
    there.fleet.servers[server.id] = server
    return server


# What is counted.


def test_a_histogram_counts_each_value_in_the_first_bucket_that_holds_it() -> None:
    found = Histogram((1.0, 2.0))
    found.add(0.5, 1.0, 1.5, 2.0, 3.0)
    assert (found.counts, found.sum) == ([2, 2, 1], 8.0)
    other = Histogram((1.0, 2.0))
    other.merge(found)
    other.add(9.0)
    assert (other.counts, other.sum) == ([2, 2, 2], 17.0)


def test_answers_that_are_added_up_together_count_as_if_one_by_one() -> None:
    chance, every, slow = random.Random(2), WorkByModel(), Histogram()
    for _ in range(2500):
        duration_s = chance.choice([0.05, 1.0, 700.0, chance.expovariate(0.1)])
        every.recent.extend(("m", 3, 4, duration_s, 0.0, 0.0))
        every.fold(1000)
        slow.add_one(duration_s)
    every.fold()
    assert every.recent == []
    work = every["m"]
    assert (work.prompt_tokens, work.response_tokens) == (7500, 10_000)
    assert work.request.counts == slow.counts and work.request.sum == pytest.approx(slow.sum)
    assert sum(work.first_token.counts) == sum(work.queue.counts) == 0


async def test_counters_are_the_sums_of_the_summaries_and_only_grow(there: Desk) -> None:
    before: Samples = {}

    def grows() -> Samples:
        nonlocal before
        found = told(there)
        counters = {name: value for name, value in found.items() if "_total" in name or "_bucket" in name}
        assert [name for name, value in before.items() if counters.get(name, -1.0) < value] == []
        before = counters
        return found

    summaries, chance = [], random.Random(3)
    for number in range(6):
        live = await there.take(*[f"{number}: what is {one}?" for one in range(20)], {"no": "prompt"})
        lines = sorted(there.left(live))
        bad = chance.sample(lines, 4)
        await there.answer(live, *bad[:2], fault=Cause.BAD_REQUEST.fault("no"))
        await there.answer(live, *bad[2:], fault=Cause.CONTEXT_EXCEEDED.fault("too long"))
        grows()
        if number % 3 == 2:
            await there.answer(live, *[line for line in lines if line not in bad][:5])
            await there.engine.completion.cancellation.cancel(live)
        else:
            await there.answer(live)
        summaries.append(await there.published(live))
        reload(there.work.settings, "dispatch.max_attempts", 3 + number)
        there.engine.settings_changed()
        grows()
    found = grows()
    for outcome in ("succeeded", "failed", "cancelled", "expired"):
        total = sum(summary[outcome] for summary in summaries)
        assert found[f'obatch_requests_total{{outcome="{outcome}"}}'] == total
    codes = {code for summary in summaries for code in summary["failures"]} - {"cancelled"}
    assert {"bad_request", "context_exceeded", "missing_prompt"} <= codes
    for code in codes:
        total = sum(summary["failures"].get(code, {"requests": 0})["requests"] for summary in summaries)
        assert found[f'obatch_request_failures_total{{code="{code}"}}'] == total
    assert sum(found[f'obatch_jobs_finished_total{{result="{each}"}}'] for each in ("done", "cancelled")) == 6
    answers = sum(summary["response_tokens"] for summary in summaries)
    assert sum(value for name, value in found.items() if name.startswith("obatch_response_tokens")) == answers
    succeeded = sum(summary["succeeded"] for summary in summaries)
    assert found['obatch_request_seconds_count{model="small"}'] == succeeded
    assert found['obatch_queue_seconds_count{model="small"}'] == succeeded
    failed = [value for name, value in found.items() if name.startswith("obatch_attempts_failed_total")]
    assert sum(failed) == 6 * 4


async def test_failures_of_a_kind_count_from_zero(there: Desk) -> None:
    """``rate()`` does not see how a series gets its first value: all of a night may fail alike unnoticed."""
    codes = {name: value for name, value in told(there).items() if name.startswith("obatch_request_failures_total")}
    assert set(codes.values()) == {0.0} and len(codes) == len(CODES)
    assert 'obatch_request_failures_total{code="timeout"}' in codes
    assert not any("cancelled" in name or "expired" in name for name in codes)  # outcomes of their own


async def test_drops_that_wait_for_a_limit_of_their_owner_are_not_blocked(there: Desk) -> None:
    intake = there.engine.intake
    intake.report.blocked = [Blocked("one", "open_jobs", 1000), Blocked("two", "sticky bit", 1000)]
    intake.report.limited = 1
    intake.scanned.set()
    found = told(there)
    assert (found['obatch_drops{state="blocked"}'], found['obatch_drops{state="limited"}']) == (1.0, 1.0)


async def test_an_xid_counts_once_and_not_those_of_an_earlier_daemon(there: Desk) -> None:
    now_s = time.time()
    there.policy.monitor.xids([XidEvent(31, now_s, "GPU-1", source="nvml"), XidEvent(31, now_s + 1, "GPU-1")])
    there.policy.monitor.xids([XidEvent(43, now_s - 3600, "GPU-1")])
    xids = {name: value for name, value in told(there).items() if "_xids_" in name}
    assert xids == {'obatch_gpu_xids_total{gpu="1",uuid="GPU-1",xid="31"}': 1.0}


async def test_holds_and_jobs_that_wait_are_told(there: Desk) -> None:
    live = await there.take("one", "two")
    there.engine.work.holds.hold("paused")
    there.engine.work.holds.hold("something new")
    live.hindrance = "a server does not answer"
    found = told(there)
    assert found['obatch_hold{reason="paused"}'] == found['obatch_hold{reason="something new"}'] == 1.0
    assert found['obatch_state{state="paused"}'] == 1.0 and found['obatch_state{state="running"}'] == 0.0
    assert (found["obatch_jobs_held_up"], found['obatch_jobs{state="running"}']) == (1.0, 1.0)
    assert "obatch_owner_jobs" not in str(found)
    reload(there.work.settings, "metrics.owners", True)
    assert told(there)['obatch_owner_requests_unfinished{uid="1000"}'] == 2.0


async def test_a_job_that_will_miss_its_deadline_is_late(there: Desk) -> None:
    await there.take("one", deadline=3600.0)
    assert told(there)["obatch_jobs_late"] == 0.0
    await there.take("two", deadline=300.0)  # nothing gets on
    assert told(there)["obatch_jobs_late"] == 1.0
    await there.take("three", deadline=1500.0)  # time enough for the alert, which waits ten minutes
    assert told(there)["obatch_jobs_late"] == 2.0


# Giving out.


async def test_the_file_for_node_exporter_is_whole_and_goes_with_the_daemon(
    there: Desk, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "text" / "obatch.prom"
    settings = in_force(metrics={"textfile": str(path), "textfile_s": 0.01})
    file = TextFile(there.metrics, settings)
    file.start()
    await until(lambda: "event=metrics_file_not_written" in caplog.text)  # there is no directory: it tries again
    path.parent.mkdir()
    await until(path.exists)
    text = path.read_bytes()
    assert path.stat().st_mode & 0o777 == 0o644
    assert families(text) and b"process_" not in text
    assert not re.search(rb"^obatch_\w+({.*})? \S+ \S+$", text, re.MULTILINE)  # no time behind a value
    other = path.with_name("other.prom")
    reload(settings, "metrics.textfile", str(other))
    await until(other.exists)
    assert not path.exists()
    await file.stop()
    assert list(path.parent.iterdir()) == []


async def test_the_file_follows_no_link_of_others(there: Desk, tmp_path: Path) -> None:
    kept, path = tmp_path / "kept", tmp_path / "obatch.prom"
    kept.write_text("mine")
    path.with_name(f".obatch.prom.{os.getpid()}").symlink_to(kept)
    file = TextFile(there.metrics, in_force(metrics={"textfile": str(path)}))
    file.start()
    await until(path.exists)
    await file.stop()
    assert kept.read_text() == "mine"


@pytest.mark.parametrize("path", ["obatch.prom", "/var/lib/obatch.txt"])
def test_a_file_that_node_exporter_would_not_read_is_refused(path: str) -> None:
    with pytest.raises(ValueError, match=r"ends with \.prom"):
        in_force(metrics={"textfile": path})


def test_the_library_is_not_imported_before_somebody_asks() -> None:
    program = "import sys, obatchd.daemon.compose; print('prometheus_client' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


async def test_metrics_of_the_process_are_there_but_not_in_the_file(there: Desk) -> None:
    registry = Registry(there.sources)
    assert b"\nprocess_resident_memory_bytes " in registry.text(process=True)
    assert b"process_" not in registry.text(process=False)
