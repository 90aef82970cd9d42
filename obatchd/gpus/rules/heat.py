"""Rules about heat, slowdowns and power. Sources are in docs/gpu-health.md."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import pairwise

from obatchd.gpus.finding import Finding, finding
from obatchd.gpus.model import ClockReason, Reading
from obatchd.gpus.track import GAP_S, HARDWARE_SLOWDOWN, LOADED_PERCENT, Track
from obatchd.settings.tables.gpu_health import GpuHealthSettings
from obatchd.times import duration

_MINUTE_S = 60
_MIN_LOADED_S = 60.0  # of loaded time before a share of it says anything


def hardware_slowdown(track: Track, settings: GpuHealthSettings) -> Iterator[Finding]:
    """Slowed down by hardware: too hot, or the power brake. Any is worth a line; most minutes of ten are a defect."""
    minutes = settings.slowdown_minutes
    if bad := _slow_minutes(track, minutes * _MINUTE_S):
        share = len(bad) / minutes
        text = f"slowed down by hardware ({_cause(track)}) in {len(bad)} of the last {minutes} minutes"
        heavy = {"level": "quarantine", "remedies": ("cooling", "power", "diagnose")}
        this_time = heavy if share >= settings.slowdown_share else {}
        yield finding("hw_slowdown", text, round(share, 2), settings.slowdown_share, bad[0], **this_time)
    counted_s = sum(track.grown.get(counter, 0) for counter in HARDWARE_SLOWDOWN)
    total_s = max(counted_s, track.slowed_s.get("hw_slowdown", 0.0))
    share = total_s / track.loaded_s if track.loaded_s >= _MIN_LOADED_S else 0.0
    if total_s > settings.slowdown_run_s or share > settings.slowdown_run_share:
        of_load = f"{100 * share:.1f} % of the loaded time"
        text = f"slowed down by hardware ({_cause(track)}) for {duration(total_s)}, {of_load}"
        since_s = track.first_s.get("hw_thermal_s", track.began_s)
        yield finding("hw_slowdown_time", text, round(total_s, 1), settings.slowdown_run_s, since_s)


def _cause(track: Track) -> str:
    causes = {"hw_thermal": "heat", "hw_power_brake": "power brake"}
    found = [words for cause, words in causes.items() if track.slowed_s.get(cause) or track.grown.get(f"{cause}_s")]
    return " and ".join(found) or "cause unknown"


def _slow_minutes(track: Track, window_s: float) -> list[float]:
    """The minutes of the window in which a slowdown was seen, by sampling or by the driver's counters."""
    if not track.slowed_s.get("hw_slowdown") and not track.first_s.keys() & HARDWARE_SLOWDOWN:
        return []
    slowed = [reading.at_s for reading in track.recent if (reading.clock_reasons or 0) & ClockReason.HARDWARE]
    for before, now in pairwise(track.hour):
        if any((getattr(now, counter) or 0) > (getattr(before, counter) or 0) for counter in HARDWARE_SLOWDOWN):
            slowed.append(now.at_s)
    return sorted({at_s // _MINUTE_S * _MINUTE_S for at_s in slowed if at_s > track.now_s - window_s})


def thermal_slowdown(track: Track, settings: GpuHealthSettings) -> Iterator[Finding]:
    """Slowed down by the driver because it is warm."""
    if not track.slowed_s.get("sw_thermal") and "sw_thermal_s" not in track.grown:
        return
    slowed = [r for r in track.recent if (r.clock_reasons or 0) & ClockReason.SW_THERMAL]
    loaded = sum((r.utilisation_percent or 0) >= LOADED_PERCENT for r in track.recent)
    recent_share = len(slowed) / loaded if loaded else 0.0
    total_s = max(track.grown.get("sw_thermal_s", 0), track.slowed_s.get("sw_thermal", 0.0))
    share = total_s / track.loaded_s if track.loaded_s >= _MIN_LOADED_S else 0.0
    now = recent_share > settings.thermal_share and track.loaded_s >= _MIN_LOADED_S
    failed = share > settings.thermal_run_share
    if now or failed or share > settings.thermal_share:
        percent = 100 * max(share, recent_share)
        text = f"slowed down for heat by the driver in {percent:.0f} % of the loaded time"
        value, since_s = round(max(share, recent_share), 3), slowed[0].at_s if slowed else track.began_s
        level, burn_in = "warn" if now else "ok", "fail" if failed else "warn"
        limit = settings.thermal_share
        yield finding("sw_thermal", text, value, limit, since_s, level=level, burn_in=burn_in)


def core_heat(track: Track, settings: GpuHealthSettings) -> Iterator[Finding]:
    """Above the card's own limit for a minute; at its slowdown temperature; near its shutdown temperature."""
    latest, card = track.latest, track.identity
    if latest is None or (temp_c := latest.temp_c) is None:
        return
    if card.temp_shutdown_c and temp_c > (danger_c := card.temp_shutdown_c - settings.shutdown_margin_c):
        text = f"{temp_c} °C, the card turns itself off at {card.temp_shutdown_c}"
        yield finding("near_shutdown", text, temp_c, danger_c, latest.at_s)
        return
    limit_c: float = settings.temp_c
    if card.temp_max_c:
        limit_c = card.temp_max_c
    elif card.temp_slowdown_c:
        limit_c = card.temp_slowdown_c - settings.slowdown_margin_c
    hot_s = _hot_s(track, lambda r: (r.temp_c or 0) > limit_c)
    if hot_s >= settings.heat_s:
        slowdown_c, this_time = card.temp_slowdown_c or math.inf, {}
        if _hot_s(track, lambda r: (r.temp_c or 0) >= slowdown_c) >= settings.heat_s:
            limit_c, this_time = slowdown_c, {"level": "quarantine"}
        text = f"{temp_c} °C, above {limit_c} °C for {hot_s:.0f} s"
        yield finding("temp", text, temp_c, limit_c, latest.at_s - hot_s, **this_time)


def memory_heat(track: Track, settings: GpuHealthSettings) -> Iterator[Finding]:
    """The memory above its limit for a minute."""
    limit_c = track.identity.memory_temp_max_c or settings.memory_temp_c
    far_c = limit_c + settings.memory_temp_over_c
    hot_s = _hot_s(track, lambda r: (r.memory_temp_c or 0) > limit_c)
    if hot_s >= settings.heat_s and (latest := track.latest):
        far_s = _hot_s(track, lambda r: (r.memory_temp_c or 0) >= far_c)
        text = f"memory at {latest.memory_temp_c} °C, above {limit_c} °C for {hot_s:.0f} s"
        level = "quarantine" if far_s >= settings.heat_s else "warn"
        yield finding("memory_temp", text, latest.memory_temp_c, limit_c, latest.at_s - hot_s, level=level)


def margin(track: Track, settings: GpuHealthSettings) -> Iterator[Finding]:
    """Close to the next slowdown. Zero and less are told by some H100 that are well."""
    latest = track.latest
    if latest and latest.margin_c and 0 < latest.margin_c <= settings.limit_margin_c:
        text = f"{latest.margin_c} °C below the next slowdown"
        yield finding("temp_margin", text, latest.margin_c, settings.limit_margin_c, latest.at_s)


def power(track: Track, settings: GpuHealthSettings) -> Iterator[Finding]:
    """Power that was readable and is not any more; a power limit below the card's own."""
    last = track.recent[-settings.power_polls :]
    if track.had_power and len(last) == settings.power_polls and all(r.power_w is None for r in last):
        yield finding("power_unreadable", "its power cannot be read any more", None, None, last[0].at_s)
    default_w = track.identity.power_default_w
    limit_w = track.latest.power_limit_w if track.latest else None
    if default_w and limit_w and limit_w < default_w - 1:
        text = f"power is limited to {limit_w:.0f} W; the card's own limit is {default_w:.0f} W"
        yield finding("power_limit", text, limit_w, default_w, track.began_s)


def _hot_s(track: Track, hot: Callable[[Reading], bool]) -> float:
    """For how long every reading has been hot; -1 when the latest is not. A gap in watching begins anew."""
    since_s: float | None = None
    for reading in reversed(track.recent):
        if not hot(reading) or (since_s is not None and since_s - reading.at_s > 2 * GAP_S):
            break
        since_s = reading.at_s
    return -1.0 if since_s is None else track.recent[-1].at_s - since_s
