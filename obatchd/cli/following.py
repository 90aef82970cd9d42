"""``obatchctl results --follow``: answers of a job as they come, until it is over."""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

from obatchd.cli.command import Document, Invocation
from obatchd.cli.views.waiting import over_restarts
from obatchd.client.control import ControlClient
from obatchd.errors import ControlError
from obatchd.results.export import Format, export
from obatchd.results.rows import ResultSet, Row
from obatchd.results.tally import Tally

FORMS = ("text", "jsonl")  # that need not know all rows before the first
_PART = 200  # answers that are asked for at a time
_LEAST_S = 0.5  # between two looks
_SHARE = (
    10  # a look that takes long, because much is missing before the latest, is followed by so many times its length
)
_OVER = ("done", "refused")


class Following:
    """The answers of a job in the order in which they come, as :class:`obatchd.results.export.Rows`."""

    def __init__(self, client: ControlClient, job: str, target: BinaryIO) -> None:
        """``target`` is flushed before every pause."""
        self._client, self._job, self._target = client, job, target

    def rows(self) -> Iterator[Row]:
        """Each once. One that is missing before others is looked for again and again."""
        settled, seen = 0, set[int]()
        while True:
            began_s, parts = time.monotonic(), self._parts(settled)
            first = next(parts)
            for part in chain([first], parts):
                for result in part["results"]:
                    if result["at"] not in seen:
                        seen.add(result["at"])
                        yield Row(result["record"])
            if first["state"] in _OVER:
                return
            settled = max(settled, first["settled"])
            seen = {place for place in seen if place > settled}
            self._target.flush()
            time.sleep(max(_LEAST_S, _SHARE * (time.monotonic() - began_s)))

    def _parts(self, place: int | None) -> Iterator[Document]:
        """All results above a place, in parts."""
        query = {"limit": _PART, "settled": 1}
        while place is not None:
            ask = partial(self._client.get, "jobs", self._job, "results", after=place, **query)
            yield (part := over_restarts(ask))
            place = part["next"]


def follow(
    invocation: Invocation, place: str, form: Format | None, target: BinaryIO, **options: Any
) -> tuple[ResultSet | None, Tally]:
    """Write the answers of a job as they come; returns where they are, when the job is over, and their count."""
    client = invocation.client()
    job = client.get("jobs", place)
    if job["outbox"] is None:
        raise ControlError(f"job {job['job']} was refused: {'; '.join(job['notes'])}", code="refused")
    tally = export(Following(client, job["job"], target), form or "text", target, at_once=True, **options)
    target.flush()
    outbox = Path(job["outbox"])
    return ResultSet(outbox) if outbox.exists() else None, tally
