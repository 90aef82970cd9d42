"""``[watchdog]``: when a server that does not do its work is taken in hand."""

from __future__ import annotations

from pydantic import Field

from obatchd.settings.base import Live, PositiveSeconds, Section


class WatchdogSettings(Section):
    """When a server that answers its health checks but does not do its work is taken in hand. See also stall_s."""

    idle_gpu_s: Live[PositiveSeconds] = Field(
        60, description="Requests in flight, no token and an idle GPU for this long: one token is asked for."
    )
    idle_gpu_percent: Live[int] = Field(2, ge=0, le=100, description="Utilisation up to which a GPU counts as idle.")
    probe_s: Live[PositiveSeconds] = Field(
        30, description="Longest wait for that one token; then the server is restarted."
    )
    leak_s: Live[PositiveSeconds] = Field(
        60, description="Answers that waited for a slot although there were enough, for this long: a restart."
    )
    slow_factor: Live[float] = Field(
        0.3, ge=0, lt=1, description="Tokens per second below this share of the server's own best are slow; 0: never."
    )
    slow_s: Live[PositiveSeconds] = Field(60, description="Slow for this long: load the model again, then restart.")
    vram_s: Live[PositiveSeconds] = Field(
        60,
        description="Seconds between two looks at whether a model is still wholly in VRAM. Old versions of Ollama "
        "may crash when they are asked too often.",
    )
    repeats: Live[int] = Field(
        3,
        ge=1,
        description="Restarts for one reason in window_s after which a server gets no more work, if others "
        "do the same work well.",
    )
    window_s: Live[PositiveSeconds] = Field(3600, description="Window of repeats.")
