"""A WebSocket as the connection of a session, on both sides."""

from __future__ import annotations

import aiohttp
from aiohttp import web

from obatchd import log
from obatchd.errors import ClusterError

CLOSE_S = 2.0  # longest wait for the other side's goodbye


class WebSocket:
    """Implements :class:`obatchd.cluster.session.Socket`."""

    def __init__(self, socket: web.WebSocketResponse | aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket

    async def send(self, data: bytes) -> None:
        try:
            await self._socket.send_bytes(data)
        except RuntimeError as error:  # it is closed, says aiohttp's server side
            raise ConnectionResetError(str(error)) from None

    async def receive(self) -> bytes:
        message = await self._socket.receive()
        match message.type:
            case aiohttp.WSMsgType.BINARY:
                return bytes(message.data)
            case aiohttp.WSMsgType.TEXT:
                raise ClusterError("a message that is text", code="bad_frame")
            case aiohttp.WSMsgType.ERROR if isinstance(message.data, aiohttp.WebSocketError):
                raise ClusterError(f"a message that is none: {log.reason(message.data)}", code="bad_frame")
            case aiohttp.WSMsgType.ERROR:
                raise ConnectionResetError(log.reason(message.data))
            case _:
                raise ConnectionResetError("the other side closed it")

    async def close(self) -> None:
        await self._socket.close()
