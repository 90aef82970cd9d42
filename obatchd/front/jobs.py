"""Routes of the Python client on another host, below ``/obatchd/v1``: jobs as the control API has them.

They may change with every version: the client and the daemon have to be of the same.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
from aiohttp import web
from attrs import define

from obatchd.control.answer import answer
from obatchd.control.auth import Caller
from obatchd.control.job_routes import ACTIONS, JobRoutes
from obatchd.control.operations import AnswerOperations, HostOperations, JobOperations, ModelOperations, Submission
from obatchd.control.programs import BATCHES, SCOPES_OF_PROGRAMS, FileOperations, ResultFiles
from obatchd.control.submit import TOKEN_LIMIT, is_file_name
from obatchd.documents.jobs import JobDocument, Submitted
from obatchd.documents.models import Models
from obatchd.errors import ApiError, ControlError, ObatchError
from obatchd.front.answers import body_of
from obatchd.front.files import Download
from obatchd.front.routes import CALLER, Handler, Route
from obatchd.tasks import to_its_end
from obatchd.words import misfit

BELOW = "/obatchd/v1"
_SO_FAR = "so-far.jsonl"
_LINES = "application/jsonl"
_OF_A_JOB = ("-input", "-output", "-error")  # files of batches, which stay


class _Asked(msgspec.Struct, forbid_unknown_fields=True):
    """The body of a submission: ``file`` was uploaded before, and is gone when there is a job."""

    file: str
    name: str
    settings: dict[str, Any] = {}
    token: str = ""  # the same whenever the client sends this submission


_asked = msgspec.json.Decoder(_Asked)


@define(eq=False)
class RemoteRoutes:
    """The routes."""

    _jobs: JobOperations
    _models: ModelOperations
    _host: HostOperations
    _files: FileOperations
    _results: ResultFiles
    _answers: AnswerOperations

    def routes(self) -> list[Route]:
        jobs, one = JobRoutes(self._jobs, self._answers), f"{BELOW}/jobs/{{job}}"
        return [
            Route("GET", f"{BELOW}/status", self._status, SCOPES_OF_PROGRAMS),
            Route("GET", f"{BELOW}/models", self._list_models, SCOPES_OF_PROGRAMS),
            Route("GET", f"{BELOW}/jobs", jobs.all, (BATCHES,)),
            Route("POST", f"{BELOW}/jobs", self._submit, (BATCHES,)),
            Route("GET", one, jobs.one, (BATCHES,)),
            Route("DELETE", one, _whole(jobs.remove), (BATCHES,)),
            Route("GET", f"{one}/failures", jobs.failures, (BATCHES,)),
            Route("GET", f"{one}/results", jobs.results, (BATCHES,)),
            Route("POST", f"{one}/retry", _whole(jobs.retry), (BATCHES,)),
            Route("POST", f"{one}/{{action:{ACTIONS}}}", _whole(jobs.act), (BATCHES,)),
            Route("GET", f"{one}/files/{_SO_FAR}", self._so_far, (BATCHES,)),
            Route("GET", f"{one}/files/{{name}}", self._file, (BATCHES,)),
        ]

    async def _status(self, request: web.Request) -> web.Response:
        return answer(self._host.status(request[CALLER]))

    async def _list_models(self, request: web.Request) -> web.Response:
        return answer(Models(await self._models.all()))

    async def _submit(self, request: web.Request) -> web.Response:
        """A job of a file that was uploaded."""
        try:
            asked = _asked.decode(await body_of(request))
        except msgspec.DecodeError as error:
            words = misfit(error) if isinstance(error, msgspec.ValidationError) else "it is no JSON"
            raise ApiError(f"the body: {words}", code="bad_request") from None
        if asked.file.endswith(_OF_A_JOB):
            raise ApiError("only a file that was uploaded becomes a job", code="bad_request")
        if not is_file_name(asked.name) or len(asked.token) > TOKEN_LIMIT:
            raise ApiError(f"name must be a file name, token have {TOKEN_LIMIT} characters at most", code="bad_request")
        caller = request[CALLER]
        try:
            path: Path | None = self._files.content(caller, asked.file).path
        except ApiError:  # which is no matter where the job of an earlier time is wanted
            path = None
        files = _opened(asked.name, path)
        # Of calls that are sent again any may come first.
        again = asked.token != ""
        submission = Submission(asked.name, "file", caller.uid, asked.settings, files, asked.token, again)
        # Half a job may not stay, and whoever asks again wants this one.
        return answer(Submitted(await to_its_end(self._made(submission, caller, asked.file if path else None))))

    async def _made(self, submission: Submission, caller: Caller, file: str | None) -> JobDocument:
        """The job of a submission; its file is not needed any more."""
        job = await self._jobs.submit(submission)
        if file is not None:
            with suppress(ObatchError):  # the same was sent twice at a time; else it goes within the hour
                await self._files.remove(caller, file)
        return job

    async def _file(self, request: web.Request) -> web.StreamResponse:
        path = self._results.one(request[CALLER], request.match_info["job"], request.match_info["name"])
        kind = _LINES if path.suffix == ".jsonl" else "application/json"
        return Download(path, headers={"Content-Type": kind, "Cache-Control": "no-store"})

    async def _so_far(self, request: web.Request) -> web.StreamResponse:
        blocks = self._results.so_far(request[CALLER], request.match_info["job"])
        response = web.StreamResponse(headers={"Content-Type": _LINES, "Cache-Control": "no-store"})
        await response.prepare(request)
        try:
            async for block in blocks:
                await response.write(block)
        except BaseException:
            if request.transport is not None:  # what came would pass for all of it
                request.transport.abort()
            raise
        finally:
            await blocks.aclose()
        return response


def _whole(handler: Handler) -> Handler:
    """A handler that changes something: it comes to its end, also where its client goes in the middle."""

    async def handle(request: web.Request) -> web.StreamResponse:
        return await to_its_end(handler(request))

    return handle


def _opened(name: str, path: Path | None) -> Iterator[tuple[str, int]]:
    """The file of a submission; see :class:`Submission`. Raises ControlError where it is gone."""
    if path is None:
        raise ControlError("the file is not there (any more); send it again", code="no_upload")
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        yield name, descriptor
    finally:
        os.close(descriptor)
