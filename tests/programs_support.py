"""A daemon as programs see it over HTTP: OpenAI's own client, and plain HTTP for what that never sends."""

from __future__ import annotations

import http.client
import json
import os
import socket
import subprocess
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from daemon_support import Daemon, Document, wait_for
from openai import OpenAI
from openai.types import Batch
from port_support import free_ports

from obatchd.client.runtime import HTTP_SOCKET, read_record

CHAT = "/v1/chat/completions"
OVER = ("completed", "failed", "expired", "cancelled")


def line(custom_id: str, text: str = "", **changes: Any) -> Document:
    """A line of a batch file."""
    body = {"model": "tiny", "messages": [{"role": "user", "content": text or f"what is {custom_id}?"}]}
    return {"custom_id": custom_id, "method": "POST", "url": CHAT, "body": body, **changes}


def batch_file(lines: Iterable[Document | bytes]) -> bytes:
    return b"".join((one if isinstance(one, bytes) else json.dumps(one).encode()) + b"\n" for one in lines)


def questions(count: int, name: str = "c") -> bytes:
    """A batch file of so many lines."""
    return batch_file(line(f"{name}-{number}") for number in range(count))


class Answer(NamedTuple):
    """What came of a plain call."""

    status: int
    headers: dict[str, str]  # by name in small letters
    body: bytes

    @property
    def document(self) -> Document:
        document: Document = json.loads(self.body)
        return document

    @property
    def error(self) -> Document:
        error: Document = self.document["error"]
        assert error.keys() == {"message", "type", "param", "code"}
        assert self.headers["x-request-id"].startswith("req_")
        return error


class Programs:
    """The API over HTTP of a daemon that listens on ``port``."""

    def __init__(self, d: Daemon, port: int) -> None:
        self.d, self.port = d, port
        self.url = f"http://127.0.0.1:{port}/v1"
        self._key = ""

    def make_key(self, *arguments: str) -> str:
        """A new key."""
        made = self.d.control("key", "add", *arguments, "--json")
        assert made.returncode == 0, made.stderr
        key: str = json.loads(made.stdout)["key"]
        return key

    @property
    def key(self) -> str:
        """A key of this process's user."""
        self._key = self._key or self.make_key()
        return self._key

    def client(self, **more: Any) -> OpenAI:
        """That client, which checks every answer against the published shapes."""
        usual = {"base_url": self.url, "api_key": self.key, "max_retries": 0, "_strict_response_validation": True}
        return OpenAI(**usual | more)

    def until_over(self, batch: str, timeout_s: float = 30) -> Batch:
        """The batch, once its status is a last one."""
        with self.client() as client:
            return wait_for(
                lambda: found if (found := client.batches.retrieve(batch)).status in OVER else None, timeout_s, batch
            ) or client.batches.retrieve(batch)

    def call(self, method: str, path: str, body: Any = None, **headers: str) -> Answer:
        """A plain call, with the key, and headers as they are given (``_`` for ``-``)."""
        sent = {"Authorization": f"Bearer {self.key}", "Host": f"127.0.0.1:{self.port}"}
        sent |= {name.replace("_", "-"): value for name, value in headers.items()}
        if body is not None and not isinstance(body, bytes):
            body, sent = json.dumps(body).encode(), {"Content-Type": "application/json", **sent}
        with closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)) as connection:
            connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
            for name, value in sent.items():
                if value:
                    connection.putheader(name, value)
            if body is not None:
                connection.putheader("Content-Length", str(len(body)))
            connection.endheaders(body)
            answer = connection.getresponse()
            return Answer(answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read())

    @contextmanager
    def connected(self) -> Iterator[socket.socket]:
        """A connection that has said nothing."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=20) as connection:
            yield connection

    @property
    def socket_path(self) -> Path:
        return read_record(self.d.spool).runtime_dir / HTTP_SOCKET


def over_http(make_daemon: Any, config: Document | None = None, **arguments: Any) -> Programs:
    """A daemon, not started yet, that listens on a free port."""
    port = free_ports(8) + 7  # those of servers may be the first ones
    tables = dict(config or {})
    tables["http"] = {"listen": f"127.0.0.1:{port}", **tables.get("http", {})}
    return Programs(make_daemon(tables, **arguments), port)


def certificate(directory: Path, name: str, address: str = "127.0.0.1") -> tuple[Path, Path]:
    """A certificate for an address that signed itself."""
    made = directory / f"{name}.pem", directory / f"{name}.key"
    about = ["-subj", f"/CN={name}", "-addext", f"subjectAltName=IP:{address}", "-days", "2"]
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-out", made[0], "-keyout", made[1], *about]
    subprocess.run(command, check=True, capture_output=True)
    return made


@contextmanager
def for_all_tests(directory: Path, config: Document | None = None, **arguments: Any) -> Iterator[Programs]:
    """A daemon with stand-ins that listens, for all tests of a module that leave it as it was."""
    found = over_http(lambda tables, **more: Daemon(directory / "d", tables, **more), config, **arguments)
    try:
        found.d.start().ready()
        yield found
    finally:
        found.d.clean()
        assert "Traceback" not in found.d.log()


def on_a_real_server(make_daemon: Any) -> Programs:
    """A daemon that listens, with one real Ollama on the CPU; skips the test where there is none."""
    program, models = os.environ.get("OBATCHD_TEST_OLLAMA"), os.environ.get("OBATCHD_TEST_MODELS")
    if not program or not models:
        pytest.skip("no real Ollama here: scripts/real-ollama says what is missing")
    own = {"ollama": program, "models_dir": models, "cpu_servers": 1, "slots": 4}
    found = over_http(make_daemon, {"gpus": {"use": "none"}, "max_response_tokens": 30, "servers": own})
    found.d.start().ready()
    return found


def multipart(*parts: tuple[str, str | None, bytes], boundary: str = "b0undary") -> bytes:
    """A multipart/form-data body of (name, file name, content)."""
    body = b""
    for name, file_name, content in parts:
        about = f'form-data; name="{name}"' + (f'; filename="{file_name}"' if file_name is not None else "")
        body += f"--{boundary}\r\nContent-Disposition: {about}\r\n\r\n".encode() + content + b"\r\n"
    return body + f"--{boundary}--\r\n".encode()


FORM = "multipart/form-data; boundary=b0undary"
