"""Response files are written by a process of their own.

Each file costs four short system calls, and a Python thread has to win back the interpreter lock after every one of
them: beside a busy main loop a thread gets a quarter of what a process does. The process holds nothing that cannot be
written again from the store, ignores the terminal's signals and ends when its socket closes.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import struct
from pathlib import Path
from typing import Never

import msgspec

from obatchd import log
from obatchd.spool.outbox import JobOutbox

HEADER = struct.Struct("<I")


class Batch(msgspec.Struct, array_like=True):
    """Successes of one job to be written, as (line, record)."""

    outbox: str
    records: list[tuple[int, bytes]]
    text_suffix: str


_batches = msgspec.msgpack.Decoder(list[Batch])
errors = msgspec.msgpack.Decoder(list[str])  # the answer: for each batch nothing, or why it could not be written
encode = msgspec.msgpack.Encoder().encode


def main(connection: socket.socket) -> Never:
    """Entry of the process; never returns."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    with contextlib.suppress(OSError), connection.makefile("rb") as stream:
        while header := stream.read(HEADER.size):
            body = stream.read(HEADER.unpack(header)[0])
            answer = encode([_write(batch) for batch in _batches.decode(body)])
            connection.sendall(HEADER.pack(len(answer)) + answer)
    os._exit(0)


def _write(batch: Batch) -> str:
    try:
        with JobOutbox(Path(batch.outbox), batch.text_suffix).response_files() as write:
            for line, record in batch.records:
                write(line, record)
    except OSError as error:
        return log.reason(error)
    return ""
