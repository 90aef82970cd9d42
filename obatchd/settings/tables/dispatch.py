"""``[dispatch]`` and ``[watchdog]``: how requests go to servers, and servers that do not do their work."""

from __future__ import annotations

from obatchd.settings.base import Count, Live, Positive, Section, setting


class DispatchSettings(Section):
    """How requests go to servers."""

    max_attempts: Live[Count] = setting(5, "Tries of one request before it fails.")
    poison_crashes: Live[Count] = setting(
        2, "Crashes of a server that a request had to itself before it fails as poison."
    )
    request_timeout_s: Live[Positive] = setting(3600, "Longest time of one attempt.")
    request_total_s: Live[Positive] = setting(
        14400, "Longest time of one request over all its attempts; waiting between them does not count."
    )
    stall_s: Live[Positive] = setting(
        300,
        "No token from any slot of a server for this long: what it works on is given up. Four times as "
        "long while its GPU is busy, because a long prompt may take that.",
    )
    connect_timeout_s: Live[Positive] = setting(5, "Longest wait for a connection to a server.")
    commit_interval_ms: Live[int] = setting(100, "Longest wait before results are committed.", ge=1, le=100)
    switch_after_s: Live[Positive] = setting(60, "A waiting profile with less share takes a server after this.")
    strikes: Live[Count] = setting(3, "Server faults in strike_window_s before a server is restarted.")
    strike_window_s: Live[Positive] = setting(300, "Window of strikes.")


class WatchdogSettings(Section):
    """When a server that answers its health checks but does not do its work is taken in hand. See also stall_s."""

    idle_gpu_s: Live[Positive] = setting(
        60, "Requests in flight, no token and an idle GPU for this long: one token is asked for."
    )
    idle_gpu_percent: Live[int] = setting(2, "Utilisation up to which a GPU counts as idle.", ge=0, le=100)
    probe_s: Live[Positive] = setting(30, "Longest wait for that one token; then the server is restarted.")
    leak_s: Live[Positive] = setting(
        60, "Answers that waited for a slot although there were enough, for this long: a restart."
    )
    slow_factor: Live[float] = setting(
        0.3, "Tokens per second below this share of the server's own best are slow; 0: never.", ge=0, lt=1
    )
    slow_s: Live[Positive] = setting(60, "Slow for this long: load the model again, then restart.")
    vram_s: Live[Positive] = setting(
        60,
        "Seconds between two looks at whether a model is still wholly in VRAM. Old versions of Ollama "
        "may crash when they are asked too often.",
    )
    repeats: Live[Count] = setting(
        3,
        "Restarts for one reason in window_s after which a server gets no more work, if others do the same work well.",
    )
    window_s: Live[Positive] = setting(3600, "Window of repeats.")
