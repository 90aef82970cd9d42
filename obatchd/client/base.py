"""What the client for scripts and the one for asyncio have in common. Every method here may block."""

from __future__ import annotations

import os
import tempfile
import threading
import time
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeAlias, TypeVar

import msgspec

from obatchd.client import runtime
from obatchd.client.answers import Results, advice_in
from obatchd.client.drops import as_drop, not_written
from obatchd.client.forms import Form
from obatchd.client.progress import ENDED, Progress, ended, progress
from obatchd.client.remote import RemoteDaemon
from obatchd.client.settings import as_sent
from obatchd.client.steps import OVER, Fetching, Looking, Patience, Retrying, Submitting, Waiting, run
from obatchd.client.transport import Document, Sockets, Transport
from obatchd.errors import ControlError, DaemonDownError, DropRefused, NotFoundError, NotOverError
from obatchd.results.chain import Chain
from obatchd.results.rows import ResultSet
from obatchd.times import span_s
from obatchd.words import counted, misfit

if TYPE_CHECKING:
    import pandas
    import polars
    import pyarrow

    Frame: TypeAlias = pandas.DataFrame | polars.DataFrame | pyarrow.Table
    Prompts: TypeAlias = Iterable[str] | Iterable[Mapping[str, Any]] | str | os.PathLike[str] | Frame

D = TypeVar("D")
T = TypeVar("T")
Priority = Literal["low", "normal", "high"]
Retried = Literal["failed", "truncated", "ungrounded"]
PATIENCE_S = 120.0
Since: TypeAlias = timedelta | datetime | str  # so long ago ("7d"), or a time
Schema: TypeAlias = type[Any] | dict[str, Any] | None
# Two threads that convert to the same class for the first time end the process (SIGSEGV, msgspec 0.22).
_one_thread = threading.Lock()


class BaseJob(Generic[D]):
    """A job as the daemon last told it. ``D`` is the type of the data of its answers."""

    def __init__(self, transport: Transport, document: Document, form: Form[D] | None, patience_s: float) -> None:
        self._transport, self._form, self._patience_s = transport, form, patience_s
        self._known = document

    def __repr__(self) -> str:
        kind, told = type(self).__name__, [f"{self._known[name]:,} {name}" for name in ENDED if self._known[name]]
        return f"<{kind} {self.id} {self.label or self.name}: {', '.join([self.state, *told])}>"

    @property
    def id(self) -> str:
        return str(self._known["job"])

    @property
    def name(self) -> str:
        """The name of the drop."""
        return str(self._known["name"])

    @property
    def label(self) -> str | None:
        """The name that its owner gave it."""
        return self._known.get("label")

    @property
    def state(self) -> str:
        """``running``, ``publishing``, ``done``, ``refused`` …, when the daemon was last asked about the job."""
        return str(self._known["state"])

    @property
    def outbox(self) -> Path | None:
        """The directory of its results, which may not be there yet; None of a job that was refused."""
        return self._transport.outbox(self._known)

    def _asked(self) -> Document:
        """The document of now."""
        self._known = self._transport.get("jobs", self.id)
        return self._known

    def _waiting(self, shown: Progress, timeout_s: float | None) -> Waiting:
        return Waiting(self._transport, self.id, Patience(self._patience_s, shown.tell), shown, timeout_s)

    def _over(self, document: Document) -> None:
        """Take the last document; raises DropRefused where the daemon has refused the drop since."""
        self._known = document
        if self.state == "refused":
            raise DropRefused(f"job {self.id} ({self.name}) was refused: {'; '.join(document['notes'])}")

    def _retrying(self, only: Retried, settings: dict[str, Any]) -> Retrying:
        body = {"settings": as_sent(settings), "only": only}
        return Retrying(self._transport, self.id, body, self._patience())

    def _cancel(self) -> None:
        try:
            self._known = self._transport.post("jobs", self.id, "cancel")
        except ControlError as error:
            if error.code != "job_over":
                raise

    def _results(self, *, so_far: bool, failures: bool) -> Results[D]:
        reached = True
        try:
            self._asked()
        except DaemonDownError:
            reached = self.state != "done"  # what is over can be read without it, where it lies on this host
            if reached:
                self._known = run(Looking(self._transport, self.id, self._patience()))
        if self.state == "refused":
            self._over(self._known)
        if self.state not in OVER and not so_far:
            done, total = ended(self._known), self._known["requests"]
            of = f"{done:,} of {counted(total, 'request')}" if total is not None else counted(done, "request")
            raise NotOverError(
                f"job {self.id} is still running, with {of} done. Wait for it with job.wait(), or take the answers so "
                "far with so_far=True"
            )
        source, advice = self._source(so_far, reached)
        return Results(source, self._form, advice, failures=failures)

    def _fetched(self, job: Document | str) -> Path | None:
        [place] = run(Fetching(self._transport, job, self._patience()))
        return place

    def _patience(self) -> Patience:
        return Patience(self._patience_s, progress(True).tell)

    def _source(self, so_far: bool, reached: bool) -> tuple[ResultSet | None, dict[str, str]]:
        """Where its results are read, with those of its retries, and what to do about failures, by code.

        A daemon that was ``reached`` is waited for, where it goes in the middle.
        """
        outbox = self._fetched(self._known)
        if outbox is None or (so_far and not outbox.exists()):
            return None, {}
        retries: list[tuple[str, Path]] = []
        for name in self._known.get("retries") or ():
            try:
                place = self._fetched(name) if reached else self._transport.outbox(self._transport.get("jobs", name))
            except NotFoundError:  # it was erased
                continue
            except DaemonDownError:
                if reached:
                    raise
                continue  # nobody can say where it is
            if place is not None:
                retries.append((name, place))
        advice = {code: told for place in (outbox, *dict(retries).values()) for code, told in advice_in(place).items()}
        return Chain(outbox, retries) if retries else ResultSet(outbox), advice


class BaseClient:
    """A daemon: that of a spool on this host, or one that listens elsewhere.

    Args:
        spool: its directory; None is what ``obatchctl`` takes: OBATCH_SPOOL, your own daemon's, else the host's.
        url: the address of another one, such as ``https://gpu.example.org:8434``; None is OBATCH_URL, where that is set
            and no spool is named.
        key: one of that host's ``obatchctl key add``; None is OBATCH_KEY.
        ca: a file with the certificates that are trusted; None is OBATCH_CA, else those of the system.
        patience_s: seconds that a daemon which goes away, say to be restarted, is waited for.
        transport: another way to a daemon than the sockets of a spool.
    """

    def __init__(
        self,
        spool: str | os.PathLike[str] | None = None,
        *,
        url: str | None = None,
        key: str | None = None,
        ca: str | os.PathLike[str] | None = None,
        patience_s: float = PATIENCE_S,
        transport: Transport | None = None,
    ) -> None:
        self._transport = transport or _way(spool, url, key, ca)
        self._patience_s = patience_s
        self._reached = False  # a daemon that was there comes back; one that never was does not

    def _submission(self, prompts: Any, schema: Schema, settings: Mapping[str, Any]) -> Submission:
        """A submission, which has to be closed."""
        form = form_of(schema)
        sent = as_sent(settings)
        if form is not None:
            if "format" in sent:
                raise ControlError("schema and format both say the form of the answers; give one of them", code="usage")
            sent["format"] = form.schema
        patience = Patience(self._patience_s, progress(True).tell, reached=self._reached)
        return Submission(self._transport, prompts, sent, form, patience)

    def _one(self, name: str) -> Document:
        return self._got(self._transport.get("jobs", name))

    def _many(
        self, label: str | None, state: str | None, since: Since | None, limit: int, everyone: bool
    ) -> list[Document]:
        since_s = None if since is None else _moment_s(since)
        owner = "all" if everyone else "mine"
        asked = self._transport.get("jobs", label=label, state=state, since=since_s, limit=limit, owner=owner)
        found: list[Document] = self._got(asked)["jobs"]
        return found

    def _got(self, document: Document) -> Document:
        self._reached = True
        return document


def _way(
    spool: str | os.PathLike[str] | None, url: str | None, key: str | None, ca: str | os.PathLike[str] | None
) -> Transport:
    """The way to the daemon that is named, by arguments before variables."""
    if spool is not None and url is not None:
        raise ControlError("spool and url both name a daemon; give one of them", code="usage")
    own = runtime.spool_of_variables() if spool is None else Path(spool).expanduser().absolute()
    if url is None and own is None:
        url = os.environ.get("OBATCH_URL")
    if not url:
        return Sockets(own or runtime.default_spool())
    return RemoteDaemon(url, key or os.environ.get("OBATCH_KEY", ""), ca or os.environ.get("OBATCH_CA"))


class Submission:
    """One call of ``submit``, as a step: the prompts are written in the first try."""

    def __init__(
        self, transport: Transport, prompts: Any, settings: dict[str, Any], form: Form[Any] | None, patience: Patience
    ) -> None:
        self.form = form
        self.pause_s = Submitting.pause_s
        self._transport, self._patience = transport, patience
        self._prompts, self._settings = prompts, settings
        self._at_end = ExitStack()
        self._submitting: Submitting | None = None

    def look(self) -> Document | None:
        if self._submitting is None:
            try:
                folder = self._at_end.enter_context(tempfile.TemporaryDirectory(prefix="obatchd-"))
            except OSError as error:
                raise not_written(error) from None
            drop = as_drop(self._prompts, self._settings, Path(folder))
            self._submitting = Submitting(self._transport, drop, self._patience)
        return self._submitting.look()

    def close(self) -> None:
        """Delete what was written for the daemon."""
        self._at_end.close()


def _moment_s(since: Since) -> float:
    """Wall-clock seconds of a time, or of so long ago."""
    if isinstance(since, datetime):
        return since.timestamp()
    try:
        return time.time() - (since.total_seconds() if isinstance(since, timedelta) else span_s(since))
    except (AttributeError, ValueError):
        raise ControlError(
            f'since must be a length of time such as "7d", or a time; not {since}', code="usage"
        ) from None


def form_of(schema: Schema) -> Form[Any] | None:
    return None if schema is None else Form.of(schema)


def typed(document: Document, kind: type[T]) -> T:
    """An answer of the daemon as its type. Raises ControlError (``version``) where it has another form."""
    try:
        with _one_thread:
            return msgspec.convert(document, kind)
    except msgspec.ValidationError as error:
        raise ControlError(
            f"the daemon's answer has another form than this client knows: {misfit(error)}. Both must be of the same "
            "version of obatchd",
            code="version",
        ) from None
