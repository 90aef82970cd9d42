"""What the rules make of a card; each fault and what follows from it is in test_fault_matrix.py."""

from __future__ import annotations

import random
from typing import Any

import msgspec
import pytest
from health_support import CARD, FAST, SLOW, START_S, Watched, only

from obatchd.gpus.model import Identity, SlowReading, XidEvent
from obatchd.gpus.rules.assessment import assess
from obatchd.gpus.track import Crash, Track
from obatchd.gpus.xids import XIDS, classify
from obatchd.settings.tables.gpu_health import GpuHealthSettings


def known(**changes: Any) -> Identity:
    return msgspec.structs.replace(CARD, **changes)


def crash(card: Watched, times: int, work: str = "tiny", answered_by: str = "GPU-2") -> Watched:
    for _ in range(times):
        card.track.crashed_s[work] = card.now_s
        if answered_by:
            card.track.add_crash(Crash(card.now_s, work, [answered_by]))
        card.pass_time(60)
    return card


def test_errors_from_before_the_watch_are_told_and_condemn_nothing() -> None:
    card = Track(CARD)
    card.add_slow(msgspec.structs.replace(SLOW, ecc_uncorrected=3, remap_pending=True, ecc_corrected=20_000))
    card.add(FAST)
    found = assess(card, GpuHealthSettings())
    assert {finding.signal for finding in found.findings} == {"ecc_uncorrected_before", "remap_pending"}
    assert (found.level, found.burn_in) == ("warn", "warn")


def test_a_card_without_data_centre_readings_is_not_bad() -> None:
    """A GeForce tells neither ECC, remapping, throttle counters nor memory temperature."""
    card = Track(Identity("GPU-1", "GeForce"))
    for second in range(0, 1200, 2):
        card.add(msgspec.structs.replace(FAST, at_s=START_S + second, clock_reasons=None, power_limit_w=None))
        if second % 30 == 0:
            card.add_slow(SlowReading("GPU-1", START_S + second))
    assert assess(card, GpuHealthSettings()).findings == ()


def test_without_limits_of_its_own_a_card_is_judged_by_the_settings() -> None:
    bare = known(temp_max_c=None, temp_slowdown_c=None, temp_shutdown_c=None)
    assert only(Watched(bare).pass_time(70, temp_c=91).judge()).limit == 90
    assert Watched(bare).pass_time(70, temp_c=89).judge().level == "ok"
    assert only(Watched(known(temp_max_c=None)).pass_time(70, temp_c=88).judge()).limit == 87  # slowdown − 5


def test_counters_that_begin_anew_are_no_decrease() -> None:
    """A driver reload sets volatile counters to zero."""
    card = Watched().pass_time(30, ecc_corrected=60).pass_time(30, ecc_corrected=0).pass_time(30, ecc_corrected=60)
    assert only(card.judge()).value == 120


def test_our_own_kill_explains_a_cleanup_xid() -> None:
    card = Watched()
    card.track.add_ended(card.now_s - 3)
    assert card.xid(45).judge().level == "ok"
    mixed = Watched()
    mixed.track.add_ended(mixed.now_s)
    assert {f.signal for f in mixed.xid(45, 31, every_s=2).judge().findings} == {"xid_45", "xid_31"}


def test_repeats_count_only_on_one_gpu_alone() -> None:
    alone = Watched().xid(31, 13, 31)
    assert alone.judge([Watched()]).level == "quarantine"
    assert alone.judge([Watched().xid(31)]).level == "warn"
    assert alone.judge().level == "warn"  # nobody to compare with
    assert Watched().xid(31, 31, 31, every_s=1900).judge([Watched()]).level == "warn"


def test_a_model_that_crashes_everywhere_condemns_no_gpu() -> None:
    crashed, other, third = Watched(), Watched(known(uuid="GPU-2")), Watched(known(uuid="GPU-3"))
    crash(crashed, 3)
    assert (crashed.judge([other]).level, crashed.judge([other]).burn_in) == ("quarantine", "fail")
    assert crashed.judge([third]).level == "warn", "nothing was answered there"
    crash(other, 1, "another model", answered_by="")
    assert crashed.judge([other]).level == "quarantine", "only this one does not run it"
    crash(other, 1, answered_by="")
    assert crashed.judge([other, third]).level == "warn", "it crashes there, too, whoever answered then"
    assert Watched().judge([other]).level == "ok", "the crashes of others, and such as the request caused"


def test_crashes_of_different_models_add_up_and_others_that_crash_do_not_hide_them() -> None:
    crashed, clean, bad = Watched(), Watched(known(uuid="GPU-2")), Watched(known(uuid="GPU-3"))
    for work in ("tiny", "big", "huge"):
        crash(crashed, 1, work)
    crash(bad, 3)
    assert crashed.judge([clean, bad]).level == bad.judge([clean, crashed]).level == "quarantine"


def test_a_pending_remap_makes_a_memory_xid_serious() -> None:
    assert Watched().xid(94).pass_time(30, remap_pending=True).judge().level == "quarantine"


def test_xids_are_forgotten_after_a_day_except_in_a_burn_in() -> None:
    card, run = Watched().xid(79), Watched()
    run.track.keep_xids = True
    run.xid(79)
    for watched in (card, run):
        watched.now_s += 90_000
        watched.xid(31).pass_time(60)
    assert card.judge().level == "warn"
    assert run.judge().burn_in == "fail"


def test_single_xids_can_be_given_another_class() -> None:
    assert Watched().xid(63).judge(xids={"63": "fatal"}).level == "quarantine"
    assert Watched().xid(79).judge(xids={"79": "ignore"}).level == "ok"
    assert only(Watched().xid(999).judge(xids={"999": "warn"})).burn_in == "warn"
    assert classify(XidEvent(145, 0.0, line="RLW Fatal XC0"), {"145": "fatal"}).kind == "fatal"


@pytest.mark.parametrize("name", ["x79", "0", "12345"])
def test_names_of_xids_are_numbers(name: str) -> None:
    with pytest.raises(ValueError, match="no XID"):
        GpuHealthSettings(xids={name: "warn"})


def test_every_limit_can_be_changed() -> None:
    assert Watched().pass_time(70, temp_c=90).judge(heat_s=100).level == "ok"
    assert Watched().pass_time(30, ecc_uncorrected=1).judge(ecc_uncorrected=1).level == "ok"
    assert Watched().pass_time(4, trouble="lost").judge(lost_polls=3).level == "ok"
    assert Watched().pass_time(90, pcie_width=8).judge(pcie_width=8).level == "ok"


def test_the_catalogue_has_the_numbers_of_the_reference() -> None:
    kinds = {number: xid.kind for number, xid in XIDS.items()}
    assert {n for n, kind in kinds.items() if kind == "fatal"} == {48, 54, 64, 79, 95, 140, 143, 171, 172}
    assert {n for n, kind in kinds.items() if kind == "memory"} == {63, 92, 94, 160}
    assert {8, 13, 31, 43, 68, 109} <= {n for n, kind in kinds.items() if kind == "application"}
    assert {46, 61, 62, 74, 110, 119, 120, 158} <= {n for n, kind in kinds.items() if kind == "reset"}


def test_what_an_administrator_accepted_only_warns() -> None:
    card = Watched().pass_time(30, remap_failed=True)
    card.track.accepted = ["remap_failed"]
    assert only(card.judge()).level == "warn"


def test_heat_near_shutdown_is_urgent() -> None:
    assert only(Watched().pass_time(2, temp_c=96).judge()).urgent


def test_a_track_can_be_stored() -> None:
    card = Watched().xid(31)
    again = msgspec.msgpack.decode(msgspec.msgpack.encode(card.track), type=Track)
    assert assess(again, GpuHealthSettings()) == card.judge()


def test_a_hundred_clean_runs_with_noise_accuse_nobody() -> None:
    """Two hours each: load that comes and goes, power at its limit, a few corrected errors, a few replays."""
    for seed in range(100):
        chance, card = random.Random(seed), Track(CARD)
        temp_c, ecc, replays, at_s = 60.0, 0, 0, START_S
        for step in range(720):
            at_s += chance.choice((9, 10, 10, 11))
            busy = chance.random() < 0.9
            temp_c += ((78 if busy else 45) - temp_c) * 0.1 + chance.gauss(0, 0.7)
            ecc += chance.random() < 0.01
            replays += chance.random() < 0.2
            reasons = (0x4 if chance.random() < 0.7 else 0) if busy else 0x1
            card.add(msgspec.structs.replace(
                FAST, at_s=at_s, utilisation_percent=chance.randint(85, 100) if busy else 0, temp_c=round(temp_c),
                power_w=chance.gauss(320, 20), clock_reasons=reasons, memory_temp_c=round(temp_c + 8),
            ))  # fmt: skip
            if step % 4 == 0:
                card.add_slow(msgspec.structs.replace(
                    SLOW, at_s=at_s, ecc_corrected=ecc, pcie_replays=replays, pcie_gen=4 if busy else 1,
                ))  # fmt: skip
            if step % 20 == 0:
                found = assess(card, GpuHealthSettings())
                assert (found.level, found.burn_in) == ("ok", "ok"), (seed, found)
