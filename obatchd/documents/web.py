"""Documents about the web page: a link to it, and who is behind a session of it."""

from __future__ import annotations

import msgspec


class PageLink(msgspec.Struct, kw_only=True):
    """``POST /v1/web/codes``: a code with which one session of the page can be opened, once."""

    code: str
    good_for_s: float
    url: str | None  # of the page, without the code; None: no browser reaches it
    problem: str  # why none does, and what to do; empty: one can


class EndedSessions(msgspec.Struct):
    """``DELETE /v1/web/sessions``, and ``DELETE /page/session`` over HTTP: how many ended."""

    ended: int


class PageUser(msgspec.Struct, kw_only=True):
    """``GET /page/session``: who asks."""

    uid: int
    user: str
    administrator: bool  # now: groups may change while a session goes on
    expires_at: str


class OpenedSession(PageUser, kw_only=True):
    """``POST /page/session``: the same, and the token of the session, which is shown this once."""

    token: str
