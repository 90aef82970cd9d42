"""``[dispatch]`` and ``[watchdog]``: how requests go to servers, and servers that do not do their work."""

from __future__ import annotations

from typing import Literal

from obatchd.settings.base import Count, Live, Natural, Positive, Section, setting


class DispatchSettings(Section):
    """How requests go to servers."""

    max_attempts: Live[Count] = setting(5, "How often a request is tried before it fails.")
    poison_crashes: Live[Count] = setting(
        2, "A request fails as poison after so many crashes of servers that worked on it alone."
    )
    request_timeout_s: Live[Positive] = setting(3600, "How long one try of a request may take.")
    request_total_s: Live[Positive] = setting(
        14400, "How long all tries of a request may take together; the waiting between them does not count."
    )
    stall_s: Live[Positive] = setting(
        300,
        "When no slot of a server has given a token for so long, obatchd gives up the requests it "
        "works on. Four times as long while its GPU is busy, because a long prompt may take that.",
    )
    connect_timeout_s: Live[Positive] = setting(5, "How long it may take to connect to a server.")
    commit_interval_ms: Live[int] = setting(
        100, "How long an answer waits, at most, to be written to the disk together with others.", ge=1, le=100
    )
    switch_after_s: Live[Positive] = setting(
        60,
        "Requests for another model or context, of owners who have had less of the servers, wait so long for a busy "
        "server; then it changes its model.",
    )
    families: Live[Literal["auto", "off"]] = setting(
        "auto",
        "Requests of a job that share a long beginning, such as several questions about one document, go one after "
        'another into one slot, where Ollama has the beginning computed already; "off": in input order, and such '
        "requests are not looked for in drops that are taken meanwhile.",
    )
    interactive_slots: Live[Literal["auto"] | Natural] = setting(
        "auto",
        "How many slots batches leave free for people who wait for an answer, over all servers together: a number, or "
        '"auto" (one for every 16 slots that have the model, for ten minutes after each such request; else none).',
    )
    interactive_share: Live[float] = setting(
        0.5,
        "The share of the slots that interactive requests of one owner may have before those of others; further ones "
        "wait like requests of a batch.",
        gt=0,
        le=1,
    )
    interactive_switch_after_s: Live[Positive] = setting(30, "As switch_after_s, where somebody waits for an answer.")
    interactive_queue: Live[Count] = setting(
        1000, "How many interactive requests may wait; one owner may have half of them. Further ones are refused."
    )
    strikes: Live[Count] = setting(3, "A server is restarted after so many faults in strike_window_s.")
    strike_window_s: Live[Positive] = setting(300, "How long obatchd counts faults.")


class WatchdogSettings(Section):
    """When obatchd acts on a server that answers its health checks but does not do its work. See also stall_s."""

    idle_gpu_s: Live[Positive] = setting(
        60,
        "When a server has requests but has given no token, and its GPU has been idle, for so "
        "long, obatchd asks it for one token.",
    )
    idle_gpu_percent: Live[int] = setting(2, "A GPU counts as idle up to this utilisation.", ge=0, le=100)
    probe_s: Live[Positive] = setting(30, "How long that one token may take; then obatchd restarts the server.")
    leak_s: Live[Positive] = setting(
        60, "obatchd restarts a server whose answers have waited for a slot for so long, although it has slots enough."
    )
    slow_factor: Live[float] = setting(
        0.3, "A server is slow when its tokens per second are below this share of its own best; 0: never.", ge=0, lt=1
    )
    slow_s: Live[Positive] = setting(
        60,
        "When a server has been slow for so long, obatchd loads its model again; if it "
        "stays slow, obatchd restarts it.",
    )
    vram_s: Live[Positive] = setting(
        60,
        "How often obatchd looks whether a model is still wholly in the memory of its GPU. Old "
        "versions of Ollama may crash when they are asked too often.",
    )
    repeats: Live[Count] = setting(
        3,
        "A server that the watchdog restarted so often in window_s gets no more work, if other servers do the same "
        "work well.",
    )
    window_s: Live[Positive] = setting(3600, "How long obatchd counts the restarts for repeats.")
