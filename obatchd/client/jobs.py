"""The client for scripts and notebooks: submit prompts, wait, read the answers."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING, Any, TypeVar, Unpack, overload

from obatchd.client.answers import Results
from obatchd.client.base import BaseClient, BaseJob, Priority, Retried, Schema, Since, form_of, typed
from obatchd.client.progress import progress as progress_here
from obatchd.client.settings import Settings
from obatchd.client.steps import run
from obatchd.documents.jobs import JobDocument
from obatchd.documents.models import ModelEntry, Models
from obatchd.documents.status import Status

if TYPE_CHECKING:
    from obatchd.client.base import Prompts

D = TypeVar("D")


class Client(BaseClient):
    """A daemon: that of a spool on this host, or one that listens elsewhere.

    >>> from obatchd.client import Client
    >>> client = Client()
    >>> job = client.submit(["Name three rivers in Africa.", "What is 17 + 25?"], model="tiny")
    >>> for answer in job.wait().results():
    ...     print(answer.id, answer.outcome, answer.prompt)
    0000001 succeeded Name three rivers in Africa.
    0000002 succeeded What is 17 + 25?

    Args:
        spool: its directory; None is what ``obatchctl`` takes: OBATCH_SPOOL, your own daemon's, else the host's.
        url: the address of another one, such as ``https://gpu.example.org:8434``; None is OBATCH_URL, where that is set
            and no spool is named.
        key: one of that host's ``obatchctl key add``; None is OBATCH_KEY.
        ca: a file with the certificates that are trusted; None is OBATCH_CA, else those of the system.
        patience_s: seconds that a daemon which goes away, say to be restarted, is waited for.
        transport: another way to a daemon than the sockets of a spool.

    Every method raises an error of :mod:`obatchd.errors`, with a message that says what to do and a ``code``;
    DaemonDownError where no daemon answers.
    """

    @overload
    def submit(
        self,
        prompts: Prompts,
        *,
        schema: type[D],
        model: str | None = None,
        label: str | None = None,
        priority: Priority | None = None,
        **settings: Unpack[Settings],
    ) -> Job[D]: ...

    @overload
    def submit(
        self,
        prompts: Prompts,
        *,
        schema: dict[str, Any] | None = None,
        model: str | None = None,
        label: str | None = None,
        priority: Priority | None = None,
        **settings: Unpack[Settings],
    ) -> Job[Any]: ...

    def submit(
        self,
        prompts: Prompts,
        *,
        schema: Schema = None,
        model: str | None = None,
        label: str | None = None,
        priority: Priority | None = None,
        **settings: Unpack[Settings],
    ) -> Job[Any]:
        """Hand prompts over; returns once the daemon has them safely on disk.

        >>> job = client.submit(
        ...     [{"id": "m1", "note": "A man of 61."}, {"id": "m2", "note": "A girl, 9."}],
        ...     model="tiny", template="How old? {note}", label="ages",
        ... )
        >>> [(answer.id, answer.input["note"]) for answer in job.wait().results()]
        [('m1', 'A man of 61.'), ('m2', 'A girl, 9.')]

        Args:
            prompts: texts; dicts, each a request (docs/formats.md); a data frame of pandas or polars, or a table of
                Arrow, each of whose rows is a prompt; or the path of a file or folder. A text alone is a path.
            schema: the form of the answers: a model of pydantic or another type, whose instances come back, or a JSON
                Schema.
            model: of requests that name none; None is the daemon's own.
            label: a name for the job, to find it by.
            priority: among your own jobs.
            settings: any other setting of a job, and the options of Ollama that are frequent.

        A connection that is lost, or a daemon that is restarted meanwhile, never makes two jobs of one call.

        Raises:
            ConfigError: a setting is wrong.
            ControlError: the prompts cannot be read or cannot become a job, or nothing may be taken now.
        """
        named = {"model": model, "label": label, "priority": priority, **settings}
        with closing(self._submission(prompts, schema, named)) as submission:
            document = self._got(run(submission))
        return Job(self._transport, document, submission.form, self._patience_s)

    @overload
    def job(self, name: str, *, schema: type[D]) -> Job[D]: ...

    @overload
    def job(self, name: str, *, schema: dict[str, Any] | None = None) -> Job[Any]: ...

    def job(self, name: str, *, schema: Schema = None) -> Job[Any]:
        """One of your jobs, by its id, label, the name of the drop, or a date, as for ``obatchctl job``.

        >>> client.job("ages").id == job.id
        True

        Args:
            schema: the type that its answers become; a job does not know the one that it was submitted with.

        Raises:
            NotFoundError: there is none.
            ControlError: several fit (``ambiguous``).
        """
        return Job(self._transport, self._one(name), form_of(schema), self._patience_s)

    def jobs(
        self,
        *,
        label: str | None = None,
        state: str | None = None,
        since: Since | None = None,
        limit: int = 100,
        everyone: bool = False,
    ) -> list[Job[Any]]:
        """Your jobs, newest first; with ``everyone``, those of all, for administrators.

        >>> [each.label for each in client.jobs(label="ages")]
        ['ages']

        Args:
            state: running, publishing, done or refused.
            since: accepted so long ago at most (``"7d"``), or after that time.
        """
        found = self._many(label, state, since, limit, everyone)
        return [Job(self._transport, document, None, self._patience_s) for document in found]

    def models(self) -> list[ModelEntry]:
        """The models in the stores of the servers.

        >>> sorted(model.name for model in client.models())
        ['simulated:latest', 'tiny:latest']
        """
        return typed(self._got(self._transport.get("models")), Models).models

    def status(self) -> Status:
        """Servers, GPUs and work as they are now.

        >>> client.status().state
        'running'
        """
        return typed(self._got(self._transport.get("status")), Status)


class Job(BaseJob[D]):
    """A job. ``D`` is the type of the data of its answers."""

    def status(self) -> JobDocument:
        """What the daemon knows of it now: counts, speed, time left, notes, causes of failures.

        >>> job.status().succeeded
        2
        """
        return typed(self._asked(), JobDocument)

    def wait(self, progress: bool = True, *, timeout_s: float | None = None) -> Job[D]:
        """Return when every request has its outcome; the job itself. A restart of the daemon does not end it.

        Failed requests raise nothing: see :meth:`failures`.

        Args:
            progress: show a bar in a terminal or a notebook, and elsewhere a line every half minute on standard error.
            timeout_s: the longest wait; None is as long as it takes.

        Raises:
            NotOverError: the time is up.
            DropRefused: the daemon has refused the drop since.
        """
        with closing(progress_here(progress)) as shown:
            self._over(run(self._waiting(shown, timeout_s)))
        return self

    def results(self, *, so_far: bool = False) -> Results[D]:
        """Its answers, in the order of the requests, with those of its retries in place of its failures.

        >>> for answer in job.results():
        ...     print(answer.id, answer.text.split(":")[0])
        m1 digest
        m2 digest

        Args:
            so_far: also of a job that is still running.

        Raises:
            NotOverError: it is still running.
            NotFoundError: its outbox is not there any more.
        """
        return self._results(so_far=so_far, failures=False)

    def failures(self, *, so_far: bool = False) -> Results[D]:
        """Those of :meth:`results` without an answer, or whose answer does not fit its type; each says what to do.

        >>> list(job.failures())
        []
        """
        return self._results(so_far=so_far, failures=True)

    def retry(self, *, only: Retried = "failed", model: str | None = None, **settings: Unpack[Settings]) -> Job[D]:
        """Ask again, as a new job, what has no answer; :meth:`results` of this one then has the new answers.

        Args:
            only: ``truncated`` or ``ungrounded`` ask those again whose answer needs a look.
            model: another one than before; ``settings`` likewise.

        Raises:
            ControlError: there is nothing to be tried again (``nothing``), or it is not over (``job_running``).
        """
        document = run(self._retrying(only, {"model": model, **settings}))
        return Job(self._transport, document, self._form, self._patience_s)

    def cancel(self) -> Job[D]:
        """End it; what is answered stays. Returns at once, :meth:`wait` when it is over. One that is over stays so."""
        self._cancel()
        return self
