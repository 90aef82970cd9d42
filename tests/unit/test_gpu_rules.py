"""Faults of GPUs against what follows from them: every row of the policy table, while work goes on and in a burn-in."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from health_support import CARD, FAST, SLOW, START_S, Watched, only

from obatchd.gpus.model import Identity, SlowReading
from obatchd.gpus.rules import assess
from obatchd.gpus.track import Crash, Track
from obatchd.gpus.xids import XIDS, lookup
from obatchd.settings_gpu_health import GpuHealthSettings

Fault = Callable[[Watched], Any]


def after(seconds: float, **changes: Any) -> Fault:
    return lambda card: card.pass_time(seconds, **changes)


def known(**changes: Any) -> Identity:
    return msgspec.structs.replace(CARD, **changes)


def crash(card: Watched, times: int, work: str = "tiny", answered_by: str = "GPU-2") -> Watched:
    for _ in range(times):
        card.track.crashed_s[work] = card.now_s
        if answered_by:
            card.track.add_crash(Crash(card.now_s, work, [answered_by]))
        card.pass_time(60)
    return card


def climb(card: Watched, counter: str, per_slow: float, seconds: float) -> None:
    for step in range(int(seconds // 30)):
        card.pass_time(30, **{counter: per_slow * (step + 1)})


# (name, fault, signal, level while work goes on, burn-in, words of the action)
MATRIX: list[tuple[str, Fault, str, str, str, str]] = [
    ("lost once", after(2, trouble="lost"), "", "ok", "ok", ""),
    ("lost", after(4, trouble="lost"), "lost", "quarantine", "fail", "power cables"),
    ("unreadable", after(4, trouble="unknown"), "lost", "quarantine", "fail", "Reboot"),
    ("reset required", after(2, trouble="reset_required"), "reset_required", "quarantine", "fail", "--gpu-reset"),
    ("interrupts", after(2, trouble="irq"), "irq", "warn", "warn", "Reboot"),
    ("inforom", after(30, inforom_valid=False), "inforom", "warn", "warn", "RMA"),
    *(
        (f"driver asks {action}", after(30, recovery_action=action), "recovery_action", level, burn_in, words)
        for action, level, burn_in, words in (
            (1, "quarantine", "fail", "--gpu-reset"),
            (2, "quarantine", "fail", "Reboot"),
            (3, "warn", "warn", "watch"),
            (4, "quarantine", "fail", "--gpu-reset"),
            (5, "warn", "warn", "watch"),
            (6, "quarantine", "fail", "Reboot"),
            (7, "quarantine", "fail", "Reboot"),
        )
    ),
    ("fell off the bus", lambda c: c.xid(79), "xid_79", "quarantine", "fail", "power cables"),
    ("aux power", lambda c: c.xid(54), "xid_54", "quarantine", "fail", "power cables"),
    ("double bit", lambda c: c.xid(48), "xid_48", "quarantine", "fail", "--gpu-reset"),
    ("gsp timeout", lambda c: c.xid(119), "xid_119", "quarantine", "fail", "--gpu-reset"),
    ("contained", lambda c: c.xid(94), "xid_94", "warn", "fail", "bug-report"),
    ("contained twice", lambda c: c.xid(94, 94), "xid_94", "quarantine", "fail", "--gpu-reset"),
    ("remap recorded", lambda c: c.xid(63), "xid_63", "warn", "fail", "bug-report"),
    ("many single bits", lambda c: c.xid(92), "xid_92", "warn", "fail", "bug-report"),
    ("channel retired", lambda c: c.xid(160), "xid_160", "warn", "fail", "bug-report"),
    ("application", lambda c: c.xid(31), "xid_31", "warn", "warn", "server's log"),
    ("context switch", lambda c: c.xid(109), "xid_109", "warn", "fail", "server's log"),
    ("unstable memory interface", lambda c: c.xid(58), "xid_58", "warn", "fail", "watch"),
    ("unlisted", lambda c: c.xid(999), "xid_999", "warn", "fail", "watch"),
    ("informational", lambda c: c.xid(106), "", "ok", "ok", ""),
    ("cleanup alone", lambda c: c.xid(45), "xid_45", "warn", "warn", "watch"),
    ("nvlink5 nonfatal", lambda c: c.xid(145, line="RLW Nonfatal XC0"), "xid_145", "warn", "warn", "watch"),
    ("nvlink5 fatal", lambda c: c.xid(145, line="RLW Fatal XC0"), "xid_145", "quarantine", "fail", "--gpu-reset"),
    ("uncorrected", after(30, ecc_uncorrected=1), "ecc_uncorrected", "quarantine", "fail", "RMA"),
    ("uncorrected, unwatched", after(30, ecc_uncorrected_aggregate=2), "ecc_uncorrected", "quarantine", "fail", "RMA"),
    ("sram", after(30, sram_uncorrected_aggregate=5), "sram_uncorrected", "warn", "fail", "RMA"),
    ("sram threshold", after(30, sram_threshold_exceeded=True), "sram_uncorrected", "warn", "warn", "RMA"),
    ("a few corrected", after(30, ecc_corrected=50), "", "ok", "ok", ""),
    ("corrected", after(30, ecc_corrected=101), "ecc_corrected", "warn", "warn", "watch"),
    ("burst", after(60, ecc_corrected=99_000), "ecc_corrected_total", "warn", "fail", "RMA"),
    ("rate", lambda c: climb(c, "ecc_corrected", 40_000, 90), "ecc_corrected_rate", "quarantine", "fail", "RMA"),
    ("remap failed", after(30, remap_failed=True), "remap_failed", "quarantine", "fail", "RMA"),
    ("remap pending", after(30, remap_pending=True), "remap_pending", "warn", "fail", "--gpu-reset"),
    ("retirement pending", after(30, retired_pending=True), "retired_pending", "warn", "fail", "--gpu-reset"),
    ("repair pending", after(30, repair_pending=True), "repair_pending", "warn", "fail", "--gpu-reset"),
    ("unrepairable", after(30, memory_unrepairable=True), "memory_unrepairable", "quarantine", "fail", "RMA"),
    ("rows", after(30, remapped_uncorrected=512), "remapped_rows", "warn", "fail", "RMA"),
    ("no spares", after(30, banks_without_spares=1), "banks_without_spares", "warn", "warn", "watch"),
    ("pages", after(30, retired_double_bit=3, retired_single_bit=60), "retired_pages", "warn", "fail", "RMA"),
    ("slowdown, short", after(8, clock_reasons=0x48), "hw_slowdown", "warn", "fail", "air flow"),
    ("power brake, long", after(480, clock_reasons=0x88), "hw_slowdown", "quarantine", "fail", "air flow"),
    ("driver throttles", after(30, clock_reasons=0x20), "sw_thermal", "warn", "fail", "air flow"),
    ("power cap", after(600, clock_reasons=0x4), "", "ok", "ok", ""),
    ("idle, settings, display, unknown bit", after(600, clock_reasons=0x113 | 1 << 40), "", "ok", "ok", ""),
    ("hot, short", after(40, temp_c=90), "", "ok", "ok", ""),
    ("hot", after(70, temp_c=90), "temp", "warn", "fail", "air flow"),
    ("at slowdown", after(70, temp_c=93), "temp", "quarantine", "fail", "air flow"),
    ("near shutdown", after(2, temp_c=95), "near_shutdown", "quarantine", "fail", "air flow"),
    ("memory hot", after(70, memory_temp_c=97), "memory_temp", "warn", "fail", "air flow"),
    ("memory very hot", after(70, memory_temp_c=101), "memory_temp", "quarantine", "fail", "air flow"),
    ("margin", after(2, margin_c=3), "temp_margin", "warn", "warn", "air flow"),
    ("margin unreliable", after(60, margin_c=0), "", "ok", "ok", ""),
    ("narrow link", after(90, pcie_width=8), "pcie_width", "warn", "fail", "Seat the card"),
    ("slow link at idle", after(90, pcie_gen=1, utilisation_percent=0), "", "ok", "ok", ""),
    ("slow link", after(90, pcie_gen=3), "pcie_gen", "warn", "warn", "Seat the card"),
    ("replays", lambda c: climb(c, "pcie_replays", 20, 120), "pcie_replays", "warn", "warn", "Seat the card"),
    ("replays, many", lambda c: climb(c, "pcie_replays", 60, 900), "pcie_replays", "warn", "fail", "Seat the card"),
    ("replays, normal", lambda c: climb(c, "pcie_replays", 4, 900), "", "ok", "ok", ""),
    ("pcie fatal", after(30, pcie_fatal=1), "pcie_fatal", "warn", "fail", "Seat the card"),
    ("pcie non-fatal", after(30, pcie_non_fatal=1), "pcie_non_fatal", "warn", "warn", "Seat the card"),
    ("nvlink", after(30, nvlink_replays=2), "nvlink", "warn", "warn", "Seat the card"),
    ("power unreadable", after(6, power_w=None), "power_unreadable", "warn", "warn", "bug-report"),
    ("power limited", after(2, power_limit_w=200.0), "power_limit", "warn", "warn", "setting"),
    ("one crash", lambda c: crash(c, 1), "server_crashes", "warn", "warn", "server's log"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("fault", "signal", "level", "burn_in", "words"), [r[1:] for r in MATRIX], ids=[r[0] for r in MATRIX]
)
def test_every_fault_has_its_consequence(fault: Fault, signal: str, level: str, burn_in: str, words: str) -> None:
    card = Watched()
    fault(card)
    found = card.judge([Watched()])
    assert (found.level, found.burn_in) == (level, burn_in), found
    assert bool(found.findings) == bool(signal)
    if signal:
        assert signal in [finding.signal for finding in found.findings]
        assert words in found.action
        assert all(START_S <= finding.since_s <= card.now_s and finding.text for finding in found.findings)


@pytest.mark.parametrize(
    ("card", "signal"),
    [
        (known(persistence=False), "persistence"),
        (known(ecc=False), "ecc_off"),
        (known(ecc_pending=False), "ecc_pending"),
    ],
)
def test_settings_of_the_card_are_named(card: Identity, signal: str) -> None:
    finding = only(Watched(card).judge())
    assert (finding.signal, finding.level, finding.burn_in) == (signal, "warn", "warn")


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
    assert lookup(145, {"145": "fatal"}).kind == "fatal"


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
