"""Who is answered: the Host, the Origin, and whose call it is. Before anything else of a call is looked at.

A page of another site can make a browser send calls to this host (DNS rebinding, forms), so the name in ``Host`` must
be ours, and a call that a foreign page made is refused. Nobody is ever recognised by a TCP connection: the kernel does
not say whose one is, once its other end is closed.
"""

from __future__ import annotations

import asyncio
import ipaddress
import pwd
import socket
from collections import Counter
from urllib.parse import urlsplit

from aiohttp import web
from attrs import define, field

from obatchd import log
from obatchd.control import auth
from obatchd.control.auth import Access, Caller, Origin, Peer
from obatchd.control.programs import KEY_PREFIX, METRICS, SESSION_PREFIX, KeyHolders, PageSessions
from obatchd.documents.audit import HTTP, HTTP_SOCKET, PAGE
from obatchd.doors.tries import WrongTries
from obatchd.errors import ApiError, ConfigError
from obatchd.front.answers import ROOM
from obatchd.front.routes import CALLER, Route
from obatchd.settings.current import Current
from obatchd.settings.settings import Settings

_log = log.get(__name__)
_LOCAL_NAMES = ("localhost",)
_NOBODYS_GROUP = -1
_NOBODY = 65534  # uid
_CALLS_OF_ONE_USER = 64  # at once
_WAITING_OF_ONE_USER = 256  # calls that wait for a model, beside those: a program may use a whole fleet
_BODIES_BYTES = 512 * 1024**2  # on their way in, of one user half as many
_OF_THE_PAGE = ("/obatchd/", "/page/", "/v1/files")  # where the token of a session counts
_KEY = web.RequestKey("key", str)


@define(eq=False)
class Held:
    """A body on its way in. Implements :class:`obatchd.front.answers.Room`."""

    _all: Counter[int]  # bytes of bodies, by uid
    _uid: int
    _size_bytes: int = field(default=0, init=False)

    def take(self, size_bytes: int) -> None:
        self._size_bytes += size_bytes
        self._all[self._uid] += size_bytes
        mine_bytes = self._all[self._uid]
        if mine_bytes > self._size_bytes and (2 * mine_bytes > _BODIES_BYTES or self._all.total() > _BODIES_BYTES):
            words = "the bodies that are on their way here are too large together; try again later"
            raise ApiError(words, status=429, code="too_many_calls", final=False)

    def free(self) -> None:
        self._all[self._uid] -= self._size_bytes
        self._size_bytes = 0
        if not self._all[self._uid]:
            del self._all[self._uid]


@define(eq=False)
class Guard:
    """Lets calls in."""

    _keys: KeyHolders
    _sessions: PageSessions
    _settings: Current[Settings]
    _access: Access
    _calls: Counter[int] = field(factory=Counter, init=False)  # under way, by uid
    _waiting: Counter[int] = field(factory=Counter, init=False)  # those that wait for a model
    _bodies: Counter[int] = field(factory=Counter, init=False)
    # Calls under way that brought a key, with its id; requests have no hash.
    _with_key: dict[int, tuple[str, web.Request]] = field(factory=dict, init=False)
    _wrong: WrongTries = field(factory=WrongTries, init=False)

    def check_origin(self, request: web.Request) -> None:
        """Raises ApiError where a page of somebody else may have made the call."""
        host = request.headers.getall("Host", [])
        if len(host) != 1:
            raise ApiError("the call names no Host, or several", code="no_host")
        if not self._is_ours(host[0], request):
            words = f"this daemon is not called {_without_port(host[0])!r}; names in [http] can have that"
            raise ApiError(words, status=421, code="wrong_host")
        if _opens_the_page(request):
            return
        site, origin = request.headers.get("Sec-Fetch-Site"), request.headers.get("Origin")
        if site not in (None, "same-origin", "none") or (origin is not None and _place_of(origin) != host[0]):
            raise ApiError("calls of pages of other sites are refused", status=403, code="foreign_origin")

    def _is_ours(self, host: str, request: web.Request) -> bool:
        name = _without_port(host)
        if name in _LOCAL_NAMES or name in self._settings.value.http.names:
            return True
        try:
            address = ipaddress.ip_address(name)
        except ValueError:
            return False
        own = request.get_extra_info("sockname")
        return address.is_loopback or (isinstance(own, tuple) and str(address) == str(ipaddress.ip_address(own[0])))

    async def identify(self, request: web.Request, route: Route | None) -> None:
        """Find out whose call it is; raises ApiError where it may not be made."""
        connection = request.get_extra_info("socket")
        if connection is None:  # the client has gone already
            raise ApiError("the caller cannot be identified", status=403, code="forbidden")
        sent, local = _key_of(request), connection.family == socket.AF_UNIX
        if sent.startswith(SESSION_PREFIX):
            request[CALLER] = await self._of_page(request, sent)
        # Clients that need no key have to send something all the same.
        elif sent.startswith(KEY_PREFIX) or (sent and not local and not self._settings.value.http.keyless_owner):
            request[CALLER] = await self._holder(request, sent, route)
        elif local:
            # Who runs a program is no administrator by that: it must not meet files of others.
            peer = auth.peer_of(connection.fileno())
            caller = await self._access.caller(peer)
            if _is_of_metrics(route) and not (caller.is_administrator or self._settings.value.metrics.open):
                raise ApiError("metrics are for administrators of obatchd", status=403, code="forbidden")
            request[CALLER] = Caller(caller.uid, False, Origin(HTTP_SOCKET, pid=peer.pid))
        elif _is_of_metrics(route):
            request[CALLER] = self._scraper(request)
        else:
            request[CALLER] = await self._keyless(request)

    def _scraper(self, request: web.Request) -> Caller:
        """Who reads metrics without a key: any program of this host, where an administrator allows that."""
        if not self._settings.value.metrics.open or not ipaddress.ip_address(request.remote or "::").is_loopback:
            words = (
                "metrics need a key. Make one with:  obatchctl key add --scope metrics   and send it as a Bearer token"
            )
            raise ApiError(words, status=401, code="invalid_api_key")
        return Caller(_NOBODY, False, Origin(HTTP, request.remote or ""))

    async def _holder(self, request: web.Request, sent: str, route: Route | None) -> Caller:
        holder = self._keys.holder(sent)
        if holder is None:
            self._count_wrong()
            raise ApiError("Incorrect API key provided, or it has expired.", status=401, code="invalid_api_key")
        if route is not None and not holder.scopes.intersection(route.scopes or ()):
            needed = " or ".join(route.scopes or ())
            words = f"this key is good for {', '.join(sorted(holder.scopes))}, and not for {needed}"
            raise ApiError(words, status=403, code="insufficient_scope")
        # Its owner may have left the group since.
        owner = await self._access.caller(Peer(0, holder.owner, _NOBODYS_GROUP))
        if _is_of_metrics(route) and not owner.is_administrator:
            raise ApiError("metrics are for administrators of obatchd", status=403, code="forbidden")
        request[_KEY] = holder.key
        door = HTTP if request.remote else HTTP_SOCKET
        origin = Origin(door, request.remote or "", key=holder.key, key_label=holder.label)
        return Caller(holder.owner, holder.administrator and owner.is_administrator, origin)

    async def _of_page(self, request: web.Request, token: str) -> Caller:
        """Who has opened the page, with their rights of this moment."""
        if (session := self._sessions.holder(token)) is None:
            words = "this session of the page is over; open another one:  obatchctl web"
            raise ApiError(words, status=401, code="invalid_session")
        if not request.path.startswith(_OF_THE_PAGE):
            words = "a session of the page is good for the page alone; make a key:  obatchctl key add"
            raise ApiError(words, status=403, code="insufficient_scope")
        user = await self._access.caller(Peer(0, session.uid, _NOBODYS_GROUP))
        request[_KEY] = session.id
        return user._replace(origin=Origin(PAGE, request.remote or "", key=session.id))

    async def _keyless(self, request: web.Request) -> Caller:
        if not (name := self._settings.value.http.keyless_owner):
            words = "You didn't provide an API key. Make one with:  obatchctl key add   and send it as a Bearer token"
            raise ApiError(words, status=401, code="invalid_api_key")
        try:
            owner = await self._access.caller(Peer(0, await asyncio.to_thread(_uid_of, name), _NOBODYS_GROUP))
        except ConfigError as error:
            raise ApiError(error.message, status=401, code="invalid_api_key") from None
        return Caller(owner.uid, False, Origin(HTTP, request.remote or ""))

    def _count_wrong(self) -> None:
        if calls := self._wrong.count():
            _log.warning("wrong_keys", calls=calls)

    def enter(self, request: web.Request, route: Route) -> None:
        """A call begins, until it has to ``leave``. Raises ApiError where its user has too many under way."""
        uid = request[CALLER].uid
        calls, most = (self._waiting, _WAITING_OF_ONE_USER) if route.waits else (self._calls, _CALLS_OF_ONE_USER)
        if calls[uid] >= most:
            words = f"you have {most} calls under way; wait for some of them"
            raise ApiError(words, status=429, code="too_many_calls", final=False)
        calls[uid] += 1
        request[ROOM] = Held(self._bodies, uid)
        if (key := request.get(_KEY)) is not None:
            self._with_key[id(request)] = key, request

    def leave(self, request: web.Request, route: Route) -> None:
        """A call is over."""
        uid = request[CALLER].uid
        calls = self._waiting if route.waits else self._calls
        calls[uid] -= 1
        if not calls[uid]:
            del calls[uid]
        self._with_key.pop(id(request), None)

    def cut_off(self, key: str) -> None:
        """End the calls under way of a key or session that is good no more."""
        for its, request in list(self._with_key.values()):
            if its == key and (transport := request.transport) is not None:
                transport.abort()


def _opens_the_page(request: web.Request) -> bool:
    """Whether somebody follows a link to the page, which tells nothing and does nothing; no frame may show it."""
    goes = request.headers.get("Sec-Fetch-Mode") == "navigate"
    return goes and request.path == "/" and request.method in ("GET", "HEAD")


def _is_of_metrics(route: Route | None) -> bool:
    """Numbers about the whole host are nothing for whoever may only use it."""
    return route is not None and route.scopes == (METRICS,)


def _without_port(host: str) -> str:
    """The name in a Host header, an IPv6 address without its brackets."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0].lower().rstrip(".")


def _place_of(origin: str) -> str:
    """Host and port of an Origin header."""
    try:
        return urlsplit(origin).netloc
    except ValueError:  # a bracket that is not closed
        return ""


def _key_of(request: web.Request) -> str:
    """The key that a call brings; empty: none."""
    scheme, _, key = request.headers.get("Authorization", "").partition(" ")
    return key.strip() if scheme.lower() == "bearer" else ""


def _uid_of(name: str) -> int:
    if name.isdigit():
        return int(name)
    try:
        return pwd.getpwnam(name).pw_uid
    except KeyError:
        raise ConfigError(f"http.keyless_owner: this host has no user {name}") from None
