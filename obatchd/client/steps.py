"""What takes longer than one call: each a step that is tried until it gives something, by a thread or by asyncio.

A daemon that is restarted in the middle is waited for. Nothing that it may have done already is done twice.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, TypeVar

from obatchd.client.drops import Drop
from obatchd.client.progress import Progress
from obatchd.client.transport import AWAY, Document, Transport
from obatchd.errors import DaemonDownError, NotOverError, ObatchError
from obatchd.times import duration

T_co = TypeVar("T_co", covariant=True)
T = TypeVar("T")
OVER = ("done", "refused")
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.05, 1.0  # between two looks at a job
_SLOWER = 1.3
_AWAY_PAUSE_S = 0.5
_STAYS_AWAY = ("permission", "no_spool")  # no restart changes that


class Step(Protocol[T_co]):
    """Something that is tried again and again."""

    pause_s: float  # before the next try

    def look(self) -> T_co | None:
        """One try, which may block for a moment; None: not yet."""


def run(step: Step[T]) -> T:
    """What comes of a step in the end."""
    while (found := step.look()) is None:
        time.sleep(step.pause_s)
    return found


class Patience:
    """Waits for a daemon that went away.

    Args:
        limit_s: seconds that it may stay away.
        reached: it has answered before; a daemon that never did is not waited for.
        tell: hears once each time that it is away, in words for people.
    """

    def __init__(
        self,
        limit_s: float,
        tell: Callable[[str], None],
        *,
        reached: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._limit_s = limit_s
        self._tell = tell
        self._reached = reached
        self._clock = clock
        self._since_s: float | None = None

    def lost(self, error: ObatchError) -> None:
        """Go on waiting after ``error``, or raise it: it means something else, or the time is up."""
        down = isinstance(error, DaemonDownError)
        if not (down or error.code in AWAY) or error.code in _STAYS_AWAY or (down and not self._reached):
            raise error
        self._reached = True
        if self._since_s is None:
            self._since_s = self._clock()
            self._tell(f"obatchd does not answer; waiting {duration(self._limit_s)} for it to come back.")
        if self._clock() - self._since_s >= self._limit_s:
            raise error

    def back(self) -> None:
        """It has answered."""
        self._reached, self._since_s = True, None


class Taker(Protocol):
    """The part of a transport that takes submissions."""

    def submit(self, path: Path, settings: Document, token: str, *, again: bool) -> Document: ...


class Submitting:
    """Hands a drop over, once, however often the connection is lost."""

    pause_s = _AWAY_PAUSE_S

    def __init__(self, transport: Taker, drop: Drop, patience: Patience) -> None:
        self._transport, self._drop, self._patience = transport, drop, patience
        self._token = secrets.token_hex(16)
        self._again = False

    def look(self) -> Document | None:
        path, settings = self._drop
        try:
            return self._transport.submit(path, settings, self._token, again=self._again)
        except ObatchError as error:
            self._patience.lost(error)
            self._again = True
            return None


class Waiting:
    """Looks at a job until it is over."""

    pause_s = _FIRST_PAUSE_S

    def __init__(
        self, transport: Transport, job: str, patience: Patience, progress: Progress, timeout_s: float | None
    ) -> None:
        self._transport, self._job, self._patience, self._progress = transport, job, patience, progress
        self._timeout_s = timeout_s
        self._began_s = time.monotonic()

    def look(self) -> Document | None:
        job: Document | None = None
        try:
            job = self._transport.get("jobs", self._job)
        except ObatchError as error:
            self._patience.lost(error)
            self.pause_s = _AWAY_PAUSE_S
        else:
            self._patience.back()
            self._progress.show(job)
            if job["state"] in OVER:
                return job
            self.pause_s = min(self.pause_s * _SLOWER, _LONGEST_PAUSE_S)
        if self._timeout_s is not None and time.monotonic() - self._began_s >= self._timeout_s:
            raise NotOverError(
                f"job {self._job} is not over after {duration(self._timeout_s)}; the work goes on. Wait again, or end "
                "it with job.cancel()"
            )
        return None


class Looking:
    """Looks at a job once."""

    pause_s = _AWAY_PAUSE_S

    def __init__(self, transport: Transport, job: str, patience: Patience) -> None:
        self._transport, self._job, self._patience = transport, job, patience

    def look(self) -> Document | None:
        try:
            return self._transport.get("jobs", self._job)
        except ObatchError as error:
            self._patience.lost(error)
            return None


class Fetching:
    """Finds the results of a job, or copies them from another host. ``job`` is its document, or its id."""

    pause_s = _AWAY_PAUSE_S

    def __init__(self, transport: Transport, job: Document | str, patience: Patience) -> None:
        self._transport, self._job, self._patience = transport, job, patience

    def look(self) -> tuple[Path | None] | None:
        try:
            job = self._transport.get("jobs", self._job) if isinstance(self._job, str) else self._job
            return (self._transport.outbox(job),)
        except ObatchError as error:
            self._patience.lost(error)
            return None


class Retrying:
    """Has a job's failures tried again, once, however often the connection is lost."""

    pause_s = _AWAY_PAUSE_S

    def __init__(self, transport: Transport, job: str, body: dict[str, Any], patience: Patience) -> None:
        self._transport, self._job, self._body, self._patience = transport, job, body, patience
        self._before: list[str] | None = None  # retries that there were; None until that is known

    def look(self) -> Document | None:
        try:
            retries: list[str] = self._transport.get("jobs", self._job).get("retries") or []
            if self._before is None:
                self._before = retries
            elif made := [job for job in retries if job not in self._before]:
                return self._transport.get("jobs", made[-1])
            return self._transport.post("jobs", self._job, "retry", body=self._body)
        except ObatchError as error:
            self._patience.lost(error)
            return None
