"""Joined hosts at the head: sessions, servers and workers, with a host in memory and a real dispatcher.

Of :mod:`obatchd.cluster.head`; what hosts may not say is in ``test_untrue_hosts``.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import AsyncIterator
from functools import partial
from types import SimpleNamespace

import pytest
from dispatch_support import LARGE, SMALL, settle
from hosts_support import HeadRig, StandInHost, heads, host_news, server_news, until

from obatchd.cluster import messages
from obatchd.cluster.head import attendance, workers
from obatchd.dispatch import protocol
from obatchd.dispatch.workers import WorkerHandle
from obatchd.documents.alarms import GpuQuarantined
from obatchd.errors import ModelError, NotFoundError, ServerError
from obatchd.servers.states import ServerState


@pytest.fixture
async def head() -> AsyncIterator[HeadRig]:
    async with heads() as made:
        yield made


def _is_so_far(worker: WorkerHandle, away_s: float) -> bool:
    return worker.away_s == pytest.approx(away_s)


async def held(host: StandInHost, count: int, server: str = "gpu0") -> None:
    await until(lambda: len(host.held.get(server, {})) == count)


async def test_a_jobs_requests_are_answered_over_a_session(head: HeadRig) -> None:
    host = StandInHost()
    lane = await head.rig.add(1, 5)
    async with host.joined(head.hosts):
        await held(host, 3)
        host.begin((1, 1), (1, 2))
        await until(lambda: head.rig.dispatcher.in_flight() == {1: 2})
        server = head.server()
        assert (server.in_flight, server.ready, server.loaded) == (3, True, SMALL)
        assert head.guests == {"node07.gpu0": server}
        host.answer_all()
        await held(host, 2)
        host.answer_all()
        await until(lambda: len(head.rig.finished) == 5)
        await until(lambda: messages.Busy("gpu0", False) in host.heard)
    assert sorted(head.rig.lines()) == [(line, True) for line in range(1, 6)]
    assert {finished.server for finished in head.rig.finished} == {"node07.gpu0"}
    assert lane.job == 1
    busy = [told.busy for told in host.heard if isinstance(told, messages.Busy)]
    assert busy == [True, False]
    assert messages.Progressed("gpu0") in host.heard


async def test_a_first_start_asks_for_the_terms_and_no_warning_is_logged(
    head: HeadRig, caplog: pytest.LogCaptureFixture
) -> None:
    host = StandInHost(asks=True)
    async with host.joined(head.hosts):
        await until(lambda: host.session.is_over)
    joined = head.hosts.hosts["node07"]
    assert (host.terms, joined.state, joined.reason) == (head.hosts.terms(), "away", "it starts its servers")
    assert joined.servers == {} and joined.hello is None
    host.asks = False
    async with host.joined(head.hosts):
        await until(lambda: joined.state == "here")
        assert [record.message for record in caplog.records if record.levelno >= logging.WARNING] == []


async def test_a_host_that_asks_leaves_its_session_as_it_is(head: HeadRig) -> None:
    host, again = StandInHost(), StandInHost(asks=True)
    async with host.joined(head.hosts):
        await until(lambda: host.terms)
        async with again.joined(head.hosts):
            await until(lambda: again.session.is_over)
        assert head.hosts.hosts["node07"].state == "here" and not host.session.is_over


async def test_what_a_lost_host_held_goes_back_once_and_counts_no_attempt(head: HeadRig) -> None:
    host = StandInHost()
    await head.rig.add(1, 4)
    async with host.joined(head.hosts):
        await held(host, 3)
        host.begin((1, 1))
        host.answer((1, 2))
        await until(lambda: len(head.rig.finished) == 1)
        host.socket.closed = True
        await host.socket.close()
        await until(lambda: head.hosts.hosts["node07"].state == "away")
        server = head.server()
        assert (server.state, server.loaded, server.in_flight) == (ServerState.BACKOFF, None, 0)
        assert server.down.startswith("host node07 is away: the connection broke")
        assert "node07" in head.rig.dispatcher.stranded
    assert head.rig.failed == []
    async with host.joined(head.hosts):
        await held(host, 3)
        assert {(item.line, item.attempt) for item in host.held["gpu0"].values()} == {(1, 1), (3, 1), (4, 1)}
        host.answer_all()
        await until(lambda: len(head.rig.finished) == 4)
        assert host.loads == 0  # it kept its model
    assert sorted(head.rig.lines()) == [(line, True) for line in range(1, 5)]


async def test_how_far_a_worker_is_away_is_measured_by_its_first_word_after_a_ping(
    head: HeadRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_s = 100.0
    monkeypatch.setattr(workers, "time", SimpleNamespace(monotonic=lambda: now_s))
    host = StandInHost()
    await head.rig.add(1, 5)
    async with host.joined(head.hosts):
        await held(host, 3)
        worker = head.rig.link("node07.gpu0").worker
        assert worker is not None and worker.away_s == 0
        for count, took_s, away_s in ((3, 0.02, 0.02), (2, 0.5, 0.03), (1, 0.01, 0.01)):
            if count < 3:  # the first offer brings a ping of its own
                worker.send(protocol.Ping(count))
            now_s += took_s
            for later_s in (0.9, 0.0):  # the second time of itself
                host.worker_says("gpu0", protocol.Progress(0, 0, 0.0, 3, 3, count, count))
                await until(partial(_is_so_far, worker, away_s))
                await settle()
                now_s += later_s
            assert worker.away_s == pytest.approx(away_s)


async def test_a_server_stays_down_until_its_host_has_told_of_it_again(head: HeadRig) -> None:
    host = StandInHost()
    async with host.joined(head.hosts):
        await until(lambda: head.guests)
    host.silent = True
    async with host.joined(head.hosts):
        await settle()
        assert not head.server().up
    host.silent, host.servers = False, {"gpu1": server_news("gpu1")}
    async with host.joined(head.hosts):
        await until(lambda: list(head.guests) == ["node07.gpu1"])  # and the other is there no more
    await until(lambda: list(head.rig.dispatcher.links) == ["node07.gpu1"])


async def test_a_profile_is_loaded_over_the_session(head: HeadRig) -> None:
    host = StandInHost(servers={"gpu0": server_news(loaded=None)})
    await head.rig.add(1, 1)
    await head.rig.add(2, 1, LARGE)
    async with host.joined(head.hosts):
        await held(host, 1)
        host.answer_all()
        await held(host, 1)
        assert [(what, asked[1]) for what, asked in host.desk.asked] == [("load", SMALL), ("load", LARGE)]
        host.answer_all()
        await until(lambda: len(head.rig.finished) == 2)


async def test_errors_of_a_load_are_those_of_the_host(head: HeadRig) -> None:
    host = StandInHost()
    async with host.joined(head.hosts):
        await until(lambda: head.guests)
        server = head.server()
        host.desk.refuse = ModelError("there is no such model", code="model_not_found")
        with pytest.raises(ModelError, match="no such model") as model:
            await server.load(LARGE)
        assert model.value.code == "model_not_found"
        host.desk.refuse = NotFoundError("no server gpu0", code="not_found")
        with pytest.raises(ServerError, match="no server gpu0"):
            await server.load(LARGE)
        host.desk.refuse, host.desk.lies = None, True
        with pytest.raises(ServerError, match=r"says that node07\.gpu0 has loaded large") as lied:
            await server.load(LARGE)
        assert lied.value.code == "load_failed"
        server.loaded = None  # dispatch does not believe it any more
        host.tell("gpu0", loaded=SMALL, loading=None)
        await until(lambda: server.loaded == SMALL)
        server.loaded, host.desk.lies = None, False
        await server.load(SMALL)
        assert host.desk.asked[-1] == ("load", ("gpu0", SMALL, True))
        with pytest.raises(ServerError):  # the host has no such method
            await server.fallen_back()


async def test_slots_are_tuned_over_the_session(head: HeadRig) -> None:
    slots = messages.SlotNews("H100", "570", 80 * 2**30, 2**30, 8, 8, fresh=False, beside_others=False)
    host = StandInHost(servers={"gpu0": server_news(slots=8, tuning=slots), "gpu1": server_news("gpu1")})
    async with host.joined(head.hosts):
        await until(lambda: len(head.guests) == 2)
        server = head.server()
        assert head.server("node07.gpu1").tuning is None
        assert server.tuning is server
        known = (server.device, server.driver, server.process_slots, server.first_slots(SMALL), server.fresh)
        assert known == ("H100", "570", 8, 8, False)
        server.use(4)
        assert server.slots == 4
        await until(lambda: messages.UseSlots("gpu0", 4) in host.heard)
        server.prefer((16, 8))
        await server.load(LARGE)
        assert host.desk.preferred == [16, 8]
        await server.load(SMALL)
        assert host.desk.preferred == []


async def test_a_load_ends_with_the_session(head: HeadRig) -> None:
    host = StandInHost()
    async with host.joined(head.hosts):
        await until(lambda: head.guests)
        server = head.server()
        host.desk.may_load.clear()
        loading = asyncio.create_task(server.load(LARGE))
        await until(lambda: server.loading == LARGE)
        head.hosts.cut_off("node07", "its credential was revoked")
        with pytest.raises(ServerError, match="away") as error:
            await loading
        assert error.value.code == "host_away"
        assert head.hosts.hosts["node07"].reason == "its credential was revoked"


async def test_commands_of_operators_reach_the_host(head: HeadRig) -> None:
    host = StandInHost()
    async with host.joined(head.hosts):
        await until(lambda: head.guests)
        server = head.server()
        server.resume()
        await server.try_again()
        await server.restart("asked")
        server.fault("it is slow")
        server.broken("it hangs")
        assert [what for what, _ in host.desk.asked] == ["resume", "try_again", "restart"]
        await until(lambda: messages.Fault("gpu0", "it hangs", broken=True) in host.heard)
        assert messages.Fault("gpu0", "it is slow") in host.heard
    with pytest.raises(ServerError, match=r"node07\.gpu0 is down: host node07 is away"):
        await server.restart("asked")


async def test_a_second_session_of_a_name_replaces_the_first(head: HeadRig) -> None:
    first, second = StandInHost(), StandInHost()
    await head.rig.add(1, 2)
    async with first.joined(head.hosts):
        await held(first, 2)
        async with second.joined(head.hosts):
            await held(second, 2)
            assert {item.attempt for item in second.held["gpu0"].values()} == {1}
            await until(lambda: first.session.is_over)
            second.answer_all()
            await until(lambda: len(head.rig.finished) == 2)
            assert head.hosts.hosts["node07"].state == "here"


async def test_a_worker_that_ends_alone_counts_an_attempt_and_late_bytes_of_it_are_dropped(head: HeadRig) -> None:
    host = StandInHost()
    await head.rig.add(1, 1)
    async with host.joined(head.hosts):
        await held(host, 1)
        stale, item = host.channels["gpu0"], host.held["gpu0"][1, 1]
        host.begin((1, 1))
        host.say(messages.WorkerEnded(stale, "died of signal 9", 10.0))
        host.start_worker("gpu0")
        late = protocol.Results([protocol.ResultItem(1, 1, item.attempt, True, b"{}", 0.1, 1, 1)])
        host.session.send(stale, messages.encode(late))
        await held(host, 1)
        assert host.held["gpu0"][1, 1].attempt == 2
        assert [failed.fault for failed in head.rig.failed] == ["server"]
        host.answer_all()
        await until(lambda: head.rig.lines() == [(1, True)])


async def test_a_worker_that_is_out_of_step_is_killed_on_its_host(head: HeadRig) -> None:
    host = StandInHost()
    await head.rig.add(1, 1)
    async with host.joined(head.hosts):
        await held(host, 1)
        killed = host.channels["gpu0"]
        host.worker_says("gpu0", protocol.Progress(0, 0, 0.0, held=0, got=1))
        await until(lambda: messages.KillWorker(killed) in host.heard)
        await held(host, 1)
        host.answer_all()
        await until(lambda: head.rig.lines() == [(1, True)])


async def test_a_request_that_is_too_long_for_a_host_fails_and_the_others_go_on(
    head: HeadRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "MOST_REQUEST_BYTES", 1000)
    host = StandInHost()
    await head.rig.add(1, 1, raw=b'{"id":"x", "prompt":"%s"}' % (b"y" * 2000))
    await head.rig.add(2, 1)
    async with host.joined(head.hosts):
        await until(lambda: head.rig.lines() == [(1, False)])
        await held(host, 1)
        host.worker_says("gpu0", protocol.Progress(1, 1, 0.0, held=1, got=1))  # nothing is missing
        host.answer_all()
        await until(lambda: len(head.rig.finished) == 2)
        assert not any(isinstance(told, messages.KillWorker) for told in host.heard)
    assert b"too_long_for_hosts" in head.rig.finished[0].record


async def test_a_full_way_to_a_host_gets_no_offers_until_it_has_drained(head: HeadRig) -> None:
    host = StandInHost()
    async with host.joined(head.hosts):
        await until(lambda: "gpu0" in host.channels)
        session = head.hosts.hosts["node07"].session
        assert session is not None
        other = host.socket.peer
        assert other is not None
        other.blocked.clear()
        await head.rig.add(1, 1, raw=b'{"id":"x", "prompt":"%s"}' % (b"y" * 9 * 2**20))
        await head.rig.add(2, 1)
        await settle()
        assert session.is_full
        assert not head.rig.link("node07.gpu0").usable
        assert len(head.rig.link("node07.gpu0").offers) == 1
        other.blocked.set()
        await held(host, 2)


async def test_draining_a_host_moves_its_work_and_is_remembered(head: HeadRig) -> None:
    host = StandInHost()
    head.rig.settings.value = head.rig.settings.value.model_copy(
        update={"servers": head.rig.settings.value.servers.model_copy(update={"drain_s": 0.01})}
    )
    await head.rig.add(1, 2)
    async with host.joined(head.hosts):
        await held(host, 2)
        host.begin((1, 1), (1, 2))
        await until(lambda: head.rig.dispatcher.in_flight())
        await head.hosts.drain("node07", "a fan is exchanged")
        server = head.server()
        assert (server.state, server.reason) == (ServerState.DRAINING, "a fan is exchanged")
        assert head.hosts.hosts["node07"].state == "draining"
        await until(lambda: server.idle.is_set())
        assert head.known.reasons == {"node07": "a fan is exchanged"}
        await settle()
        assert not host.held["gpu0"]
        head.hosts.undrain("node07")
        await until(lambda: server.ready)
        await held(host, 2)
        assert {item.attempt for item in host.held["gpu0"].values()} == {1}
    assert head.known.reasons == {"node07": ""}
    with pytest.raises(NotFoundError, match="no host node08 has joined; there are: node07"):
        await head.hosts.drain("node08", "")


async def test_a_host_that_is_drained_stays_so_when_it_comes_again() -> None:
    async with heads() as head:
        head.known.reasons["node08"] = "a fan is exchanged"
        async with StandInHost("node08").joined(head.hosts):
            await until(lambda: head.guests)
            assert head.server("node08.gpu0").holds == {"host": "a fan is exchanged"}


async def test_a_host_that_leaves_gets_no_more_work_and_its_servers_go_with_it(
    head: HeadRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("obatchd.cluster.head.joined._LEAVING_PATIENCE_S", 0.01)
    host, other = StandInHost(), StandInHost("node08")
    await head.rig.add(1, 1)
    async with host.joined(head.hosts):
        await held(host, 1)
        host.begin((1, 1))
        async with other.joined(head.hosts):
            host.say(host_news(leaving="its time limit is near"))
            await held(other, 1)
            assert other.held["gpu0"][1, 1].attempt == 1
            assert head.hosts.hosts["node07"].state == "leaving"
            host.session.end("it goes")
            await until(lambda: list(head.guests) == ["node08.gpu0"])
            assert head.hosts.hosts["node07"].reason == "it has left: its time limit is near"
            other.answer_all()
            await until(lambda: head.rig.lines() == [(1, True)])


async def test_a_host_has_its_work_moved_before_it_takes_a_server_out_of_use(head: HeadRig) -> None:
    host, other = StandInHost(), StandInHost("node08")
    await head.rig.add(1, 1)
    async with host.joined(head.hosts):
        await held(host, 1)
        host.begin((1, 1))
        await until(lambda: head.rig.dispatcher.in_flight())
        async with other.joined(head.hosts):
            await until(lambda: "gpu0" in other.channels)
            host.tell("gpu0", state="draining", reason="bad memory (GPU-gpu0)", holds={"quarantine": "bad memory"})
            await host.session.call("head.vacate", type(None), server="gpu0", patience_s=0.0, reason="bad memory")
            await held(other, 1)
            with pytest.raises(NotFoundError, match="no server gpu9 of host node07"):
                await host.session.call("head.vacate", type(None), server="gpu9", patience_s=0.0, reason="")
            host.tell("gpu0", state="quarantined", reason="bad memory", down="bad memory")
            await until(lambda: head.server().out_of_use)
    assert other.held["gpu0"][1, 1].attempt == 1


async def test_a_server_that_its_host_has_no_more_is_detached(head: HeadRig) -> None:
    host = StandInHost(servers={"gpu0": server_news(), "gpu1": server_news("gpu1")})
    await head.rig.add(1, 6)
    async with host.joined(head.hosts):
        await held(host, 3, "gpu1")
        host.say(messages.ServerGone("gpu1"))
        await until(lambda: list(head.rig.dispatcher.links) == ["node07.gpu0"])
        assert list(head.guests) == ["node07.gpu0"]
        while len(head.rig.finished) < 6:
            await until(lambda: host.held["gpu0"] or len(head.rig.finished) == 6)
            host.answer_all()
    assert sorted(head.rig.lines()) == [(line, True) for line in range(1, 7)]


async def test_alarms_of_a_host_have_its_name(head: HeadRig) -> None:
    alarm = GpuQuarantined("GPU-1", 0, "", "", "bad memory", "rules", "reset the GPU")
    async with StandInHost().joined(head.hosts) as host:
        await until(lambda: host.terms)
        fields = {name: getattr(alarm, name) for name in alarm.__struct_fields__}
        host.say(messages.AlarmNews("GpuQuarantined", fields))
        host.say(messages.AlarmNews("Unheard", {}))
        for _ in range(70):
            host.say(messages.AlarmNews("GpuQuarantined", fields))
        await until(lambda: len(head.known.alarms) == 60)
        await settle()
    assert set(head.known.alarms) == {("node07", alarm)}
    assert len(head.known.alarms) == 60


async def test_terms_come_at_the_start_and_with_each_reload(head: HeadRig) -> None:
    async with StandInHost().joined(head.hosts) as host:
        await until(lambda: host.terms)
        assert host.terms is not None
        assert host.terms.settings["servers"]["slots"] == "auto"
        host.terms = None
        head.hosts.settings_changed()
        await until(lambda: host.terms)


@pytest.mark.parametrize(
    ("changes", "code", "words"),
    [
        ({"version": "0.9.7"}, "version", r"has obatchd 0\.9\.7, the head .* On the head: .*obatchd==0\.9\.7"),
        ({"version": "0.1.7"}, "version", "On the host"),
        ({"nonce": b"x"}, "replayed", "another challenge"),
        ({"clock_s": float("nan")}, "untrue", "no time"),
    ],
)
async def test_hosts_that_do_not_fit_are_refused_and_disturb_nobody(
    head: HeadRig, changes: dict[str, object], code: str, words: str
) -> None:
    good = StandInHost()
    async with good.joined(head.hosts):
        await until(lambda: head.guests)
        bad = StandInHost()
        for name, value in changes.items():
            setattr(bad, name, value)
        async with bad.joined(head.hosts):
            await until(lambda: bad.refused)
            assert bad.refused is not None
            assert bad.refused.code == code
            assert re.search(words, bad.refused.message)
            await until(lambda: bad.session.is_over)
        assert head.server().ready


async def test_patch_versions_may_differ_and_clocks_too(head: HeadRig) -> None:
    host = StandInHost(version="0.2.99", clock_s=-86400.0)
    async with host.joined(head.hosts):
        await until(lambda: head.guests)
        assert head.hosts.hosts["node07"].skew_s == pytest.approx(-86400.0, abs=5)


async def test_a_host_that_says_nothing_has_no_session_for_long(head: HeadRig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attendance, "HELLO_S", 0.02)
    async with StandInHost(silent=True).joined(head.hosts) as host:
        await until(lambda: host.session.is_over)
    assert head.hosts.hosts["node07"].state == "away"


async def test_a_session_ends_with_its_allocation(head: HeadRig) -> None:
    async with StandInHost().joined(head.hosts, until_s=time.time() + 0.2) as host:
        await until(lambda: head.guests)
        await until(lambda: host.session.is_over)
    await until(lambda: head.hosts.hosts["node07"].reason == "it has left: its allocation is over")
    assert not head.guests


async def test_hosts_whose_allocation_is_over_are_given_up() -> None:
    async with heads() as head:
        head.known.reasons |= {"node07": "", "node08": ""}
        async with StandInHost().joined(head.hosts, until_s=time.time() + 3600):
            await until(lambda: head.guests)
        assert list(head.guests) == ["node07.gpu0"]  # it may come again
        tidying = asyncio.create_task(head.hosts.tidy())
        await settle()
        assert head.guests
        tidying.cancel()
        head.hosts.hosts["node07"].until_s = 0.0
        del head.known.reasons["node07"]
        tidying = asyncio.create_task(head.hosts.tidy())
        await until(lambda: not head.guests and not head.rig.dispatcher.links)
        tidying.cancel()
        assert "node07" not in head.hosts.hosts


async def test_a_forgotten_host_goes_with_its_servers(head: HeadRig) -> None:
    async with StandInHost().joined(head.hosts) as host:
        await until(lambda: head.guests)
        head.hosts.forget("node07", "its credential was revoked")
        assert (head.hosts.hosts, head.guests) == ({}, {})
        await until(lambda: host.session.is_over and not head.rig.dispatcher.links)


async def test_a_session_without_a_hello_ends_too_when_its_host_is_forgotten(head: HeadRig) -> None:
    async with StandInHost(silent=True).joined(head.hosts) as host:
        await until(lambda: host.heard)
        head.hosts.forget("node07", "its credential was revoked")
        await until(lambda: host.session.is_over)
