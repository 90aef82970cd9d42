"""Rules about heat, slowdowns and power. Sources are in docs/gpu-health.md."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import pairwise

from obatchd.gpus.finding import Finding
from obatchd.gpus.model import ClockReason, Reading
from obatchd.gpus.track import GAP_S, LOADED_PERCENT, Track
from obatchd.settings.tables.gpu_health import GpuHealthSettings

_MINUTE_S = 60
_MIN_LOADED_S = 60.0  # of loaded time before a share of it says anything


def hardware_slowdown(track: Track, settings: GpuHealthSettings) -> Iterator[Finding]:
    """Slowed down by hardware: too hot, or the power brake. Any is worth a line; most minutes of ten are a defect."""
    window_s = settings.slowdown_minutes * _MINUTE_S
    minutes = _minutes(track, window_s)
    bad = [start for start, slowed in minutes if slowed]
    if bad:
        share = len(bad) / settings.slowdown_minutes
        heavy = share >= settings.slowdown_share
        yield Finding(
            "hw_slowdown", "quarantine" if heavy else "warn", "warn",
            f"slowed down by hardware ({_cause(track)}) in {len(bad)} of the last {settings.slowdown_minutes} minutes",
            round(share, 2), settings.slowdown_share, float(bad[0]),
            ("cooling", "power", "diagnose") if heavy else ("cooling",),
        )  # fmt: skip
    counted_s = track.grown.get("hw_thermal_s", 0) + track.grown.get("hw_power_brake_s", 0)
    total_s = max(counted_s, track.slowed_s.get("hw_slowdown", 0.0))
    share = total_s / track.loaded_s if track.loaded_s >= _MIN_LOADED_S else 0.0
    if total_s > settings.slowdown_run_s or share > settings.slowdown_run_share:
        yield Finding(
            "hw_slowdown_time", "ok", "fail",
            f"slowed down by hardware for {total_s:.0f} s, {share:.1%} of the loaded time",
            round(total_s, 1), settings.slowdown_run_s, track.first_s.get("hw_thermal_s", track.began_s),
            ("cooling", "power", "diagnose"),
        )  # fmt: skip


def _cause(track: Track) -> str:
    causes = {"hw_thermal": "heat", "hw_power_brake": "power brake"}
    found = [words for cause, words in causes.items() if track.slowed_s.get(cause) or track.grown.get(f"{cause}_s")]
    return " and ".join(found) or "cause not told"


def _minutes(track: Track, window_s: float) -> list[tuple[int, bool]]:
    """The minutes of the window, and whether a slowdown was seen in each, by sampling or by the driver's counters."""
    if not track.slowed_s.get("hw_slowdown") and not track.first_s.keys() & {"hw_thermal_s", "hw_power_brake_s"}:
        return []
    after_s = track.now_s - window_s
    found: dict[int, bool] = {}
    for reading in track.recent:
        if reading.at_s > after_s:
            minute = int(reading.at_s // _MINUTE_S) * _MINUTE_S
            slowed = bool((reading.clock_reasons or 0) & ClockReason.HARDWARE)
            found[minute] = found.get(minute, False) or slowed
    for before, now in pairwise(track.hour):
        grew = any((getattr(now, c) or 0) > (getattr(before, c) or 0) for c in ("hw_thermal_s", "hw_power_brake_s"))
        if now.at_s > after_s and grew:
            found[int(now.at_s // _MINUTE_S) * _MINUTE_S] = True
    return sorted(found.items())


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
        yield Finding(
            "sw_thermal", "warn" if now else "ok", "fail" if failed else "warn",
            f"slowed down for heat by the driver in {max(share, recent_share):.0%} of the loaded time",
            round(max(share, recent_share), 3), settings.thermal_share,
            slowed[0].at_s if slowed else track.began_s, ("cooling",),
        )  # fmt: skip


def core_heat(track: Track, settings: GpuHealthSettings) -> Iterator[Finding]:
    """Above the card's own limit for a minute; at its slowdown temperature; near its shutdown temperature."""
    latest, card = track.latest, track.identity
    if latest is None or latest.temp_c is None:
        return
    temp_c = latest.temp_c
    if card.temp_shutdown_c and temp_c > card.temp_shutdown_c - settings.shutdown_margin_c:
        yield Finding(
            "near_shutdown", "quarantine", "fail", f"{temp_c} °C, the card turns itself off at {card.temp_shutdown_c}",
            temp_c, card.temp_shutdown_c - settings.shutdown_margin_c, latest.at_s, ("cooling", "diagnose"), True,
        )  # fmt: skip
        return
    limit_c = settings.temp_c
    if card.temp_max_c:
        limit_c = card.temp_max_c
    elif card.temp_slowdown_c:
        limit_c = card.temp_slowdown_c - settings.slowdown_margin_c
    slowdown_c = card.temp_slowdown_c or math.inf
    hot_s = _hot_s(track, lambda r: r.temp_c is not None and r.temp_c > limit_c)
    if hot_s < settings.heat_s:
        return
    at_slowdown = _hot_s(track, lambda r: r.temp_c is not None and r.temp_c >= slowdown_c) >= settings.heat_s
    yield Finding(
        "temp", "quarantine" if at_slowdown else "warn", "fail",
        f"{temp_c} °C, above {slowdown_c if at_slowdown else limit_c} °C for {hot_s:.0f} s",
        temp_c, slowdown_c if at_slowdown else limit_c, latest.at_s - hot_s, ("cooling",),
    )  # fmt: skip


def memory_heat(track: Track, settings: GpuHealthSettings) -> Iterator[Finding]:
    """The memory above its limit for a minute."""
    latest = track.latest
    if latest is None or latest.memory_temp_c is None:
        return
    limit_c = track.identity.memory_temp_max_c or settings.memory_temp_c
    far_c = limit_c + settings.memory_temp_over_c
    hot_s = _hot_s(track, lambda r: r.memory_temp_c is not None and r.memory_temp_c > limit_c)
    if hot_s < settings.heat_s:
        return
    far = _hot_s(track, lambda r: r.memory_temp_c is not None and r.memory_temp_c >= far_c) >= settings.heat_s
    yield Finding(
        "memory_temp", "quarantine" if far else "warn", "fail",
        f"memory at {latest.memory_temp_c} °C, above {limit_c} °C for {hot_s:.0f} s",
        latest.memory_temp_c, limit_c, latest.at_s - hot_s, ("cooling",),
    )  # fmt: skip


def margin(track: Track, settings: GpuHealthSettings) -> Iterator[Finding]:
    """Close to the next slowdown. Zero and less are told by some H100 that are well."""
    latest = track.latest
    if latest is not None and latest.margin_c is not None and 0 < latest.margin_c <= settings.limit_margin_c:
        yield Finding(
            "temp_margin", "warn", "warn", f"{latest.margin_c} °C below the next slowdown",
            latest.margin_c, settings.limit_margin_c, latest.at_s, ("cooling",),
        )  # fmt: skip


def power(track: Track, settings: GpuHealthSettings) -> Iterator[Finding]:
    """Power that was readable and is not any more; a power limit below the card's own."""
    last = track.recent[-settings.power_polls :]
    if track.had_power and len(last) == settings.power_polls and all(r.power_w is None for r in last):
        yield Finding(
            "power_unreadable", "warn", "warn", "its power cannot be read any more", None, None, last[0].at_s,
            ("reset", "diagnose"),
        )  # fmt: skip
    default_w = track.identity.power_default_w
    limit_w = track.latest.power_limit_w if track.latest else None
    if default_w and limit_w and limit_w < default_w - 1:
        yield Finding(
            "power_limit", "warn", "warn",
            f"power is limited to {limit_w:.0f} W; the card's own limit is {default_w:.0f} W",
            limit_w, default_w, track.began_s, ("settings",),
        )  # fmt: skip


def _hot_s(track: Track, hot: Callable[[Reading], bool]) -> float:
    """For how long every reading has been hot; -1 when the latest is not. A gap in watching begins anew."""
    since_s: float | None = None
    for reading in reversed(track.recent):
        if not hot(reading) or (since_s is not None and since_s - reading.at_s > 2 * GAP_S):
            break
        since_s = reading.at_s
    return -1.0 if since_s is None else track.recent[-1].at_s - since_s
