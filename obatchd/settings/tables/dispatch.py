"""``[dispatch]``: how requests go to servers."""

from __future__ import annotations

from pydantic import Field

from obatchd.settings.base import Live, PositiveSeconds, Section


class DispatchSettings(Section):
    """How requests go to servers."""

    max_attempts: Live[int] = Field(5, ge=1, description="Tries of one request before it fails.")
    poison_crashes: Live[int] = Field(
        2, ge=1, description="Crashes of a server that a request had to itself before it fails as poison."
    )
    request_timeout_s: Live[PositiveSeconds] = Field(3600, description="Longest time of one attempt.")
    request_total_s: Live[PositiveSeconds] = Field(
        14400, description="Longest time of one request over all its attempts; waiting between them does not count."
    )
    stall_s: Live[PositiveSeconds] = Field(
        300,
        description="No token from any slot of a server for this long: what it works on is given up. Four times as "
        "long while its GPU is busy, because a long prompt may take that.",
    )
    connect_timeout_s: Live[PositiveSeconds] = Field(5, description="Longest wait for a connection to a server.")
    commit_interval_ms: Live[int] = Field(100, ge=1, le=100, description="Longest wait before results are committed.")
    switch_after_s: Live[PositiveSeconds] = Field(
        60, description="A waiting profile with less share takes a server after this."
    )
    strikes: Live[int] = Field(3, ge=1, description="Server faults in strike_window_s before a server is restarted.")
    strike_window_s: Live[PositiveSeconds] = Field(300, description="Window of strikes.")
