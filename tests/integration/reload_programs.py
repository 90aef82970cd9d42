"""Effects of settings on programs that call over HTTP; the calls are plain ones on the socket."""

from __future__ import annotations

import http.client
import json
import socket
from contextlib import closing
from typing import Any

from daemon_support import Document, wait_for
from port_support import free_ports
from programs_support import CHAT, FORM, batch_file, line, multipart
from reload_stage import Effect, Scene, Stage

from obatchd.client.runtime import HTTP_SOCKET, read_record


def called(stage: Stage, method: str, path: str, body: bytes = b"", **headers: str) -> tuple[int, Document]:
    """Status and document."""
    with (
        closing(http.client.HTTPConnection("localhost")) as connection,
        socket.socket(socket.AF_UNIX) as connection.sock,
    ):
        connection.sock.connect(str(read_record(stage.d.spool).runtime_dir / HTTP_SOCKET))
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, path, body, given)
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())


def upload(stage: Stage, content: bytes = b"{}") -> tuple[int, Document]:
    body = multipart(("purpose", None, b"batch"), ("file", "a.jsonl", content))
    return called(stage, "POST", "/v1/files", body, Content_Type=FORM)


def two_uploads(stage: Stage) -> list[int]:
    """The statuses of uploads of an owner who has nothing."""
    for file in called(stage, "GET", "/v1/files?purpose=batch")[1]["data"]:
        called(stage, "DELETE", f"/v1/files/{file['id']}")
    return [upload(stage, b"x" * 100)[0] for _ in range(2)]


def kept_days(stage: Stage) -> int | None:
    file = upload(stage)[1]
    return None if file["expires_at"] is None else (file["expires_at"] - file["created_at"]) // 86400


def batch(stage: Stage, *lines: Document | bytes) -> Document:
    """A batch of these lines, over."""
    asked = {"input_file_id": upload(stage, batch_file(lines))[1]["id"], "endpoint": CHAT, "completion_window": "24h"}
    _, made = called(stage, "POST", "/v1/batches", json.dumps(asked).encode())

    def ended() -> Document | None:
        found = called(stage, "GET", f"/v1/batches/{made['id']}")[1]
        return found if found["status"] in ("completed", "failed") else None

    found = wait_for(ended)
    assert found is not None
    return found


def has_deadline(stage: Stage) -> bool:
    return batch(stage, line("a"))["expires_at"] is not None


def of_a_bad_line(stage: Stage) -> Any:
    return batch(stage, line("a"), b"no JSON")["status"]


def under_another_name(stage: Stage) -> int:
    return called(stage, "GET", "/v1/models", Host="gpu.example.org")[0]


def without_a_key(stage: Stage) -> int:
    """The status of a scrape over TCP."""
    with closing(http.client.HTTPConnection("127.0.0.1", _PORT, timeout=20)) as connection:
        connection.request("GET", "/metrics")
        return connection.getresponse().status


_PORT = free_ports(8) + 7  # those of servers may be the first ones
PROGRAMS = Scene(
    {
        "metrics.open": Effect(False, True, without_a_key, (401, 200)),
        "http.names": Effect([], ["gpu.example.org"], under_another_name, (421, 200)),
        "http.max_file_bytes": Effect(10_000, 10, two_uploads, ([200, 200], [413, 413])),
        "http.file_days": Effect(30, 0, kept_days, (30, None)),
        "http.window": Effect("label", "enforce", has_deadline, (False, True)),
        "http.lines": Effect("each", "all", of_a_bad_line, ("completed", "failed")),
        "limits.files": Effect(0, 1, two_uploads, ([200, 200], [200, 429])),
        "limits.files_bytes": Effect(0, 150, two_uploads, ([200, 200], [200, 429])),
    },
    settings={"http.listen": f"127.0.0.1:{_PORT}"},
)
