"""The page over HTTP: its files, which everybody may have, and its sessions."""

from __future__ import annotations

import asyncio

import msgspec
from aiohttp import ETag, web
from attrs import define, field

from obatchd.control.answer import answer
from obatchd.control.auth import Caller, Origin
from obatchd.control.programs import SCOPES_OF_PROGRAMS, PageSession, PageSessions
from obatchd.documents.audit import PAGE
from obatchd.documents.web import EndedSessions, OpenedSession, PageUser
from obatchd.errors import ApiError
from obatchd.front.answers import body_of
from obatchd.front.native.models import RUNNING
from obatchd.front.page.files import PageFile, PageFiles
from obatchd.front.routes import CALLER, Route
from obatchd.naming import user_name
from obatchd.times import instant

_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; "
    "form-action 'self'; frame-ancestors 'none'"
)
_FOR_EVER = "public, max-age=31536000, immutable"
_ASKED_BYTES = 1024


class _Asked(msgspec.Struct, forbid_unknown_fields=True):
    """The body of a call that opens a session."""

    code: str


_asked = msgspec.json.Decoder(_Asked)


@define(eq=False)
class PageRoutes:
    """The routes."""

    _sessions: PageSessions
    _files: PageFiles = field(factory=PageFiles, init=False)

    def routes(self) -> list[Route]:
        return [
            *(Route(method, "/", self._root, None) for method in ("GET", "HEAD")),
            Route("GET", "/page/{hash:[0-9a-f]+}/{name:.+}", self._file, None),
            Route("POST", "/page/session", self._open, None),
            Route("GET", "/page/session", self._who, SCOPES_OF_PROGRAMS),
            Route("DELETE", "/page/session", self._end, SCOPES_OF_PROGRAMS),
        ]

    async def _root(self, request: web.Request) -> web.Response:
        """Ollama says so to programs at this address; browsers get the page."""
        if "text/html" not in request.headers.get("Accept", ""):
            return web.Response(text=RUNNING, headers={"Vary": "Accept"})
        tag = ETag(self._files.hash)
        headers = {"Cache-Control": "no-cache", "Content-Security-Policy": _POLICY, "Vary": "Accept, Accept-Encoding"}
        if request.if_none_match and any(one.value in (tag.value, "*") for one in request.if_none_match):
            response = web.Response(status=304, headers=headers)
        else:
            response = _sent(request, self._files.index, headers)
        response.etag = tag
        return response

    async def _file(self, request: web.Request) -> web.Response:
        asked = request.match_info
        if (file := self._files.one(asked["hash"], asked["name"])) is None:
            raise ApiError("the page has no such file, or is another one by now: load it again", status=404)
        return _sent(request, file, {"Cache-Control": _FOR_EVER, "Vary": "Accept-Encoding"})

    async def _open(self, request: web.Request) -> web.Response:
        """A session for a code that ``obatchctl web`` has shown."""
        try:
            code = _asked.decode(await body_of(request, _ASKED_BYTES)).code
        except msgspec.DecodeError:
            raise ApiError('the body must be {"code": "…"}', code="bad_request") from None
        opened = await self._sessions.open(code, Origin(PAGE, request.remote or ""))
        user = await _user(opened.session, administrator=opened.administrator)
        return _kept_by_nobody(answer(OpenedSession(token=opened.token, **msgspec.structs.asdict(user))))

    async def _who(self, request: web.Request) -> web.Response:
        caller: Caller = request[CALLER]
        user = await _user(self._session_of(caller), administrator=caller.is_administrator)
        return _kept_by_nobody(answer(user))

    async def _end(self, request: web.Request) -> web.Response:
        self._sessions.end(self._session_of(request[CALLER]).id)
        return _kept_by_nobody(answer(EndedSessions(1)))

    def _session_of(self, caller: Caller) -> PageSession:
        session = self._sessions.known(caller.origin.key) if caller.origin.door == PAGE else None
        if session is None:
            raise ApiError("this is for sessions of the page, and no key is one", status=403, code="no_session")
        return session


async def _user(session: PageSession, *, administrator: bool) -> PageUser:
    name = await asyncio.to_thread(user_name, session.uid)
    return PageUser(
        uid=session.uid, user=name, administrator=administrator, expires_at=instant(session.expires_at_s) or ""
    )


def _sent(request: web.Request, file: PageFile, headers: dict[str, str]) -> web.Response:
    body, packed = file.body, False
    if file.packed is not None and "gzip" in request.headers.get("Accept-Encoding", ""):
        body, packed = file.packed, True
    charset = None if file.kind.startswith("image/") else "utf-8"
    response = web.Response(body=body, content_type=file.kind, charset=charset, headers=headers)
    if packed:
        response.headers["Content-Encoding"] = "gzip"
    return response


def _kept_by_nobody(response: web.Response) -> web.Response:
    response.headers["Cache-Control"] = "no-store"
    return response
