"""Calls that break the rules of HTTP, wrong keys without end, and uploads that never end: refused in one shape."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx2
import openai
import psutil
import pytest
from daemon_support import Daemon, Document, wait_for
from programs_support import FORM, Programs, for_all_tests, multipart, over_http, questions

HOST = b"Host: localhost\r\n"


@pytest.fixture(scope="module")
def door(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Programs]:
    """A daemon that is looked at from outside only."""
    with for_all_tests(tmp_path_factory.mktemp("door")) as found:
        assert found.key
        yield found


def answered(connection: socket.socket) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body of an answer whose connection is closed behind it."""
    received = b""
    with contextlib.suppress(ConnectionResetError):
        while block := connection.recv(65536):
            received += block
    head, _, body = received.partition(b"\r\n\r\n")
    status, *lines = head.decode("latin-1").split("\r\n")
    return int(status.split()[1]), {n.lower(): v for n, _, v in (line.partition(": ") for line in lines)}, body


def refused(door: Programs, sent: bytes) -> tuple[int, Document]:
    """The error of a refusal, which has the usual shape and headers."""
    with door.connected() as connection:
        connection.sendall(sent)
        status, headers, body = answered(connection)
    assert headers["content-type"].startswith("application/json"), (headers, body)
    assert headers["x-request-id"].startswith("req_") and headers["x-content-type-options"] == "nosniff"
    error: Document = json.loads(body)["error"]
    assert error.keys() == {"message", "type", "param", "code"} and error["type"] == "invalid_request_error"
    return status, error


@pytest.mark.parametrize(
    "sent",
    [
        b"rubbish\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 TLS without TLS\r\n\r\n",
        b"GET /v1/models HTTP/9.9\r\n" + HOST + b"\r\n",
        b"G\x00T /v1/models HTTP/1.1\r\n" + HOST + b"\r\n",
        b"GET /v1/models HTTP/1.1\r\n" + HOST + b"no colon\r\n\r\n",
        b"GET /v1/models HTTP/1.1\r\n" + HOST + b"Content-Length: many\r\n\r\n",
        b"POST /v1/batches HTTP/1.1\r\n" + HOST + b"Content-Length: 3\r\nContent-Length: 4\r\n\r\nabcd",
        b"POST /v1/batches HTTP/1.1\r\n" + HOST + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ],
)
def test_what_breaks_the_rules_of_http_is_refused_in_the_usual_shape(door: Programs, sent: bytes) -> None:
    status, error = refused(door, sent)
    assert (status, error["code"]) == (400, "malformed_call")
    assert door.call("GET", "/v1/models").status == 200


@pytest.mark.parametrize(
    "head",
    [
        b"GET /v1/models HTTP/1.1\r\n" + HOST + b"X: " + b"y" * 20_000 + b"\r\n\r\n",
        b"GET /v1/models HTTP/1.1\r\n" + HOST + b"y" * 20_000 + b": x\r\n\r\n",
        b"GET /" + b"y" * 20_000 + b" HTTP/1.1\r\n" + HOST + b"\r\n",
    ],
)
def test_a_head_that_is_too_large_is_refused_in_the_usual_shape(door: Programs, head: bytes) -> None:
    status, error = refused(door, head)
    assert (status, error["code"]) == (431, "head_too_large")


def test_a_body_in_bad_chunks_is_refused_in_the_usual_shape(door: Programs) -> None:
    key = b"Authorization: Bearer " + door.key.encode() + b"\r\n"
    chunked = HOST + key + b"Transfer-Encoding: chunked\r\n"
    for body in (b"zz\r\n{}\r\n0\r\n\r\n", b"2\r\n{}xx\r\n", b"ffffffffffffffffffff\r\n{}"):
        status, error = refused(door, b"POST /v1/batches HTTP/1.1\r\n" + chunked + b"\r\n" + body)
        assert (status, error["code"]) in ((400, "invalid_body"), (400, "malformed_call")), body
        form = b"Content-Type: " + FORM.encode() + b"\r\n\r\n"
        status, _ = refused(door, b"POST /v1/files HTTP/1.1\r\n" + chunked + form + body)
        assert status == 400, body
    assert list((door.d.spool / "work" / "uploads").iterdir()) == []


def test_an_expectation_that_nobody_knows_is_refused_in_the_usual_shape(door: Programs) -> None:
    key = b"Authorization: Bearer " + door.key.encode() + b"\r\n"
    for path, status in ((b"/v1/batches", 417), (b"/v1/nothing", 404)):
        head = b"POST " + path + b" HTTP/1.1\r\n" + HOST + key + b"Connection: close\r\nExpect: the-worst\r\n\r\n"
        assert refused(door, head)[0] == status


def test_who_is_refused_is_not_asked_for_the_body_first(door: Programs) -> None:
    def asked(path: bytes, key: bytes, size: int) -> bytes:
        head = b"POST " + path + b" HTTP/1.1\r\n" + HOST + b"Authorization: Bearer " + key
        with door.connected() as connection:
            rest = b"\r\nExpect: 100-continue\r\nContent-Type: %s\r\nContent-Length: %d\r\n\r\n"
            connection.sendall(head + rest % (FORM.encode(), size))
            return connection.recv(1000)[:12]

    good = door.key.encode()
    assert asked(b"/v1/files", b"obk_wrong", 2 * 1024**3) == b"HTTP/1.1 401"
    assert asked(b"/v1/batches", good, 2 * 1024**3) == b"HTTP/1.1 413"
    assert asked(b"/v1/files", good, 1000) == b"HTTP/1.1 100"
    body = multipart(("purpose", None, b"batch"), ("file", "a.jsonl", questions(1)))
    sent = door.call("POST", "/v1/files", body, Content_Type=FORM, Expect="100-continue")
    assert sent.status == 200 and sent.document["filename"] == "a.jsonl"
    door.call("DELETE", f"/v1/files/{sent.document['id']}")


WRONG = 10_000
LARGE_BYTES = int(os.environ.get("OBATCHD_TEST_UPLOAD_BYTES", str(300 * 1024**2)))  # 2 GiB was tried by hand


def test_ten_thousand_wrong_keys_cost_little_and_write_nothing(make_daemon: Callable[..., Daemon]) -> None:
    """A thousandth of a second of the daemon's time each, no byte of the spool, and one line in the log a minute."""
    found = over_http(make_daemon)
    found.d.start().ready()
    threads, failed = 8, list[object]()
    call = b"GET /v1/files HTTP/1.1\r\n" + HOST + b"Authorization: Bearer obk_%d-%d\r\n\r\n"

    def knock(thread: int) -> None:
        for number in range(WRONG // threads):
            with found.connected() as connection:
                connection.sendall(call % (thread, number))
                if not connection.recv(2000).startswith(b"HTTP/1.1 401"):
                    failed.append(number)

    def written() -> dict[str, tuple[int, int]]:
        work = found.d.spool / "work"
        index = [work / "state.db", work / "state.db-wal", *(work / "segments").glob("*")]
        return {path.name: (path.stat().st_size, path.stat().st_mtime_ns) for path in index if path.exists()}

    def another() -> bytes:
        """Somebody on the socket, who needs no key: when keys were used is written down now and then."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(found.socket_path))
            connection.sendall(b"GET /v1/models HTTP/1.1\r\n" + HOST + b"Connection: close\r\n\r\n")
            return connection.recv(100)

    wait_for(lambda: time.time() - max(at / 1e9 for _, at in written().values()) > 3, what="the start writes no more")
    before, daemon = written(), psutil.Process(found.d.pid)
    memory, began_s = daemon.memory_info().rss, time.monotonic()
    used = daemon.cpu_times()
    workers = [threading.Thread(target=knock, args=(thread,)) for thread in range(threads)]
    for worker in workers:
        worker.start()
    slowest_s = 0.0
    while any(worker.is_alive() for worker in workers):
        asked_s = time.monotonic()
        assert another().startswith(b"HTTP/1.1 200")
        slowest_s = max(slowest_s, time.monotonic() - asked_s)
    for worker in workers:
        worker.join()
    now = daemon.cpu_times()
    cost_ms = 1000 * (now.user + now.system - used.user - used.system) / WRONG
    took_s = time.monotonic() - began_s
    print(f"{cost_ms:.3f} ms of the daemon for each, {took_s:.1f} s, slowest call of another {slowest_s:.3f} s")
    assert failed == [] and cost_ms <= 1.0 and slowest_s < 5
    minutes = (time.monotonic() - began_s) // 60
    assert 1 <= len(found.d.events("wrong_keys")) <= 1 + minutes
    assert written() == before
    assert daemon.memory_info().rss - memory < 32 * 1024**2


# Uploads.


def begun(found: Programs, content: bytes) -> tuple[socket.socket, Path]:
    """An upload under way, of which so much has come, and its file."""
    uploads = found.d.spool / "work" / "uploads"
    known = set(uploads.glob("*/content"))
    connection = sending(found, content + b"y" * 4_000_000, -3_000_000)
    [path] = wait_for(lambda: set(uploads.glob("*/content")) - known)
    return connection, path


def sending(found: Programs, content: bytes, until: int) -> socket.socket:
    """An upload whose body is sent until there."""
    body = multipart(("purpose", None, b"batch"), ("file", "a.jsonl", content))
    head = (
        f"POST /v1/files HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {found.key}\r\nContent-Type: {FORM}\r\n"
    )
    connection = socket.create_connection(("127.0.0.1", found.port), timeout=20)
    connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body[:until])
    return connection


def test_an_upload_and_a_download_take_no_memory(make_daemon: Callable[..., Daemon], tmp_path: Path) -> None:
    found = over_http(make_daemon, {"limits": {"files_bytes": 9 * 1024**3}, "disk": {"min_free_bytes": 1024**2}})
    found.d.start().ready()
    large = tmp_path / "large.jsonl"
    with open(large, "wb") as file:
        os.truncate(file.fileno(), LARGE_BYTES)
    daemon, peak, over = psutil.Process(found.d.pid), 0, threading.Event()
    before = daemon.memory_info().rss

    def watch() -> None:
        nonlocal peak
        while not over.wait(0.05):
            peak = max(peak, daemon.memory_info().rss)

    watching = threading.Thread(target=watch)
    watching.start()
    try:
        with found.client() as client, open(large, "rb") as content:
            id = client.files.create(file=("large.jsonl", content), purpose="batch").id
            with client.files.with_streaming_response.content(id) as answer:
                assert sum(map(len, answer.iter_bytes(1024**2))) == LARGE_BYTES
            client.files.delete(id)
    finally:
        over.set()
        watching.join()
    print(f"{(peak - before) / 1e6:.0f} MB more for {LARGE_BYTES / 1e6:.0f} MB")
    assert 0 < peak < before + 48 * 1024**2


def test_uploads_that_a_kill_cut_off_go_at_the_next_start(make_daemon: Callable[..., Daemon]) -> None:
    found = over_http(make_daemon)
    found.d.start().ready()
    with found.client(max_retries=4) as client:
        kept = client.files.create(file=("kept.jsonl", questions(1)), purpose="batch")
        connection, path = begun(found, b"x" * 2_000_000)
        wait_for(lambda: path.stat().st_size >= 1_000_000, what="a part of it is on the disk")
        found.d.kill()
        connection.close()
        assert path.exists()
        found.d.start().ready()
        assert list((found.d.spool / "work" / "uploads").iterdir()) == []
        assert list(client.files.list()) == [kept]
        for sent_bytes in (*range(0, 1_200_000, 5 * 65536), -1):  # every 64 KiB was tried by hand
            connection = sending(found, b"x" * 1_200_000, sent_bytes)
            found.d.kill()
            connection.close()
            found.d.start()  # it answers on its socket a moment before it looks through the files of programs
            wait_for(lambda: not list((found.d.spool / "work" / "uploads").iterdir()), what="what was cut off goes")
            assert list(client.files.list()) == [kept]


def test_uploads_under_way_count_for_the_limits_of_their_owner(make_daemon: Callable[..., Daemon]) -> None:
    found = over_http(make_daemon, {"limits": {"files": 1}})
    found.d.start().ready()
    connection, _ = begun(found, b"x" * 2_000_000)
    with found.client(max_retries=2) as client, connection, pytest.raises(openai.RateLimitError) as limited:
        client.files.create(file=("b", b"{}"), purpose="batch")
    assert limited.value.response.headers["x-should-retry"] == "false"
    with found.client() as client:  # its place is free again as soon as it is cut off
        assert wait_for(lambda: created(client))


def created(client: openai.OpenAI) -> str:
    with contextlib.suppress(openai.RateLimitError):
        return client.files.create(file=("b", b"{}"), purpose="batch").id
    return ""


def test_a_large_upload_over_the_limit_is_refused_once_and_others_are_answered(
    make_daemon: Callable[..., Daemon], tmp_path: Path
) -> None:
    """Its client reads the refusal although it has not sent everything, and does not send it all again."""
    found = over_http(make_daemon, {"limits": {"files_bytes": 1_000_000}})
    found.d.start().ready()
    large = tmp_path / "large.jsonl"
    with open(large, "wb") as file:
        os.truncate(file.fileno(), 300 * 1024**2)
    sent = list[str]()
    with (
        httpx2.Client(event_hooks={"request": [lambda request: sent.append(request.url.path)]}) as http_client,
        found.client(max_retries=2, http_client=http_client) as client,
        open(large, "rb") as content,
        pytest.raises(openai.RateLimitError) as limited,
    ):
        client.files.create(file=("large.jsonl", content), purpose="batch")
    assert limited.value.code == "file_limit_exceeded" and sent == ["/v1/files"]
    assert list((found.d.spool / "work" / "uploads").iterdir()) == []
    assert found.call("GET", "/v1/files").document["data"] == []
