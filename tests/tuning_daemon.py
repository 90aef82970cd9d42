"""A whole daemon whose one server follows a curve, and a job that it may be tuned for."""

from __future__ import annotations

import contextlib
import sqlite3
import time
from pathlib import Path
from typing import Any

from daemon_support import Daemon, Document, prompts, wait_for

# Fastest with 16 slots; a load takes long enough to be met in its middle.
CURVE: Document = {
    "throughput": {"points": [[1, 300], [16, 4800], [64, 2400]]},
    "answer": {"kind": "fixed", "value": 20},
    "load_s": 0.5,
}
CONFIG: Document = {"gpus": {"use": "simulated:1"}, "servers": {"slots": "auto", "tune_pause_s": 1}}


def with_old_job(d: Daemon, count: int) -> list[dict[str, Any]]:
    """Start the daemon with a job that was accepted twelve minutes ago: younger ones have their servers as they are."""
    asked = prompts(count)
    d.start().ready()
    d.client.post("pause")
    d.drop("job.jsonl", asked)
    d.job("job.jsonl")
    wait_for(lambda: d.status()["queue"]["total"] == count, what="all is read")
    d.stop()
    with contextlib.closing(sqlite3.connect(Path(d.spool) / "work" / "state.db")) as state, state:
        state.execute("UPDATE jobs SET accepted_s = accepted_s - 720")
    d.start().ready()
    d.client.post("resume")
    return asked


def in_a_step(d: Daemon) -> Document:
    """The server while it loads with another number of slots: its process is new, and its model not there yet."""
    wait_for(lambda: d.events("slots_change"), 60, "a change begins")
    old = d.servers()[0]["pid"]

    def loading() -> Document | None:
        server = d.servers()[0]
        return server if server["pid"] not in (None, old) and server["loading"] and not server["loaded"] else None

    deadline_s = time.monotonic() + 20
    while time.monotonic() < deadline_s:
        if (server := loading()) is not None:
            return server
    raise AssertionError(f"it never loads: {d.log()[-2000:]}")


def tuning(d: Daemon) -> Document:
    """What is known of the one profile."""
    profiles = d.client.get("servers/tuning")["profiles"]
    assert len(profiles) == 1, profiles
    found: Document = profiles[0]
    return found
