"""The routes of the Python client over HTTP: clients that go in the middle or send twice, a proxy in between."""

from __future__ import annotations

import json
import shutil
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from daemon_support import Daemon, Document, wait_for
from programs_support import FORM, Programs, multipart, over_http
from test_python_client import BROKEN

from obatchd.client import Client

Make = Callable[..., Daemon]
RESET = b"\1\0\0\0\0\0\0\0"  # SO_LINGER: closed with a reset, and nothing waits
PADDING = "x" * 2000


@pytest.fixture
def programs(make_daemon: Make) -> Iterator[Programs]:
    found = over_http(make_daemon, simulator={"answer": {"tokens": 2}})
    found.d.start().ready()
    yield found
    assert "Traceback" not in found.d.log() and "never retrieved" not in found.d.log()


def uploaded(found: Programs, prompts: int) -> str:
    """The id of a file with so many prompts, two kilobytes each."""
    content = b"".join(json.dumps({"prompt": f"{n}?", "note": PADDING}).encode() + b"\n" for n in range(prompts))
    body = multipart(("purpose", None, b"batch"), ("file", "drop", content))
    file: str = found.call("POST", "/v1/files", body, Content_Type=FORM).document["id"]
    return file


def wanted(file: str, **more: Any) -> Document:
    return {"file": file, "name": "p.jsonl", "settings": {"model": "tiny", "sample": 5}, "token": "t" * 32, **more}


def begin_and_go(found: Programs, path: str, body: Document) -> None:
    """Make a call and reset its connection as soon as it is sent."""
    sent = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {found.key}\r\n"
    with found.connected() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        connection.sendall(f"{head}Content-Length: {len(sent)}\r\n\r\n".encode() + sent)
        wait_for(lambda: [*(found.d.spool / "work/jobs").iterdir()], 10, "the daemon has begun")


def test_a_submission_whose_client_goes_is_made_to_its_end(programs: Programs) -> None:
    file = uploaded(programs, 50_000)
    begin_and_go(programs, "/obatchd/v1/jobs", wanted(file))
    [job] = wait_for(lambda: programs.d.client.get("jobs")["jobs"], 20, "the job is made")
    again = programs.call("POST", "/obatchd/v1/jobs", wanted(file))
    assert again.status == 200 and again.document["job"]["job"] == job["job"]
    assert programs.call("GET", f"/v1/files/{file}").status == 404
    done = wait_for(
        lambda: one if (one := programs.d.client.get("jobs", job["job"]))["state"] == "done" else None, 60, "it is over"
    )
    assert (done["requests"], done["succeeded"]) == (5, 5)
    assert len(programs.d.client.get("jobs")["jobs"]) == 1


def test_a_submission_is_answered_by_a_daemon_that_stops_meanwhile(programs: Programs) -> None:
    body = {"file": uploaded(programs, 50_000), "name": "p.jsonl", "settings": {"model": "tiny"}}
    with ThreadPoolExecutor(1) as threads:
        answer = threads.submit(programs.call, "POST", "/obatchd/v1/jobs", body)
        wait_for(lambda: [*(programs.d.spool / "work/jobs").iterdir()], 10, "the daemon has accepted it")
        assert programs.d.stop() == 0
    assert answer.result().status == 200, answer.result().body
    job = answer.result().document["job"]["job"]
    assert "Traceback" not in programs.d.log()
    programs.d.start().ready()
    wait_for(lambda: programs.d.client.get("jobs", job)["requests"] == 50_000, 60, "all of it is read")


def test_a_submission_that_is_sent_again_too_early_is_the_same_job(programs: Programs) -> None:
    body = wanted(uploaded(programs, 20_000))
    with ThreadPoolExecutor(5) as threads:
        answers = [*threads.map(lambda _: programs.call("POST", "/obatchd/v1/jobs", body), range(5))]
    assert [one.status for one in answers] == [200] * 5, [one.body for one in answers]
    assert len({one.document["job"]["job"] for one in answers}) == 1
    assert len(programs.d.client.get("jobs")["jobs"]) == 1


def test_whoever_goes_while_answers_so_far_are_read_leaves_nothing_behind(make_daemon: Make) -> None:
    found = over_http(make_daemon, simulator={"answer": {"tokens": 2}})
    found.d.start().ready()
    client = Client(url=f"http://127.0.0.1:{found.port}", key=found.key)
    job = client.submit([f"What is {number}?" for number in range(20_000)])
    wait_for(lambda: found.d.succeeded() > 3000, 60)
    found.d.client.post("jobs", job.id, "pause")
    head = f"GET /obatchd/v1/jobs/{job.id}/files/so-far.jsonl HTTP/1.1\r\nHost: localhost\r\n"
    for size_bytes in range(0, 60_000, 2000):
        with found.connected() as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            connection.sendall(f"{head}Authorization: Bearer {found.key}\r\n\r\n".encode())
            read = 0
            while read < size_bytes and (part := connection.recv(4096)):
                read += len(part)
    ids = [answer.id for answer in job.results(so_far=True)]
    assert len(ids) == len(set(ids)) > 3000
    assert "Traceback" not in found.d.log() and "already executing" not in found.d.log()


def test_a_daemon_that_is_killed_while_results_are_copied_is_waited_for(
    make_daemon: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = over_http(make_daemon, simulator={"answer": {"tokens": 2}, "faults": [BROKEN]})
    found.d.start().ready()

    def another_client() -> Client:
        """One that has copied nothing yet."""
        return Client(url=f"http://127.0.0.1:{found.port}", key=found.key)

    asked = [{"prompt": f"{n}?", "note": "x" * 8000} for n in range(3000)]
    job = another_client().submit([*asked, {"prompt": "bad", "note": "x" * 14_000_000}])
    assert len(list(job.wait(progress=False).failures())) == 1
    found.d.faults()
    assert job.retry().wait(progress=False).state == "done"  # whose answer is copied, too
    copy, kills, cut = shutil.copyfileobj, 0, 0

    def cut_off(source: Any, target: Any, size_bytes: int) -> None:
        """Have the daemon killed when some of the first two files has come: of the job, then of its retry."""
        nonlocal kills, cut
        target.write(source.read(1024))
        if kill := kills < 2 and source.length > 10_000_000:  # more than the kernel holds
            kills += 1
            found.d.kill()
            found.d.start()
        try:
            copy(source, target, size_bytes)
        finally:
            cut += kill and source.length > 0

    monkeypatch.setattr("shutil.copyfileobj", cut_off)
    answers = list(another_client().job(job.id).results())
    assert (kills, cut) == (2, 2) and len(answers) == 3001 and all(answer.ok for answer in answers)
    job_too = another_client().job(job.id)
    assert found.d.stop() == 0
    starting = threading.Timer(1, found.d.start)
    starting.start()
    assert len(list(job_too.results())) == 3001
    starting.join()


class Proxy(BaseHTTPRequestHandler):
    """As nginx answers for a daemon that is not there."""

    def do_GET(self) -> None:
        body = b"<html><h1>502 Bad Gateway</h1></html>"
        self.send_response(502)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Nothing."""


def test_a_daemon_that_is_away_behind_a_proxy_is_waited_for(programs: Programs) -> None:
    job = Client(url=f"http://127.0.0.1:{programs.port}", key=programs.key).submit(["once?"])
    job.wait(progress=False)
    address = ("127.0.0.1", programs.port)
    assert programs.d.stop() == 0
    ThreadingHTTPServer.allow_reuse_address = True
    proxy = ThreadingHTTPServer(address, Proxy)
    serving = threading.Thread(target=proxy.serve_forever)
    serving.start()
    ended: list[Any] = []
    waiting = threading.Thread(target=lambda: ended.append(job.wait(progress=False)))
    try:
        with pytest.raises(Exception, match="proxy") as caught:
            job.status()
        assert getattr(caught.value, "code", "") == "daemon_down"
        waiting.start()
    finally:
        proxy.shutdown()
        proxy.server_close()
        serving.join()
    programs.d.start()
    waiting.join(60)
    assert ended == [job] and job.state == "done"
