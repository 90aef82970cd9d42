"""The text in a document: a process that parses one document at a time, each in a child of its own.

The parent of the children has one thread and the parsers imported, and the children are confined
(:mod:`obatchd.confined`). So a document that makes a parser hang, crash or grow costs that document.
"""

from __future__ import annotations

import codecs
import io
import re
import socket
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import msgspec

from obatchd import child, confined, frames
from obatchd.errors import SourceError

_META_CHARSET = re.compile(rb"""<meta[^>]{0,200}charset\s*=\s*["']?\s*([A-Za-z0-9_.:-]{1,40})""", re.IGNORECASE)
_HEAD_BYTES = 4096
_BOMS = ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))
_PDF_PAGES = 500
_PDF_FAULTS = (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError)  # of pypdf over wrong files
_PDF_TYPE = "application/pdf"
_HTML_TYPES = ("text/html", "application/xhtml+xml")
_READABLE = (_PDF_TYPE, *_HTML_TYPES, "application/json", "application/xml")  # and all kinds of text


class Text(NamedTuple):
    """The text of a document; ``title`` may be empty."""

    title: str
    text: str


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


def text_of(content: bytes, media_type: str, charset: str, max_characters: int) -> Text:
    """Title and main text of a document.

    The media type is without parameters; empty or ``application/octet-stream`` is judged by the content. The charset is
    what the server says; it may be wrong.

    Raises SourceError ``source_unsupported``, ``source_empty`` or ``parse_failed``.
    """
    kind = _kind(content, media_type)
    if kind == _PDF_TYPE:
        found = _pdf(content, max_characters)
    elif kind in _HTML_TYPES:
        found = _html(decoded(content, charset))
    else:
        found = Text("", decoded(content, charset))
    if not found.text.strip():
        raise SourceError("there is no text in it", code="source_empty")
    return found


def _kind(content: bytes, media_type: str) -> str:
    if content.startswith(b"%PDF-"):
        return _PDF_TYPE
    if media_type in _READABLE or media_type.startswith("text/"):
        return media_type
    if media_type in ("", "application/octet-stream"):
        start = content[:_HEAD_BYTES].lstrip().lower()
        if start.startswith((b"<!doctype html", b"<html", b"<head", b"<body")):
            return "text/html"
        if b"\0" not in content[:_HEAD_BYTES] or content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            return "text/plain"
    raise SourceError(
        f"it is {media_type or 'binary'}: only HTML, text, Markdown and PDF are read", code="source_unsupported"
    )


def decoded(content: bytes, charset: str) -> str:
    """Bytes as text, although servers and pages give wrong charsets.

    A byte order mark is believed first. Bytes that are valid UTF-8 are UTF-8: in any other charset that is next to
    impossible by chance. Then the charset of server and page count, and at last Windows-1252, as in browsers.
    """
    for mark, encoding in _BOMS:
        if content.startswith(mark):
            return content.decode(encoding, "replace")
    meta = _META_CHARSET.search(content[:_HEAD_BYTES])
    for encoding in ("utf-8", charset, meta[1].decode("ascii") if meta else ""):
        try:
            if encoding and codecs.lookup(encoding)._is_text_encoding:
                return content.decode(encoding)
        except (LookupError, UnicodeError, ValueError):
            continue
    return content.decode("cp1252", "replace")


def _html(page: str) -> Text:
    import trafilatura

    found = trafilatura.bare_extraction(
        page, include_comments=False, include_tables=True, include_formatting=True, with_metadata=True, as_dict=False
    )
    if found is None:
        raise SourceError("no main text was found in the page", code="source_empty")
    title, text = getattr(found, "title", None), getattr(found, "text", None)
    return Text(str(title or ""), str(text or ""))


def _pdf(content: bytes, max_characters: int) -> Text:
    import pypdf

    try:
        reader = pypdf.PdfReader(io.BytesIO(content))
        if reader.is_encrypted and not reader.decrypt(""):
            raise SourceError("the PDF is encrypted", code="source_unsupported")
        pages: list[str] = []
        for page in reader.pages[:_PDF_PAGES]:
            pages.append(page.extract_text())
            if sum(map(len, pages)) > max_characters:
                break
        title = reader.metadata.title if reader.metadata is not None else ""
    except (pypdf.errors.PyPdfError, *_PDF_FAULTS) as error:
        raise SourceError(f"the PDF cannot be read: {error}", code="parse_failed") from error
    return Text(str(title or ""), "\n\n".join(pages))


def fork_parser(close: list[socket.socket], parse: Parse = text_of) -> socket.socket:
    """Start the process; returns the socket to talk to it, which ends it when it closes.

    The calling process must have one thread. ``close`` are sockets of the caller that it must not keep open.
    """
    return child.fork(partial(_serve, parse=parse), close)


def _serve(connection: socket.socket, parse: Parse) -> None:
    import pypdf  # noqa: F401 - imported here once, not in every child
    import trafilatura  # noqa: F401 - as above

    while True:
        frames.send(connection, _parsed_apart(frames.receive(connection, _document), connection, parse))


def _parsed_apart(document: Document, connection: socket.socket, parse: Parse) -> Parsed:
    limits = confined.Limits(document.timeout_s, document.memory_bytes)
    try:
        answers = list(confined.messages(partial(_answer, document, parse), parsed, limits, connection))
    except confined.Died as died:
        cause = "failed" if died.cause == "crash" else died.cause
        return Parsed(code=f"parse_{cause}", message=f"its parser {died.words}")
    return answers[-1] if answers else Parsed(code="parse_failed", message="its parser ended without an answer")


def _answer(document: Document, parse: Parse, send: confined.Send) -> None:
    send(_result(document, parse))


def _result(document: Document, parse: Parse) -> Parsed:
    try:
        found = parse(document.content, document.media_type, document.charset, document.max_characters)
    except SourceError as error:
        return Parsed(code=error.code, message=error.message)
    except MemoryError:
        raise
    except Exception as error:  # noqa: BLE001 - a parser may raise anything over what a stranger wrote; it is reported
        return Parsed(code="parse_failed", message=f"its parser failed: {str(error)[:200] or type(error).__name__}")
    title = " ".join(found.title.split())[:300]
    return Parsed(title.encode("utf-8", "replace").decode(), found.text.encode("utf-8", "replace").decode())
