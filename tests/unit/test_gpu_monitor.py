"""What the monitor makes of readings: judgements, events, and what is kept."""

from __future__ import annotations

import time
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
from settings_support import in_force

from obatchd.documents.gpus import GpuEvent
from obatchd.gpucare.records import GpuRecords
from obatchd.gpucare.siblings import CardsElsewhere, Sibling, condensed
from obatchd.gpus.model import Gpu, Identity, Reading, SlowReading, XidEvent
from obatchd.gpus.monitor import Monitor, MonitorListener, Quarantine
from obatchd.gpus.track import Crash, Track
from obatchd.settings.tables.gpu_health import GpuHealthSettings


class DictFacts(dict[str, str]):
    def starting_with(self, prefix: str) -> dict[str, str]:
        return {key: value for key, value in self.items() if key.startswith(prefix)}

    def set(self, key: str, value: str) -> None:
        self[key] = value


class Bench(MonitorListener):
    """A monitor over four cards, and what it said."""

    def __init__(self, facts: Any = None, count: int = 4, driver: str = "580.1", use: str = "all") -> None:
        self.facts = DictFacts() if facts is None else facts
        self.gpus = [
            Gpu(f"GPU-{index}", "Test", index, f"00000000:{index + 1:02X}:00.0", 2**36, driver)
            for index in range(count)
        ]
        self.taken_out: list[tuple[str, str, bool]] = []
        self.alone = False  # each card does other work
        self.events: list[GpuEvent] = []
        probe: Any = SimpleNamespace(gpus=self.gpus)
        self.monitor = Monitor(probe, self.facts, in_force(gpus={"use": use}), self, [self])
        self.now_s = time.time()
        self.elsewhere = CardsElsewhere()

    def comparable(self, card: str) -> set[str]:
        return set() if self.alone else set(self.monitor.tracks)

    def tracks_elsewhere(self, card: str, named: AbstractSet[str]) -> Sequence[Track]:
        return self.elsewhere.tracks({"tiny"}, named)

    def quarantined(self, card: str, quarantine: Quarantine, urgent: bool) -> None:
        self.taken_out.append((card, quarantine.reason, urgent))

    def health_event(self, event: GpuEvent) -> None:
        self.events.append(event)

    def read(self, times: int = 1, **changes: Any) -> None:
        """Readings of every listed card; ``gpu0={"temp_c": 99}`` changes one."""
        for _ in range(times):
            self.now_s += 2
            usual = {"utilisation_percent": 90, "temp_c": 60}
            told = [(gpu.uuid, usual | changes.get(f"gpu{gpu.index}", {})) for gpu in self.gpus]
            self.monitor.readings([Reading(uuid, self.now_s, **values) for uuid, values in told])

    def slow(self, **changes: Any) -> None:
        self.monitor.slow_readings([
            SlowReading(gpu.uuid, self.now_s, **{"ecc_uncorrected": 0, **changes.get(f"gpu{gpu.index}", {})})
            for gpu in self.gpus
        ])  # fmt: skip

    def kinds(self) -> list[str]:
        return [event.kind for event in self.events]


def test_both_sources_of_an_xid_are_one_event_and_the_log_has_the_words() -> None:
    bench = Bench()
    now_s = time.time()
    bench.monitor.xids([XidEvent(31, now_s, "GPU-2", source="nvml")])
    bench.monitor.xids([XidEvent(31, now_s + 2, pci_bus_id="0000:03:00", line="NVRM: Xid 31", pid=7)])
    bench.monitor.xids([XidEvent(31, now_s + 30, pci_bus_id="0000:03:00", line="NVRM: Xid 31 again")])
    events = bench.monitor.tracks["GPU-2"].xids
    assert [event.line for event in events] == ["NVRM: Xid 31", "NVRM: Xid 31 again"]
    assert bench.kinds() == ["xid", "xid"]


def test_xids_from_before_the_watch_or_of_unknown_addresses_condemn_nobody() -> None:
    bench = Bench()
    bench.monitor.xids(
        [XidEvent(79, time.time() - 3600, pci_bus_id="0000:01:00"), XidEvent(79, time.time(), pci_bus_id="0000:77:00")]
    )
    bench.read()
    assert bench.taken_out == []


def test_xids_wait_for_the_identity_of_their_card() -> None:
    bench = Bench(count=1)
    bench.gpus[0] = msgspec.structs.replace(bench.gpus[0], pci_bus_id="")
    bench.monitor.tracks["GPU-0"].identity = Identity("GPU-0")
    bench.monitor.xids([XidEvent(79, time.time() + 1, pci_bus_id="0000:41:00")])
    bench.monitor.identities([Identity("GPU-0", pci_bus_id="00000000:41:00.0", serial="17")])
    bench.read()
    assert bench.taken_out[0][0] == "GPU-0" and bench.taken_out[0][2]


def test_a_quarantine_is_told_once_and_kept() -> None:
    bench = Bench()
    bench.slow()
    bench.read()
    bench.slow(gpu1={"ecc_uncorrected": 1})
    bench.read(3)
    assert bench.taken_out == [("GPU-1", "1 new uncorrectable ECC error", True)]
    assert bench.kinds() == ["finding", "quarantine"]
    bench.monitor.save()
    again = Bench(bench.facts)
    kept = again.monitor.records["GPU-1"].quarantine
    assert kept is not None and kept.reason == "1 new uncorrectable ECC error" and "RMA" in kept.action
    again.slow(gpu1={"ecc_uncorrected": 1})
    again.read(3)
    assert again.taken_out == []  # it is in quarantine already


def test_errors_that_came_while_nobody_watched_count_from_the_mark() -> None:
    bench = Bench()
    bench.slow()
    bench.monitor.save()
    again = Bench(bench.facts)
    again.slow(gpu0={"ecc_uncorrected": 2})
    again.read()
    assert [uuid for uuid, _, _ in again.taken_out] == ["GPU-0"]


def test_a_release_counts_from_now_and_is_refused_while_the_reason_holds() -> None:
    bench = Bench()
    bench.slow()
    bench.slow(gpu0={"ecc_uncorrected": 1, "remap_failed": True})
    bench.read()
    assert bench.monitor.obstacle("GPU-0") == ""
    assert bench.monitor.release("GPU-0") == ["remap_failed"]
    bench.slow(gpu0={"ecc_uncorrected": 1, "remap_failed": True})
    bench.read()
    assert len(bench.taken_out) == 1 and bench.monitor.assessments["GPU-0"].level == "warn"
    bench.slow(gpu0={"recovery_action": 2})
    bench.read()
    assert "reboot" in bench.monitor.obstacle("GPU-0")
    bench.read(2, gpu1={"trouble": "lost"})
    assert "does not find" in bench.monitor.obstacle("GPU-1")


def test_a_card_that_is_missing_at_the_start_is_lost_until_it_is_forgotten() -> None:
    bench = Bench()
    bench.read()
    bench.monitor.save()
    again = Bench(bench.facts, count=3)
    again.read(3)
    assert [uuid for uuid, _, _ in again.taken_out] == ["GPU-3"]
    again.monitor.release("GPU-3")
    again.read(3)
    again.monitor.save()
    assert len(Bench(bench.facts, count=3).monitor.tracks) == 3
    assert len(again.taken_out) == 1


def test_a_spool_that_was_tried_with_stand_ins_misses_none_of_them() -> None:
    bench = Bench(driver="000.00-simulated")
    bench.read()
    bench.monitor.save()
    assert list(Bench(bench.facts, count=1).monitor.tracks) == ["GPU-0"]


def test_stand_ins_are_missed_by_a_daemon_that_is_to_use_some_and_finds_none() -> None:
    bench = Bench(driver="000.00-simulated")
    bench.monitor.save()
    assert list(Bench(bench.facts, count=0, use="simulated:4").monitor.tracks) == [f"GPU-{n}" for n in range(4)]
    assert list(Bench(bench.facts, count=0).monitor.tracks) == []


def test_slices_are_judged_as_their_card() -> None:
    bench = Bench(count=1)
    bench.gpus[:] = [
        msgspec.structs.replace(bench.gpus[0], uuid=f"MIG-{n}", parent_uuid="GPU-0", slice_index=n) for n in range(2)
    ]
    bench.read(2, gpu0={"trouble": "lost"})
    assert [uuid for uuid, _, _ in bench.taken_out] == ["GPU-0"]


def test_a_crash_counts_once_and_only_where_another_card_answered() -> None:
    bench = Bench(count=2)
    bench.alone = True  # by now each has something else loaded

    def crash(at_s: float, answered_by: str, requests: int = 1) -> None:
        for number in range(requests):
            bench.monitor.crashed("GPU-0", "tiny", at_s + number)
            bench.monitor.cleared("GPU-0", "tiny", at_s + number, {answered_by}, "gpu0 crashed")

    for number in range(4):
        crash(bench.now_s + 20 * number, "GPU-0")  # by another slice of the same card
    bench.read()
    assert "GPU-0" in bench.monitor.tracks and bench.monitor.assessments["GPU-0"].level == "ok"
    crash(bench.now_s + 100, "GPU-1", requests=4)
    crash(bench.now_s + 120, "GPU-1")
    bench.read()
    assert bench.taken_out == [] and bench.monitor.assessments["GPU-0"].level == "warn"
    assert bench.kinds().count("crash") == 2
    crash(bench.now_s + 140, "GPU-1")
    bench.read()
    assert [uuid for uuid, _, _ in bench.taken_out] == ["GPU-0"]


def test_what_comes_and_goes_is_not_told_every_time() -> None:
    bench = Bench(count=1)
    for margin_c in (2, 20, 2, 20, 2):
        bench.read(gpu0={"margin_c": margin_c})
    assert bench.kinds() == ["finding", "cleared"]


def test_an_event_names_serial_number_and_slot_or_else_the_bus_address() -> None:
    bench = Bench(count=2)
    bench.monitor.identities(
        [Identity("GPU-0", serial="S1", slot="3"), Identity("GPU-1", pci_bus_id="00000000:41:00.0")]
    )
    bench.monitor.quarantine("GPU-0", Quarantine("noisy", 5.0, "administrator"), False)
    bench.monitor.lend("GPU-1", 9e9)
    told = [(event.uuid, event.kind, event.serial, event.slot) for event in bench.events]
    assert told == [("GPU-0", "quarantine", "S1", "3"), ("GPU-1", "lend", "", "00000000:41:00.0")]


def test_an_administrators_quarantine_and_loans_are_kept() -> None:
    bench = Bench()
    bench.monitor.quarantine("GPU-1", Quarantine("noisy", 5.0, "administrator"), False)
    bench.monitor.lend("GPU-2", 9e9)
    bench.monitor.save()
    records = Bench(bench.facts).monitor.records
    assert records["GPU-1"].quarantine == Quarantine("noisy", 5.0, "administrator")
    assert records["GPU-2"].lent_until_s == 9e9


def test_a_lost_index_releases_no_gpu_and_a_lost_file_neither(tmp_path: Path) -> None:
    kept = tmp_path / "gpus.json"
    facts = DictFacts()
    bench = Bench(GpuRecords(kept, facts))
    for gpu in ("GPU-1", "GPU-2"):
        bench.monitor.quarantine(gpu, Quarantine("noisy", 5.0, "administrator"), False)
    bench.monitor.save()
    without_index = Bench(GpuRecords(kept, DictFacts()))
    assert [uuid for uuid, record in without_index.monitor.records.items() if record.quarantine] == ["GPU-1", "GPU-2"]
    without_index.monitor.release("GPU-1")
    without_index.monitor.save()
    assert [record.quarantine is None for record in Bench(GpuRecords(kept, DictFacts())).monitor.records.values()] == [
        True, True, False, True,
    ]  # fmt: skip
    kept.write_text("{")  # damaged: the index has them
    assert Bench(GpuRecords(kept, facts)).monitor.records["GPU-1"].quarantine is not None


def test_a_damaged_record_hides_no_other() -> None:
    bench = Bench(count=2)
    bench.monitor.save()
    bench.facts["gpu/GPU-0"] = "{"
    assert set(Bench(bench.facts, count=2).monitor.tracks) == {"GPU-0", "GPU-1"}


def repeated_xids(bench: Bench) -> None:
    """Application XIDs on the first card, as often as it takes."""
    for number in range(GpuHealthSettings().repeats):
        bench.monitor.xids([XidEvent(31, time.time() + 10 * number, "GPU-0")])
    bench.read()


def test_a_card_that_is_alone_in_its_host_is_judged_beside_those_of_other_hosts() -> None:
    alone = Bench(count=1)
    repeated_xids(alone)
    assert alone.taken_out == []  # nobody to compare it with
    beside = Bench(count=1)
    beside.elsewhere.heard([Sibling("GPU-far", ["tiny"])])
    repeated_xids(beside)
    assert [card for card, *_ in beside.taken_out] == ["GPU-0"] and "on this GPU alone" in beside.taken_out[0][1]


def test_trouble_that_cards_of_other_hosts_have_too_is_software() -> None:
    for sibling in (Sibling("GPU-far", ["tiny"], [(31, 300.0)]), Sibling("GPU-far", ["another model"])):
        bench = Bench(count=1)
        bench.elsewhere.heard([sibling])
        repeated_xids(bench)
        assert bench.taken_out == []


def test_crashes_speak_against_a_card_where_one_of_another_host_answered() -> None:
    def crash(bench: Bench) -> None:
        for number in range(GpuHealthSettings().repeats):
            at_s = bench.now_s - 600 + 60 * number
            bench.monitor.crashed("GPU-0", "tiny", at_s)
            bench.monitor.cleared("GPU-0", "tiny", at_s, {"GPU-far"}, "it crashed")
        bench.read()

    unknown, clean, crashing = Bench(count=1), Bench(count=1), Bench(count=1)
    clean.elsewhere.heard([Sibling("GPU-far", ["another model by now"])])
    crashing.elsewhere.heard([Sibling("GPU-far", ["tiny"], [], [60.0], {"tiny": 60.0})])
    for bench in (unknown, clean, crashing):
        crash(bench)
    assert [len(bench.taken_out) for bench in (unknown, clean, crashing)] == [0, 1, 0]


def test_a_card_told_in_few_words_says_the_same_by_another_clock() -> None:
    track = Track(Identity("GPU-0"), crashed_s={"tiny": 5000.0}, server_crashes=[Crash(5000.0, "tiny")])
    track.xids = [XidEvent(31, 5400.0, "GPU-0"), XidEvent(31, 100.0, "GPU-0"), XidEvent(79, 5400.0, "GPU-0")]
    told = condensed(track, {"tiny"}, GpuHealthSettings(), 5500.0)
    assert told == Sibling("GPU-0", ["tiny"], [(31, 100.0)], [500.0], {"tiny": 500.0})
    there = msgspec.msgpack.decode(msgspec.msgpack.encode(told.aged(10.0)), type=Sibling).track(1_000_000.0)
    assert [(event.xid, event.at_s) for event in there.xids] == [(31, 999_890.0)]
    assert there.crashed_s == {"tiny": 999_490.0} and there.server_crashes == [Crash(999_490.0)]
