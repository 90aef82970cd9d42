"""Burn-ins over hosts: a head, hosts with real managers, sessions in memory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from hosts_burnin_support import Cluster

from obatchd.burnin.journal import journal
from obatchd.cluster.desks import ToldRecords
from obatchd.cluster.head.burnin import following
from obatchd.cluster.host.desks.burnin import HostBurninDesk
from obatchd.errors import ConfigError, ControlError, NotFoundError

Made = Callable[..., Cluster]
QUICK = {"duration": "3s", "load": ["model"]}
ALL = {**QUICK, "hosts": ["all"]}


@pytest.fixture
async def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Made]:
    clusters: list[Cluster] = []

    def make(own: int = 0, **gpus: int) -> Cluster:
        clusters.append(Cluster(tmp_path, monkeypatch, gpus, own))
        return clusters[-1]

    yield make
    for cluster in clusters:
        await cluster.close()


async def test_one_report_of_all_hosts_finds_the_slow_gpu_that_is_alone_in_its_host(made: Made) -> None:
    cluster = await made(node01=1, node02=1, node03=1).begin()
    cluster.machines["node03"].bench.servers["gpu0"].api.pause_s = 0.1
    begun = await cluster.head.start(ALL)
    assert begun.active and [host.host for host in begun.hosts or ()] == ["node01", "node02", "node03"]
    with pytest.raises(ControlError, match="is running"):
        await cluster.head.start({"duration": "3s"})
    await cluster.until_loading()
    assert (brief := cluster.head.brief()) is not None and brief.loads == ["model"] and len(brief.gpus) == 3
    await cluster.over()
    report = await cluster.head.report("latest")
    assert {gpu.server: gpu.verdict == "FAIL" for gpu in report.gpus} == {
        "node01.gpu0": False, "node02.gpu0": False, "node03.gpu0": True,
    }  # fmt: skip
    assert report.gpus[2].reasons[0].signal == "slow" and report.exit_code == 1
    assert report.state == "completed" and [host.state for host in report.hosts or ()] == ["completed"] * 3
    assert [alarm.verdict for alarm in cluster.alarms] == ["FAIL"]
    series = await cluster.head.series(report.run, 100)
    assert [gpu.host for gpu in series.gpus] == ["node01", "node02", "node03"] and not series.active
    (listed,) = await cluster.head.runs()
    assert listed.run == report.run == begun.run and listed.verdict == "FAIL" and listed.state == "completed"
    assert (ended := cluster.head.ended) is not None and ended.verdict == "FAIL"
    assert all(not m.bench.servers["gpu0"].holds for m in cluster.machines.values())


async def test_the_head_may_restart_in_the_middle_and_hosts_may_go_and_come(made: Made) -> None:
    cluster = await made(node01=1, node02=1).begin()
    run = (await cluster.head.start(ALL)).run
    await cluster.until_loading()
    await cluster.machines["node01"].go()
    await cluster.restart_head()
    status = await cluster.head.status()
    assert status.run == run and status.active
    assert status.hosts and "its part of the run goes on there" in await _reason(cluster, "node01")
    await cluster.machines["node01"].come()
    await cluster.over()
    for name, machine in cluster.machines.items():
        told = journal.read(cluster.directory / "head" / run / f"{name}.jsonl")
        assert told == await machine.runs.records(run)  # each record once
    assert [host.state for host in (await cluster.head.status()).hosts or ()] == ["completed", "completed"]
    assert len(cluster.alarms) == 1


async def _reason(cluster: Cluster, host: str) -> str:
    """What is said of a host, once something is."""
    async with asyncio.timeout(20):
        while True:
            hosts = (await cluster.head.status()).hosts or ()
            if reason := next(each.reason for each in hosts if each.host == host):
                return reason
            await asyncio.sleep(0.05)


async def test_a_host_whose_process_begins_anew_tells_all_of_it_again(made: Made) -> None:
    cluster = await made(node01=1, node02=1).begin()
    run = (await cluster.head.start(ALL)).run
    await cluster.until_loading()
    await cluster.machines["node02"].begin_anew()
    status = await cluster.over()
    assert [gap.reason for gap in status.gaps] == ["node02: obatchd was not running"]
    told = journal.read(cluster.directory / "head" / run / "node02.jsonl")
    assert len(told) == len(await cluster.machines["node02"].runs.records(run))


async def test_a_host_that_gets_no_jobs_is_burnt_in_all_the_same(made: Made) -> None:
    """So ``hosts drain`` stands for ``--exclusive``."""
    cluster = await made(node01=1).begin()
    for server in cluster.machines["node01"].joined.servers.values():
        server.keep("by an administrator at 09:30")
    await cluster.head.start(ALL)
    status = await cluster.over()
    assert [host.state for host in status.hosts or ()] == ["completed"]


UNTRUE: dict[str, list[bytes]] = {
    "no beginning": [b'{"type":"loading","at_s":1.0}'],
    "nothing known": [b"{"],
    "two lines": [b"{}\n{}"],
    "no time": [b'{"type":"loading","at_s":1e300}'],
}


@pytest.mark.parametrize("lines", UNTRUE.values(), ids=UNTRUE)
async def test_records_that_cannot_be_end_the_session_and_nothing_of_them_is_kept(
    made: Made, monkeypatch: pytest.MonkeyPatch, lines: list[bytes]
) -> None:
    cluster = await made(node01=1, node02=1).begin()
    run = (await cluster.head.start(ALL)).run
    await cluster.until_loading()
    session = cluster.machines["node02"].joined.session
    assert session is not None

    async def records(_: HostBurninDesk, run: str, first: int) -> ToldRecords:
        return ToldRecords("another life", lines, 10**6, 0.0)

    monkeypatch.setattr(HostBurninDesk, "records", records)
    assert await session.over() and session.code == "untrue"
    copies = (cluster.directory / "head" / run).glob("node0*.jsonl")
    assert not any(line in copy.read_bytes().splitlines() for copy in copies for line in b"\n".join(lines).splitlines())


async def test_a_host_that_stays_away_is_lost_and_its_report_follows_when_it_is_back(
    made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(following, "LOST_S", 1.0)
    cluster = await made(node01=1, node02=1).begin()
    await cluster.head.start(ALL)
    await cluster.until_loading()
    await cluster.machines["node02"].go()
    status = await cluster.over()
    assert [gpu.verdict == "INCONCLUSIVE" for gpu in status.gpus] == [False, True]
    assert status.gpus[1].reasons[0].signal == "host_lost" and "the cable was pulled" in status.gpus[1].reasons[0].text
    assert status.exit_code == 2 and [host.state for host in status.hosts or ()] == ["completed", "lost"]
    await cluster.restart_head()  # which goes on looking for it
    await cluster.machines["node02"].come()
    async with asyncio.timeout(30):
        while [host.state for host in (await cluster.head.status()).hosts or ()] != ["completed", "completed"]:
            await asyncio.sleep(0.05)
    async with asyncio.timeout(30):
        while (await cluster.head.runs())[0].verdict == "INCONCLUSIVE":
            await asyncio.sleep(0.05)
    assert len(cluster.alarms) == 1


async def test_hosts_that_cannot_begin_are_told_each_and_are_no_pass(
    made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(following, "BEGIN_S", 0.5)
    cluster = await made(node01=1, node02=1, node03=1).begin()
    await cluster.machines["node02"].runs.start({"duration": "60s"})  # somebody burns it in by itself
    await cluster.machines["node03"].go("it is switched off")
    await cluster.head.start(ALL)
    status = await cluster.over()
    assert [host.state for host in status.hosts or ()] == ["completed", "not_begun", "not_begun"]
    reasons = {host.host: host.reason for host in status.hosts or ()}
    assert "is running" in reasons["node02"] and "it is switched off" in reasons["node03"]
    assert [gpu.verdict for gpu in status.gpus][1:] == ["INCONCLUSIVE"] * 2 and status.exit_code == 2
    assert all([reason.signal for reason in gpu.reasons] == ["not_begun"] for gpu in status.gpus[1:])


async def test_a_run_that_no_host_can_begin_is_refused(made: Made) -> None:
    cluster = await made(node01=1, node02=1).begin()
    for machine in cluster.machines.values():
        await machine.runs.start({"duration": "60s"})
    with pytest.raises(ConfigError, match=r"node01: burn-in .* is running.*node02: burn-in"):
        await cluster.head.start(ALL)
    assert await cluster.head.runs() == []


async def test_a_stop_ends_it_on_all_hosts_also_on_one_that_was_away(
    made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(following, "STOPPED_S", 1.0)
    cluster = await made(node01=1, node02=1).begin()
    await cluster.head.start({**ALL, "duration": "10m"})
    await cluster.until_loading()
    await cluster.machines["node02"].go()
    document = await cluster.head.stop("by an administrator")
    assert document.state == "stopped" and document.end == "stopped by an administrator"
    assert [host.state for host in document.hosts or ()] == ["stopped", "lost"]
    assert cluster.machines["node01"].runs.active is None and cluster.machines["node02"].runs.active is not None
    await cluster.machines["node02"].come()
    async with asyncio.timeout(30):
        while cluster.machines["node02"].runs.active is not None:
            await asyncio.sleep(0.05)


async def test_the_heads_own_gpus_take_part_and_runs_of_its_own_stay_as_they_were(made: Made) -> None:
    cluster = await made(own=1, node01=1).begin()
    await cluster.head.start(ALL)
    status = await cluster.over()
    assert [(gpu.host or "", gpu.server) for gpu in status.gpus] == [("node01", "node01.gpu0"), ("", "gpu0")]
    assert not cluster.bench.finished_runs and len(cluster.alarms) == 1
    (listed,) = await cluster.head.runs()
    assert listed.hosts == ["node01", ""]
    local = await cluster.head.start(QUICK)
    assert local.run > status.run and not local.hosts and local.active
    async with asyncio.timeout(30):
        while (await cluster.head.status()).active:
            await asyncio.sleep(0.05)
    assert [run.run for run in await cluster.head.runs()] == [local.run, status.run]
    assert not (await cluster.head.report(local.run)).hosts and (await cluster.head.report(status.run)).hosts
    assert [*cluster.bench.finished_runs] == [local.run]
    assert cluster.machines["node01"].runs.active is None


async def test_gpus_may_be_named_by_their_hosts(made: Made) -> None:
    cluster = await made(own=1, node01=2, node02=1).begin()
    for named in ({"gpus": ["node01.gpu1"]}, {"gpus": ["node01/1"]}, {"hosts": ["node01"], "gpus": ["1"]}):
        begun = await cluster.head.start({**QUICK, **named})
        assert [gpu.server for gpu in begun.gpus] == ["node01.gpu1"]
        await cluster.head.stop("by the test")
    begun = await cluster.head.start({**QUICK, "hosts": ["all"], "gpus": ["0"]})
    assert [gpu.server for gpu in begun.gpus] == ["node01.gpu0", "node02.gpu0", "gpu0"]
    await cluster.head.stop("by the test")
    for wrong, words in (
        ({"hosts": ["node9"]}, "no host 'node9' has joined; there are: node01, node02, or all"),
        ({"hosts": ["all"], "gpus": ["7"]}, "no GPU '7' with a server on these hosts"),
        ({"hosts": ["all"], "with_jobs": True}, "--with-jobs is for the head's own machine"),
        ({"hosts": ["all"], "exclusive": True}, "--exclusive is for the head's own machine"),
        ({"gpus": ["7"]}, "no GPU '7' with a server here"),
    ):
        with pytest.raises(ConfigError, match=words):
            await cluster.head.start({"duration": "3s", **wrong})
    with pytest.raises(NotFoundError):
        await cluster.head.report("1999")


async def test_a_head_says_what_to_type_where_nothing_can_be_burnt_in(made: Made) -> None:
    cluster = await made(node01=1).begin()
    with pytest.raises(ConfigError, match="--hosts all burns in those of the hosts that joined"):
        await cluster.head.start(QUICK)
    alone = await made().begin()
    with pytest.raises(ConfigError, match="no host has joined yet"):
        await alone.head.start(ALL)


async def test_a_lost_host_that_comes_back_in_the_middle_of_its_part_is_heard_to_the_end(
    made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(following, "LOST_S", 0.3)
    cluster = await made(node01=1, node02=1).begin()
    cluster.machines["node01"].bench.servers["gpu0"].defect = True  # its part fails at once
    await cluster.head.start({**ALL, "duration": "6s"})
    await asyncio.sleep(0.5)
    await cluster.machines["node02"].go()
    status = await cluster.over()
    assert [host.state for host in status.hosts or ()] == ["failed", "lost"] and status.state == "failed"
    assert "KeyError" in (status.hosts or [])[0].reason
    await cluster.machines["node02"].come()
    assert cluster.machines["node02"].runs.active is not None
    async with asyncio.timeout(40):
        while [host.state for host in (await cluster.head.status()).hosts or ()] != ["failed", "completed"]:
            await asyncio.sleep(0.05)


async def test_a_host_that_tells_what_is_no_record_keeps_no_run_open(made: Made) -> None:
    cluster = await made(node01=1, node02=1).begin()
    run = (await cluster.head.start(ALL)).run
    await cluster.until_loading()
    await cluster.head.close()
    copy = cluster.directory / "head" / run / "node02.jsonl"
    with copy.open("ab") as file:  # as a head's crash, or a full disk, leaves it
        file.write(b'{"type": "bucket", "torn')
    await cluster.restart_head()
    status = await cluster.over()
    assert [host.state for host in status.hosts or ()] == ["completed", "completed"]
    told = journal.read(copy)
    assert told == await cluster.machines["node02"].runs.records(run)
