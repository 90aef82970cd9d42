"""The client for asyncio: the same as :mod:`obatchd.client.jobs`, and nothing of it holds up the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import closing
from itertools import islice
from typing import TYPE_CHECKING, Any, Generic, TypeVar, Unpack, overload

from obatchd.client.answers import Answer, Results
from obatchd.client.base import BaseClient, BaseJob, Priority, Retried, Schema, Since, form_of, typed
from obatchd.client.progress import progress as progress_here
from obatchd.client.settings import Settings
from obatchd.client.steps import Step
from obatchd.documents.jobs import JobDocument
from obatchd.documents.models import ModelEntry, Models
from obatchd.documents.status import Status

if TYPE_CHECKING:
    import pandas
    import pyarrow

    from obatchd.client.base import Prompts

D = TypeVar("D")
T = TypeVar("T")
_AT_ONCE = 500  # answers that a thread reads at a time


class AsyncClient(BaseClient):
    """A daemon, for asyncio; :class:`obatchd.client.Client` says what each method does.

    >>> import asyncio
    >>> from obatchd.client import AsyncClient
    >>> async def ask(client, word):
    ...     job = await client.submit([f"What is {word}?"], model="tiny")
    ...     await job.wait()
    ...     return [answer.prompt async for answer in await job.results()]
    >>> async def main():
    ...     client = AsyncClient()
    ...     return await asyncio.gather(ask(client, "silk"), ask(client, "amber"))
    >>> asyncio.run(main())
    [['What is silk?'], ['What is amber?']]
    """

    @overload
    async def submit(
        self,
        prompts: Prompts,
        *,
        schema: type[D],
        model: str | None = None,
        label: str | None = None,
        priority: Priority | None = None,
        **settings: Unpack[Settings],
    ) -> AsyncJob[D]: ...

    @overload
    async def submit(
        self,
        prompts: Prompts,
        *,
        schema: dict[str, Any] | None = None,
        model: str | None = None,
        label: str | None = None,
        priority: Priority | None = None,
        **settings: Unpack[Settings],
    ) -> AsyncJob[Any]: ...

    async def submit(
        self,
        prompts: Prompts,
        *,
        schema: Schema = None,
        model: str | None = None,
        label: str | None = None,
        priority: Priority | None = None,
        **settings: Unpack[Settings],
    ) -> AsyncJob[Any]:
        """As :meth:`obatchd.client.Client.submit`. A call that is cancelled may have made its job all the same."""
        named = {"model": model, "label": label, "priority": priority, **settings}
        with closing(await asyncio.to_thread(self._submission, prompts, schema, named)) as submission:
            document = self._got(await _run(submission))
        return AsyncJob(self._transport, document, submission.form, self._patience_s)

    @overload
    async def job(self, name: str, *, schema: type[D]) -> AsyncJob[D]: ...

    @overload
    async def job(self, name: str, *, schema: dict[str, Any] | None = None) -> AsyncJob[Any]: ...

    async def job(self, name: str, *, schema: Schema = None) -> AsyncJob[Any]:
        document = await asyncio.to_thread(self._one, name)
        return AsyncJob(self._transport, document, form_of(schema), self._patience_s)

    async def jobs(
        self,
        *,
        label: str | None = None,
        state: str | None = None,
        since: Since | None = None,
        limit: int = 100,
        everyone: bool = False,
    ) -> list[AsyncJob[Any]]:
        found = await asyncio.to_thread(self._many, label, state, since, limit, everyone)
        return [AsyncJob(self._transport, document, None, self._patience_s) for document in found]

    async def models(self) -> list[ModelEntry]:
        return typed(self._got(await asyncio.to_thread(self._transport.get, "models")), Models).models

    async def status(self) -> Status:
        return typed(self._got(await asyncio.to_thread(self._transport.get, "status")), Status)


class AsyncJob(BaseJob[D]):
    """A job; :class:`obatchd.client.Job` says what each method does."""

    async def status(self) -> JobDocument:
        return typed(await asyncio.to_thread(self._asked), JobDocument)

    async def wait(self, progress: bool = False, *, timeout_s: float | None = None) -> AsyncJob[D]:
        """As :meth:`obatchd.client.Job.wait`, without a bar, because several may be waited for at once."""
        with closing(progress_here(progress)) as shown:
            self._over(await _run(self._waiting(shown, timeout_s)))
        return self

    async def results(self, *, so_far: bool = False) -> AsyncResults[D]:
        return AsyncResults(await asyncio.to_thread(self._results, so_far=so_far, failures=False))

    async def failures(self, *, so_far: bool = False) -> AsyncResults[D]:
        return AsyncResults(await asyncio.to_thread(self._results, so_far=so_far, failures=True))

    async def retry(
        self, *, only: Retried = "failed", model: str | None = None, **settings: Unpack[Settings]
    ) -> AsyncJob[D]:
        document = await _run(self._retrying(only, {"model": model, **settings}))
        return AsyncJob(self._transport, document, self._form, self._patience_s)

    async def cancel(self) -> AsyncJob[D]:
        await asyncio.to_thread(self._cancel)
        return self


class AsyncResults(Generic[D]):
    """Answers of a job, read by threads, some hundred at a time."""

    def __init__(self, results: Results[D]) -> None:
        self._results = results

    def __repr__(self) -> str:
        return repr(self._results)

    async def __aiter__(self) -> AsyncIterator[Answer[D]]:
        answers = iter(self._results)
        while batch := await asyncio.to_thread(_some, answers):
            for answer in batch:
                yield answer

    async def to_pandas(self) -> pandas.DataFrame:
        return await asyncio.to_thread(self._results.to_pandas)

    async def to_arrow(self) -> pyarrow.Table:
        return await asyncio.to_thread(self._results.to_arrow)


def _some(answers: Iterator[Answer[D]]) -> list[Answer[D]]:
    return list(islice(answers, _AT_ONCE))


async def _run(step: Step[T]) -> T:
    """What comes of a step in the end. Each try is in a thread, and no thread waits between them."""
    while (found := await asyncio.to_thread(step.look)) is None:
        await asyncio.sleep(step.pause_s)
    return found
