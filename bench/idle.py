"""The cost of an idle daemon, and how long ``obatchctl status`` takes.

    python bench/idle.py [--seconds 30]

Eight simulated GPUs are watched and nothing is dropped: CPU time of main, forkserver, workers, probe and response
writer together, as a share of one core. ``obatchctl status``: median wall time of twenty calls.

What a process costs that only wakes up depends on the machine (a virtual one may need milliseconds for it), so a bare
loop that wakes up once a second, as each worker does, is measured beside it.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time

import psutil
from harness import BIN, Daemon, cpu_s, finish, table, workplace

from obatchd.servers.environment import SERVER_MARK

_BARE = "import asyncio, uvloop\nasync def wake():\n    while True: await asyncio.sleep(1)\nuvloop.run(wake())"


def ours(main: psutil.Process) -> list[psutil.Process]:
    """Main and everything below it that is not a server."""
    return [main, *(p for p in main.children(recursive=True) if SERVER_MARK not in p.environ())]


def shares_percent(groups: list[list[psutil.Process]], seconds: float) -> list[float]:
    """What each of these groups of processes uses of one core in the next ``seconds``."""
    before_s, begun_s = [cpu_s(group) for group in groups], time.perf_counter()
    time.sleep(seconds)
    passed_s = time.perf_counter() - begun_s
    return [100 * (cpu_s(group) - earlier_s) / passed_s for group, earlier_s in zip(groups, before_s, strict=True)]


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=30)
    arguments = parser.parse_args()
    config = {"model": "tiny", "gpus": {"use": "simulated:8"}, "servers": {"slots": 4, "stagger_s": 0}}
    with workplace() as directory, Daemon(directory, {**config, "log_level": "warning"}) as daemon:
        daemon.start()
        with psutil.Popen([sys.executable, "-c", _BARE]) as bare:
            time.sleep(3)  # the measurement goes over some time: start-up must be over
            idle_percent, bare_percent = shares_percent([ours(daemon.main), [bare]], arguments.seconds)
            bare.kill()
        walls_ms = []
        for _ in range(20):
            at_s = time.perf_counter()
            subprocess.run(
                [BIN / "obatchctl", "--spool", daemon.spool, "status"], check=True, stdout=subprocess.DEVNULL
            )
            walls_ms.append((time.perf_counter() - at_s) * 1000)
    figures = {
        "idle_percent_of_a_core": idle_percent,
        "bare_loop_percent_of_a_core": bare_percent,
        "status_ms": statistics.median(walls_ms),
    }
    table("nothing to do, 8 simulated GPUs", [(name, f"{value:.2f}") for name, value in figures.items()])
    return finish("idle", figures, {"idle_percent_of_a_core": ("<=", 1.0), "status_ms": ("<=", 150.0)})


if __name__ == "__main__":
    sys.exit(main())
