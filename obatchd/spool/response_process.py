"""Response files are written by a process of their own.

Each file costs four short system calls, and a Python thread has to win back the interpreter lock after every one of
them: beside a busy main loop a thread gets a quarter of a process's work done. The process holds nothing that cannot be
written again from the store.
"""

from __future__ import annotations

import socket
from pathlib import Path

import msgspec

from obatchd import frames, log
from obatchd.spool.outbox import JobOutbox


class Batch(msgspec.Struct, array_like=True):
    """Successes of one job to be written, as (line, record)."""

    outbox: str
    records: list[tuple[int, bytes]]
    text_suffix: str


_batches = msgspec.msgpack.Decoder(list[Batch])
errors = msgspec.msgpack.Decoder(list[str])  # the answer: for each batch nothing, or why it could not be written


def main(connection: socket.socket) -> None:
    while True:
        frames.send(connection, [_write(batch) for batch in frames.receive(connection, _batches)])


def _write(batch: Batch) -> str:
    try:
        with JobOutbox(Path(batch.outbox), batch.text_suffix).response_files() as write:
            for line, record in batch.records:
                write(line, record)
    except OSError as error:
        return log.reason(error)
    return ""
