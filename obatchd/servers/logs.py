"""What a server writes: always drained (a full pipe would block it), the last lines kept, a file with a size cap."""

from __future__ import annotations

import asyncio
import re
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import obatchd.log

log = obatchd.log.get(__name__)

RING_LINES = 200
FILE_BYTES = 10 * 1024**2  # of each of two files: the current and the one before
_LINE_BYTES = 64 * 1024

_NOTABLE = re.compile(
    r"CUDA error|cudaMalloc failed|GGML_ASSERT|panic:|fatal error:|llama runner terminated|"
    r"address already in use|failure during GPU discovery|offloaded \d+/\d+ layers"
)


class LogDrain(asyncio.Protocol):
    """Reads one server's stdout and stderr from a pipe, across restarts of the server.

    Args:
        server: id, for our own log.
        path: the file; when it reaches ``FILE_BYTES`` it becomes ``<path>.1``.
        on_line: called with each line.
    """

    def __init__(self, server: str, path: Path, on_line: Callable[[str], None]) -> None:
        self.lines: deque[str] = deque(maxlen=RING_LINES)
        self._server = server
        self._path = path
        self._on_line = on_line
        self._rest = b""
        self._file: BinaryIO | None = None

    def data_received(self, data: bytes) -> None:
        self._write(data)
        *lines, rest = (self._rest + data).split(b"\n")
        if len(rest) > _LINE_BYTES:
            lines.append(rest)
            rest = b""
        self._rest = rest
        for line in lines:
            self._take(line.decode(errors="replace").rstrip())

    def connection_lost(self, exc: Exception | None) -> None:
        if self._rest:
            self._take(self._rest.decode(errors="replace"))
            self._rest = b""
        self.close()

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _take(self, line: str) -> None:
        self.lines.append(line)
        if _NOTABLE.search(line):
            log.info("server_log", server=self._server, line=line[:500])
        self._on_line(line)

    def _write(self, data: bytes) -> None:
        try:
            if self._file is None:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                self._file = self._path.open("ab", buffering=0)
            self._file.write(data)
            if self._file.tell() > FILE_BYTES:
                self.close()
                self._path.replace(self._path.with_name(self._path.name + ".1"))
        except OSError as error:  # a full disk must not stop the draining
            log.debug("server_log_not_written", server=self._server, path=self._path, error=error)
