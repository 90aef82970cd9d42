"""Exit codes of both commands. ``obatchctl status`` follows the LSB table for init scripts."""

from __future__ import annotations

OK = 0
FAILED = 1  # the command failed; a request of a job failed; the daemon is degraded
USAGE = 2
NOT_RUNNING = 3
UNKNOWN = 4  # the daemon's state cannot be known: no permission
CONFIG = 78  # EX_CONFIG of sysexits.h; the systemd unit does not restart on it
INTERRUPTED = 130  # 128 + SIGINT
