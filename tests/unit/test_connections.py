"""HTTP as a worker speaks it, against a server that writes bytes as it is told."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ssl
from collections.abc import AsyncIterator

import pytest

from obatchd.ollama.connections import Broken, Connections, Unreachable


class Body:
    """A response as it arrived."""

    def __init__(self) -> None:
        self.status = 0
        self.location = ""
        self.content = b""

    def begin(self, status: int, location: str = "") -> None:
        self.status, self.location = status, location

    def data(self, data: bytes) -> None:
        self.content += data


class Scripted:
    """Answers every request with the next of ``responses``; None as a piece closes the connection."""

    def __init__(self) -> None:
        self.responses: list[list[bytes | None]] = []
        self.requests: list[bytes] = []
        self.connections = 0
        self.closed = asyncio.Event()
        self.url = ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
                self.requests.append(head + await reader.readexactly(length))
                for piece in self.responses.pop(0):
                    if piece is None:
                        return
                    writer.write(piece)
                    await writer.drain()
        except asyncio.IncompleteReadError:
            pass
        finally:
            writer.close()
            self.closed.set()


@pytest.fixture
async def server() -> AsyncIterator[Scripted]:
    scripted = Scripted()
    listening = await asyncio.start_server(scripted.serve, "127.0.0.1", 0)
    scripted.url = f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
    async with listening:
        yield scripted


WHOLE = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"


@pytest.fixture
async def connections(server: Scripted) -> AsyncIterator[Connections]:
    made = Connections(server.url, "secret", 5.0)
    yield made
    await made.close()


async def ask(connections: Connections, body: bytes = b"{}") -> Body:
    answer = Body()
    async with asyncio.timeout(5):
        await connections.request("POST", "/api/chat", body, answer)
    return answer


async def test_a_request_and_its_response(server: Scripted, connections: Connections) -> None:
    server.responses = [[WHOLE]]
    answer = await ask(connections, b'{"a": 1}')
    assert (answer.status, answer.content) == (200, b"hello")
    [request] = server.requests
    assert request.startswith(b"POST /api/chat HTTP/1.1\r\nHost: 127.0.0.1:")
    assert b"\r\nAuthorization: Bearer secret\r\n" in request
    assert request.endswith(b'Content-Length: 8\r\n\r\n{"a": 1}')


async def test_a_connection_is_kept_and_used_again(server: Scripted, connections: Connections) -> None:
    chunked = [b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhe\r\n", b"3\r\nllo\r\n", b"0\r\n\r\n"]
    server.responses = [[WHOLE], list(chunked), [WHOLE]]
    assert [(await ask(connections)).content for _ in range(3)] == [b"hello"] * 3
    assert server.connections == 1


async def test_a_connection_that_the_server_closes_is_not_used_again(
    server: Scripted, connections: Connections
) -> None:
    closing = WHOLE.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
    server.responses = [[closing], [WHOLE, None], [WHOLE]]
    assert (await ask(connections)).content == b"hello"
    server.closed.clear()
    assert (await ask(connections)).content == b"hello"
    await server.closed.wait()
    async with asyncio.timeout(5):
        while connections.kept:
            await asyncio.sleep(0.001)
    assert (await ask(connections)).content == b"hello"
    assert server.connections == 3


async def test_what_was_idle_for_long_is_not_trusted(
    server: Scripted, connections: Connections, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("obatchd.ollama.connections._KEPT_S", 0.0)
    server.responses = [[WHOLE], [WHOLE]]
    assert [(await ask(connections)).content for _ in range(2)] == [b"hello"] * 2
    assert server.connections == 2


async def test_a_kept_connection_that_ends_without_a_byte_is_replaced(
    server: Scripted, connections: Connections
) -> None:
    server.responses = [[WHOLE], [None], [WHOLE]]
    assert (await ask(connections)).content == b"hello"
    assert (await ask(connections, b"again")).content == b"hello"
    assert server.connections == 2
    assert [request.endswith(b"again") for request in server.requests] == [False, True, True]


async def test_a_kept_connection_that_ends_long_after_the_request_came_is_broken(
    server: Scripted, connections: Connections, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody has worked on it until then."""
    monkeypatch.setattr("obatchd.ollama.connections._STALE_S", 0.0)
    server.responses = [[WHOLE], [None], [WHOLE]]
    await ask(connections)
    with pytest.raises(Broken):
        await ask(connections, b"again")
    assert [request.endswith(b"again") for request in server.requests] == [False, True]


@pytest.mark.parametrize("responses", [[[None]], [[WHOLE], [b"HTTP/1.1 2", None]], [[WHOLE], [None], [None]]])
async def test_a_new_connection_or_one_with_a_byte_that_ends_is_broken(
    server: Scripted, connections: Connections, responses: list[list[bytes | None]]
) -> None:
    server.responses = [list(pieces) for pieces in responses]
    for _ in range(responses.count([WHOLE])):
        await ask(connections)
    with pytest.raises(Broken):
        await ask(connections)
    assert server.responses == []


async def test_a_kept_connection_to_a_server_that_is_gone_then_is_broken(
    server: Scripted, connections: Connections, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.responses = [[WHOLE], [None]]
    await ask(connections)
    connections._port = 1  # nobody listens there
    with pytest.raises(Broken):
        await ask(connections)


async def test_an_answer_that_nobody_asked_for_ends_its_connection(server: Scripted, connections: Connections) -> None:
    late = b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\n\r\n"
    server.responses = [[WHOLE + late], [WHOLE]]
    assert (await ask(connections)).content == b"hello"
    answer = await ask(connections)
    assert (answer.status, answer.content) == (200, b"hello")
    assert server.connections == 2


async def test_the_target_of_a_redirect_is_told(server: Scripted, connections: Connections) -> None:
    server.responses = [[b"HTTP/1.1 307 Temporary Redirect\r\nLocation: /there\r\nContent-Length: 0\r\n\r\n"], [WHOLE]]
    answer = await ask(connections)
    assert (answer.status, answer.location) == (307, "/there")
    assert (await ask(connections)).location == ""


async def test_without_a_length_the_end_of_the_connection_is_the_end(
    server: Scripted, connections: Connections
) -> None:
    server.responses = [[b"HTTP/1.0 200 OK\r\n\r\nhel", b"lo", None]]
    assert (await ask(connections)).content == b"hello"


@pytest.mark.parametrize(
    "pieces",
    [
        [None],
        [b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhel", None],
        [b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhe\r\n", None],
        [b"SSH-2.0-OpenSSH_9.2\r\n"],
    ],
)
async def test_a_response_that_does_not_end_is_broken(
    server: Scripted, connections: Connections, pieces: list[bytes | None]
) -> None:
    server.responses = [pieces, [WHOLE]]
    with pytest.raises(Broken):
        await ask(connections)
    assert (await ask(connections)).content == b"hello"


async def test_cancelling_closes_the_connection(server: Scripted, connections: Connections) -> None:
    server.responses = [[b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhel"]]
    answer = Body()
    asking = asyncio.create_task(connections.request("POST", "/api/chat", b"{}", answer))
    async with asyncio.timeout(5):
        while not answer.content:
            await asyncio.sleep(0.001)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        await server.closed.wait()


async def test_a_connection_cancelled_as_its_response_comes_is_not_used_again(
    server: Scripted, connections: Connections
) -> None:
    class Late(Body):
        def data(self, data: bytes) -> None:
            task.cancel()

    async def two() -> Body:
        with contextlib.suppress(asyncio.CancelledError):
            await connections.request("POST", "/api/chat", b"{}", Late())
        task.uncancel()
        return await ask(connections)  # at once, as a worker's slot goes on

    server.responses = [[WHOLE], [WHOLE]]
    task = asyncio.create_task(two())
    assert (await task).content == b"hello"
    assert server.connections == 2


async def test_nobody_listens(unused_tcp_port: int) -> None:
    with pytest.raises(Unreachable):
        await ask(Connections(f"http://127.0.0.1:{unused_tcp_port}", "", 1.0))


def not_trusted(code: int, words: str) -> ssl.SSLError:
    error = ssl.SSLCertVerificationError(1, f"[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed: {words}")
    error.verify_code, error.verify_message = code, words
    return error


def no_tls() -> ssl.SSLError:
    error = ssl.SSLError(1, "[SSL: WRONG_VERSION_NUMBER] wrong version number (_ssl.c:1006)")
    error.reason = "WRONG_VERSION_NUMBER"
    return error


@pytest.mark.parametrize(
    ("error", "words", "remedy"),
    [
        (not_trusted(18, "self-signed certificate"), "not accepted (self-signed certificate): ", "SSL_CERT_FILE="),
        (not_trusted(10, "certificate has expired"), "not accepted (certificate has expired): ", "whoever keeps"),
        (no_tls(), "does not speak https; ", "http:// in front"),
    ],
)
async def test_what_is_wrong_with_https_is_told_with_what_to_do(
    monkeypatch: pytest.MonkeyPatch, error: ssl.SSLError, words: str, remedy: str
) -> None:
    """Before, the words were those of Python's ssl, with the line of its source."""

    async def refused(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(asyncio.get_running_loop(), "create_connection", refused)
    with pytest.raises(Unreachable) as caught:
        await ask(Connections("https://192.0.2.1:1", "", 1.0))
    assert words in str(caught.value) and remedy in str(caught.value) and "_ssl.c" not in str(caught.value)


@pytest.mark.parametrize("limit_s", [None, 60.0])
async def test_a_host_that_the_kernel_gives_up_is_unreachable(
    monkeypatch: pytest.MonkeyPatch, limit_s: float | None
) -> None:
    async def unanswered(*_: object, **__: object) -> None:
        raise OSError(errno.ETIMEDOUT, "Connect call failed")  # Python makes a TimeoutError of it

    monkeypatch.setattr(asyncio.get_running_loop(), "create_connection", unanswered)
    with pytest.raises(Unreachable, match="Connection timed out"):
        await ask(Connections("http://192.0.2.1:1", "", limit_s))


async def test_a_path_in_front_and_a_closing_that_waits(server: Scripted) -> None:
    connections = Connections(server.url + "/ollama/", "", 5.0)
    server.responses = [[WHOLE]]
    asking = asyncio.create_task(ask(connections))
    await asyncio.sleep(0)
    await connections.close()
    assert (await asking).content == b"hello"
    assert server.requests[0].startswith(b"POST /ollama/api/chat HTTP/1.1\r\n")
