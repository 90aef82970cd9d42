"""The daemon of a storm and its servers."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from daemon_support import Daemon, Document
from storm import Storm
from storm_means import fronted_server
from storm_plan import CONTEXT_TOKENS, FAULTS, LASTING, Plan

SERVERS = 3
# Everything that counts what we kill, so that no request fails because of us, and pauses that suit a storm.
CONFIG: Document = {
    "log_level": "info",
    "context_length": CONTEXT_TOKENS,
    "gpus": {"use": f"simulated:{SERVERS}", "poll_s": 1},
    "servers": {
        "slots": 4, "remote_slots": 4, "health_s": 0.5, "stagger_s": 0, "backoff_max_s": 0.2, "starts_limit": 1_000_000,
        "stop_grace_s": 3,
    },
    "dispatch": {
        "max_attempts": 1000, "poison_crashes": 8, "strikes": 1_000_000, "stall_s": 2, "connect_timeout_s": 5,
    },
    "watchdog": {"probe_s": 1, "leak_s": 2, "idle_gpu_s": 3, "repeats": 1_000_000, "slow_factor": 0},
    "gpu_health": {"repeats": 1_000_000},
    "inbox": {"settle_s": 0.2, "folder_settle_s": 0.2, "rescan_s": 0.5},
}  # fmt: skip
SIMULATOR: Document = {
    "service_s": {"kind": "uniform", "low": 0.03, "high": 0.3}, "load_s": 0.05, "faults": FAULTS,
}  # fmt: skip
FRONTED: Document = {**SIMULATOR, "faults": LASTING}  # of the server behind a proxy


@contextlib.contextmanager
def make_storm(root: Path, plan: Plan, *, real: bool = False) -> Iterator[Storm]:
    """A storm on a spool below ``root``, on stand-ins or on ``real`` servers of what ``scripts/real-ollama`` found."""
    root.mkdir(exist_ok=True)
    if real:
        yield Storm(_daemon(root, _real_config(), {}), plan)
        return
    with fronted_server(root, FRONTED) as front:
        config = {**CONFIG, "ollama_instances": {front.url: 0}}
        yield Storm(_daemon(root, config, SIMULATOR), plan, front)


def _daemon(root: Path, config: Document, simulator: Document) -> Daemon:
    d = Daemon(root, config, simulator)
    d.inbox.mkdir(parents=True)
    d.log_file.touch()
    return d


def _real_config() -> Document:
    servers = {
        **CONFIG["servers"],
        "ollama": os.environ["OBATCHD_TEST_OLLAMA"],
        "models_dir": os.environ["OBATCHD_TEST_MODELS"],
        "cpu_servers": 2,
    }
    # A real runner takes seconds to load on busy cores: nothing here may call that a hang.
    dispatch = {**CONFIG["dispatch"], "stall_s": 60}
    return {**CONFIG, "gpus": {"use": "none"}, "servers": servers, "dispatch": dispatch}
