"""The output of a server: always drained (a full pipe would block it), the last lines kept, in a capped file."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
from collections import deque
from collections.abc import AsyncGenerator
from functools import partial
from pathlib import Path
from typing import BinaryIO, NamedTuple, Protocol

import attrs

import obatchd.log

log = obatchd.log.get(__name__)

RING_LINES = 200
FILE_BYTES = 10 * 1024**2  # of each of two files: the current and the one before
_LINE_BYTES = 64 * 1024
# About 18 lines of llama-server for each prompt, none of a fault: they would push out those that tell of one.
_CHATTER = (b"slot ", b"\t")

_TAIL_BYTES = 1024**2
_FOLLOW_S = 0.5
_LAST_WORDS_LINES = 3
_LAST_WORDS_CHARACTERS = 400
_ALARM = re.compile(r"CUDA error|GGML_ASSERT|panic:|fatal error:|^Error:|level=ERROR|out of memory")
_NOTABLE = re.compile(
    r"CUDA error|cudaMalloc failed|GGML_ASSERT|panic:|fatal error:|llama(-server| runner) terminated|"
    r"address already in use|failure during (llama-server )?GPU discovery|GPU discovery watchdog|"
    r"offloaded \d+/\d+ layers"
)


async def read_log(path: Path, last: int, *, follow: bool = False) -> AsyncGenerator[str, None]:
    """The last lines of a server's file; with ``follow`` also those that come, over rotations, for ever."""
    text, place = await asyncio.to_thread(_end_of, path)
    for line in text.splitlines()[-last:]:
        yield line
    while follow:
        await asyncio.sleep(_FOLLOW_S)
        lines, place = await asyncio.to_thread(_new_lines, path, place)
        for line in lines:
            yield line


class _Place(NamedTuple):
    """How far a log was read."""

    inode: int
    offset: int


def _end_of(path: Path) -> tuple[str, _Place]:
    """The end of the file, and of the one before where it is short."""
    kept = b""
    place = _Place(0, 0)
    for each in (path.with_name(path.name + ".1"), path):
        with contextlib.suppress(FileNotFoundError), open(each, "rb") as file:
            status = os.fstat(file.fileno())
            file.seek(max(0, status.st_size - _TAIL_BYTES))
            kept = (kept + file.read())[-_TAIL_BYTES:]
            place = _Place(status.st_ino, status.st_size) if each == path else place
    whole = kept.rfind(b"\n") + 1
    return kept[:whole].decode(errors="replace"), place._replace(offset=place.offset - (len(kept) - whole))


def _new_lines(path: Path, place: _Place) -> tuple[list[str], _Place]:
    try:
        with open(path, "rb") as file:
            inode = os.fstat(file.fileno()).st_ino
            offset = place.offset if inode == place.inode else 0  # a new file: the old one became <path>.1
            file.seek(offset)
            new = file.read(_TAIL_BYTES)
    except FileNotFoundError:
        return [], place
    whole = new.rfind(b"\n") + 1
    return new[:whole].decode(errors="replace").splitlines(), _Place(inode, offset + whole)


class LineListener(Protocol):
    """Reads what a server writes; :class:`obatchd.servers.process.ServerProcess`."""

    def line(self, line: str) -> None:
        """One line, without its end."""


@attrs.define(eq=False)
class LogDrain:
    """Takes the output of one server, stdout and stderr, across restarts of the server."""

    _server: str  # id, for our own log
    _path: Path  # the file; when it reaches ``FILE_BYTES`` it becomes ``<path>.1``
    _listener: LineListener
    lines: deque[str] = attrs.field(factory=partial(deque, maxlen=RING_LINES), init=False)
    _rest: bytes = attrs.field(default=b"", init=False)
    _file: BinaryIO | None = attrs.field(default=None, init=False)

    def data_received(self, data: bytes) -> None:
        """Bytes read from its pipe, as many as there were."""
        self._write(data)
        *lines, rest = (self._rest + data).split(b"\n")
        if len(rest) > _LINE_BYTES:
            lines.append(rest)
            rest = b""
        self._rest = rest
        for line in lines:
            if not line.startswith(_CHATTER):
                self._take(line.decode(errors="replace").rstrip())

    def last_words(self) -> str:
        """Its last words that tell why it ended: from the last alarming line on."""
        lines = [line.strip() for line in self.lines if line.strip()]
        alarms = [number for number, line in enumerate(lines) if _ALARM.search(line)]
        chosen = lines[alarms[-1] :][:_LAST_WORDS_LINES] if alarms else lines[-_LAST_WORDS_LINES:]
        return " | ".join(chosen)[:_LAST_WORDS_CHARACTERS]

    def close(self) -> None:
        """Nothing more comes from this process: a rest without an end of line is its last line."""
        if self._rest:
            self._take(self._rest.decode(errors="replace"))
            self._rest = b""
        self._close_file()

    def _close_file(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _take(self, line: str) -> None:
        self.lines.append(line)
        if _NOTABLE.search(line):
            log.info("server_log", server=self._server, line=line[:500])
        self._listener.line(line)

    def _write(self, data: bytes) -> None:
        try:
            if self._file is None:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                self._file = self._path.open("ab", buffering=0)
            self._file.write(data)
            if self._file.tell() > FILE_BYTES:
                self._close_file()
                self._path.replace(self._path.with_name(self._path.name + ".1"))
        except OSError as error:  # a full disk must not stop the draining
            log.debug("server_log_not_written", server=self._server, path=self._path, error=error)
