"""Routes about jobs, on the control sockets and, for the Python client, over HTTP."""

from __future__ import annotations

import re

import msgspec
from aiohttp import web
from attrs import define

from obatchd import errors
from obatchd.control.answer import CALLER, answer, count_asked, object_sent, time_asked
from obatchd.control.operations import AnswerOperations, AnswersAsked, JobOperations
from obatchd.documents.jobs import Jobs, Usage
from obatchd.naming import JobFilter, is_id

_JOBS_LIMIT = 10_000
_RESULTS_LIMIT = 500
_OUTCOMES = ("succeeded", "failed", "cancelled", "expired")
ACTIONS = "cancel|pause|resume"


class _Removal(msgspec.Struct):
    """The body of ``POST /v1/jobs/remove``."""

    jobs: list[str]  # ids


@define(eq=False)
class JobRoutes:
    """The routes. All callers may use them; each sees and changes only what is theirs."""

    _jobs: JobOperations
    _answers: AnswerOperations

    def routes(self) -> list[web.RouteDef]:
        """Those of the control API."""
        return [
            web.get("/v1/jobs", self.all),
            web.get("/v1/jobs/{job}", self.one),
            web.get("/v1/jobs/{job}/failures", self.failures),
            web.get("/v1/jobs/{job}/results", self.results),
            web.delete("/v1/jobs/{job}", self.remove),
            web.post("/v1/jobs/remove", self.remove_all),
            web.post("/v1/jobs/{job}/retry", self.retry),
            web.post(f"/v1/jobs/{{job}}/{{action:{ACTIONS}}}", self.act),
            web.get("/v1/usage", self.usage),
        ]

    async def all(self, request: web.Request) -> web.Response:
        limit = count_asked(request, "limit", 100, _JOBS_LIMIT)
        caller, owner = request[CALLER], request.query.get("owner")
        if owner == "all" and not caller.is_administrator:
            raise errors.ForbiddenError("only administrators see the jobs of others; obatchctl jobs --mine lists yours")
        if owner not in (None, "all", "mine"):
            raise errors.ConfigError("owner must be mine or all", code="bad_request")
        since_s, before_s = (time_asked(request, name) for name in ("since", "ended_before"))
        if (after := request.query.get("after") or None) and not is_id(after):
            raise errors.ConfigError("after must be the id of a job, or what came as next", code="bad_request")
        only = JobFilter(request.query.get("label"), since_s, before_s, after)
        jobs = self._jobs.all(caller, request.query.get("state"), limit + 1, mine=owner == "mine", only=only)
        return answer(Jobs(jobs[:limit], jobs[limit - 1].job if len(jobs) > limit else None))

    async def one(self, request: web.Request) -> web.Response:
        return answer(self._jobs.one(request[CALLER], request.match_info["job"]))

    async def failures(self, request: web.Request) -> web.Response:
        return answer(await self._jobs.failures(request[CALLER], request.match_info["job"]))

    async def results(self, request: web.Request) -> web.Response:
        query = request.query
        if (outcome := query.get("outcome") or None) not in (None, *_OUTCOMES):
            raise errors.ConfigError(f"outcome must be one of {', '.join(_OUTCOMES)}", code="bad_request")
        if not re.fullmatch("[0-9]{1,10}", after := query.get("after", "0")):
            raise errors.ConfigError("after must be the number that came as next", code="bad_request")
        limit = count_asked(request, "limit", 20, _RESULTS_LIMIT)
        settled = query.get("settled") == "1"
        asked = AnswersAsked(int(after), limit, outcome, query.get("code") or None, settled)
        return answer(await self._answers.part(request[CALLER], request.match_info["job"], asked))

    async def act(self, request: web.Request) -> web.Response:
        jobs = self._jobs
        actions = {"cancel": jobs.cancel, "pause": jobs.pause, "resume": jobs.resume}
        return answer(await actions[request.match_info["action"]](request[CALLER], request.match_info["job"]))

    async def retry(self, request: web.Request) -> web.Response:
        asked = await object_sent(request)
        changes, only = asked.get("settings", {}), str(asked.get("only", "failed"))
        if not isinstance(changes, dict):
            raise errors.ConfigError('the body must be {"settings": {…}}', code="bad_request")
        return answer(await self._jobs.retry(request[CALLER], request.match_info["job"], changes, only))

    async def remove(self, request: web.Request) -> web.Response:
        return answer(await self._jobs.remove(request[CALLER], request.match_info["job"]))

    async def remove_all(self, request: web.Request) -> web.Response:
        try:
            jobs = msgspec.json.decode(await request.read(), type=_Removal).jobs
        except msgspec.DecodeError:
            raise errors.ConfigError('the body must be {"jobs": ["id", …]}', code="bad_request") from None
        return answer(await self._jobs.remove_all(request[CALLER], jobs))

    async def usage(self, request: web.Request) -> web.Response:
        month, owner = request.query.get("month"), request.query.get("owner")
        if month is not None and not re.fullmatch("[0-9]{4}-(0[1-9]|1[0-2])", month):
            raise errors.ConfigError("month must be written as 2026-11", code="bad_request")
        if owner not in (None, "mine"):
            raise errors.ConfigError("owner must be mine", code="bad_request")
        return answer(Usage(await self._jobs.usage(request[CALLER], month, mine=owner == "mine")))
