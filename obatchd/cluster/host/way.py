"""The way from a host to its head: one WebSocket over TLS, to the head whose certificate it knows and to no other."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import aiohttp

from obatchd.cluster import wire
from obatchd.cluster.joining import explained, pin
from obatchd.cluster.session import Socket
from obatchd.cluster.websocket import CLOSE_S, WebSocket
from obatchd.errors import ClusterError
from obatchd.settings.addresses import reachable

NOT_JOINED = "not_joined"
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
        does not want us (``not_joined``)."""
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
        http = aiohttp.ClientSession(trust_env=False)
        try:
            socket = await http.ws_connect(
                f"https://{place.address}/v1/hosts",
                ssl=pin(place.fingerprint),
                headers={"Authorization": f"Bearer {place.credential}"},
                max_msg_size=wire.MESSAGE_BYTES,
                compress=0,
                timeout=aiohttp.ClientWSTimeout(ws_close=CLOSE_S),
            )
        except aiohttp.WSServerHandshakeError as error:
            await http.close()
            raise _answered(error.status, place.address) from None
        except (aiohttp.ClientError, OSError) as error:  # TimeoutError is one, ssl.SSLError too
            await http.close()
            told = explained(error, reachable(place.address))
            if told.code == "head_unreachable":
                raise ConnectionRefusedError(told.message) from None
            raise told from None
        except BaseException:
            await http.close()
            raise
        return _OwnWebSocket(http, socket)


def _answered(status: int, address: str) -> Exception:
    if status in (401, 403):
        words = f"the head at {address} does not know this host, or not any more: {_JOIN_AGAIN}"
        return ClusterError(words, code=NOT_JOINED)
    return ConnectionRefusedError(f"{address} answers with status {status}")


class _OwnWebSocket(WebSocket):
    """Closes its HTTP session, too."""

    def __init__(self, http: aiohttp.ClientSession, socket: aiohttp.ClientWebSocketResponse) -> None:
        super().__init__(socket)
        self._http = http

    async def close(self) -> None:
        try:
            await super().close()
        finally:
            await self._http.close()
