"""The text in a document. Runs in the process of one document: a parser there can hurt nobody else."""

from __future__ import annotations

import codecs
import io
import re
from typing import NamedTuple

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
    try:
        import pypdf
    except ImportError:
        raise SourceError(
            "it is PDF, which needs the library pypdf: pip install 'obatchd[pdf]'", code="source_unsupported"
        ) from None
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
