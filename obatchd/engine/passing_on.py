"""What a request brought and nobody used comes back with its failure too, so that rows can be joined.

An answer's record has these fields from its worker. A failure may be recorded by somebody who never saw the request:
the store that finds an id used twice, or a job that is cancelled. Their fields are read when the job is published.
"""

from __future__ import annotations

import contextlib
import os
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec

from obatchd.jobs.formats.request import unused_fields
from obatchd.jobs.model import Outcome
from obatchd.jobs.store import Segment

_HAS_INPUT = b'"input":{'


def with_input(
    rows: Iterable[tuple[int, Outcome, bytes]], segment: Segment, job: int, request_file: Path
) -> Iterator[tuple[int, Outcome, bytes]]:
    """``rows`` (line, outcome, record) of a job, failures completed by ``input`` where their request had such fields.

    A request file that is gone or was changed has none to give.
    """
    with contextlib.ExitStack() as stack:
        descriptor = -1
        for line, outcome, record in rows:
            if outcome is Outcome.SUCCEEDED or _HAS_INPUT in record:
                yield line, outcome, record
                continue
            if descriptor < 0:
                with contextlib.suppress(OSError):
                    descriptor = os.open(request_file, os.O_RDONLY | os.O_CLOEXEC)
                    stack.callback(os.close, descriptor)
            yield line, outcome, _completed(record, _bytes(descriptor, segment, job, line))


def _bytes(descriptor: int, segment: Segment, job: int, line: int) -> bytes:
    place = segment.place(job, line) if descriptor >= 0 else None
    if place is None or not place.length:
        return b""
    raw = os.pread(descriptor, place.length, place.offset)
    return raw if zlib.crc32(raw) == place.checksum else b""


def _completed(record: bytes, raw: bytes) -> bytes:
    fields = unused_fields(raw) if raw else {}
    return record[:-1] + b',"input":' + msgspec.json.encode(fields) + b"}" if fields else record
