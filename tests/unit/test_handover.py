"""Frames of a submission from a client that does not keep to the protocol."""

from __future__ import annotations

import os
import socket

import pytest

from obatchd.client.handover import BATCH, receive_frame
from obatchd.errors import ControlError


def test_a_frame_in_many_parts_cannot_bring_descriptors_without_end() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs, open(os.devnull, "rb") as file:
        before = len(os.listdir("/proc/self/fd"))
        theirs.sendall((1000).to_bytes(4, "big"))
        for _ in range(4):
            socket.send_fds(theirs, [b"x"], [file.fileno()] * BATCH)
        with pytest.raises(ControlError) as error:
            receive_frame(ours, 0.5)
        assert error.value.code == "bad_frame"
        assert len(os.listdir("/proc/self/fd")) == before
