"""Sessions of the page: who a browser stands for, since it can show no key and is known to no socket.

``obatchctl web`` asks over ``control.sock``, where the kernel says who it is, for a code that is good once and for a
minute. The page gives it for a token. Both are random, known by their hashes alone, and in memory alone: a restart ends
all sessions. No cookie is set: ports do not separate cookies, and another port of this host may be somebody else's.
"""

from __future__ import annotations

import hashlib
import secrets
import time
from collections.abc import Callable

from attrs import define, field, frozen

from obatchd import log
from obatchd.control.auth import Access, Caller, Origin, Peer
from obatchd.control.programs import SESSION_PREFIX, KeyListener, OpenedPage, PageSession, SessionRecords
from obatchd.documents.web import EndedSessions
from obatchd.doors.tries import WrongTries
from obatchd.errors import ApiError, ControlError
from obatchd.times import uptime_s

_log = log.get(__name__)
CODE_S = 60.0  # how long a code is good
_SESSION_S = 12 * 3600.0
_SECRET_BYTES, _ID_BYTES = 32, 4
_CODES_OF_ONE_USER, _SESSIONS_OF_ONE_USER = 16, 64
_NOBODYS_GROUP = -1


@frozen
class _Code:
    """A code that somebody was shown."""

    uid: int
    until_s: float  # uptime


@frozen
class _Session:
    """A session in progress."""

    told: PageSession
    until_s: float  # uptime


@define(eq=False)
class WebSessions:
    """Implements :class:`obatchd.control.operations.WebOperations` and
    :class:`obatchd.control.programs.PageSessions`, whose words say what each method does.
    """

    _access: Access
    _records: SessionRecords
    _now_s: Callable[[], float] = uptime_s
    _codes: dict[bytes, _Code] = field(factory=dict, init=False)  # by hash, the oldest first
    _sessions: dict[bytes, _Session] = field(factory=dict, init=False)  # the same
    _listeners: list[KeyListener] = field(factory=list, init=False)
    _wrong: WrongTries = field(factory=WrongTries, init=False)

    # For obatchctl.

    def code(self, caller: Caller) -> tuple[str, float]:
        now_s = self._now_s()
        self._codes = {hashed: code for hashed, code in self._codes.items() if code.until_s > now_s}
        if sum(code.uid == caller.uid for code in self._codes.values()) >= _CODES_OF_ONE_USER:
            words = f"{_CODES_OF_ONE_USER} links of yours were made within a minute and not opened; wait for a minute"
            raise ControlError(words, code="limit")
        code = secrets.token_urlsafe(_SECRET_BYTES)
        self._codes[_hash(code)] = _Code(caller.uid, now_s + CODE_S)
        return code, CODE_S

    def end_all(self, caller: Caller) -> EndedSessions:
        self._codes = {hashed: code for hashed, code in self._codes.items() if code.uid != caller.uid}
        now_s = self._now_s()
        mine = {hashed: one for hashed, one in self._sessions.items() if one.told.uid == caller.uid}
        for hashed in mine:
            self._drop(hashed)
        return EndedSessions(sum(one.until_s > now_s for one in mine.values()))

    # For the page.

    def listen(self, listener: KeyListener) -> None:
        self._listeners.append(listener)

    async def open(self, code: str, origin: Origin) -> OpenedPage:
        known = self._codes.pop(_hash(code), None)  # whoever comes second has none
        if known is None or known.until_s <= self._now_s():
            self._count_wrong()
            words = "this link was used already, or is older than a minute; make another one:  obatchctl web"
            raise ApiError(words, status=401, code="invalid_code")
        caller = await self._access.caller(Peer(0, known.uid, _NOBODYS_GROUP))
        session = PageSession(f"web-{secrets.token_hex(_ID_BYTES)}", known.uid, time.time() + _SESSION_S)
        await self._records.opened(caller._replace(origin=origin._replace(key=session.id)), session.id)
        self._make_room(known.uid)
        token = SESSION_PREFIX + secrets.token_urlsafe(_SECRET_BYTES)
        self._sessions[_hash(token)] = _Session(session, self._now_s() + _SESSION_S)
        _log.info("page_session_opened", session=session.id, owner=session.uid)
        return OpenedPage(token, session, caller.is_administrator)

    def holder(self, token: str) -> PageSession | None:
        found = self._sessions.get(_hash(token))
        if found is None or found.until_s <= self._now_s():
            self._count_wrong()
            return None
        return found.told

    def known(self, session: str) -> PageSession | None:
        return next((one.told for one in self._sessions.values() if one.told.id == session), None)

    def end(self, session: str) -> None:
        self._sessions = {hashed: one for hashed, one in self._sessions.items() if one.told.id != session}

    def _make_room(self, uid: int) -> None:
        """The oldest session of somebody with too many of them goes, and all that are over."""
        now_s = self._now_s()
        self._sessions = {hashed: one for hashed, one in self._sessions.items() if one.until_s > now_s}
        mine = [hashed for hashed, one in self._sessions.items() if one.told.uid == uid]
        for hashed in mine[: max(0, len(mine) + 1 - _SESSIONS_OF_ONE_USER)]:
            self._drop(hashed)

    def _drop(self, hashed: bytes) -> None:
        session = self._sessions.pop(hashed).told.id
        for listener in self._listeners:
            listener.revoked(session)

    def _count_wrong(self) -> None:
        if calls := self._wrong.count():
            _log.warning("wrong_sessions", calls=calls)


def _hash(secret: str) -> bytes:
    """The time of a look by it tells of the hash alone, which nobody can choose."""
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).digest()
