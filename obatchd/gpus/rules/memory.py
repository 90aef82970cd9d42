"""Rules about a GPU's memory: ECC errors, remapped rows, retired pages. Sources are in docs/gpu-health.md."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

from obatchd.gpus.finding import Finding, finding
from obatchd.gpus.model import SlowReading
from obatchd.gpus.track import UNCORRECTED, Track, increase
from obatchd.settings.tables.gpu_health import GpuHealthSettings
from obatchd.words import counted

_HOUR_S = 3600
_FLAGS = {  # of SlowReading: the value shown, and the words
    "remap_failed": ("failed", "a memory row could not be remapped: no spare row is left"),
    "memory_unrepairable": ("unrepairable", "the driver says that the memory cannot be repaired"),
    "remap_pending": ("pending", "a memory row is to be remapped: the GPU needs a reset, when it is idle"),
    "retired_pending": ("pending", "a memory page is to be retired: the GPU needs a reset, when it is idle"),
    "repair_pending": ("pending", "a repair of the memory is pending: the GPU needs a reset, when it is idle"),
}


def uncorrected(track: Track, settings: GpuHealthSettings) -> Iterator[Finding]:
    """New uncorrectable errors. The aggregate counter also has those of a time when nobody watched."""
    count = max(track.grown.get(counter, 0) for counter in UNCORRECTED)
    if count > (limit := settings.ecc_uncorrected):
        since_s = min(track.first_s[counter] for counter in UNCORRECTED if counter in track.first_s)
        yield finding(
            "ecc_uncorrected", counted(round(count), "new uncorrectable ECC error"), int(count), limit, since_s
        )
    before = track.mark.ecc_uncorrected if track.mark else None
    if before and not count:
        text = f"{counted(before, 'uncorrectable ECC error')} since the driver was loaded, before obatchd watched"
        yield finding("ecc_uncorrected_before", text, before, 0, track.began_s)


def sram(track: Track, settings: GpuHealthSettings) -> Iterator[Finding]:
    """Uncorrectable errors of the caches and registers in the life of the card."""
    slow = track.slow
    if slow is None:
        return
    count, grown = slow.sram_uncorrected_aggregate or 0, track.grown.get("sram_uncorrected_aggregate", 0)
    over = count > settings.sram_uncorrected
    if over or slow.sram_threshold_exceeded or grown:
        text = f"{counted(count, 'uncorrectable SRAM error')} in the life of the card"
        if slow.sram_threshold_exceeded:
            text += "; the driver calls its threshold exceeded"
        since_s, burn_in = track.first_s.get("sram_uncorrected_aggregate", track.began_s), "fail" if grown else "warn"
        yield finding("sram_uncorrected", text, count, settings.sram_uncorrected, since_s, burn_in=burn_in)


def corrected(track: Track, settings: GpuHealthSettings) -> Iterator[Finding]:
    """Corrected errors: their number in the last hour, their rate now, their number in a burn-in."""
    if not track.hour or not (total := track.grown.get("ecc_corrected", 0)):
        return
    since_s = track.first_s.get("ecc_corrected", track.began_s)
    if (rate := _sustained_per_s(track.hour)) > (limit := settings.ecc_corrected_per_s):
        text = f"{counted(round(rate), 'corrected ECC error')} per second"
        yield finding("ecc_corrected_rate", text, round(rate), limit, since_s)
    last_hour = [reading for reading in track.hour if reading.at_s >= track.hour[-1].at_s - _HOUR_S]
    first, second, third = _thirds(last_hour)
    if (count := first + second + third) > (limit := settings.ecc_corrected_per_h):
        text = f"{counted(round(count), 'corrected ECC error')} in the last hour"
        yield finding("ecc_corrected", text, int(count), limit, since_s)
    if first and second >= 2 * first and third >= max(2 * second, settings.ecc_corrected_rising):
        text = f"corrected ECC errors become more: {first:.0f}, {second:.0f}, {third:.0f} in 20 minutes each"
        yield finding("ecc_corrected_rising", text, int(third), settings.ecc_corrected_rising, since_s)
    if total > (limit := settings.ecc_corrected_per_run):
        text = f"{counted(round(total), 'corrected ECC error')} since watching began"
        yield finding("ecc_corrected_total", text, int(total), limit, since_s)


def _thirds(hour: list[SlowReading]) -> list[float]:
    """Errors of each third of the hour that ends now."""
    end_s, found = hour[-1].at_s, [0.0, 0.0, 0.0]
    for before, after in pairwise(hour):
        found[2 - min(2, int((end_s - after.at_s) // (_HOUR_S / 3)))] += increase(before, after, "ecc_corrected")
    return found


def _sustained_per_s(readings: list[SlowReading]) -> float:
    """The lower of the last two rates: one burst is not a rate."""
    rates = [
        increase(before, after, "ecc_corrected") / max(1e-3, after.at_s - before.at_s)
        for before, after in pairwise(readings[-3:])
    ]
    return min(rates) if len(rates) == 2 else 0.0


def remapping(track: Track, settings: GpuHealthSettings) -> Iterator[Finding]:
    """Rows replaced by spare ones. A card without ECC answers zero to all of it."""
    slow, mark = track.slow, track.mark
    if slow is None or mark is None:
        return
    for flag, (value, text) in _FLAGS.items():
        if getattr(slow, flag):
            known = value == "pending" and getattr(mark, flag)
            this_time = {"burn_in": "warn"} if known else {}
            yield finding(flag, text, value, None, _flag_since(track, flag), **this_time)
    if (rows := slow.remapped_uncorrected or 0) >= settings.remapped_rows:
        text = (
            f"{counted(rows, 'memory row')} {'was' if rows == 1 else 'were'} remapped because of uncorrectable errors"
        )
        yield finding("remapped_rows", text, rows, settings.remapped_rows, track.began_s)
    if banks := slow.banks_without_spares:
        yield finding(
            "banks_without_spares", f"no spare row is left in {counted(banks, 'memory bank')}", banks, 0, track.began_s
        )


def retired(track: Track, settings: GpuHealthSettings) -> Iterator[Finding]:
    """Pages taken out of use, on cards before Ampere."""
    slow = track.slow
    count = (slow.retired_single_bit or 0) + (slow.retired_double_bit or 0) if slow else 0
    if count >= settings.retired_pages:
        text = f"{counted(count, 'retired memory page')}; a card can have 64 at most"
        yield finding("retired_pages", text, count, settings.retired_pages, track.began_s)


def _flag_since(track: Track, flag: str) -> float:
    """The first of the slow readings that all have had the flag up to now."""
    since_s = track.now_s
    for reading in reversed(track.hour):
        if not getattr(reading, flag):
            break
        since_s = reading.at_s
    return since_s
