"""A process that parses one document at a time, each in a child of its own.

The parent of the children has one thread and the parsers imported, so a child is a fork of 2 ms. The kernel ends a
child that runs too long (setitimer(2): SIGALRM's default kills, whatever the parser is doing) and gives it no more
memory than its limit (RLIMIT_AS). So a document that makes a parser hang, crash or grow costs that document.
"""

from __future__ import annotations

import contextlib
import os
import resource
import select
import signal
import socket
from collections.abc import Callable
from functools import partial
from typing import Never

import msgspec

from obatchd import child
from obatchd.context.text import Text, text_of
from obatchd.errors import SourceError

_READ_BYTES = 1024**2


class Document(msgspec.Struct, array_like=True):
    """One document to be parsed."""

    content: bytes
    media_type: str
    charset: str
    max_characters: int
    timeout_s: float
    memory_bytes: int


class Parsed(msgspec.Struct, array_like=True):
    """Its text, or why there is none."""

    title: str = ""
    text: str = ""
    code: str = ""
    message: str = ""


Parse = Callable[[bytes, str, str, int], Text]
_document = msgspec.msgpack.Decoder(Document)
parsed = msgspec.msgpack.Decoder(Parsed)


def fork_parser(close: list[socket.socket], parse: Parse = text_of) -> socket.socket:
    """Start the process; returns the socket to talk to it, which ends it when it closes.

    The calling process must have one thread. ``close`` are sockets of the caller that it must not keep open.
    """
    return child.fork(partial(_serve, parse=parse), close)


def _serve(connection: socket.socket, parse: Parse) -> None:
    with contextlib.suppress(ImportError):
        import pypdf  # noqa: F401 - an extra; imported here once, not in every child
    import trafilatura  # noqa: F401 - as above

    while True:
        child.send(connection, _parsed_apart(child.receive(connection, _document), connection, parse))


def _parsed_apart(document: Document, connection: socket.socket, parse: Parse) -> Parsed:
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reading)
        connection.close()
        _child(document, writing, parse)
    os.close(writing)
    answer = bytearray()
    try:
        while True:
            ready, _, _ = select.select([reading, connection.fileno()], [], [])
            if connection.fileno() in ready:  # nothing is sent before the answer: this is the end of the preparer
                os.kill(pid, signal.SIGKILL)
                os._exit(0)
            block = os.read(reading, _READ_BYTES)
            if not block:
                break
            answer += block
    finally:
        os.close(reading)
    _, status = os.waitpid(pid, 0)
    return _judged(status, bytes(answer), document)


def _judged(status: int, answer: bytes, document: Document) -> Parsed:
    number = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
    if number in (signal.SIGALRM, signal.SIGXCPU):
        return Parsed(code="parse_timeout", message=f"its parser took longer than {document.timeout_s:g} s")
    if number or os.WEXITSTATUS(status):
        how = f"signal {number}" if number else f"exit code {os.WEXITSTATUS(status)}"
        return Parsed(code="parse_failed", message=f"its parser crashed ({how})")
    try:
        return parsed.decode(answer)
    except msgspec.DecodeError:
        return Parsed(code="parse_failed", message="its parser ended without an answer")


def _child(document: Document, writing: int, parse: Parse) -> Never:
    try:
        # Complaints of parsers concern their document, not the daemon's log.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 1)
        os.dup2(nowhere, 2)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_REAL, document.timeout_s)
        seconds = int(document.timeout_s) + 1
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))
        size = _address_space_bytes() + document.memory_bytes
        resource.setrlimit(resource.RLIMIT_AS, (size, size))
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
        answer = msgspec.msgpack.encode(_result(document, parse))
        while answer:
            answer = answer[os.write(writing, answer) :]
        os._exit(0)
    finally:
        os._exit(1)


def _result(document: Document, parse: Parse) -> Parsed:
    try:
        found = parse(document.content, document.media_type, document.charset, document.max_characters)
    except SourceError as error:
        return Parsed(code=error.code, message=error.message)
    except MemoryError:
        limit = document.memory_bytes // 1024**2
        return Parsed(code="parse_memory", message=f"its parser needs more than {limit} MiB")
    except Exception as error:  # noqa: BLE001 - a parser may raise anything over what a stranger wrote; it is reported
        return Parsed(code="parse_failed", message=f"its parser failed: {type(error).__name__}: {str(error)[:200]}")
    title = " ".join(found.title.split())[:300]
    return Parsed(title.encode("utf-8", "replace").decode(), found.text.encode("utf-8", "replace").decode())


def _address_space_bytes() -> int:
    with open("/proc/self/statm", "rb") as file:  # proc(5): the first number is the size in pages
        return int(file.read().split()[0]) * resource.getpagesize()
