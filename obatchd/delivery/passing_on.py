"""A failure has the prompt and the unused fields of its request.

The record of an attempt has both from its worker. A failure may be recorded by somebody who never saw the request:
the store that finds an id used twice, or a job that is cancelled. Then they are read when the job is published.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec

from obatchd.jobs.formats.request import request_prompt, unused_fields
from obatchd.jobs.model import Outcome
from obatchd.jobs.store import Segment

_FROM_WORKER = b'"prompt":'  # as a name: within a string its quotation marks are escaped


def with_input(
    rows: Iterable[tuple[int, Outcome, bytes]], segment: Segment, job: int, request_file: Path
) -> Iterator[tuple[int, Outcome, bytes]]:
    """``rows`` (line, outcome, record) of a job, failures completed by ``prompt`` and ``input`` of their request.

    A request file that is gone or was changed has none to give.
    """
    with contextlib.ExitStack() as stack:
        descriptor = -1
        for line, outcome, record in rows:
            if outcome is Outcome.SUCCEEDED or _FROM_WORKER in record:
                yield line, outcome, record
                continue
            if descriptor < 0:
                with contextlib.suppress(OSError):
                    descriptor = os.open(request_file, os.O_RDONLY | os.O_CLOEXEC)
                    stack.callback(os.close, descriptor)
            place = segment.place(job, line) if descriptor >= 0 else None
            raw = place.read(descriptor) if place is not None else None
            yield line, outcome, _completed(record, raw) if raw else record


def _completed(record: bytes, raw: bytes) -> bytes:
    found = {"prompt": request_prompt(raw), "input": unused_fields(raw)}
    given = msgspec.json.encode({name: value for name, value in found.items() if value})
    return record[:-1] + b"," + given[1:] if len(given) > 2 else record
