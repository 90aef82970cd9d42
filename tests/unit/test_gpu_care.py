"""Cards that are taken out of use, lent or out of hours, and what becomes of their servers and requests."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from engine_support import until
from operations_support import ADMIN, Desk, desk
from test_gpu_monitor import DictFacts

from obatchd.dispatch.protocol import GiveUp
from obatchd.documents.alarms import GpuQuarantined, GpusUnknown
from obatchd.errors import ControlError
from obatchd.gpucare import policy as module
from obatchd.gpucare.policy import in_hours
from obatchd.gpucare.records import GpuRecords
from obatchd.gpus.history import History
from obatchd.gpus.model import Identity, Reading, SlowReading
from obatchd.ollama.faults import Fault
from obatchd.servers.states import ServerState
from obatchd.settings.settings import Settings


@pytest.fixture
async def rig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Desk]:
    monkeypatch.setattr(module, "_TICK_S", 0.005)
    async with desk(monkeypatch, tmp_path) as made:
        yield made


# A driver that does not answer.


def says(rig: Desk) -> tuple[str, list[str]]:
    """The state in the status and its reasons, which the word alone and the metrics have to share."""
    status = rig.operations.host.status(ADMIN)
    assert status.state == rig.operations.host.state(held_up=False)
    blind = 0.0 if status.gpus.message in status.reasons else 1.0
    assert f"obatch_probe_up {blind}\n" in rig.metrics.text().decode()
    return status.state, status.reasons


async def test_a_driver_that_is_gone_is_said_by_status_gpus_and_servers(rig: Desk) -> None:
    rig.read()
    seen = rig.operations.host.status(ADMIN)
    assert seen.servers[0].gpus[0].temp_c == 60
    assert says(rig) == ("running", [])
    rig.probe.state, rig.probe.message = "unknown", "The GPU driver has said nothing for 15 s."
    assert says(rig) == ("degraded", ["The GPU driver has said nothing for 15 s."])
    assert rig.operations.host.status(ADMIN).servers[0].gpus[0].temp_c is None, "nobody knows the present one"
    rig.probe.state, rig.probe.message, rig.probe.gpus = "absent", "No NVIDIA driver on this host.", []  # after a boot
    state, [reason] = says(rig)
    assert state == "degraded"
    assert reason.startswith("No NVIDIA driver on this host. There were 2 GPUs here before:")
    assert rig.operations.gpus.all().message == reason
    for gpu in ("0", "1"):
        assert (await rig.operations.gpus.release(ADMIN, gpu)).forgotten
    status = rig.operations.host.status(ADMIN)
    assert (status.state, status.reasons) == ("running", []), "this host has no GPU any more, and it is known"
    assert (status.gpus.state, status.gpus.message) == ("absent", "No NVIDIA driver on this host.")


async def test_who_wants_no_gpus_misses_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with desk(monkeypatch, tmp_path, gpus={"use": "none"}) as rig:
        rig.probe.state, rig.probe.message, rig.probe.gpus = "absent", "No NVIDIA driver on this host.", []
        status = rig.operations.host.status(ADMIN)
        assert (status.state, status.reasons) == ("running", [])
        assert "obatch_probe_up" not in rig.metrics.text().decode()


async def test_administrators_hear_once_of_a_driver_that_stays_silent(
    rig: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    def told() -> list[str]:
        return [alarm.words for alarm in rig.alarms if isinstance(alarm, GpusUnknown)]

    rig.probe.state, rig.probe.message = "unknown", "The GPU driver has said nothing for 15 s."
    await asyncio.sleep(0.05)  # several looks
    assert told() == [], "it may come back"
    monkeypatch.setattr(module, "_BLIND_S", 0.0)
    await until(told)
    await asyncio.sleep(0.05)
    assert told() == ["the GPUs are not watched: The GPU driver has said nothing for 15 s."]
    rig.probe.state = "ok"
    await asyncio.sleep(0.05)
    rig.probe.state = "unknown"
    await until(lambda: len(told()) == 2)


# Quarantine.


async def test_a_card_in_quarantine_has_no_server_and_others_do_its_work(rig: Desk) -> None:
    live = await rig.take("a")
    await rig.begun(live)
    shown = await rig.operations.gpus.quarantine(ADMIN, "0", "it smells")
    assert (shown.health, shown.reason, shown.quarantine and shown.quarantine.by) == (
        "quarantine",
        "it smells",
        "administrator",
    )
    await until(lambda: rig.server("gpu0").holds)
    assert rig.server("gpu0").state is ServerState.DRAINING  # what is in flight may end
    await rig.answer(live)
    await until(lambda: rig.server("gpu0").state is ServerState.QUARANTINED)
    [alarm] = [alarm for alarm in rig.alarms if isinstance(alarm, GpuQuarantined)]
    assert (alarm.uuid, alarm.index, alarm.reason, alarm.by) == ("GPU-0", 0, "it smells", "administrator")
    assert alarm.slot == "00000000:01:00.0"
    assert rig.work.holds.reasons == frozenset()  # the other one works
    other = await rig.take("b")
    await rig.answer(other)
    assert list((await rig.published(other))["servers"]) == ["gpu1"]
    released = await rig.operations.gpus.release(ADMIN, "0")
    assert (released.uuid, released.accepted) == ("GPU-0", [])
    await until(lambda: rig.server("gpu0").state is ServerState.READY)
    assert rig.server("gpu0").holds == {}


async def test_an_urgent_quarantine_moves_the_requests_at_once(rig: Desk) -> None:
    live = await rig.take("a")
    await rig.begun(live)
    worker = rig.worker("gpu0")
    for _ in range(3):
        rig.read(gpu0={"trouble": "lost"})
    await until(lambda: any(isinstance(message, GiveUp) for message in worker.sent))
    assert rig.server("gpu0").holds["quarantine"].endswith(" (GPU GPU-0)")
    [moved] = [message for message in worker.sent if isinstance(message, GiveUp)]
    worker.end((live.key, 1), Fault(moved.fault, moved.code, moved.message))
    await until(lambda: rig.server("gpu0").state is ServerState.QUARANTINED)
    await rig.answer(live)
    summary = await rig.published(live)
    assert list(summary["servers"]) == ["gpu1"]


async def test_a_quarantine_outlives_the_daemon_and_its_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with desk(monkeypatch, tmp_path) as rig:
        await rig.operations.gpus.quarantine(ADMIN, "1", "it smells")
    async with desk(monkeypatch, tmp_path) as rig:  # with facts of its own, which do not know it
        await until(lambda: rig.server("gpu1").state is ServerState.QUARANTINED)
        assert rig.server("gpu1").reason == "it smells (GPU GPU-1)"
        assert rig.server("gpu0").ready


async def test_nothing_is_offered_while_every_card_is_out_of_use(rig: Desk) -> None:
    for name in ("0", "1"):
        await rig.operations.gpus.quarantine(ADMIN, name, "")
    await until(lambda: "quarantine" in rig.work.holds.reasons)
    assert (await rig.operations.gpus.one("0")).reason == "asked by an administrator"
    live = await rig.take("a")
    await rig.operations.gpus.release(ADMIN, "1")
    await until(lambda: not rig.work.holds.reasons)
    await rig.answer(live)


async def test_a_burn_in_goes_on_unless_it_would_hurt_the_card(rig: Desk) -> None:
    for server in ("gpu0", "gpu1"):
        rig.server(server).begin_test("a burn-in")
    await rig.operations.gpus.quarantine(ADMIN, "0", "it smells")
    for _ in range(3):
        rig.read(gpu1={"trouble": "lost"})
    await until(lambda: rig.server("gpu1").state is ServerState.QUARANTINED)
    assert rig.server("gpu0").state is ServerState.DRAINING
    rig.server("gpu0").end_test()
    await until(lambda: rig.server("gpu0").state is ServerState.QUARANTINED)


async def test_a_card_released_during_its_burn_in_keeps_its_server(rig: Desk) -> None:
    server = rig.server("gpu0")
    server.begin_test("a burn-in")
    await rig.operations.gpus.quarantine(ADMIN, "0", "it smells")
    await rig.operations.gpus.release(ADMIN, "0")
    server.end_test()
    for _ in range(3):
        await asyncio.sleep(0.01)
    assert server.ready and server.holds == {}


async def test_a_server_on_two_cards_waits_for_both(rig: Desk) -> None:
    server = rig.server("gpu0")
    server.gpus = tuple(rig.gpus)
    for name in ("0", "1"):
        await rig.operations.gpus.quarantine(ADMIN, name, "it smells")
    await until(lambda: server.state is ServerState.QUARANTINED)
    await rig.operations.gpus.release(ADMIN, "0")
    assert server.state is ServerState.QUARANTINED and "quarantine" in server.holds
    await rig.operations.gpus.release(ADMIN, "1")
    await until(lambda: server.ready)


async def test_a_quarantine_is_given_once_and_ended_when_there_is_one(rig: Desk) -> None:
    rig.read()
    with pytest.raises(ControlError, match="not in quarantine") as nothing:
        await rig.operations.gpus.release(ADMIN, "0")
    await rig.operations.gpus.quarantine(ADMIN, "0", "it smells")
    with pytest.raises(ControlError, match="already") as twice:
        await rig.operations.gpus.quarantine(ADMIN, "0", "again")
    assert (nothing.value.code, twice.value.code) == ("nothing", "already")


# Loans and hours.


async def test_a_card_is_lent_emptied_and_taken_back(rig: Desk) -> None:
    live = await rig.take("a")
    await rig.answer(live)
    server = rig.server("gpu0")
    lent = await rig.operations.gpus.lend(ADMIN, "0", 3600)
    assert lent.lent_until is not None
    until_s = datetime.fromisoformat(lent.lent_until).timestamp()
    assert until_s == pytest.approx(time.time() + 3600, abs=30)
    assert server.holds["lent"].startswith("lent until ") and rig.server("gpu1").holds == {}
    await until(lambda: "gpu0 unloads" in rig.did)
    for _ in range(4):  # of the clock's ticks, which change nothing
        await asyncio.sleep(0.006)
        assert "lent" in server.holds and rig.did.count("gpu0 unloads") == 1
    back = await rig.operations.gpus.take_back(ADMIN, "0")
    assert back.lent_until is None and server.ready and server.holds == {}
    with pytest.raises(ControlError, match="not lent") as wrong:
        await rig.operations.gpus.take_back(ADMIN, "0")
    assert wrong.value.code == "not_lent"


async def test_a_loan_ends_by_itself(rig: Desk) -> None:
    await rig.operations.gpus.lend(ADMIN, "1", 0.05)
    assert "lent" in rig.server("gpu1").holds
    await until(lambda: rig.server("gpu1").ready)
    assert (await rig.operations.gpus.one("1")).lent_until is None


async def test_a_loan_is_remembered_by_the_next_daemon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with desk(monkeypatch, tmp_path) as rig:
        await rig.operations.gpus.lend(ADMIN, "0", 3600)
        assert not rig.policy.monitor.dirty  # also where the daemon is killed
    async with desk(monkeypatch, tmp_path) as rig:
        assert "lent" in rig.server("gpu0").holds and rig.server("gpu1").ready


async def test_unknown_memory_is_accepted_over_restarts_and_releases_until_it_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with desk(monkeypatch, tmp_path) as rig:
        assert (await rig.operations.gpus.share(ADMIN, "0", True)).shares_unknown
        assert rig.server("gpu0").shared_cards == {"GPU-0"} and rig.server("gpu1").shared_cards == set()
    async with desk(monkeypatch, tmp_path) as rig:
        assert rig.server("gpu0").shared_cards == {"GPU-0"}
        await rig.operations.gpus.quarantine(ADMIN, "0", "")
        await rig.operations.gpus.release(ADMIN, "0")
        assert (await rig.operations.gpus.one("0")).shares_unknown
        assert not (await rig.operations.gpus.share(ADMIN, "0", False)).shares_unknown
        assert rig.server("gpu0").shared_cards == set()
        assert {"share", "quarantine"} <= {event.kind for event in await rig.operations.gpus.events("0", 10)}


def allow(rig: Desk, hours: list[str]) -> None:
    """As the clock does: what was within the hours is not any more, or again."""
    settings = rig.work.settings
    settings.value = Settings.model_validate(settings.value.model_dump() | {"gpus": {"allow": hours}})


async def test_cards_rest_outside_their_hours(rig: Desk) -> None:
    hour = (datetime.now().hour + 12) % 24
    closed = [f"{hour:02}:00-{hour:02}:01"]
    allow(rig, closed)
    await until(lambda: all("hours" in server.holds for server in rig.fleet.servers.values()))
    assert rig.server("gpu0").holds["hours"] == f"its GPU may be used at {closed[0]} only (gpus.allow)"
    await until(lambda: {"gpu0 unloads", "gpu1 unloads"} <= set(rig.did))
    allow(rig, [])
    await until(lambda: all(server.ready for server in rig.fleet.servers.values()))


async def test_a_server_on_the_cpu_has_no_hours(rig: Desk) -> None:
    rig.server("gpu1").gpus = ()
    hour = (datetime.now().hour + 12) % 24
    allow(rig, [f"{hour:02}:00-{hour:02}:01"])
    await until(lambda: "hours" in rig.server("gpu0").holds)
    assert rig.server("gpu1").ready


@pytest.mark.parametrize(
    ("allow", "at", "expected"),
    [
        ([], "12:00", True),
        (["08:00-18:00"], "08:00", True),
        (["08:00-18:00"], "07:59", False),
        (["08:00-18:00"], "17:59", True),
        (["08:00-18:00"], "18:00", False),
        (["22:30-06:15"], "22:29", False),
        (["22:30-06:15"], "22:30", True),
        (["22:30-06:15"], "00:00", True),
        (["22:30-06:15"], "06:14", True),
        (["22:30-06:15"], "06:15", False),
        (["08:00-09:00", "10:00-11:00"], "10:30", True),
        (["08:00-09:00", "10:00-11:00"], "09:30", False),
        (["08:00-08:00"], "03:00", True),
    ],
)
def test_hours_of_use(allow: list[str], at: str, expected: bool) -> None:
    assert in_hours(allow, datetime.fromisoformat(f"2026-05-05T{at}:30")) is expected


# What is kept and told.


async def test_events_of_a_card_are_kept_and_shown(rig: Desk) -> None:
    await rig.operations.gpus.quarantine(ADMIN, "0", "it smells")
    await rig.operations.gpus.lend(ADMIN, "1", 60)
    await until(lambda: rig.server("gpu0").state is ServerState.QUARANTINED)
    rig.watch.history.flush()
    every = await rig.operations.gpus.events(None, 10)
    assert [(event.uuid, event.kind) for event in every] == [("GPU-0", "quarantine"), ("GPU-1", "lend")]
    assert [event.kind for event in await rig.operations.gpus.events("1", 10)] == ["lend"]
    assert [event.text for event in (await rig.operations.gpus.one("0")).events] == [every[0].text]


async def test_a_quarantine_is_written_down_at_once_and_records_when_they_change(
    rig: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed: list[float] = []
    real = History.flush

    def flush(history: History) -> None:
        flushed.append(time.monotonic())
        real(history)

    monkeypatch.setattr(History, "flush", flush)
    rig.policy.monitor.identities([Identity("GPU-0", "Test", 0, serial="1320")])
    kept = rig.work.layout.work / "gpus.json"
    await until(lambda: kept.exists() and "1320" in kept.read_text())
    assert flushed == []
    await rig.operations.gpus.quarantine(ADMIN, "0", "it smells")
    await until(lambda: flushed)
    for _ in range(3):
        await asyncio.sleep(0.01)
    assert len(flushed) == 1  # the others wait for the minute


async def test_a_card_shows_its_readings_its_servers_and_who_shares_it(rig: Desk) -> None:
    rig.read(gpu1={"clock_reasons": 0})
    rig.server("gpu0").shared_with = "pid 7 (python)"
    first, second = rig.operations.gpus.all().gpus
    assert (first.uuid, first.servers, first.shared_with) == ("GPU-0", ["gpu0"], "pid 7 (python)")
    assert (first.utilisation_percent, first.temp_c, first.slowed, second.slowed) == (90, 60, None, False)
    assert (first.health, first.slot, second.shared_with) == ("ok", "00000000:01:00.0", "")
    rig.probe.host_trouble = ("driver", "The driver was updated.")
    trouble = rig.operations.gpus.all().host
    assert trouble is not None and (trouble.code, trouble.message) == ("driver", "The driver was updated.")


async def test_findings_of_a_card_are_shown_with_their_limits(rig: Desk) -> None:
    for _ in range(3):
        rig.read(gpu1={"trouble": "lost"})
    details = await rig.operations.gpus.one("1")
    assert [finding.signal for finding in details.findings] == ["lost"]
    assert details.quarantine is not None and details.quarantine.by == "rules"
    assert [finding.signal for finding in details.quarantine.findings] == ["lost"]
    advised = details.action
    assert advised
    rig.read()
    assert (await rig.operations.gpus.one("1")).action == advised  # also when the card is there again
    assert (await rig.operations.gpus.one("0")).findings == []


async def test_a_card_that_was_taken_out_by_hand_shows_what_is_found_against_it(rig: Desk) -> None:
    monitor = rig.policy.monitor
    monitor.slow_readings([SlowReading("GPU-0", time.time(), pcie_fatal=0)])
    monitor.slow_readings([SlowReading("GPU-0", time.time(), pcie_fatal=1)])
    rig.read()
    warned = rig.operations.gpus.all().gpus[0]
    assert (warned.health, bool(warned.reason), bool(warned.action)) == ("warn", True, True)
    shown = await rig.operations.gpus.quarantine(ADMIN, "0", "it smells")
    assert (shown.health, shown.reason, shown.action) == ("quarantine", "it smells", warned.action)


# The load of a card.


async def test_the_load_of_a_server_is_that_of_its_busiest_card_as_long_as_all_is_known(rig: Desk) -> None:
    def load(**readings: Any) -> int | None:
        rig.probe.readings = {
            f"GPU-{name[-1]}": Reading(f"GPU-{name[-1]}", time.time() - age_s, percent)
            for name, (percent, age_s) in readings.items()
        }
        return rig.watch.utilisation("gpu0")

    assert load(gpu0=(40, 0), gpu1=(90, 0)) == 40
    assert load(gpu1=(90, 0)) is None
    assert load(gpu0=(40, 60)) is None  # told too long ago
    assert load(gpu0=(None, 0)) is None
    rig.server("gpu0").gpu_label = "GPU-0,GPU-1"
    assert load(gpu0=(40, 0), gpu1=(90, 0)) == 90
    assert load(gpu0=(40, 0), gpu1=(90, 60)) is None


# Records in two places.


def test_records_are_kept_although_one_of_their_places_refuses(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    facts = DictFacts()
    GpuRecords(tmp_path / "absent" / "gpus.json", facts).set("gpu/0", "record")
    assert facts == {"gpu/0": "record"} and "gpu_records_not_kept" in caplog.text


def test_the_index_goes_before_the_file_and_the_file_before_nothing(tmp_path: Path) -> None:
    path = tmp_path / "gpus.json"
    first = GpuRecords(path, DictFacts())
    first.set("gpu/0", "old")
    first.set("gpu/1", "one")
    first.set("other", "no card")
    again = GpuRecords(path, DictFacts({"gpu/0": "new"}))
    assert again.starting_with("gpu/") == {"gpu/0": "new", "gpu/1": "one"}


def test_a_file_of_records_that_cannot_be_read_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "gpus.json").write_text("{torn")
    assert GpuRecords(tmp_path / "gpus.json", DictFacts({"gpu/0": "x"})).starting_with("gpu/") == {"gpu/0": "x"}
    assert "gpu_records_unreadable" in caplog.text
    caplog.clear()
    assert GpuRecords(tmp_path / "none.json", DictFacts()).starting_with("") == {}
    assert caplog.text == ""
