"""The door for hosts: TLS, by which they join and then keep one connection each.

Whoever knocks is a stranger until its code or its credential was looked at. The door says of a wrong one that it is
wrong, slowly, and tells the log once a minute.
"""

from __future__ import annotations

import asyncio
import socket
from http import HTTPStatus
from pathlib import Path
from typing import Protocol

import msgspec
from aiohttp import web
from attrs import define, field

from obatchd import log
from obatchd.cluster import wire
from obatchd.cluster.head.certificate import HeadCertificate, of_head
from obatchd.cluster.head.hosts import Hosts
from obatchd.cluster.head.roster import Asked, Roster
from obatchd.cluster.links import Link
from obatchd.cluster.websocket import CLOSE_S, WebSocket
from obatchd.documents.hosts import HostDoor
from obatchd.doors.reception import Reception
from obatchd.doors.tries import WrongTries
from obatchd.errors import ClusterError
from obatchd.settings.addresses import Address
from obatchd.settings.current import Current
from obatchd.settings.settings import Settings
from obatchd.settings.tables.cluster import host_name
from obatchd.tasks import to_its_end

_log = log.get(__name__)
JOIN, HOSTS = "/v1/join", "/v1/hosts"
DIRECTORY = "cluster"  # below work/
_TASK = "host-door"
_BODY_BYTES = 16 * 1024
_BODY_S = 10.0  # longest time for a body
_WRONG_S = 1.0  # a wrong secret is answered so much later
_MOST_LASTS_S = 366 * 86400.0
_BEARER = "Bearer "
_STATUS = {
    "wrong_secret": HTTPStatus.FORBIDDEN,
    "name_taken": HTTPStatus.CONFLICT,
    "limit": HTTPStatus.SERVICE_UNAVAILABLE,
    "roster_unreadable": HTTPStatus.SERVICE_UNAVAILABLE,
    "roster_not_written": HTTPStatus.SERVICE_UNAVAILABLE,
    "no_route": HTTPStatus.NOT_FOUND,
    "not_joined": HTTPStatus.UNAUTHORIZED,
}
_NOT_JOINED = (
    "the head does not know this host, or not any more: it was forgotten, joined again elsewhere, or its allocation is "
    "over. To join again, type on the head:  obatchctl hosts code   and on this host what that says"
)


class JoinAsked(msgspec.Struct):
    """The body of ``POST /v1/join``."""

    secret: str
    name: str
    machine: str
    lasts_s: float | None = None


class Joined(msgspec.Struct):
    """The answer to it."""

    name: str
    credential: str


class DoorRefusal(msgspec.Struct):
    """Any other answer."""

    code: str
    message: str


class JoinListener(Protocol):
    """Is told who came in; it may write that down first."""

    async def host_joins(self, name: str, address: str, enrolment: str) -> None:
        """A host joined from ``address``, by an enrolment or (empty) by a code."""


@define(eq=False)
class Door:
    """Lets hosts in. Implements :class:`obatchd.doors.reception.Told` and ``cluster.head.roster.Connected``.

    Nothing that goes wrong here ends the daemon: what is in the way is told in the list of hosts.
    """

    _settings: Current[Settings]
    _work: Path  # of the spool
    _roster: Roster
    _hosts: Hosts
    _listener: JoinListener
    _address: Address | None = field(init=False)
    _certificate: HeadCertificate | None = field(default=None, init=False)
    _problem: str = field(default="", init=False)
    _wrong: WrongTries = field(factory=WrongTries, init=False)
    _reception: Reception = field(init=False)

    def __attrs_post_init__(self) -> None:
        self._address = self._settings.value.cluster.door
        self._reception = Reception(self, web.Server(self._answer, handler_cancellation=True))

    # Life.

    async def start(self) -> None:
        """Listen for hosts as soon as the address is free, where the settings name one.

        Raises ConfigError (``no_cryptography``) where the library for the certificate is missing.
        """
        if self._address is None:
            return
        try:
            self._certificate = await asyncio.to_thread(of_head, self._work / DIRECTORY)
        except ClusterError as error:
            self._problem = error.message
            _log.error("host_door_shut", reason=error.message)
            return
        if self._certificate.is_new and (known := self._roster.names()):
            _log.warning("host_certificate_new", hosts=len(known))
        self._reception.open_at(self._address, self, self._certificate, _TASK)

    async def stop(self) -> None:
        """Let in nobody more, and end all connections."""
        await self._reception.stop()

    def task_failed(self, name: str, error: BaseException) -> None:
        """A defect of one connection, or of the door: it is in the log, and the daemon goes on."""
        if name == _TASK:
            self._problem = "hosts cannot reach the head because of a defect of obatchd; restart it"

    def opened(self, address: Address) -> None:
        self._problem = ""
        _log.info("host_door_open", address=str(address))

    def not_opened(self, address: Address, reason: str) -> None:
        problem = f"hosts cannot reach the head: {address} {reason}"
        if problem != self._problem:
            self._problem = problem
            _log.warning("host_door_not_open", address=str(address), reason=reason)

    # Questions.

    def state(self) -> HostDoor | None:
        """None: hosts cannot join, because no address is set."""
        if self._address is None:
            return None
        fingerprint = self._certificate.fingerprint if self._certificate is not None else ""
        return HostDoor(str(self._address), fingerprint, self._roster.problem or self._problem)

    def link(self, secret: str, head: Address | None = None) -> Link:
        """The link with a secret; ``head`` is where hosts reach this one, where that is another address.

        Raises ClusterError where there is no door, or none that opens.
        """
        if self._address is None:
            words = "hosts cannot join this obatchd: set listen in [cluster] to an IP address of this host with a port"
            raise ClusterError(f'{words}, such as "10.0.0.1:7700", and restart it', code="no_door")
        if self._certificate is None:
            raise ClusterError(self._problem or "the door is not open yet; try again", code="no_door")
        return Link(head or _reached(self._address), secret, self._certificate.fingerprint)

    def machine_of(self, name: str) -> str | None:
        host = self._hosts.hosts.get(name)
        return host.hello.machine if host is not None and host.session is not None and host.hello is not None else None

    # Calls.

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        self._reception.spoke(request.transport)
        try:
            if (request.method, request.path) == ("POST", JOIN):
                return _document(await self._join(request))
            if (request.method, request.path) == ("GET", HOSTS):
                return await self._attend(request)
            raise ClusterError("this is the door for hosts of obatchd; there is nothing else", code="no_route")
        except ClusterError as error:
            response = _document(DoorRefusal(error.code, error.message), _STATUS.get(error.code, HTTPStatus.FORBIDDEN))
        except ConnectionError:  # whoever asked has gone
            response = web.Response(status=HTTPStatus.BAD_REQUEST)
        except Exception:  # noqa: BLE001 - a defect at one host's call must not close the door; the traceback is logged
            _log.exception("host_call_failed", path=request.path)
            words = "obatchd on the head failed at this call, because of a defect; its log has more"
            response = _document(DoorRefusal("defect", words), HTTPStatus.INTERNAL_SERVER_ERROR)
        response.force_close()
        return response

    async def _join(self, request: web.BaseRequest) -> Joined:
        asked = _asked(await _body(request))
        try:
            credential = await to_its_end(self._admitted(asked, request.remote or ""))
        except ClusterError as error:
            if error.code == "wrong_secret":
                await self._told_wrong(request)
            raise
        return Joined(asked.name, credential)

    async def _admitted(self, asked: JoinAsked, address: str) -> str:
        host = Asked(asked.name, asked.machine, asked.lasts_s)
        credential = await asyncio.to_thread(self._roster.admit, asked.secret, host, self)
        self._hosts.cut_off(asked.name, "this host joined again")
        member = self._roster.member(asked.name)
        enrolment = member.enrolment if member is not None else ""
        _log.info("host_joined", host=asked.name, address=address, enrolment=enrolment)
        await self._listener.host_joins(asked.name, address, enrolment)
        return credential

    async def _attend(self, request: web.BaseRequest) -> web.StreamResponse:
        if self._roster.problem:
            raise ClusterError(self._roster.problem, code="roster_unreadable")
        shown = request.headers.get("Authorization", "")
        holder = self._roster.holder(shown.removeprefix(_BEARER)) if shown.startswith(_BEARER) else None
        if holder is None:
            await self._told_wrong(request)
            raise ClusterError(_NOT_JOINED, code="not_joined")
        connection = web.WebSocketResponse(timeout=CLOSE_S, compress=False, max_msg_size=wire.MESSAGE_BYTES)
        if not connection.can_prepare(request):
            raise ClusterError("hosts come with a WebSocket (RFC 6455)", code="no_websocket")
        await connection.prepare(request)
        await self._hosts.attend(WebSocket(connection), holder.name, holder.until_s)
        return connection

    async def _told_wrong(self, request: web.BaseRequest) -> None:
        """A secret was wrong: slow down whoever guesses, and tell the log from time to time."""
        if calls := self._wrong.count():
            _log.warning("wrong_host_secrets", calls=calls, address=request.remote or "")
        await asyncio.sleep(_WRONG_S)


async def _body(request: web.BaseRequest) -> bytes:
    """All of a body; raises ClusterError where it is too large or too slow."""
    parts, size = list[bytes](), 0
    try:
        async with asyncio.timeout(_BODY_S):
            while part := await request.content.read(_BODY_BYTES):
                parts.append(part)
                size += len(part)
                if size > _BODY_BYTES:
                    raise ClusterError("what was sent is too long for a host that wants to join", code="bad_request")
    except TimeoutError:
        raise ClusterError("what a host sends to join did not come in time", code="bad_request") from None
    return b"".join(parts)


def _asked(body: bytes) -> JoinAsked:
    try:
        asked = msgspec.json.decode(body, type=JoinAsked)
        host_name(asked.name)
        if len(asked.machine) > 128 or not (asked.lasts_s is None or 0 <= asked.lasts_s <= _MOST_LASTS_S):
            raise ValueError("machine or lasts_s is none")
    except (msgspec.MsgspecError, UnicodeDecodeError, ValueError) as error:
        words = f"what was sent is not what a host sends to join ({error}); is obatchd here and there of one version?"
        raise ClusterError(words, code="bad_request") from None
    return asked


def _document(document: msgspec.Struct, status: HTTPStatus = HTTPStatus.OK) -> web.Response:
    return web.Response(body=msgspec.json.encode(document), status=status, content_type="application/json")


def _reached(address: Address) -> Address:
    """The address by which hosts reach the door, for a link."""
    unspecified = address.host in ("0.0.0.0", "::")
    return address._replace(host=socket.gethostname()) if unspecified else address
