"""Named instants at which a test may kill the process, so that crash safety is shown at every step of a protocol.

``OBATCHD_CRASH_AT="claim.after_intent:3"`` makes the third pass of that instant end the process by SIGKILL, as a
power cut would. Without the variable a pass costs one comparison.
"""

from __future__ import annotations

import os
import signal

_name, _, _count = os.environ.get("OBATCHD_CRASH_AT", "").partition(":")
_left = int(_count or 1)


def reach(name: str) -> None:
    """Pass the instant ``name``; dies here when the environment asks for it."""
    global _left
    if _name != name:
        return
    _left -= 1
    if _left <= 0:
        os.kill(os.getpid(), signal.SIGKILL)
