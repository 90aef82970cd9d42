"""Seconds from the start of a daemon to its first request, when the one before was killed in the middle of a huge job.

    python bench/restart.py [--lines 1000000]

Remote servers (nginx), SIGKILL when half the job is done. Needs nginx.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import time

from harness import Daemon, finish, nginx, prompt_lines, remote_config, table, wait_for, workplace

from obatchd.errors import DaemonDownError


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--lines", type=int, default=1_000_000)
    arguments = parser.parse_args()
    with workplace() as directory, nginx(directory, 4) as ports:
        config = remote_config(ports, servers={"remote_slots": 8}, outbox={"response_files": "never"})
        daemon = Daemon(directory, config)
        try:
            daemon.start()
            drop = directory / "job.jsonl"
            prompt_lines(drop, arguments.lines)
            os.rename(drop, daemon.inbox / drop.name)

            def answered() -> int:
                with contextlib.suppress(DaemonDownError):
                    jobs = daemon.status()["jobs"]
                    return int(jobs[0]["succeeded"]) if jobs else 0
                return 0

            wait_for(lambda: answered() > arguments.lines // 2, 900, "half the job is done", 0.05)
            daemon.kill()
            begun_s = time.perf_counter()
            daemon.launch()

            def working() -> bool:
                with contextlib.suppress(DaemonDownError):
                    return any(server["requests_done"] for server in daemon.status()["servers"])
                return False

            wait_for(working, 120, "a server has answered", 0.002)
            elapsed_s = time.perf_counter() - begun_s
        finally:
            daemon.stop()
    table(f"restart into {arguments.lines} lines", [("start to first answer", f"{elapsed_s:.2f} s")])
    return finish("restart", {"first_request_s": elapsed_s}, {"first_request_s": ("<=", 2.0)})


if __name__ == "__main__":
    sys.exit(main())
