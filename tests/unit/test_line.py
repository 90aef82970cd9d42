"""The line that tests of several hosts cut."""

from __future__ import annotations

import socket
import socketserver
import threading
import time
from collections.abc import Iterator

import pytest
from line_support import Line, line_to
from port_support import free_ports


class _Echo(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        while data := self.request.recv(4096):
            self.request.sendall(data)


@pytest.fixture
def line() -> Iterator[Line]:
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), _Echo) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        with line_to(server.server_address[1], free_ports(1)) as line:
            yield line
        server.shutdown()
        thread.join()


def _call(line: Line) -> socket.socket:
    return socket.create_connection(("127.0.0.1", line.port), 5)


def test_it_carries_what_is_sent_and_the_end(line: Line) -> None:
    with _call(line) as call:
        call.sendall(b"x" * 300_000)
        heard = b""
        while len(heard) < 300_000:
            heard += call.recv(65536)
        assert heard == b"x" * 300_000
        call.shutdown(socket.SHUT_WR)
        assert call.recv(10) == b""
    assert line.carried_bytes == 600_000
    assert line.connections == 1


def test_what_is_sent_while_it_is_cut_arrives_after_it_healed(line: Line) -> None:
    with _call(line) as call:
        call.sendall(b"one")
        assert call.recv(10) == b"one"
        line.cut()
        call.sendall(b"two")
        call.settimeout(0.3)
        with pytest.raises(TimeoutError):
            call.recv(10)
        call.settimeout(5)
        line.heal()
        assert call.recv(10) == b"two"


def test_a_broken_line_ends_connections_and_refuses_others(line: Line) -> None:
    with _call(line) as call:
        call.sendall(b"one")
        assert call.recv(10) == b"one"
        line.break_()
        assert _ended(call)
    with _call(line) as call:
        assert _ended(call)
    line.heal()
    with _call(line) as call:
        call.sendall(b"two")
        assert call.recv(10) == b"two"


def _ended(call: socket.socket) -> bool:
    try:
        return call.recv(10) == b""
    except ConnectionResetError:
        return True


def test_it_delays_each_way(line: Line) -> None:
    line.delay_s = 0.1
    with _call(line) as call:
        begun_s = time.monotonic()
        call.sendall(b"one")
        assert call.recv(10) == b"one"
    assert 0.2 <= time.monotonic() - begun_s < 2
