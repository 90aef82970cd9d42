"""What systemd says of the system service: whether it has given up, its last words, and where it lets it write."""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Mapping
from pathlib import Path

_TIMEOUT_S = 5.0
_PROPERTIES = "LoadState,ActiveState,ProtectSystem,ReadWritePaths,StateDirectory,RuntimeDirectory"
# With ProtectSystem=strict everything else can only be read, systemd.exec(5).
_OPEN = (Path("/dev"), Path("/proc"), Path("/sys"))
_BASES = {"StateDirectory": Path("/var/lib"), "RuntimeDirectory": Path("/run")}


def properties() -> dict[str, str]:
    """Those of the unit; empty where it is not installed, or systemd does not answer."""
    told = _said("systemctl", "show", "obatchd.service", f"--property={_PROPERTIES}")
    found = dict(line.split("=", 1) for line in told.splitlines() if "=" in line)
    return found if found.get("LoadState") == "loaded" else {}


def has_failed(found: Mapping[str, str]) -> bool:
    """Whether systemd starts it no more: it would refuse a plain start, too, after many starts."""
    return found.get("ActiveState") == "failed"


def last_words() -> str:
    """The last line in the log of the daemon itself; empty where there is none that the caller may read."""
    fields = ("_SYSTEMD_UNIT=obatchd.service", "SYSLOG_IDENTIFIER=obatchd")
    lines = _said("journalctl", "--quiet", "--no-pager", "--lines=1", "--output=cat", *fields).splitlines()
    return lines[-1].strip() if lines else ""


def shuts(found: Mapping[str, str], path: Path) -> bool:
    """Whether the unit lets its daemon only read ``path``."""
    if found.get("ProtectSystem") != "strict":
        return False
    open_to_it = [*_OPEN, *(Path(entry.lstrip("+-")) for entry in shlex.split(found.get("ReadWritePaths", "")))]
    open_to_it += [base / name for key, base in _BASES.items() for name in found.get(key, "").split()]
    return not any(path.resolve().is_relative_to(place.resolve()) for place in open_to_it)


def _said(*command: str) -> str:
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=_TIMEOUT_S
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.decode("utf-8", "replace")
