"""The door for hosts, with real TLS on loopback: who comes in, who does not, and that the others do not notice."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import ssl
import time
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
from door_support import OpenDoor, in_between, new_door, open_door
from port_support import free_ports

from obatchd.cluster import links, wire
from obatchd.cluster.head import door as door_module
from obatchd.cluster.head.certificate import of_head
from obatchd.cluster.host.way import HeadPlace, HeadWay
from obatchd.cluster.joining import join, pin
from obatchd.errors import ClusterError


@pytest.fixture
async def door(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[OpenDoor]:
    monkeypatch.setattr(door_module, "_WRONG_S", 0.05)
    async with open_door(tmp_path, free_ports(1)) as found:
        yield found


async def joined(door: OpenDoor, name: str = "node01") -> str:
    return (await join(links.parse(door.link()), name, f"machine of {name}")).credential


async def refused(door: OpenDoor, link: str, name: str = "node01") -> ClusterError:
    with pytest.raises(ClusterError) as told:
        await join(links.parse(link), name, f"machine of {name}")
    return told.value


async def test_a_host_joins_once_by_a_code_and_connects_by_its_own_credential(door: OpenDoor) -> None:
    link = door.link()
    found = await join(links.parse(link), "node01", "m1")
    async with door.connected(found.credential) as connection:
        await connection.send_bytes(b"hello")
        assert await connection.receive_bytes() == b"hello"
    assert door.behind.came == [("node01", None)]
    assert (await refused(door, link, "node02")).code == "code_used"
    assert found.credential not in (door.roster._path).read_text()


async def test_nobody_comes_in_without_a_good_code(door: OpenDoor) -> None:
    assert (await refused(door, door.link("no-such-code-there-is"))).code == "wrong_secret"
    code = door.roster.make_code()
    for one in door.roster._kept.codes:
        one.until_s = time.time() - 1
    late = await refused(door, door.link(code.secret))
    assert late.code == "code_expired" and "obatchctl hosts code" in late.message
    assert door.roster.names() == []


async def test_a_credential_that_was_revoked_or_is_over_opens_nothing(door: OpenDoor) -> None:
    credential = await joined(door)
    door.roster.forget("node01")
    for wrong in (credential, "", "x" * 43):
        with pytest.raises(aiohttp.WSServerHandshakeError) as told:
            async with door.connected(wrong):
                pass
        assert told.value.status == 401
    link = links.parse(door.link())
    ends = await join(link, "node02", "m2", lasts_s=0.0)
    with pytest.raises(aiohttp.WSServerHandshakeError):
        async with door.connected(ends.credential):
            pass


async def test_joining_again_is_the_same_host_and_ends_the_old_credential(door: OpenDoor) -> None:
    first = await joined(door)
    second = await joined(door)
    with pytest.raises(aiohttp.WSServerHandshakeError):
        async with door.connected(first):
            pass
    async with door.connected(second) as connection:
        await connection.send_bytes(b"x")
        await connection.receive_bytes()
        with pytest.raises(ClusterError) as told:
            await join(links.parse(door.link()), "node01", "another machine")
        assert told.value.code == "name_taken" and "--name" in told.value.message
    assert door.behind.cut == ["node01", "node01"]


async def test_the_secret_is_sent_to_nobody_with_another_certificate(door: OpenDoor, tmp_path: Path) -> None:
    link = links.parse(door.link())
    async with in_between(of_head(tmp_path / "other"), door.port) as (port, heard):
        with pytest.raises(ClusterError) as told:
            await join(link._replace(head=link.head._replace(port=port)), "node01", "m1")
    assert told.value.code == "wrong_certificate" and "in between" in told.value.message
    assert bytes(heard) == b""
    assert (await join(link, "node01", "m1")).name == "node01"  # the code is still good


async def test_a_host_shows_its_credential_to_its_head_alone(door: OpenDoor, tmp_path: Path) -> None:
    credential = await joined(door)
    state = door.door.state()
    assert state is not None
    async with in_between(of_head(tmp_path / "other"), door.port) as (port, heard):
        with pytest.raises(ClusterError) as told:
            await HeadWay(HeadPlace(f"127.0.0.1:{port}", state.fingerprint, credential)).connect()
    assert told.value.code == "wrong_certificate" and bytes(heard) == b""
    connection = await HeadWay(HeadPlace(f"127.0.0.1:{door.port}", state.fingerprint, credential)).connect()
    await connection.send(b"hello")
    assert await connection.receive() == b"hello"
    await connection.close()


async def test_a_body_that_does_not_come_is_given_up(door: OpenDoor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(door_module, "_BODY_S", 0.1)
    blind = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    blind.check_hostname, blind.verify_mode = False, ssl.CERT_NONE
    reader, writer = await asyncio.open_connection("127.0.0.1", door.port, ssl=blind)
    writer.write(b"POST /v1/join HTTP/1.1\r\nHost: head\r\nContent-Length: 500\r\n\r\n{")
    answer = await reader.read()
    assert answer.startswith(b"HTTP/1.1 403") and b"did not come in time" in answer
    writer.close()
    await writer.wait_closed()


async def test_what_is_no_head_is_told_apart(door: OpenDoor) -> None:
    link = links.parse(door.link())
    closed = link._replace(head=link.head._replace(port=free_ports(1)))
    with pytest.raises(ClusterError) as told:
        await join(closed, "node01", "m1")
    assert told.value.code == "head_unreachable"

    async def greet(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"SSH-2.0-something-else\r\n")
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_server(greet, "127.0.0.1", 0)
    async with server:
        plain = link._replace(head=link.head._replace(port=server.sockets[0].getsockname()[1]))
        with pytest.raises(ClusterError) as told:
            await join(plain, "node01", "m1")
    assert told.value.code == "no_head"


async def test_wrong_secrets_are_told_in_one_line(door: OpenDoor, caplog: pytest.LogCaptureFixture) -> None:
    await asyncio.gather(*(refused(door, door.link(f"guessed-secret-number-{n}")) for n in range(20)))
    assert sum("wrong_host_secrets" in line for line in caplog.messages) == 1


async def test_bodies_and_messages_that_are_too_large_end_their_own_connection_alone(door: OpenDoor) -> None:
    credential, other = await joined(door), await joined(door, "node02")
    state = door.door.state()
    assert state is not None
    async with door.connected(other) as undisturbed, aiohttp.ClientSession() as http:
        url, known = f"https://127.0.0.1:{door.port}/v1/join", pin(state.fingerprint)
        for body in (b"x" * 100_000, b"{", json.dumps({"secret": "s", "name": "../..", "machine": "m"}).encode()):
            async with http.post(url, data=body, ssl=known) as answer:
                assert answer.status == 403 and (await answer.json())["code"] == "bad_request"
        async with http.get(f"https://127.0.0.1:{door.port}/metrics", ssl=known) as answer:
            assert answer.status == 404
        async with door.connected(credential) as connection:
            await connection.send_bytes(b"x" * (wire.MESSAGE_BYTES + 1))
            message = await connection.receive()
            assert message.type in (aiohttp.WSMsgType.CLOSE, aiohttp.WSMsgType.ERROR, aiohttp.WSMsgType.CLOSED)
        await undisturbed.send_bytes(b"still here")
        assert await undisturbed.receive_bytes() == b"still here"
    assert any("bad_frame" in why or "ClusterError" in why for why in door.behind.ended)


async def test_half_open_connections_keep_nobody_out(door: OpenDoor) -> None:
    credential = await joined(door)
    loop = asyncio.get_running_loop()
    async with door.connected(credential) as undisturbed:
        with contextlib.ExitStack() as idle:
            for _ in range(700):
                one = idle.enter_context(socket.socket())
                one.setblocking(False)
                await loop.sock_connect(one, ("127.0.0.1", door.port))
            assert await joined(door, "node02")
            await undisturbed.send_bytes(b"still here")
            assert await undisturbed.receive_bytes() == b"still here"


async def test_old_tls_is_refused(door: OpenDoor) -> None:
    old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    old.check_hostname, old.verify_mode = False, ssl.CERT_NONE
    with pytest.warns(DeprecationWarning):
        old.maximum_version = ssl.TLSVersion.TLSv1_1
    old.set_ciphers("ALL:@SECLEVEL=0")
    with pytest.raises(OSError):
        await asyncio.open_connection("127.0.0.1", door.port, ssl=old)


async def test_an_address_in_use_is_told_and_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("obatchd.doors.reception._AGAIN_S", 0.05)
    port = free_ports(1)
    with socket.create_server(("127.0.0.1", port)):
        found = new_door(tmp_path, port)
        await found.door.start()
        async with asyncio.timeout(10):
            while not (state := found.door.state()) or "in use" not in state.problem:
                await asyncio.sleep(0.01)
    async with asyncio.timeout(10):
        while not (state := found.door.state()) or state.problem:
            await asyncio.sleep(0.01)
    await found.door.stop()
