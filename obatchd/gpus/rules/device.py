"""Rules about the device as such: lost, XIDs, the driver's own verdict, links, crashes of its server, settings."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from obatchd.gpus.finding import SIGNALS, Finding, finding
from obatchd.gpus.model import RECOVERY_ACTIONS, SlowReading, XidEvent
from obatchd.gpus.track import DAY_S, NVLINK, Track, increase
from obatchd.gpus.xids import BURN_IN_FAILS, CLEANUP, Xid, classify
from obatchd.settings.tables.gpu_health import GpuHealthSettings
from obatchd.words import counted

_OURS_S = 10.0  # an XID 45 so near to the end of a server that we ended is its echo
_TEN_MINUTES_S = 600.0
_DRAIN_ONLY = frozenset({3, 5})
_AWAY = frozenset({54, 79})  # XIDs of a card without power or off the bus
_PERSISTENCE_OFF = (
    "persistence mode is off: the driver's counters begin anew whenever nobody uses the GPU (`sudo nvidia-smi -pm 1`)"
)
_ECC_OFF = "ECC is off on a card that has it: errors of its memory stay unseen (`sudo nvidia-smi -e 1`, then a reset)"
# Replays per minute and lane that a bit error rate of 1e-12 explains, by PCIe generation (DCGM).
_REPLAYS_PER_MIN = {1: 0.15, 2: 0.30, 3: 0.48, 4: 0.96, 5: 1.92, 6: 3.84}


def lost(track: Track, settings: GpuHealthSettings) -> Iterator[Finding]:
    """Gone, or wants a reset; other errors of the whole device are shown."""
    gone = [r for r in track.recent[-settings.lost_polls :] if r.trouble in ("lost", "unknown")]
    if len(gone) == (limit := settings.lost_polls):
        yield finding("lost", "the driver does not find the GPU any more", len(gone), limit, gone[0].at_s)
    now = {track.latest.trouble if track.latest else "", track.slow.trouble if track.slow else ""}
    if "reset_required" in now:
        yield finding("reset_required", "the driver says that the GPU must be reset", None, None, track.now_s)
    if "irq" in now:
        yield finding("irq", "the driver has trouble with the interrupts of the GPU", None, None, track.now_s)
    if "inforom_corrupted" in now or (track.slow and track.slow.inforom_valid is False):
        text = "the card's InfoROM is corrupted; its identity and counters may be wrong"
        yield finding("inforom", text, None, None, track.now_s)


def recovery(track: Track, settings: GpuHealthSettings) -> Iterator[Finding]:
    """The driver's own verdict."""
    action = track.slow.recovery_action if track.slow else None
    if action:
        text = f"the driver asks: {RECOVERY_ACTIONS.get(action, f'action {action}')}"
        this_time: dict[str, object] = {}
        if action in (1, 4):
            this_time = {"remedies": ("reset",)}
        elif action in _DRAIN_ONLY or action not in RECOVERY_ACTIONS:
            this_time = {"level": "warn", "burn_in": "warn", "remedies": ("watch",), "urgent": False}
        yield finding("recovery_action", text, action, 0, track.now_s, **this_time)


def xids(track: Track, settings: GpuHealthSettings, siblings: Sequence[Track]) -> Iterator[Finding]:
    """XIDs by class. Each number gives one finding."""
    day_s = track.now_s - DAY_S
    by_number: dict[int, list[XidEvent]] = {}
    kinds: dict[int, Xid] = {}
    for event in (event for event in track.xids if track.keep_xids or event.at_s >= day_s):
        xid = classify(event, settings.xids)
        if xid.kind == "ignore" or (event.xid == CLEANUP and _is_echo(track, event)):
            continue
        by_number.setdefault(event.xid, []).append(event)
        if event.xid not in kinds or xid.kind == "reset":  # the worst text of a number counts
            kinds[event.xid] = xid
    memory = [e for number, xid in kinds.items() if xid.kind == "memory" for e in by_number[number] if e.at_s >= day_s]
    again = len(memory) >= settings.memory_xids or bool(track.slow and track.slow.remap_pending)
    for number, events in by_number.items():
        yield _xid(kinds[number], events, again)
    yield from _repeats(track, settings, siblings)


def _xid(xid: Xid, events: Sequence[XidEvent], again: bool) -> Finding:
    usual = "lost" if xid.kind == "fatal" and xid.number in _AWAY else f"xid of class {xid.kind}"
    level, burn_in, remedies, urgent = SIGNALS[usual]
    if xid.kind == "memory" and again:
        level = "quarantine"
    if xid.number in BURN_IN_FAILS or not xid.known:
        burn_in = "fail"
    text = f"XID {xid.number}: {xid.meaning}" + (f", {counted(len(events), 'time')}" if len(events) > 1 else "")
    return Finding(f"xid_{xid.number}", level, burn_in, text, xid.number, None, events[0].at_s, remedies, urgent)


def _is_echo(track: Track, event: XidEvent) -> bool:
    """Whether an XID 45 is what the end of a server that we ended leaves, and nothing else came with it."""
    ours = any(abs(event.at_s - ended_s) <= _OURS_S for ended_s in track.ended)
    others = any(e.xid != CLEANUP and abs(e.at_s - event.at_s) <= _OURS_S for e in track.xids)
    return ours and not others


def _repeats(track: Track, settings: GpuHealthSettings, siblings: Sequence[Track]) -> Iterator[Finding]:
    """XIDs of applications that come again and again on this GPU alone. Trouble of every GPU is software."""

    def count(other: Track) -> list[float]:
        after_s = track.now_s - settings.repeat_s
        return [e.at_s for e in other.xids if e.at_s >= after_s and classify(e, settings.xids).kind == "application"]

    times = count(track)
    if len(times) >= settings.repeats and siblings and not any(count(other) for other in siblings):
        listed = ", ".join(map(str, sorted({e.xid for e in track.xids if e.at_s >= times[0]})))
        text = f"{counted(len(times), 'application XID')} (among {listed}) on this GPU alone"
        yield finding("xid_repeats", text, len(times), settings.repeats, times[0])


def crashes(track: Track, settings: GpuHealthSettings, siblings: Sequence[Track]) -> Iterator[Finding]:
    """Crashes of the server. A model that crashes everywhere condemns no GPU.

    A crash speaks against a card where the server of another one answered a request in flight, and had no crash with
    the same model. The present models of the two do not matter.
    """
    after_s, crashes = track.now_s - settings.repeat_s, track.server_crashes
    recent = [crash for crash in crashes if crash.at_s >= after_s]
    work = {crash.work for crash in recent}
    clean = {(other.uuid, each) for other in siblings for each in work if other.crashed_s.get(each, 0.0) < after_s}
    only_here = [crash for crash in recent if any((card, crash.work) in clean for card in crash.answered_by)]
    level = "quarantine" if len(only_here) >= settings.repeats else "warn" if recent else "ok"
    fails = len(crashes) >= settings.repeats and not any(other.server_crashes for other in siblings)
    if recent or fails:
        text = f"the server on this GPU crashed {counted(len(crashes), 'time')}, {len(recent)} of them in the last hour"
        this_time = {"level": level, "burn_in": "fail" if fails else "warn"}
        yield finding("server_crashes", text, len(recent), settings.repeats, crashes[0].at_s, **this_time)


def pcie_link(track: Track, settings: GpuHealthSettings) -> Iterator[Finding]:
    """Fewer lanes than the card can, or a lower speed under load. At idle the speed drops, and should."""
    card, last = track.identity, track.hour[-settings.link_polls :]
    if len(last) < settings.link_polls or track.latest is None:
        return
    loaded = (track.latest.utilisation_percent or 0) >= settings.link_load_percent
    width, gen = settings.pcie_width or card.pcie_width_max, card.pcie_gen_max
    if width and loaded and all(0 < (reading.pcie_width or 0) < width for reading in last):
        now, since_s = last[-1].pcie_width, last[0].at_s
        yield finding("pcie_width", f"the PCIe link has {now} lanes of {width}", now, width, since_s)
    if gen and loaded and all(0 < (reading.pcie_gen or 0) < gen for reading in last):
        now, since_s = last[-1].pcie_gen, last[0].at_s
        text = f"the PCIe link runs at generation {now} of {gen} under load"
        burn_in = "fail" if settings.pcie_gen_fails else "warn"
        yield finding("pcie_gen", text, now, gen, since_s, burn_in=burn_in)


def pcie_errors(track: Track, settings: GpuHealthSettings) -> Iterator[Finding]:
    """Replays above the link's bit error rate; errors that were not corrected."""
    if track.hour and (count := track.grown.get("pcie_replays")):
        last = track.hour[-1]
        gen = max(reading.pcie_gen or 0 for reading in track.hour) or 4  # at idle it drops, after the replays were made
        normal = math.ceil(_REPLAYS_PER_MIN.get(gen, 0.96) * (last.pcie_width or 16))
        rate = _per_min(track.hour, 60.0)
        long_rate = _per_min(track.hour, _TEN_MINUTES_S)
        if rate > (limit := normal * settings.replays):
            text = f"{counted(round(rate), 'PCIe replay')} per minute, {count:.0f} in all"
            since_s = track.first_s.get("pcie_replays", track.began_s)
            burn_in = "fail" if long_rate > normal * settings.replays_run else "warn"
            yield finding("pcie_replays", text, round(rate, 1), limit, since_s, burn_in=burn_in)
    for counter, words in (("pcie_fatal", "fatal"), ("pcie_non_fatal", "uncorrected")):
        if count := track.grown.get(counter):
            yield finding(
                counter, counted(round(count), f"new {words} PCIe error"), int(count), 0, track.first_s[counter]
            )


def _per_min(readings: Sequence[SlowReading], window_s: float) -> float:
    """Replays per minute over the shortest stretch of at least ``window_s`` that ends now; 0 while there is none."""
    last = readings[-1]
    start = next((reading for reading in reversed(readings) if last.at_s - reading.at_s >= window_s), None)
    return increase(start, last, "pcie_replays") * 60 / (last.at_s - start.at_s) if start else 0.0


def nvlink(track: Track, settings: GpuHealthSettings) -> Iterator[Finding]:
    """Errors of NVLink. Our servers do not use it; they are a clue about the hardware."""
    if counts := {name: track.grown[name] for name in NVLINK if name in track.grown}:
        listed = ", ".join(f"{int(count)} {name.partition('_')[2]}" for name, count in counts.items())
        since_s = min(track.first_s[name] for name in counts)
        yield finding("nvlink", f"new NVLink errors: {listed}", int(sum(counts.values())), 0, since_s)


def setup(track: Track, settings: GpuHealthSettings) -> Iterator[Finding]:
    """Settings of the card that keep it from being watched or tested well."""
    card = track.identity
    if card.persistence is False:
        yield finding("persistence", _PERSISTENCE_OFF, "off", "on", track.began_s)
    if card.ecc is False:
        yield finding("ecc_off", _ECC_OFF, "off", "on", track.began_s)
    elif card.ecc and card.ecc_pending is False:
        yield finding("ecc_pending", "ECC will be off after the next reset", "off", "on", track.began_s)
