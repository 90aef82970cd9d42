"""The way from a host to its head: one WebSocket over TLS, to the head whose certificate it knows and to no other."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import aiohttp

from obatchd import log
from obatchd.cluster import wire
from obatchd.cluster.session import Socket
from obatchd.errors import ClusterError

_CONNECT_S = 10.0
_CLOSE_S = 2.0
_JOIN_AGAIN = "type on the head:  obatchctl hosts code  and here what that says"


class HeadPlace(NamedTuple):
    """Where the head is, how it is known, and what this host shows it."""

    address: str  # host:port
    fingerprint: str  # sha256:…, of its certificate
    credential: str


class Connector(Protocol):
    """Makes connections to the head; :class:`HeadWay`."""

    @property
    def address(self) -> str:
        """In words, for the log."""
        ...

    async def connect(self) -> Socket:
        """A new connection. Raises ConnectionError where the head is not reached, ClusterError where it is not ours, or
        does not want us."""
        ...


class HeadWay:
    """Connects to one head. Implements :class:`Connector`."""

    def __init__(self, place: HeadPlace) -> None:
        self._place = place

    @property
    def address(self) -> str:
        return self._place.address

    async def connect(self) -> Socket:
        """As :meth:`Connector.connect`; the certificate is looked at before anything is sent."""
        place = self._place
        known = aiohttp.Fingerprint(bytes.fromhex(place.fingerprint.removeprefix("sha256:")))
        http = aiohttp.ClientSession(trust_env=False)
        try:
            socket = await http.ws_connect(
                f"https://{place.address}/v1/hosts",
                ssl=known,
                headers={"Authorization": f"Bearer {place.credential}"},
                max_msg_size=wire.MESSAGE_BYTES,
                autoping=True,
                compress=0,
                timeout=aiohttp.ClientWSTimeout(ws_close=_CLOSE_S),
            )
        except BaseException as error:
            await http.close()
            if (told := _explained(error, place.address)) is not None:
                raise told from error
            raise
        return _HeadSocket(http, socket)


def _explained(error: BaseException, address: str) -> Exception | None:
    match error:
        case aiohttp.ServerFingerprintMismatch():
            words = f"whoever answers at {address} has another certificate than the head that this host joined"
            return ClusterError(f"{words}. If the head was installed again, {_JOIN_AGAIN}.", code="other_certificate")
        case aiohttp.WSServerHandshakeError(status=401 | 403):
            words = f"the head at {address} does not know this host, or not any more"
            return ClusterError(f"{words}: {_JOIN_AGAIN}.", code="not_joined")
        case aiohttp.WSServerHandshakeError():
            return ConnectionRefusedError(f"{address} answers with status {error.status}")
        case aiohttp.ClientError() | OSError():  # TimeoutError is one
            return ConnectionRefusedError(f"{address} is not reached: {log.reason(error) or type(error).__name__}")
    return None


class _HeadSocket:
    """A WebSocket of a session of its own. Implements :class:`obatchd.cluster.session.Socket`."""

    def __init__(self, http: aiohttp.ClientSession, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._http = http
        self._socket = socket

    async def send(self, data: bytes) -> None:
        await self._socket.send_bytes(data)

    async def receive(self) -> bytes:
        message = await self._socket.receive()
        match message.type:
            case aiohttp.WSMsgType.BINARY:
                return bytes(message.data)
            case aiohttp.WSMsgType.TEXT:
                raise ClusterError("the head sent text", code="bad_frame")
            case aiohttp.WSMsgType.ERROR:
                raise ConnectionResetError(log.reason(message.data))
            case _:
                raise ConnectionResetError("the head closed it")

    async def close(self) -> None:
        await self._socket.close()
        await self._http.close()
