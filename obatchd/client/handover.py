"""The wire format of ``submit.sock``: JSON frames, some with open descriptors.

A frame is four bytes of length (big endian) and JSON. The client says ``{"submit": {"name", "kind", "settings"}}``,
with a ``token`` where it would send the same once more after a lost connection, and then with ``again`` true. Then,
each time the daemon says ``{"next": true}``, it says either ``{"files": [names]}`` with one descriptor per name
(SCM_RIGHTS, at most ``BATCH``) or ``{"end": true}``. The daemon's last frame is ``{"job": {…}}`` or ``{"error": {…}}``;
an error may come instead of any ``next``. Waiting for ``next`` keeps descriptors in flight below the kernel's limit
(RLIMIT_NOFILE per user, unix(7)) and below both sides' own limits. Imported by ``obatchctl``: stays light.
"""

from __future__ import annotations

import json
import os
import socket
import struct
import time
from typing import Any

from obatchd.errors import ControlError

BATCH = 64
FRAME_LIMIT_BYTES = 1024**2
_LENGTH = struct.Struct("!I")


def send_frame(connection: socket.socket, document: dict[str, Any], descriptors: list[int] | None = None) -> None:
    """Send one frame; the descriptors travel with its first byte."""
    body = json.dumps(document).encode()
    frame = _LENGTH.pack(len(body)) + body
    sent = socket.send_fds(connection, [frame], descriptors) if descriptors else 0
    connection.sendall(frame[sent:])


def receive_frame(connection: socket.socket, timeout_s: float) -> tuple[dict[str, Any], list[int]]:
    """One frame and its descriptors, which the caller must close.

    Raises ControlError where the peer went away, is too slow or broke the protocol; no descriptor stays open.
    """
    deadline = time.monotonic() + timeout_s
    descriptors: list[int] = []
    try:
        (length,) = _LENGTH.unpack(_receive(connection, _LENGTH.size, deadline, descriptors))
        if length > FRAME_LIMIT_BYTES:
            raise ControlError(f"a frame of {length} bytes is too long", code="bad_frame")
        document = json.loads(_receive(connection, length, deadline, descriptors))
        if not isinstance(document, dict):
            raise ControlError("a frame must be a JSON object", code="bad_frame")
    except (ValueError, RecursionError) as error:
        close_all(descriptors)
        raise ControlError("a frame is not JSON", code="bad_frame") from error
    except OSError as error:
        close_all(descriptors)
        raise ControlError(f"the other side went away or is too slow: {error}", code="handover_broken") from error
    except ControlError:
        close_all(descriptors)
        raise
    return document, descriptors


def close_all(descriptors: list[int]) -> None:
    """Close and forget every descriptor of the list."""
    while descriptors:
        os.close(descriptors.pop())


def _receive(connection: socket.socket, size: int, deadline: float, descriptors: list[int]) -> bytes:
    data = bytearray()
    while len(data) < size:
        connection.settimeout(max(0.001, deadline - time.monotonic()))
        # Descriptors beyond the room given here are closed by the kernel (MSG_CTRUNC), so a count check finds them.
        part, received, _, _ = socket.recv_fds(connection, size - len(data), BATCH, socket.MSG_CMSG_CLOEXEC)
        descriptors += received
        if len(descriptors) > BATCH:  # a frame may come in a million parts, each with as many
            raise ControlError("a frame has too many descriptors", code="bad_frame")
        if not part:
            raise ConnectionResetError("connection closed")
        data += part
    return bytes(data)
