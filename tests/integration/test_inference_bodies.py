"""Calls that wait for an answer: bodies that are wrong or large, names of models, and as many at once as a fleet has
slots."""

from __future__ import annotations

import base64
import json
import os
import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import psutil
import pytest
from daemon_support import Daemon, Document, wait_for
from programs_support import CHAT, Programs, over_http

Make = Callable[..., Daemon]
pytestmark = pytest.mark.timeout(120)
MODELS = {"models": [{"name": "tiny"}, {"name": "eye", "capabilities": ["completion", "vision"]}]}
PICTURE = b"\x89PNG\r\n\x1a\n"


@pytest.fixture
def found(make_daemon: Make) -> Programs:
    programs = over_http(make_daemon, simulator={"answer": {"tokens": 6}, **MODELS})
    programs.d.start().ready()
    return programs


def said(*parts: Any) -> list[Document]:
    return [{"role": "user", "content": [{"type": "text", "text": "what?"}, *parts]}]


def picture(url: Any) -> Document:
    return {"type": "image_url", "image_url": {"url": url}}


def data(content: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(content).decode()


def test_pictures_that_are_none_are_refused_before_a_server_has_them(found: Programs) -> None:
    for url in (5, True, "x.png", "file:///etc/passwd", "data:image/png;base64,!!!", data(b"no picture")):
        refused = found.call("POST", CHAT, {"model": "eye", "messages": said(picture(url))})
        assert (refused.status, refused.error["code"]) == (400, "invalid_request"), url
    for body in ({"prompt": "a", "images": [5]}, {"prompt": "a", "images": ["aGFsbG8="]}):
        native = found.call("POST", "/api/generate", {"model": "eye", "stream": False, **body})
        assert native.status == 400 and "image" in native.document["error"]
    unread = b'{"model":"tiny","user":"\xff","messages":[{"role":"user","content":"a"}]}'
    assert found.call("POST", CHAT, unread).status == 400
    assert found.d.received() == [] and not found.d.events("attempt_failed")
    assert "Traceback" not in found.d.log()


def test_another_name_of_a_model_loads_nothing_and_is_told_as_it_was_given(found: Programs) -> None:
    with found.client() as client:
        for model in ("tiny", "tiny:latest", "library/tiny", "registry.ollama.ai/library/tiny:latest", "tiny"):
            whole = client.chat.completions.create(model=model, messages=[{"role": "user", "content": "a"}])
            [*_, last] = client.chat.completions.create(
                model=model, messages=[{"role": "user", "content": "b"}], stream=True
            )
            assert whole.model == last.model == model
    assert len(found.d.events("profile_loaded")) == 1
    with found.client() as client:
        whole = client.chat.completions.create(model="Tiny", messages=[{"role": "user", "content": "a"}])
        assert whole.model == "Tiny" and not found.d.events("pull_started")


@pytest.mark.parametrize("model", ["", " tiny", "../tiny", "tiny:"])
def test_what_is_no_name_of_a_model_is_refused_for_good(found: Programs, model: str) -> None:
    refused = found.call("POST", CHAT, {"model": model, "messages": [{"role": "user", "content": "a"}]})
    assert (refused.status, refused.error["param"]) == (400, "model")
    assert found.call("POST", "/api/chat", {"model": model, "messages": []}).status == 400


def test_a_large_picture_holds_up_nobody(found: Programs) -> None:
    body = json.dumps({"model": "eye", "messages": said(picture(data(PICTURE + os.urandom(24 * 1024**2))))}).encode()
    with ThreadPoolExecutor(1) as thread:
        asked = thread.submit(found.call, "POST", CHAT, body)
        waits_s = []
        while not asked.done():
            begun_s = time.monotonic()
            assert found.call("GET", "/api/version").status == 200
            waits_s.append(time.monotonic() - begun_s)
        assert asked.result().status == 200
    assert waits_s and sorted(waits_s)[len(waits_s) // 2] < 0.5


def test_a_program_may_use_a_whole_fleet_and_its_owner_goes_on(make_daemon: Make) -> None:
    simulator = {"tokens_per_s": 10, "answer": {"tokens": 1000}}
    found = over_http(make_daemon, {"servers": {"slots": 50}}, simulator=simulator)
    found.d.start().ready()
    body = json.dumps({"model": "tiny", "messages": [{"role": "user", "content": "a"}]}).encode()
    with ExitStack() as stack:
        for _ in range(100):
            begin(stack.enter_context(found.connected()), found, len(body)).sendall(body)
        wait_for(lambda: under_way(found) == 100)
        assert found.call("GET", "/v1/batches").status == 200
    wait_for(lambda: under_way(found) == 0)


def test_bodies_on_their_way_in_are_bounded_together(found: Programs) -> None:
    main = psutil.Process(found.d.status()["pid"])
    part, whole = b'{"x":"' + b"a" * 50 * 1024**2, 60 * 1024**2
    before_bytes, refused = main.memory_info().rss, 0
    with ExitStack() as stack:
        for _ in range(8):
            connection = begin(stack.enter_context(found.connected()), found, whole)
            try:
                connection.sendall(part)
                connection.settimeout(0.5)
                refused += connection.recv(100).startswith(b"HTTP/1.1 429")
            except TimeoutError:
                pass  # it may go on
            except ConnectionError:
                refused += 1
        assert refused >= 3
        assert main.memory_info().rss - before_bytes < 450 * 1024**2
        assert found.call("POST", CHAT, {"model": "tiny", "messages": [{"role": "user", "content": "a"}]}).status == 200
    big = {"model": "tiny", "messages": [{"role": "user", "content": "a"}], "user": "a" * 1024**2}
    assert found.call("POST", CHAT, big).status == 200


def under_way(found: Programs) -> int:
    people = found.d.status().get("interactive", {"waiting": 0, "in_flight": 0})
    return int(people["waiting"]) + int(people["in_flight"])


def begin(connection: socket.socket, found: Programs, length: int) -> socket.socket:
    """A connection on which the head of a call was sent."""
    head = f"POST {CHAT} HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {found.key}\r\n"
    connection.sendall(f"{head}Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n".encode())
    return connection
