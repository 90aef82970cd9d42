"""The way from a Python program to the daemon: the one thing that differs between sockets on this host and others."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

from obatchd.client import control
from obatchd.errors import ConfigError, ControlError, DropRefused, ForbiddenError

Document = dict[str, Any]
# Codes of a daemon that is being stopped, or whose connection was lost, or whom this user asks too much at a time.
AWAY = ("handover_broken", "stopping", "busy", "too_many_calls")


class Transport(Protocol):
    """Carries questions, submissions and results. Every method raises DaemonDownError where no daemon answers, and
    another ControlError for what is refused."""

    def get(self, path: str, *names: str, **query: str | float | None) -> Document:
        """The answer to ``GET /v1/<path>``, with each of ``names`` as one segment behind it."""

    def post(self, path: str, *names: str, body: Document | None = None) -> Document:
        """The answer to ``POST /v1/<path>``, likewise."""

    def submit(self, path: Path, settings: Document, token: str, *, again: bool) -> Document:
        """Hand a file or folder over; the job, once it is durable. With the same token it is one job, however often it
        is sent ``again``."""

    def outbox(self, job: Document) -> Path | None:
        """A directory with the files of a job's outbox, on this host; None where it has none."""


_LEAVES = {kind.code: kind for kind in (ConfigError, DropRefused, ForbiddenError)}


class Sockets(control.ControlClient):
    """The Unix sockets of a daemon on this host. Its outbox is read where it lies: a job's owner may read it."""

    def submit(self, path: Path, settings: Document, token: str = "", *, again: bool = False) -> Document:
        try:
            return super().submit(path, settings, token, again=again)
        except ControlError as error:  # answers to submissions have a code alone, which says the leaf
            if (kind := _LEAVES.get(error.code)) is None:
                raise
            raise kind(error.message) from None

    def outbox(self, job: Document) -> Path | None:
        return Path(job["outbox"]) if job["outbox"] else None
