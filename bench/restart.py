"""Seconds from the start of a daemon to its first request, when the one before was killed in the middle of a huge job.

    python bench/restart.py [--lines 1000000]

Remote servers (nginx, whose log tells when the first prompt came), SIGKILL when half the job is done; reported for
stand-in servers that the daemon starts itself, too, where their start and load count. Needs nginx.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import time
from pathlib import Path

from harness import Daemon, ask, finish, nginx, prompt_lines, remote_config, settled_size, table, wait_for, workplace

from obatchd.errors import DaemonDownError


def half_done(daemon: Daemon, lines: int, directory: Path) -> None:
    """Run a job of ``lines`` prompts and kill the daemon in the middle of it."""
    daemon.start()
    drop = directory / "job.jsonl"
    prompt_lines(drop, lines)
    os.rename(drop, daemon.inbox / drop.name)

    def answered() -> int:
        with contextlib.suppress(DaemonDownError):
            jobs = daemon.status()["jobs"]
            return int(jobs[0]["succeeded"]) if jobs else 0
        return 0

    wait_for(lambda: answered() > lines // 2, 900, "half the job is done", 0.05)
    daemon.kill()


def remote_s(directory: Path, lines: int) -> float:
    """Seconds to the first prompt at a remote server, by the server's log."""
    log = directory / "chat.log"
    directory.mkdir()
    with nginx(directory, 4, log) as ports:
        config = remote_config(ports, servers={"remote_slots": 8}, outbox={"response_files": "never"})
        with Daemon(directory, config) as daemon:
            half_done(daemon, lines, directory)
            size = settled_size(log)
            begun_s = time.time()
            daemon.launch()
            wait_for(lambda: log.stat().st_size > size, 120, "a prompt has come", 0.002)
            with open(log, "rb") as file:
                file.seek(size)
                return float(file.readline()) - begun_s


def managed_s(directory: Path, lines: int) -> float:
    """Seconds to the first prompt at one of two stand-in servers that the daemon starts itself, by what they say."""
    directory.mkdir()
    config = {
        "model": "tiny",
        "gpus": {"use": "simulated:2"},
        "servers": {"slots": 8, "stagger_s": 0},
        "log_level": "warning",
    }
    with Daemon(directory, config, {"service_s": {"kind": "fixed", "value": 0.02}, "load_s": 0.3}) as daemon:
        half_done(daemon, lines, directory)
        begun_s = time.time()
        daemon.start()
        urls = [server["url"] for server in daemon.status()["servers"]]

        def first_s() -> float:
            seen = [r["at_s"] for url in urls for r in ask(url, "/simulator/requests")["requests"]]
            return min(seen, default=0.0)

        return float(wait_for(first_s, 120, "a prompt has come", 0.05)) - begun_s


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--lines", type=int, default=1_000_000)
    parser.add_argument("--managed-lines", type=int, default=10_000)
    arguments = parser.parse_args()
    with workplace() as directory:
        figures = {
            "first_request_s": remote_s(directory / "remote", arguments.lines),
            "first_request_managed_s": managed_s(directory / "managed", arguments.managed_lines),
        }
    rows = [(name, f"{value:.2f}") for name, value in figures.items()]
    table(f"from start to first request, job of {arguments.lines} lines half done", rows)
    return finish("restart", figures, {"first_request_s": ("<=", 2.0)})


if __name__ == "__main__":
    sys.exit(main())
