"""The rules of the door for programs: who is let in, what a second try gets, limits, and what may go wrong."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
from daemon_support import Daemon, Document, wait_for
from openai import OpenAI
from port_support import free_ports
from programs_support import (
    CHAT,
    FORM,
    Programs,
    batch_file,
    certificate,
    for_all_tests,
    line,
    multipart,
    over_http,
    questions,
)

Make = Callable[..., Daemon]
SLOW = {"service_s": {"kind": "fixed", "value": 0.05}}
WINDOW: Any = "24h"


@pytest.fixture
def programs(make_daemon: Make) -> Callable[..., Programs]:
    """Starts daemons with every server READY."""

    def start(config: Document | None = None, **arguments: Any) -> Programs:
        found = over_http(make_daemon, config, **arguments)
        found.d.start().ready()
        return found

    return start


class Losing(httpx2.HTTPTransport):
    """Counts calls, and loses the answers of the first so many."""

    def __init__(self, lost: int) -> None:
        super().__init__()
        self.lost, self.calls = lost, 0

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        response = super().handle_request(request)
        response.read()
        self.calls += 1
        if self.calls <= self.lost:
            raise httpx2.ReadError("the answer is lost")
        return response


def retrying(programs: Programs, lost: int = 0) -> tuple[OpenAI, Losing]:
    """The client with its usual two retries."""
    transport = Losing(lost)
    return programs.client(max_retries=2, http_client=httpx2.Client(transport=transport)), transport


def begun(programs: Programs, content: bytes, **more: Any) -> Any:
    with programs.client() as client:
        file = client.files.create(file=("r.jsonl", content), purpose="batch").id
        return client.batches.create(**{"input_file_id": file, "endpoint": CHAT, "completion_window": WINDOW, **more})


# Asked twice.


def test_a_create_whose_answer_is_lost_makes_one_batch(programs: Callable[..., Programs]) -> None:
    found = programs()
    asked: dict[str, Any] = {"endpoint": CHAT, "completion_window": WINDOW, "metadata": {"a": "b"}}
    with found.client() as plain:
        file = plain.files.create(file=("r.jsonl", questions(2)), purpose="batch").id
        client, transport = retrying(found, lost=2)
        with client:
            batch = client.batches.create(input_file_id=file, **asked)
        assert transport.calls == 3 and [one.id for one in plain.batches.list()] == [batch.id]
        # Who asks on purpose gets another one; so does who asks for something else.
        other = plain.batches.create(input_file_id=file, **asked)
        client, transport = retrying(found, lost=1)
        with client:
            third = client.batches.create(input_file_id=file, **(asked | {"metadata": {"c": "d"}}))
        assert len({batch.id, other.id, third.id}) == len(list(plain.batches.list())) == 3
    # An old client says nothing about its tries: it is known that the first answer did not reach it.
    body = json.dumps({"input_file_id": file, "endpoint": CHAT, "completion_window": "6h"}).encode()
    head = f"POST /v1/batches HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {found.key}\r\n"
    head += f"Content-Length: {len(body)}"
    with found.connected() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # closed with a reset
        connection.sendall(f"{head}\r\n\r\n".encode() + body)
        wait_for(lambda: len(found.d.events("batch_created")) == 4)
    again = found.call("POST", "/v1/batches", json.loads(body)).document
    more = found.call("POST", "/v1/batches", json.loads(body)).document
    created = [event.split("job=")[1].split()[0] for event in found.d.events("batch_created")]
    assert len(created) == len(set(created)) and {again["id"], more["id"]} <= {f"batch_{job}" for job in created}


def test_an_idempotency_key_holds_over_a_restart(programs: Callable[..., Programs]) -> None:
    found = programs()
    with found.client() as client:
        file = client.files.create(file=("r.jsonl", questions(1)), purpose="batch").id
    whole = {"input_file_id": file, "endpoint": CHAT, "completion_window": "24h"}
    first = found.call("POST", "/v1/batches", whole, Idempotency_Key="mine").document
    found.d.kill()
    found.d.start().ready()
    assert found.call("POST", "/v1/batches", whole, Idempotency_Key="mine").document["id"] == first["id"]
    other = found.call("POST", "/v1/batches", whole | {"metadata": {"a": "b"}}, Idempotency_Key="mine")
    assert (other.status, other.error["code"], other.headers["x-should-retry"]) == (
        409,
        "idempotency_key_reused",
        "false",
    )
    assert found.call("POST", "/v1/batches", whole).document["id"] != first["id"]


# Cancelling.


def test_cancelling_in_every_state(programs: Callable[..., Programs]) -> None:
    found = programs({"dispatch": {"commit_interval_ms": 20}}, simulator=SLOW)
    with found.client() as client:
        batch = begun(found, questions(400))
        wait_for(lambda: (client.batches.retrieve(batch.id).request_counts or 0).completed >= 40)  # type: ignore[union-attr]
        began_s = time.monotonic()
        cancelling = client.batches.cancel(batch.id)
        assert time.monotonic() - began_s < 1.5
        assert cancelling.status in ("cancelling", "cancelled") and cancelling.cancelling_at
        assert client.batches.cancel(batch.id).status in ("cancelling", "cancelled")
        done = found.until_over(batch.id)
        assert done.status == "cancelled" and done.cancelled_at and done.request_counts is not None
        counts = done.request_counts
        assert (counts.total, counts.failed) == (400, 0) and 40 <= counts.completed < 400
        good = client.files.content(str(done.output_file_id)).text.splitlines()
        bad = [json.loads(one) for one in client.files.content(str(done.error_file_id)).text.splitlines()]
        assert (len(good), len(bad)) == (counts.completed, 400 - counts.completed)
        assert {(one["response"], one["error"]["code"]) for one in bad} == {(None, "batch_cancelled")}
        assert client.batches.cancel(batch.id) == done
        large = begun(found, questions(20_000, "l"))
        assert client.batches.cancel(large.id).status == "cancelling"  # in validating
        assert found.until_over(large.id, 60).request_counts.total == 20_000  # type: ignore[union-attr]
        completed = found.until_over(begun(found, questions(1)).id).id
        failed = found.until_over(begun(found, b"{}\n").id).id
        for over in (completed, failed):
            again, transport = retrying(found)
            with again, pytest.raises(openai.ConflictError) as caught:
                again.batches.cancel(over)
            assert caught.value.code == "invalid_batch_state" and transport.calls == 1


def test_a_batch_whose_files_are_being_written_cannot_be_cancelled_any_more(programs: Callable[..., Programs]) -> None:
    found = programs(simulator=SLOW)
    batch = begun(found, questions(40))
    [outbox] = wait_for(lambda: [*found.d.outbox.glob(f"*{batch.id.removeprefix('batch_')}*")])
    aside = outbox.with_name("aside")
    outbox.rename(aside)
    outbox.write_text("in the way")  # as a disk that refuses
    with found.client() as client:
        wait_for(lambda: client.batches.retrieve(batch.id).status == "finalizing", 60)
        again, transport = retrying(found)
        with again, pytest.raises(openai.ConflictError, match="status 'finalizing'") as caught:
            again.batches.cancel(batch.id)
        assert caught.value.code == "invalid_batch_state" and transport.calls == 1
        waiting = client.batches.retrieve(batch.id)
        assert waiting.finalizing_at and waiting.output_file_id is None
        outbox.unlink()
        aside.rename(outbox)
        done = found.until_over(batch.id, 60)
        assert done.status == "completed"
        assert len(client.files.content(str(done.output_file_id)).text.splitlines()) == 40


def test_windows_are_labels_or_deadlines(programs: Callable[..., Programs]) -> None:
    found = programs({"http": {"window": "enforce"}})
    found.d.client.post("pause")
    enforced = begun(found, questions(2))
    assert enforced.expires_at == pytest.approx(enforced.created_at + 86400, abs=2)
    week = begun(found, questions(2), completion_window="7d")
    assert week.completion_window == "7d" and week.expires_at == pytest.approx(week.created_at + 7 * 86400, abs=2)
    found.d.configure({"deadline": 1, "http": {"listen": f"127.0.0.1:{found.port}"}})
    found.d.client.post("reload")
    late = found.until_over(begun(found, questions(2)).id)
    assert late.status == "expired" and late.expired_at and late.expires_at and late.output_file_id is None
    assert late.request_counts is not None and (late.request_counts.total, late.request_counts.failed) == (2, 0)
    with found.client() as client:
        assert '"batch_expired"' in client.files.content(str(late.error_file_id)).text


def test_one_bad_line_fails_the_whole_where_that_is_the_rule(programs: Callable[..., Programs]) -> None:
    found = programs({"http": {"lines": "all"}})
    bad = [line("a"), b"no json", line("b", url="/v1/embeddings"), line("a"), line("c")]
    failed = found.until_over(begun(found, batch_file(bad)).id)
    assert failed.status == "failed" and failed.errors is not None and failed.output_file_id is None
    faults = [(fault.line, fault.code) for fault in failed.errors.data or ()]
    assert faults == [(2, "invalid_json_line"), (3, "url_mismatch"), (4, "duplicate_custom_id")]
    assert found.d.received() == []
    assert found.until_over(begun(found, questions(3)).id).status == "completed"


# Who is let in.


def test_who_has_no_good_key_is_told_and_nothing_is_written(programs: Callable[..., Programs]) -> None:
    found = programs()
    assert found.key
    state = found.d.spool / "work" / "state.db-wal"

    def nothing_is_written() -> bool:
        before = state.read_bytes()
        for key in ("", "Bearer obk_wrong", "Bearer ", "Basic eHg6eHg=", f"Bearer {found.key}x"):
            answer = found.call("GET", "/v1/files", Authorization=key)
            assert (answer.status, answer.error["code"]) == (401, "invalid_api_key")
        assert found.call("GET", "/v1/nothing", Authorization="").status == 401
        for _ in range(200):
            assert found.call("GET", "/v1/models", Authorization="Bearer obk_x").status == 401
        return state.read_bytes() == before

    wait_for(nothing_is_written, what="wrong keys alone write nothing")  # a daemon that starts writes for itself
    assert len(found.d.events("wrong_keys")) == 1


def test_keys_have_scopes_and_an_end(programs: Callable[..., Programs]) -> None:
    found = programs()
    narrow = found.make_key("--scope", "metrics")
    answer = found.call("GET", "/v1/files", Authorization=f"Bearer {narrow}")
    assert (answer.status, answer.error["code"]) == (403, "insufficient_scope")
    assert found.d.control("key", "add", "--scope", "everything").returncode == 1
    assert found.d.control("key", "add", "--expires", "1s").returncode == 2
    shown = json.loads(found.d.control("key", "list", "--json").stdout)["keys"]
    assert [key["scopes"] for key in shown if key["scopes"] == ["metrics"]] and "obk_" not in json.dumps(shown)
    assert found.call("GET", "/v1/files").status == 200
    found.d.kill()
    found.d.start().ready()
    assert found.call("GET", "/v1/files").status == 200
    [key] = [key["id"] for key in shown if key["scopes"] != ["metrics"]] or [""]
    for one in json.loads(found.d.control("key", "list", "--json").stdout)["keys"]:
        assert found.d.control("key", "rm", one["id"]).returncode == 0
    assert key and found.call("GET", "/v1/files").status == 401
    assert "No keys" in found.d.control("key", "list").stdout


def test_a_key_that_is_removed_ends_its_downloads(programs: Callable[..., Programs]) -> None:
    found = programs()
    size = 64 * 1024**2
    with found.client() as client:
        file = client.files.create(file=("big.jsonl", b"x" * size), purpose="batch").id
    key = found.make_key("--label", "short")
    with found.connected() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 * 1024)
        head = f"GET /v1/files/{file}/content HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {key}\r\n\r\n"
        connection.sendall(head.encode())
        assert connection.recv(1000).startswith(b"HTTP/1.1 200")
        [entry] = [
            e for e in json.loads(found.d.control("key", "list", "--json").stdout)["keys"] if e["label"] == "short"
        ]
        assert found.d.control("key", "rm", entry["id"]).returncode == 0
        received = 0
        try:
            while block := connection.recv(1024**2):
                received += len(block)
        except ConnectionResetError:
            pass
        assert received < size // 2


@pytest.mark.parametrize(
    ("headers", "status", "code"),
    [
        ({"Host": "evil.example:8434"}, 421, "wrong_host"),
        ({"Host": "10.1.2.3"}, 421, "wrong_host"),
        ({"Origin": "http://evil.example"}, 403, "foreign_origin"),
        ({"Origin": "null"}, 403, "foreign_origin"),
        ({"Origin": "http://127.0.0.1:1"}, 403, "foreign_origin"),
        ({"Origin": "http://["}, 403, "foreign_origin"),
        ({"Sec_Fetch_Site": "cross-site"}, 403, "foreign_origin"),
        ({"Sec_Fetch_Site": "same-site"}, 403, "foreign_origin"),
    ],
)
def test_calls_under_foreign_names_and_of_foreign_pages_are_refused(
    door: Programs, headers: dict[str, str], status: int, code: str
) -> None:
    answer = door.call("GET", "/v1/models", **headers)
    assert (answer.status, answer.error["code"]) == (status, code)


def test_calls_under_our_own_names_are_answered(door: Programs) -> None:
    for host in (
        "localhost",
        "LOCALHOST:1",
        "127.0.0.1",
        "127.0.0.9:1",
        f"[::1]:{door.port}",
        "gpu.example.org",
        "gpu.example.org:443",
    ):
        assert door.call("GET", "/v1/models", Host=host).status == 200, host
    own = door.call("GET", "/v1/models", Origin=f"http://127.0.0.1:{door.port}", Sec_Fetch_Site="same-origin")
    assert own.status == 200 and own.headers["x-content-type-options"] == "nosniff"
    assert "access-control-allow-origin" not in own.headers


def test_a_call_that_names_no_host_or_several_is_refused(door: Programs) -> None:
    assert door.call("GET", "/v1/models", Host="").status == 400
    with door.connected() as connection:
        connection.sendall(b"GET /v1/models HTTP/1.0\r\nAuthorization: Bearer x\r\n\r\n")
        assert b"no_host" in connection.recv(2000)
    with door.connected() as connection:
        connection.sendall(b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n")
        assert b" 400 " in connection.recv(2000)[:20]


def test_bodies_and_heads_without_measure_disturb_nobody(door: Programs) -> None:
    head = f"Host: localhost\r\nAuthorization: Bearer {door.key}\r\n"
    with door.connected() as connection:
        connection.sendall(
            f"POST /v1/batches HTTP/1.1\r\n{head}Content-Length: {2 * 1024**3}\r\n\r\n".encode() + b"x" * 9
        )
        assert connection.recv(1000).startswith(b"HTTP/1.1 413")
    with door.connected() as connection:
        chunked = f"POST /v1/batches HTTP/1.1\r\n{head}Transfer-Encoding: chunked\r\n\r\n".encode()
        connection.sendall(chunked)
        try:
            for _ in range(40):
                connection.sendall(b"10000\r\n" + b"x" * 65536 + b"\r\n")
        except (ConnectionResetError, BrokenPipeError):
            pass
        with_answer = b""
        with contextlib.suppress(ConnectionResetError):
            with_answer = connection.recv(1000)
        assert not with_answer or with_answer.startswith(b"HTTP/1.1 413")
    with door.connected() as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"y" * 100_000 + b"\r\n\r\n")
        assert connection.recv(1000).split(b" ", 2)[1] == b"431"
    assert door.call("GET", "/v1/models").status == 200


def test_whoever_says_nothing_is_closed_and_others_are_answered_meanwhile(door: Programs) -> None:
    slow = [socket.create_connection(("127.0.0.1", door.port), timeout=20) for _ in range(30)]
    try:
        for connection in slow:
            connection.sendall(b"GET /v1/models HTT")
        began_s = time.monotonic()
        assert door.call("GET", "/v1/models").status == 200
        assert time.monotonic() - began_s < 2
        for connection in slow:
            with contextlib.suppress(ConnectionResetError):
                assert connection.recv(100) == b""
        assert 5 < time.monotonic() - began_s < 15
    finally:
        for connection in slow:
            connection.close()


def test_without_a_key_as_somebody_where_that_is_allowed(programs: Callable[..., Programs]) -> None:
    found = programs({"http": {"keyless_owner": str(os.geteuid())}})
    assert found.call("GET", "/v1/files", Authorization="").status == 200
    assert found.call("GET", "/v1/files", Authorization="Bearer anything").status == 200
    assert found.call("GET", "/v1/files", Authorization="Bearer obk_wrong").status == 401


# Limits.


def test_limits_of_files_hold_up_one_owner_and_no_other(programs: Callable[..., Programs]) -> None:
    found = programs({"limits": {"files": 2, "files_bytes": 2_200_000}, "http": {"max_file_bytes": 1_500_000}})
    client, transport = retrying(found)
    with client:
        first = client.files.create(file=("a", b"x" * 1_000_000), purpose="batch").id
        with pytest.raises(openai.APIStatusError) as caught:
            client.files.create(file=("b", b"x" * 1_600_000), purpose="batch")
        assert (caught.value.status_code, caught.value.code) == (413, "file_too_large")
        before = transport.calls
        with pytest.raises(openai.RateLimitError) as limited:
            client.files.create(file=("b", b"x" * 1_300_000), purpose="batch")
        assert limited.value.code == "file_limit_exceeded" and "files_bytes" in limited.value.message
        assert transport.calls == before + 1  # it is of no use to try again, and the client was told
        client.files.create(file=("b", b"x"), purpose="batch")
        with pytest.raises(openai.RateLimitError, match="may keep 2"):
            client.files.create(file=("c", b"x"), purpose="batch")
        client.files.delete(first)
        client.files.create(file=("c", b"x"), purpose="batch")
    assert list((found.d.spool / "work" / "uploads").iterdir()) == []


def test_uploads_stop_before_the_disk_is_so_full_that_work_does(programs: Callable[..., Programs]) -> None:
    found = programs()
    free = os.statvfs(found.d.spool)
    least = int(free.f_bavail * free.f_frsize / 1.5)
    found.d.configure({"disk": {"min_free_bytes": least}, "http": {"listen": f"127.0.0.1:{found.port}"}})
    found.d.client.post("reload")
    client, transport = retrying(found)
    with client, pytest.raises(openai.InternalServerError) as caught:
        client.files.create(file=("a", b"x"), purpose="batch")
    assert (caught.value.status_code, caught.value.code, transport.calls) == (507, "insufficient_storage", 1)
    found.d.drop("works.jsonl", [{"prompt": "why?"}])
    found.d.done("works.jsonl")


def test_expired_files_go_by_the_clock(programs: Callable[..., Programs]) -> None:
    found = programs({"http": {"file_days": 0.00002}})
    with found.client() as client:
        file = client.files.create(file=("a", questions(1)), purpose="batch")
        assert file.expires_at == pytest.approx(file.created_at + 2, abs=1)
        wait_for(lambda: file.id not in [one.id for one in client.files.list()], 5)
        with pytest.raises(openai.NotFoundError):
            client.files.content(file.id)
    found.d.stop()
    found.d.start()
    wait_for(lambda: not list((found.d.spool / "work" / "files").iterdir()), 5, "its bytes are gone")


# The door itself.


@pytest.fixture(scope="module")
def door(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Programs]:
    """A daemon that is looked at from outside only."""
    with for_all_tests(tmp_path_factory.mktemp("door"), {"http": {"names": ["gpu.example.org"]}}) as found:
        yield found


def test_a_port_in_use_is_told_and_taken_when_it_is_free(make_daemon: Make) -> None:
    found = over_http(make_daemon)
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind(("127.0.0.1", found.port))
        other.listen()
        found.d.start().ready()
        status = found.d.status()
        words = f"programs cannot reach the API over HTTP: 127.0.0.1:{found.port} is in use by another program"
        assert words in status["notices"] and status["http"]["problem"] == words and status["state"] == "running"
        [told] = [
            one for one in json.loads(found.d.control("doctor", "--json").stdout)["findings"] if one["about"] == "http"
        ]
        assert told["level"] == "warn" and "in use" in told["text"]
    wait_for(lambda: not found.d.status()["http"]["problem"], 20, "the port is taken")
    assert found.call("GET", "/v1/models").status == 200


def test_tls_with_a_certificate_that_is_renewed(make_daemon: Make, tmp_path: Path) -> None:
    certificate(tmp_path, "first"), certificate(tmp_path, "second")
    chain, key = tmp_path / "chain.pem", tmp_path / "key.pem"

    def install(name: str, target: Path, ending: str) -> None:
        fresh = target.with_suffix(".new")
        fresh.write_bytes((tmp_path / f"{name}{ending}").read_bytes())
        fresh.replace(target)

    install("first", chain, ".pem"), install("first", key, ".key")
    found = over_http(make_daemon, {"http": {"tls_certificate": str(chain), "tls_key": str(key)}})
    found.d.start().ready()
    assert found.d.status()["http"]["tls"] is True

    def seen(name: str) -> int:
        """The client's own way with TLS, trusting one certificate alone."""
        trusted = ssl.create_default_context(cafile=str(tmp_path / f"{name}.pem"))
        with httpx2.Client(verify=trusted) as http_client:
            url = f"https://127.0.0.1:{found.port}/v1"
            client = OpenAI(base_url=url, api_key=found.key, http_client=http_client, max_retries=0)
            return len(client.files.list().data)

    assert seen("first") == 0
    with pytest.raises(openai.APIConnectionError):
        seen("second")
    install("second", chain, ".pem")  # and the key is not there yet
    assert seen("first") == 0 and "problem" in found.d.status()["http"]
    install("second", key, ".key")
    assert seen("second") == 0 and found.d.status()["http"]["problem"] == ""
    with found.connected() as connection:  # no TLS is spoken
        connection.sendall(b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\n\r\n")
        with contextlib.suppress(ConnectionResetError):
            assert not connection.recv(100).startswith(b"HTTP/1.1 200")
    assert seen("second") == 0


@pytest.fixture
def other_host() -> Iterator[tuple[str, list[str]]]:
    """Another network namespace: the address of this host as seen from there, and a command that runs one there."""
    if shutil.which("ip") is None:
        pytest.skip("needs ip of iproute2")
    name, net = f"ob{os.getpid()}", f"10.213.{os.getpid() % 250}"
    here, there = f"{name}a", f"{name}b"
    commands = [
        f"ip netns add {name}",
        f"ip link add {here} type veth peer name {there}",
        f"ip link set {there} netns {name}",
        f"ip addr add {net}.1/24 dev {here}",
        f"ip link set {here} up",
        f"ip -n {name} addr add {net}.2/24 dev {there}",
        f"ip -n {name} link set {there} up",
    ]
    try:
        for command in commands:
            if subprocess.run(command.split(), capture_output=True, check=False).returncode:
                pytest.skip("no network namespace can be made here")
        yield f"{net}.1", ["ip", "netns", "exec", name]
    finally:
        subprocess.run(["ip", "link", "del", here], capture_output=True, check=False)
        subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)


CLIENT = """
import ssl, sys, httpx2, ollama
from openai import OpenAI
url, key, trusted, content = sys.argv[1:]
verify = ssl.create_default_context(cafile=trusted)
client = OpenAI(base_url=url, api_key=key, http_client=httpx2.Client(verify=verify))
asked = {"model": "tiny", "messages": [{"role": "user", "content": "Why is the sky blue?"}]}
text = client.chat.completions.create(**asked).choices[0].message.content
chunks = [*client.chat.completions.create(**asked, stream=True)]
assert text == "".join(chunk.choices[0].delta.content or "" for chunk in chunks) != "", chunks
assert len(client.embeddings.create(model="tiny", input=["a", "b"]).data) == 2
native = ollama.Client(url.removesuffix("/v1"), headers={"Authorization": f"Bearer {key}"}, verify=verify)
assert native.chat(**asked).message.content == "".join(one.message.content for one in native.chat(**asked, stream=True))
assert native.list().models and native.ps().models and native.show("tiny").details
assert len(native.embed("tiny", ["a", "b"]).embeddings) == 2 and native.generate("tiny", "why?").response
file = client.files.create(file=("r.jsonl", content.encode()), purpose="batch")
batch = client.batches.create(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h")
while (batch := client.batches.retrieve(batch.id)).status != "completed":
    pass
print(len(client.files.content(batch.output_file_id).text.splitlines()))
"""


@pytest.mark.root
def test_another_host_reaches_the_api_over_tls(
    make_daemon: Make, tmp_path: Path, other_host: tuple[str, list[str]]
) -> None:
    address, there = other_host
    port = free_ports(8) + 7
    plain = make_daemon({"http": {"listen": f"{address}:{port}"}})
    assert plain.launch().wait(20) == 78 and "there is no TLS" in plain.log()
    chain, key = certificate(tmp_path, "host", address)
    tls = {"listen": f"{address}:{port}", "tls_certificate": str(chain), "tls_key": str(key)}
    found = Programs(make_daemon({"http": tls}), port)
    found.d.start().ready()
    url = f"https://{address}:{port}/v1"
    asked = [sys.executable, "-c", CLIENT, url, found.key, chain, questions(3).decode()]
    ran = subprocess.run([*there, *asked], capture_output=True, text=True, timeout=60, check=False)
    assert (ran.returncode, ran.stdout) == (0, "3\n"), ran.stderr
    # Under a name that is not ours it is not answered.
    curl = [*there, "curl", "-sk", "-o", "/dev/null", "-w", "%{http_code}", f"{url}/files", "-H", "Host: evil.example"]
    assert subprocess.run(curl, capture_output=True, text=True, timeout=20, check=False).stdout == "421"


def test_an_address_for_others_without_tls_is_said_by_doctor(make_daemon: Make) -> None:
    port = free_ports(8) + 7
    found = Programs(make_daemon({"http": {"listen": f"0.0.0.0:{port}", "insecure": True}}), port)
    found.d.start().ready()
    assert found.call("GET", "/v1/models").status == 200
    [told] = [
        one for one in json.loads(found.d.control("doctor", "--json").stdout)["findings"] if one["about"] == "http"
    ]
    assert told["level"] == "warn" and "without TLS" in told["text"]


def test_a_daemon_that_ends_lets_calls_end_and_takes_up_where_it_was(programs: Callable[..., Programs]) -> None:
    found = programs(simulator=SLOW)
    batch = begun(found, questions(60))
    with found.client() as client:
        before = wait_for(lambda: b if (b := client.batches.retrieve(batch.id)).in_progress_at else None)
    assert found.d.process is not None
    found.d.process.send_signal(signal.SIGKILL)
    found.d.process.wait(10)
    found.d.start()
    with found.client() as client:
        after = client.batches.retrieve(batch.id)
    assert before is not None and after.in_progress_at == before.in_progress_at and after.status == "in_progress"
    assert found.d.stop() == 0
    found.d.start()
    done = found.until_over(batch.id)
    assert done.request_counts is not None and done.request_counts.completed == 60
    assert done.in_progress_at == before.in_progress_at


def test_a_lost_index_keeps_files_and_batches(programs: Callable[..., Programs]) -> None:
    found = programs()
    with found.client() as client:
        kept = client.files.create(file=("kept.jsonl", questions(1)), purpose="batch")
        done = found.until_over(begun(found, questions(3), metadata={"a": "b"}).id)
        found.d.client.post("pause")
        waiting = begun(found, questions(5), completion_window="7d")
    found.d.kill()
    for path in (found.d.spool / "work").glob("state.db*"):
        path.unlink()
    found.d.start().ready()
    found._key = ""  # keys stand nowhere else
    with found.client() as client:
        assert client.files.retrieve(kept.id) == kept
        again = client.batches.retrieve(done.id)
        assert (again.status, again.metadata, again.input_file_id) == ("completed", {"a": "b"}, done.input_file_id)
        assert again.output_file_id == done.output_file_id and again.request_counts == done.request_counts
        found.d.client.post("resume")
        ended = found.until_over(waiting.id)
        assert (ended.status, ended.completion_window) == ("completed", "7d")
        assert {one.id for one in client.batches.list()} == {done.id, waiting.id}


def test_an_upload_that_is_cut_off_leaves_no_file_and_no_bytes(door: Programs) -> None:
    body = multipart(("purpose", None, b"batch"), ("file", "a.jsonl", b"x" * 1_000_000))
    head = (
        f"POST /v1/files HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {door.key}\r\nContent-Type: {FORM}\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    ).encode()
    before = door.call("GET", "/v1/files").document["data"]
    for sent in (*range(0, len(body), 65536), len(body) - 1):
        with door.connected() as connection:
            connection.sendall(head + body[:sent])
    uploads = door.d.spool / "work" / "uploads"
    wait_for(lambda: not list(uploads.iterdir()), 10, "nothing is left")
    assert door.call("GET", "/v1/files").document["data"] == before
