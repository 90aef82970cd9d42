"""Rules about a GPU's memory: ECC errors, remapped rows, retired pages. Sources are in docs/gpu-health.md."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

from obatchd.gpus.finding import Finding, Remedy
from obatchd.gpus.model import SlowReading
from obatchd.gpus.track import Track, increase
from obatchd.settings.tables.gpu_health import GpuHealthSettings

_HOUR_S = 3600
_REPLACE: tuple[Remedy, ...] = ("reset", "diagnose", "rma")


def uncorrected(track: Track, settings: GpuHealthSettings) -> Iterator[Finding]:
    """New uncorrectable errors. The aggregate counter also has those of a time when nobody watched."""
    count = max(track.grown.get("ecc_uncorrected", 0), track.grown.get("ecc_uncorrected_aggregate", 0))
    if count > settings.ecc_uncorrected:
        first = [track.first_s[c] for c in ("ecc_uncorrected", "ecc_uncorrected_aggregate") if c in track.first_s]
        yield Finding(
            "ecc_uncorrected", "quarantine", "fail", f"{count:.0f} new uncorrectable ECC errors",
            int(count), settings.ecc_uncorrected, min(first), _REPLACE, True,
        )  # fmt: skip
    before = track.mark.ecc_uncorrected if track.mark else None
    if before and not count:
        yield Finding(
            "ecc_uncorrected_before", "warn", "ok",
            f"{before} uncorrectable ECC errors since the driver was loaded, before obatchd watched",
            before, 0, track.began_s, ("reset", "diagnose"),
        )  # fmt: skip


def sram(track: Track, settings: GpuHealthSettings) -> Iterator[Finding]:
    """Uncorrectable errors of the caches and registers in the life of the card."""
    slow = track.slow
    if slow is None:
        return
    count, grown = slow.sram_uncorrected_aggregate or 0, track.grown.get("sram_uncorrected_aggregate", 0)
    over = count > settings.sram_uncorrected
    if over or slow.sram_threshold_exceeded or grown:
        text = f"{count} uncorrectable SRAM errors in the life of the card"
        if slow.sram_threshold_exceeded:
            text += "; the driver calls its threshold exceeded"
        yield Finding(
            "sram_uncorrected", "warn", "fail" if grown else "warn", text, count, settings.sram_uncorrected,
            track.first_s.get("sram_uncorrected_aggregate", track.began_s), ("diagnose", "rma"),
        )  # fmt: skip


def corrected(track: Track, settings: GpuHealthSettings) -> Iterator[Finding]:
    """Corrected errors: their number in the last hour, their rate now, their number in a burn-in."""
    if not track.hour or not (total := track.grown.get("ecc_corrected", 0)):
        return
    since_s = track.first_s.get("ecc_corrected", track.began_s)
    if (rate := _sustained_per_s(track.hour)) > settings.ecc_corrected_per_s:
        yield Finding(
            "ecc_corrected_rate", "quarantine", "fail", f"{rate:.0f} corrected ECC errors per second",
            round(rate), settings.ecc_corrected_per_s, since_s, _REPLACE,
        )  # fmt: skip
    last_hour = [reading for reading in track.hour if reading.at_s >= track.hour[-1].at_s - _HOUR_S]
    first, second, third = _thirds(last_hour)
    if (count := first + second + third) > settings.ecc_corrected_per_h:
        yield Finding(
            "ecc_corrected", "warn", "warn", f"{count:.0f} corrected ECC errors in the last hour",
            int(count), settings.ecc_corrected_per_h, since_s, ("watch", "diagnose"),
        )  # fmt: skip
    if first and second >= 2 * first and third >= max(2 * second, settings.ecc_corrected_rising):
        yield Finding(
            "ecc_corrected_rising", "warn", "warn",
            f"corrected ECC errors become more: {first:.0f}, {second:.0f}, {third:.0f} in 20 minutes each",
            int(third), settings.ecc_corrected_rising, since_s, ("watch", "diagnose"),
        )  # fmt: skip
    if total > settings.ecc_corrected_per_run:
        yield Finding(
            "ecc_corrected_total", "ok", "fail", f"{total:.0f} corrected ECC errors since watching began",
            int(total), settings.ecc_corrected_per_run, since_s, ("diagnose", "rma"),
        )  # fmt: skip


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
    for flag, text, value in (
        ("remap_failed", "a memory row could not be remapped: no spare row is left", "failed"),
        ("memory_unrepairable", "the driver says that the memory cannot be repaired", "unrepairable"),
    ):
        if getattr(slow, flag):
            yield Finding(flag, "quarantine", "fail", text, value, None, _flag_since(track, flag), _REPLACE)
    for flag, text in (
        ("remap_pending", "a memory row is to be remapped: the GPU needs a reset, when it is idle"),
        ("retired_pending", "a memory page is to be retired: the GPU needs a reset, when it is idle"),
        ("repair_pending", "a repair of the memory is pending: the GPU needs a reset, when it is idle"),
    ):
        if getattr(slow, flag):
            new = not getattr(mark, flag)
            yield Finding(
                flag, "warn", "fail" if new else "warn", text, "pending", None, _flag_since(track, flag), ("reset",)
            )
    if (slow.remapped_uncorrected or 0) >= settings.remapped_rows:
        yield Finding(
            "remapped_rows", "warn", "fail", f"{slow.remapped_uncorrected} rows were remapped for uncorrectable errors",
            slow.remapped_uncorrected, settings.remapped_rows, track.began_s, ("diagnose", "rma"),
        )  # fmt: skip
    if slow.banks_without_spares:
        yield Finding(
            "banks_without_spares", "warn", "warn", f"{slow.banks_without_spares} memory banks have no spare row left",
            slow.banks_without_spares, 0, track.began_s, ("watch", "diagnose"),
        )  # fmt: skip


def retired(track: Track, settings: GpuHealthSettings) -> Iterator[Finding]:
    """Pages taken out of use, on cards before Ampere."""
    slow = track.slow
    count = (slow.retired_single_bit or 0) + (slow.retired_double_bit or 0) if slow else 0
    if count >= settings.retired_pages:
        yield Finding(
            "retired_pages", "warn", "fail", f"{count} memory pages are retired; 64 is the most a card can",
            count, settings.retired_pages, track.began_s, ("diagnose", "rma"),
        )  # fmt: skip


def _flag_since(track: Track, flag: str) -> float:
    """The first of the slow readings that all have had the flag up to now."""
    since_s = track.now_s
    for reading in reversed(track.hour):
        if not getattr(reading, flag):
            break
        since_s = reading.at_s
    return since_s
