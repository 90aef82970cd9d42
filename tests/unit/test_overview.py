"""The state of the daemon in one document, and in one word with its reasons."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import click
import msgspec
import pytest
from engine_support import until
from msgspec import UNSET
from operations_support import Desk, desk

from obatchd import spoken
from obatchd.cli.views import text
from obatchd.cli.views.status import job_state, render, server_table
from obatchd.client import runtime
from obatchd.control.auth import Caller
from obatchd.daemon.life import tell_if_stranded
from obatchd.dispatch.link import Refused
from obatchd.documents.models import PullProgress
from obatchd.documents.status import LoadedModel, RefusedModel
from obatchd.errors import ModelError
from obatchd.jobs.model import Outcome, Profile
from obatchd.operations import servers as servers_module
from obatchd.servers.states import ServerState
from obatchd.spool.drop import Blocked

ADMIN, ALICE, BOB = Caller(0, True), Caller(1000, False), Caller(1001, False)


@pytest.fixture
async def rig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Desk]:
    async with desk(monkeypatch, tmp_path) as made:
        yield made


def state(rig: Desk, caller: Caller = ADMIN) -> tuple[str, list[str]]:
    status = rig.operations.host.status(caller)
    return status.state, status.reasons


async def test_a_daemon_without_trouble_runs(rig: Desk) -> None:
    status = rig.operations.host.status(ADMIN)
    assert (status.state, status.reasons, status.pid) == ("running", [], os.getpid())
    assert status.spool == str(rig.work.layout.root)
    assert [server.id for server in status.servers] == ["gpu0", "gpu1"]
    assert (status.gpus.state, status.gpus.pid, status.notices) == ("ok", 17, [])
    assert status.disk.free_bytes > 0 and not status.disk.low


async def test_jobs_and_requests_are_counted(rig: Desk) -> None:
    first, second = await rig.take("a", "b", "c"), await rig.take("d", owner=1001)
    await rig.answer(first, 1)
    await until(lambda: len(rig.held()) == 3)
    queue = rig.operations.host.status(ADMIN).queue
    assert (queue.jobs, queue.total, queue.finished) == (2, 4, 1)
    assert queue.requests_per_s == pytest.approx(first.requests_per_s(), abs=0.01)
    assert rig.engine.queue.total() == queue.requests
    assert [job.job for job in rig.operations.host.status(ADMIN).jobs] == [first.row.job, second.row.job]
    assert [job.job for job in rig.operations.host.status(BOB).jobs] == [second.row.job]


async def test_no_more_jobs_are_shown_than_anybody_reads(rig: Desk) -> None:
    taken = [await rig.take(f"a{number}") for number in range(51)]
    shown = [job.job for job in rig.operations.host.status(ADMIN).jobs]
    assert shown == [live.row.job for live in taken[:50]]


async def test_drops_that_wait_are_shown_to_their_owners(rig: Desk) -> None:
    rig.engine.intake.report.blocked = [Blocked("a.jsonl", "too many", 1000), Blocked("b.jsonl", "too many", 1001)]
    rig.engine.intake.report.settling, rig.engine.intake.refused = 3, 2
    inbox = rig.operations.host.status(ALICE).inbox
    assert [(drop.name, drop.reason) for drop in inbox.blocked] == [("a.jsonl", "too many")]
    assert (inbox.settling, inbox.refused, inbox.waiting) == (3, 2, UNSET)
    rig.engine.intake.held_back = 4
    status = msgspec.to_builtins(rig.operations.host.status(ALICE))
    assert status["inbox"]["waiting"] == 4 and any(", 2 refused (failed/" in line for line in render(status))
    assert any(line.startswith("inbox ") and line.endswith(", 4 wait: see above") for line in render(status))
    assert len(rig.operations.host.status(ADMIN).inbox.blocked) == 2


async def test_downloads_are_shown(rig: Desk) -> None:
    rig.store.pulls["large"] = PullProgress("large", "gpu0", "pulling", 1, 3)
    [pull] = rig.operations.host.status(ADMIN).pulls
    assert (pull.model, pull.status, pull.completed_bytes, pull.total_bytes) == ("large", "pulling", 1, 3)


# In one word.


async def test_trouble_degrades_with_its_reason(rig: Desk) -> None:
    rig.work.conditions.report("disk", "it is full")
    assert state(rig) == ("degraded", ["it is full"])
    rig.work.conditions.report("disk", "")
    rig.engine.intake.report.problem = "the inbox is gone"
    assert state(rig) == ("degraded", ["the inbox is gone"])


async def test_trouble_of_one_job_concerns_its_owner(rig: Desk) -> None:
    live = await rig.take("a")
    rig.work.conditions.report_job(live.key, "its input cannot be read")
    rig.work.conditions.report_job(99, "of a job that is gone")
    assert state(rig, ALICE) == ("degraded", ["its input cannot be read"])
    assert state(rig, BOB) == ("running", [])


async def test_jobs_that_a_server_holds_up_say_why_to_those_who_may_see_them(rig: Desk) -> None:
    lives = [await rig.take(name) for name in "abc"]
    for live in lives[:2]:
        live.hindrance = "gpu0: it answered 404"
    words = f"job {lives[0].row.job} and 1 more wait: gpu0: it answered 404"
    assert state(rig, ALICE) == state(rig) == ("degraded", [words])
    assert state(rig, BOB) == ("running", [])
    lives[0].count(Outcome.SUCCEEDED)
    assert state(rig) == ("degraded", [f"job {lives[1].row.job} waits: gpu0: it answered 404"])


async def test_jobs_wait_while_no_server_works(rig: Desk) -> None:
    """Before, a job was said to run while every server was down, and why only by obatchctl status."""
    live = await rig.take("a")
    first, second = rig.server("gpu0"), rig.server("gpu1")
    first.state, first.reason = ServerState.BACKOFF, "it died (next try in 4 s)"
    assert first.in_words == "gpu0 is down: it died (next try in 4 s)"
    assert rig.operations.host.status(ADMIN).jobs[0].held_up is UNSET
    second.state, second.failure = ServerState.STARTING, "no answer"
    assert state(rig) == ("degraded", [f"server {first.in_words}", "server gpu1 is down: no answer"])
    reason = "none of 2 servers works; gpu0: it died (next try in 4 s)"
    for document in (rig.operations.host.status(ADMIN).jobs[0], rig.operations.jobs.one(ADMIN, live.row.job)):
        assert (document.held_up, document.notes) == (reason, [f"it waits: {reason}"])
        assert job_state(msgspec.to_builtins(document)) == ("running" if document.in_flight else "waiting")
    entries = msgspec.to_builtins(rig.operations.servers.all())
    assert [entry["state"] for entry in entries] == ["backoff", "starting"]
    assert click.unstyle(server_table(entries)[1]).split()[:2] == ["gpu0", "down"], "people see a word of theirs"
    live.paused = True
    assert rig.operations.jobs.one(ADMIN, live.row.job).held_up is UNSET
    assert job_state(msgspec.to_builtins(rig.operations.jobs.one(ADMIN, live.row.job))) == "paused"
    first.state = second.state = ServerState.READY


async def test_a_start_on_which_no_server_works_is_told(rig: Desk, caplog: pytest.LogCaptureFixture) -> None:
    """Before, the last line in the terminal was a green one that the daemon is ready."""
    servers = [rig.server("gpu0"), rig.server("gpu1")]
    servers[0].state, servers[0].reason = ServerState.BACKOFF, "no answer (next try in 1 s)"
    await tell_if_stranded(servers, rig.engine.dispatcher)
    assert "stranded" not in caplog.text
    servers[1].state = ServerState.STARTING
    telling = asyncio.create_task(tell_if_stranded(servers, rig.engine.dispatcher))
    await asyncio.sleep(0)
    assert not telling.done()
    servers[1]._set(ServerState.BACKOFF, "no answer")
    await telling
    [fields] = [record.fields for record in caplog.records if getattr(record, "event", "") == "stranded"]  # type: ignore[attr-defined]
    assert spoken.told("stranded", fields).startswith(
        "No prompt can be answered yet: none of 2 servers works; gpu0: no answer (next try in 1 s)  → obatchctl status"
    )
    servers[0].state = servers[1].state = ServerState.READY


async def test_settings_that_wait_for_a_restart_are_told(rig: Desk) -> None:
    assert rig.operations.host.status(ADMIN).waiting_for_restart is UNSET
    rig.work.settings.waiting = ["servers.slots"]
    status = rig.operations.host.status(ADMIN)
    assert status.waiting_for_restart == ["servers.slots"]
    note = "note: changed in the configuration, and waiting for a restart: servers.slots"
    assert note in render(msgspec.to_builtins(status))


async def test_families_in_flight_are_told_where_there_are_any(rig: Desk) -> None:
    status = msgspec.to_builtins(rig.operations.host.status(ADMIN))
    assert "queue  0 requests in 0 jobs" in render(status)
    for server, families in zip(status["servers"], (3, 2), strict=True):
        server["families"] = families
    assert "queue  0 requests in 0 jobs; 5 families of requests that begin alike in flight" in render(status)


async def test_a_narrow_terminal_breaks_reasons_between_words_and_has_no_empty_columns(
    rig: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before, a reason broke in the middle of a word, and dashes for GPUs elsewhere took the room of the model."""
    status = msgspec.to_builtins(rig.operations.host.status(ADMIN))
    assert any("TEMP" in line for line in render(status))
    for server in status["servers"]:
        server.update(kind="remote", gpus=[])
    status["reasons"] = ["server far is down: it cannot be reached"]
    status["gpus"] = {"state": "absent", "message": "No NVIDIA driver on this host"}
    monkeypatch.setattr(text, "_width", lambda: 30)
    lines = [click.unstyle(line) for line in render(status)]
    assert lines[1:3] == ["  ! server far is down: it", "    cannot be reached"]
    assert not any(words in line for line in lines for words in ("TEMP", "UTIL", "No NVIDIA driver"))


async def test_probe_and_host_are_reasons(rig: Desk) -> None:
    rig.probe.state, rig.probe.message = "unknown", "The probe hangs."
    assert state(rig) == ("degraded", ["The probe hangs."])
    rig.probe.state, rig.probe.host_trouble = "ok", ("driver", "The driver was updated.")
    assert state(rig) == ("degraded", ["The driver was updated."])
    rig.probe.state, rig.probe.host_trouble = "absent", ("", "")
    rig.policy.monitor.tracks.clear()  # no GPU was ever here
    assert state(rig) == ("running", [])


async def test_a_server_that_cannot_have_a_model_says_so(rig: Desk) -> None:
    """Before, it stood there as ready for the whole job, with nothing to do."""
    reason = "Pulling tiny through gpu1 failed: timeout. Run on the host of 10.0.0.5:11434: ollama pull tiny."
    refused = rig.engine.dispatcher.links["gpu1"].refused
    for tokens in (4096, 8192):
        refused[Profile("tiny", tokens)] = Refused(ModelError(reason, code="pull_failed"), float("inf"))
    assert state(rig) == ("degraded", [f"server gpu1 cannot serve tiny: {reason}"])
    first, second = rig.operations.servers.all()
    assert first.cannot_have is UNSET
    assert second.cannot_have and second.cannot_have[0] == RefusedModel("tiny", 4096, "pull_failed", reason)
    table = server_table(msgspec.to_builtins([first, second]))
    assert "cannot serve tiny" in table[2] and table[3] == f"  ! gpu1 cannot serve tiny: {reason}"
    assert len(server_table(msgspec.to_builtins([first, second]), told=state(rig)[1])) == 3
    await rig.operations.servers.act(ADMIN, "gpu1", "resume")
    assert state(rig) == ("running", [])


async def test_a_server_that_is_down_or_waits_is_a_reason(rig: Desk) -> None:
    server = rig.server("gpu1")
    server.state, server.reason = ServerState.BACKOFF, "it died"
    assert state(rig) == ("degraded", ["server gpu1 is down: it died"])
    server.state = ServerState.READY
    server.shared_with = "pid 7 (python)"
    assert state(rig) == ("running", [])
    server.hold("shared", server.shared_with)
    assert state(rig) == ("degraded", ["server gpu1 waits: pid 7 (python)"])
    servers = dict(rig.fleet.servers)
    rig.fleet.servers.clear()
    assert state(rig) == ("degraded", ["there is no server"])
    rig.fleet.servers.update(servers)


async def test_a_drain_is_over_when_nothing_is_at_a_server_any_more(rig: Desk) -> None:
    live = await rig.take("a")
    await rig.begun(live)
    assert (await rig.operations.host.drain(ADMIN)).state == "draining"
    await rig.answer(live)
    assert state(rig)[0] == "drained"
    assert (await rig.operations.host.undrain(ADMIN)).state == "running"
    assert rig.work.holds.reasons == frozenset()


async def test_a_daemon_that_stops_says_so_before_all_else(rig: Desk) -> None:
    await rig.operations.host.drain(ADMIN)
    rig.work.holds.hold("stopping")
    assert state(rig)[0] == "stopping"


async def test_a_pause_is_no_trouble_and_a_quarantine_of_all_says_what_to_do(rig: Desk) -> None:
    await rig.operations.host.pause(ADMIN)
    assert state(rig) == ("paused", [])
    await rig.operations.host.resume(ADMIN)
    for name in ("0", "1"):
        await rig.operations.gpus.quarantine(ADMIN, name, "for a test")
    await until(lambda: "quarantine" in rig.work.holds.reasons)
    word, reasons = state(rig)
    assert word == "paused" and reasons[0].startswith("every GPU is in quarantine: requests wait")
    assert reasons[1].startswith("server gpu0 is quarantined: ")


# Servers.


async def test_a_server_is_shown_with_its_work_and_its_gpu(rig: Desk) -> None:
    live = await rig.take("a", "b")
    await rig.begun(live, 1)
    rig.read(gpu0={"memory_used_bytes": 7, "memory_total_bytes": 9, "power_w": 300.0})
    link = rig.engine.dispatcher.links["gpu0"]
    link.watchdog["slow"] = 2
    shown, idle = rig.operations.host.status(ADMIN).servers
    assert (shown.kind, shown.state, shown.pid, shown.worker_pid) == ("managed", "ready", 4711, 4711)
    assert (shown.in_flight, shown.offered, shown.slots, shown.loaded) == (1, 2, 8, LoadedModel("small", 8192))
    assert (shown.watchdog, shown.restarts, shown.requests_done) == ({"slow": 2}, 0, 0)
    gpu = shown.gpu
    assert gpu is not None and shown.gpus == [gpu]
    assert (gpu.uuid, gpu.utilisation_percent, gpu.memory_used_bytes) == ("GPU-0", 90, 7)
    assert (gpu.memory_total_bytes, gpu.temp_c, gpu.power_w) == (9, 60, 300.0)
    assert (idle.loaded, idle.in_flight) == (None, 0)
    await rig.answer(live)
    done = rig.operations.host.status(ADMIN).servers[0]
    assert done.requests_done == 2 and done.tokens_per_s == pytest.approx(link.tokens_per_s(), abs=0.1)
    assert done.tokens_per_s > 0


async def test_a_server_that_dispatch_does_not_know_yet_is_shown_idle(rig: Desk) -> None:
    links = rig.engine.dispatcher.links
    link = links.pop("gpu1")
    shown = rig.operations.host.status(ADMIN).servers[1]
    assert (shown.in_flight, shown.offered, shown.tokens_per_s, shown.watchdog) == (0, 0, 0.0, {})
    assert shown.worker_pid is None
    links["gpu1"] = link
    rig.server("gpu1").loading = rig.server("gpu0").loaded


async def test_a_server_on_several_gpus_has_no_single_one(rig: Desk) -> None:
    rig.server("gpu0").gpus = tuple(rig.gpus)
    shown = rig.operations.host.status(ADMIN).servers[0]
    assert shown.gpu is None and [gpu.uuid for gpu in shown.gpus] == ["GPU-0", "GPU-1"]
    rig.server("gpu0").gpus = (rig.gpus[0],)


async def test_alarms_that_do_not_arrive_are_shown_to_administrators(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with desk(monkeypatch, tmp_path) as rig:
        rig.alarms.not_arrived = ["alarms do not arrive"]
        assert rig.operations.host.status(ADMIN).notices == ["alarms do not arrive"]
        assert rig.operations.host.status(Caller(4321, is_administrator=False)).notices == []


@pytest.mark.parametrize(("mode", "ports", "notices"), [("personal", {}, 0), ("service", {}, 1),
                                                        ("service", {"first": 20000, "last": 20000}, 0),
                                                        ("service", {"first": 20001, "last": 20009}, 1)])  # fmt: skip
async def test_ports_that_every_user_reaches_are_noticed_on_a_shared_host(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str, ports: dict[str, int], notices: int
) -> None:
    def shut(record: Any = None) -> range:
        return range(ports["first"], ports["last"] + 1) if ports else range(0)

    monkeypatch.setattr(servers_module, "guarded_ports", shut)
    assert runtime.guarded_ports(tmp_path / "none") == range(0)
    async with desk(monkeypatch, tmp_path, access={"mode": mode}) as rig:
        rig.fleet.notices.append("a notice of the fleet")
        found = rig.operations.host.status(ADMIN).notices
    assert len(found) == 1 + notices and found[0] == "a notice of the fleet"
