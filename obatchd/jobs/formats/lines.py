"""The quick look that indexes one request: enough to queue it, or to say why it cannot be run."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import msgspec

from obatchd.jobs.families import WORTH_BYTES, beginning
from obatchd.jobs.formats.field_notes import FieldNotes
from obatchd.jobs.formats.images import image_problem
from obatchd.jobs.formats.request import Request, parse_batch_request, parse_request, request_id
from obatchd.jobs.formats.source import decoded
from obatchd.jobs.model import (
    LAST_REPEATED_LINE,
    Entry,
    Refusal,
    RequestRefused,
    repeated_id,
    repeated_line,
)

_Parser = Callable[[bytes, FieldNotes | None], Request]


class _How(NamedTuple):
    """How lines are read."""

    parse: _Parser
    field_notes: FieldNotes | None
    families: bool


def line_indexer(field_notes: FieldNotes | None = None, *, families: bool = True) -> Callable[..., Entry]:
    """A function that indexes the lines of a plain file; ``field_notes`` hear of fields that may be meant otherwise.

    Entries have the beginnings of their requests (``jobs.families``) if ``families``.
    """
    how = _How(parse_request, field_notes, families)

    def index_line(number: int, offset: int, raw: bytes, where: str = "") -> Entry:
        """The entry of one request whose surrounding white space is removed.

        ``offset`` is that of ``raw`` in the request file; ``where`` says where its author finds it, if not there.
        """
        return _indexed(number, offset, raw, where, how)

    return index_line


index_line = line_indexer()


class BatchIndexer:
    """Indexes the lines of one batch file, which has one model, and one endpoint where one is given.

    Made and called as :func:`line_indexer`.
    """

    def __init__(self, field_notes: FieldNotes | None = None, endpoint: str = "", *, families: bool = True) -> None:
        self._field_notes, self._endpoint, self._families = field_notes, endpoint, families
        self._model: str | None = None
        self._first = 0

    def __call__(self, number: int, offset: int, raw: bytes, where: str = "") -> Entry:
        def parsed(raw: bytes, field_notes: FieldNotes | None) -> Request:
            try:
                request = parse_batch_request(raw, field_notes)
            except RequestRefused:
                self._check_endpoint(_url_of(raw) or self._endpoint)  # its body may only be wrong for another one
                raise
            self._check_endpoint(request.url)
            self._check_model(request, number)
            return request

        return _indexed(number, offset, raw, where, _How(parsed, self._field_notes, self._families))

    def _check_endpoint(self, url: str) -> None:
        if self._endpoint and url != self._endpoint:
            raise RequestRefused("url_mismatch", f"it is for {url or 'no url'}, and the batch for {self._endpoint}")

    def _check_model(self, request: Request, number: int) -> None:
        if not self._first:
            self._first, self._model = number, request.model
        elif request.model != self._model:
            other = f"{request.model or 'no model'}, line {self._first} for {self._model or 'no model'}"
            raise RequestRefused("model_mismatch", f"it asks for {other}; a batch has one model")


class _Line(msgspec.Struct):
    url: str = ""


def _url_of(raw: bytes) -> str:
    """The url of a line, as it is written; empty where there is none."""
    try:
        return msgspec.json.decode(raw, type=_Line).url
    except (msgspec.DecodeError, RecursionError):
        return ""


def once_each(entries: Iterable[Entry]) -> Iterator[Entry]:
    """Entries of which one with an id that an earlier one has cannot be run; ids are held in memory."""
    seen: dict[str, int] = {}
    for entry in entries:
        if entry.refusal is None and entry.id is not None:
            there = seen.setdefault(entry.id, entry.line)
            if there != entry.line:
                reason = f"the id {entry.id!r} was used by line {there} already; give every request its own id"
                entry = msgspec.structs.replace(entry, refusal=_refusal(entry.line, "", "duplicate_id", reason))
        yield entry


def _indexed(number: int, offset: int, raw: bytes, where: str, how: _How) -> Entry:
    try:
        request = read_whole(raw, how.parse, how.field_notes)
    except RequestRefused as refusal:
        return refused_request(number, offset, raw, request_id(raw), where, refusal)
    except RecursionError:
        too_deep = RequestRefused("bad_json", "it is nested too deeply")
        return refused_request(number, offset, raw, request_id(raw), where, too_deep)
    of_queue = (request.id, request.model, request.context_length, request.priority)
    if len(raw) >= WORTH_BYTES or request.images or request.urls or request.files or request.again:
        begins = beginning(request) if how.families else b""
        return Entry(number, offset, len(raw), zlib.crc32(raw), *of_queue, again=request.again, beginning=begins)
    return Entry(number, offset, len(raw), zlib.crc32(raw), *of_queue)


def read_whole(raw: bytes, parse: _Parser = parse_request, field_notes: FieldNotes | None = None) -> Request:
    """The request in a line, of which a worker can take all; what is not read here is checked, too.

    Raises RequestRefused where it cannot be run, RecursionError where it is nested too deeply.
    """
    if not raw.isascii():  # msgspec does not check skipped values, and they would fail in the worker
        decoded(raw)
    request = parse(raw, field_notes)
    _check_images(request)
    return request


def _check_images(request: Request) -> None:
    images = [*request.images, *(image for message in request.messages for image in message.get("images", ()))]
    if images and (problem := image_problem(images)):
        raise RequestRefused("invalid_request" if request.url else "bad_image", problem)


def refused(
    number: int, offset: int, length: int, code: str, reason: str, where: str = "", label: str | None = None
) -> Entry:
    """The entry of something that is refused without a look at its content."""
    return Entry(number, offset, length, 0, label, refusal=_refusal(number, where, code, reason))


def repeated(entries: Iterable[Entry], times: int) -> Iterator[Entry]:
    """The entries of a job that has each prompt answered so many times; one for each answer, of the same bytes.

    A line that cannot be run fails once.
    """
    for entry in entries:
        if entry.line > LAST_REPEATED_LINE:
            reason = f"prompts behind line {LAST_REPEATED_LINE} cannot be repeated; they are not run"
            line = repeated_line(LAST_REPEATED_LINE + 1, 0)
            yield refused(line, entry.offset, 0, "too_many_requests", reason, f"line {entry.line}")
            return
        if entry.refusal is not None:
            yield msgspec.structs.replace(entry, line=repeated_line(entry.line, 0))
            continue
        for number in [number for number in entry.again if number <= times] or range(1, times + 1):
            label = None if entry.id is None else repeated_id(entry.id, number)
            yield msgspec.structs.replace(entry, line=repeated_line(entry.line, number), id=label)


def refused_request(
    number: int, offset: int, raw: bytes, label: str | None, where: str, refused: RequestRefused
) -> Entry:
    """The entry of a request that cannot be run; ``raw`` has the fields that come back with the failure."""
    refusal = _refusal(number, where, refused.code, refused.reason)
    return Entry(number, offset, len(raw), zlib.crc32(raw), label, refusal=refusal)


def _refusal(number: int, where: str, code: str, reason: str) -> Refusal:
    return Refusal(code, f"{where or f'line {number}'}: {reason}")
