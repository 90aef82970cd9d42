"""Programs that make batches over HTTP in a storm, and what has to come of each: every line in one of the two files."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
from collections import Counter, deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from daemon_support import Daemon, Document, digest
from programs_support import CHAT, FORM, multipart
from storm_plan import Batch

from obatchd.client.runtime import HTTP_SOCKET, read_record
from obatchd.errors import ObatchError

_ANSWER_S = 20.0
_CANCELLED = "batch_cancelled"


class _Connection(http.client.HTTPConnection):
    """Over the socket, where no key is needed."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=_ANSWER_S)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(_ANSWER_S)
        self.sock.connect(str(self._path))


class Programs:
    """Uploads files and makes batches of them, again and again until each is made. The daemon may die at any call.

    Attributes:
        made: batches that the daemon has answered for.
    """

    def __init__(self, d: Daemon, batches: list[Batch]) -> None:
        self.made: list[Batch] = []
        self._d = d
        self._waiting = deque(batches)
        self._uploaded: dict[str, str] = {}  # file, by name of the batch

    def left(self) -> int:
        return len(self._waiting)

    def hand_over(self, up_to: int) -> None:
        """Have so many made, as far as the daemon lives; what fails is tried again the next time."""
        while self._waiting and len(self.made) < up_to:
            batch = self._waiting[0]
            with contextlib.suppress(OSError, http.client.HTTPException, ValueError, ObatchError):
                if self._make(batch):
                    self.made.append(self._waiting.popleft())
                    continue
            return

    def _make(self, batch: Batch) -> bool:
        """Whether it is made. One that was asked for before, and whose answer was lost, is not made again."""
        if (file := self._uploaded.get(batch.name)) is None:
            body = multipart(("purpose", None, b"batch"), ("file", f"{batch.name}.jsonl", content(batch)))
            status, document = self._call("POST", "/v1/files", body, {"Content-Type": FORM})
            if status != 200:
                return False
            file = self._uploaded[batch.name] = document["id"]
        asked = {"input_file_id": file, "endpoint": CHAT, "completion_window": "24h"}
        headers = {"Content-Type": "application/json", "Idempotency-Key": batch.name}
        status, document = self._call("POST", "/v1/batches", json.dumps(asked).encode(), headers)
        if status == 200 and batch.cancelled:
            with contextlib.suppress(OSError, http.client.HTTPException, ValueError):  # it may be over, or not read yet
                self._call("POST", f"/v1/batches/{document['id']}/cancel", b"", {})
        return status == 200

    def _call(self, method: str, path: str, body: bytes, headers: dict[str, str]) -> tuple[int, Any]:
        connection = _Connection(read_record(self._d.spool).runtime_dir / HTTP_SOCKET)
        with contextlib.closing(connection):
            connection.request(method, path, body, headers)
            with connection.getresponse() as response:
                return response.status, json.loads(response.read())


def content(batch: Batch) -> bytes:
    """Its file."""
    lines = [
        {
            "custom_id": custom_id, "method": "POST", "url": CHAT,
            "body": {"model": batch.model, "messages": [{"role": "user", "content": _prompt(custom_id)}]},
        }
        for custom_id in _ids(batch)
    ]  # fmt: skip
    return b"".join(json.dumps(line).encode() + b"\n" for line in lines)


def _ids(batch: Batch) -> list[str]:
    return [f"{batch.name}-{number}" for number in range(batch.lines)]


def _prompt(custom_id: str) -> str:
    return f"{custom_id}: what is it?"


def faults_of(batch: Batch, directory: Path, outcomes: Counter[str], *, real: bool) -> Iterator[str]:
    """What is wrong with its job in the outbox."""
    found: Counter[str] = Counter()
    for name in ("results.jsonl", "errors.jsonl"):
        for line in (json.loads(raw) for raw in (directory / name).read_bytes().splitlines()):
            found[line["custom_id"]] += 1
            if name == "results.jsonl":
                outcomes["succeeded"] += 1
                said = line["response"]["body"]["choices"][0]["message"]["content"]
                if not (said if real else said.startswith(digest(_prompt(line["custom_id"])))):
                    yield f"{directory.name}: not the answer to {line['custom_id']}"
            elif not batch.cancelled or _code(line) != _CANCELLED:
                yield f"{directory.name}: {line['custom_id']} failed: {_code(line)}"
            else:
                outcomes[_CANCELLED] += 1
    if found != Counter(_ids(batch)):
        wrong = sorted((found - Counter(_ids(batch))) + (Counter(_ids(batch)) - found))
        yield f"{directory.name}: {len(wrong)} lines are not in exactly one of the two files, such as {wrong[0]}"


def _code(line: Document) -> str:
    error = line["error"] or line["response"]["body"]["error"]
    return str(error["code"])
