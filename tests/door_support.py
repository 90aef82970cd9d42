"""A door for hosts on loopback, with real TLS, and those who come to it."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import aiohttp
import attrs

from obatchd.cluster.head.certificate import HeadCertificate
from obatchd.cluster.head.door import Door
from obatchd.cluster.head.hosts import Hosts
from obatchd.cluster.head.roster import Roster
from obatchd.cluster.joining import pin
from obatchd.cluster.session import Socket
from obatchd.settings.current import Current
from obatchd.settings.settings import Settings


@attrs.define(eq=False)
class Attending:
    """In the place of the head's hosts: says what it hears, until it is cut off."""

    hosts: dict[str, Any] = attrs.field(factory=dict)
    cut: list[str] = attrs.field(factory=list)
    came: list[tuple[str, float | None]] = attrs.field(factory=list)
    ended: list[str] = attrs.field(factory=list)  # why

    async def attend(self, socket: Socket, name: str, until_s: float | None = None) -> None:
        self.came.append((name, until_s))
        self.hosts[name] = SimpleNamespace(session=socket, hello=SimpleNamespace(machine=f"machine of {name}"))
        try:
            while True:
                await socket.send(await socket.receive())
        except Exception as error:  # noqa: BLE001 - what a session makes of it is tested with sessions
            self.ended.append(f"{type(error).__name__}: {error}")
        finally:
            self.hosts[name].session = None
            await socket.close()

    def cut_off(self, name: str, reason: str) -> None:
        self.cut.append(name)

    async def host_joins(self, name: str, address: str, enrolment: str) -> None:
        pass


@attrs.define(eq=False)
class OpenDoor:
    """A door that listens, and who is behind it."""

    door: Door
    roster: Roster
    behind: Attending
    port: int

    def link(self, secret: str = "") -> str:
        return str(self.door.link(secret or self.roster.make_code().secret))

    @asynccontextmanager
    async def connected(self, credential: str) -> AsyncIterator[aiohttp.ClientWebSocketResponse]:
        state = self.door.state()
        assert state is not None
        async with aiohttp.ClientSession() as http:
            headers = {"Authorization": f"Bearer {credential}"}
            url = f"https://127.0.0.1:{self.port}/v1/hosts"
            async with http.ws_connect(url, ssl=pin(state.fingerprint), headers=headers) as socket:
                yield socket


def new_door(work: Path, port: int) -> OpenDoor:
    settings = Settings.model_validate({"cluster": {"listen": f"127.0.0.1:{port}"}})
    roster, behind = Roster(work / "cluster" / "hosts.json"), Attending()
    door = Door(Current(settings), work, roster, cast(Hosts, behind), behind)
    return OpenDoor(door, roster, behind, port)


@asynccontextmanager
async def open_door(work: Path, port: int) -> AsyncIterator[OpenDoor]:
    found = new_door(work, port)
    await found.door.start()
    try:
        async with asyncio.timeout(20):
            while not await _answers(port):
                await asyncio.sleep(0.02)
        yield found
    finally:
        await found.door.stop()


async def _answers(port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return False
    writer.close()
    return True


@asynccontextmanager
async def in_between(certificate: HeadCertificate, port: int) -> AsyncIterator[tuple[int, bytearray]]:
    """Somebody with a certificate of their own who passes everything on to a door; what was said to them is kept."""
    heard = bytearray()

    async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, kept: bytearray) -> None:
        while data := await reader.read(65536):
            kept += data
            writer.write(data)
            await writer.drain()

    async def meet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        blind = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        blind.check_hostname, blind.verify_mode = False, ssl.CERT_NONE
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", port, ssl=blind)
        ways = carry(reader, far_writer, heard), carry(far_reader, writer, bytearray())
        try:
            await asyncio.gather(*ways)
        except OSError:
            pass
        finally:
            far_writer.close()
            writer.close()

    server = await asyncio.start_server(meet, "127.0.0.1", 0, ssl=certificate.context())
    try:
        yield server.sockets[0].getsockname()[1], heard
    finally:
        server.close()
