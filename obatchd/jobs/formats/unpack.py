"""Unpacking what is not plain JSONL into ``requests.jsonl``, one request per line, while it is read."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

import msgspec

from obatchd.errors import DropRefused
from obatchd.jobs.formats.folder import folder_files, shown_name
from obatchd.jobs.formats.lines import index_line, refused
from obatchd.jobs.formats.recognise import Format, recognise
from obatchd.jobs.formats.source import Budget, Source, TooMuch, Unreadable, is_packed, open_source
from obatchd.jobs.formats.split import UTF8_BOM, split_array, split_lines
from obatchd.jobs.model import Entry
from obatchd.settings import InboxSettings

_SPACE_CHECK_BYTES = 8 * 1024**2
_encode = msgspec.json.Encoder().encode


class Unpacked:
    """The file ``requests.jsonl`` while it is written. Who indexes it flushes it to the disk.

    A reading that starts over writes the same bytes over those of the one before: what was indexed then is being
    dispatched meanwhile, so it must stay readable all the time.
    """

    def __init__(self, path: Path, limits: InboxSettings, check_space: Callable[[int], None] | None) -> None:
        self.limits = limits
        self._file = os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600), "wb")
        self._check_space = check_space
        self._checked = 0
        self.offset = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._file as file:
            file.flush()
            if kind is None:
                file.truncate(self.offset)

    def add(self, number: int, raw: bytes, where: str, label: str | None = None) -> Entry:
        """Append one request and index it. ``label`` becomes its id where it has none."""
        if self._check_space is not None and self.offset >= self._checked:
            self._check_space(_SPACE_CHECK_BYTES)
            self._checked = self.offset + _SPACE_CHECK_BYTES
        # Outside of strings line breaks are white space; inside they are not JSON, and still are not.
        raw = raw.replace(b"\n", b" ").replace(b"\r", b" ")
        entry = index_line(number, self.offset, raw, where)
        if label is not None and entry.id is None and entry.refusal is None:
            raw = raw[:-1] + b',"id":' + _encode(label) + b"}"  # of two values of a name the last one counts
            entry = index_line(number, self.offset, raw, where)
        self._file.write(raw + b"\n")
        # Dispatch reads this file while it grows.
        self._file.flush()
        self.offset += len(raw) + 1
        return entry


class _Found(NamedTuple):
    """A piece of a drop, and how its author finds it."""

    number: int
    raw: bytes | None
    length: int
    where: str


def _in_lines(source: Source, limit: int) -> Iterator[_Found]:
    for number, offset, raw, length in split_lines(source, limit):
        yield _Found(number, raw, length, f"line {number}, byte offset {offset}")


def _in_array(source: Source, limit: int) -> Iterator[_Found]:
    for number, offset, raw, length in split_array(source, limit):
        yield _Found(number, raw, length, f"element {number}, byte offset {offset}")


def _in_object(source: Source, limit: int) -> Iterator[_Found]:
    content = b""
    while (block := source.read(limit + 1)) and len(content) <= limit:
        content += block
    content = content.removeprefix(UTF8_BOM).strip(b" \t\r\n")
    yield _Found(1, content if len(content) <= limit else None, len(content), "the object")


_FINDERS = {Format.LINES: _in_lines, Format.ARRAY: _in_array, Format.OBJECT: _in_object}


def _stem(name: str) -> str:
    for ending in (".gz", ".json"):
        if name.lower().endswith(ending):
            name = name[: -len(ending)]
    return name


def _readable(path: Path, name: str, problem: str | None) -> Format:
    if problem is not None:
        raise Unreadable(problem)
    try:
        return recognise(path, name)
    except DropRefused as error:
        raise Unreadable(error.message.removeprefix(f"{name} ")) from error


class Unpacking:
    """The requests of a drop, unpacked one after the other."""

    def __init__(self, target: Unpacked) -> None:
        self._target = target
        self._limits = target.limits
        self._budget = Budget(target.limits.max_unpacked_bytes)

    def file(self, path: Path, name: str, form: Format) -> Iterator[Entry]:
        """Those of one file, numbered as they stand in it."""
        number = 0
        try:
            for found in self._found(path, name, form):
                number = found.number
                yield self._entry(number, found, found.where)
        except (TooMuch, Unreadable) as error:
            yield self._rest(number + 1, "the drop", error)

    def folder(self, folder: Path) -> Iterator[Entry]:
        """Those of a folder's files, numbered in name order.

        One that is alone in its file and has no id is called by the file's stem.
        """
        number = 0
        for path, problem in folder_files(folder):
            name = shown_name(path)
            try:
                form = _readable(path, name, problem)
                label = _stem(name) if form is Format.OBJECT else None
                for found in self._found(path, name, form):
                    number += 1
                    yield self._entry(number, found, f"{name}, {found.where}", label)
            except Unreadable as error:
                number += 1
                yield self._refused(number, "bad_file", str(error), name)
            except TooMuch as error:
                yield self._rest(number + 1, name, error)
                return

    def _found(self, path: Path, name: str, form: Format) -> Iterator[_Found]:
        with open_source(path, packed=is_packed(name), budget=self._budget) as source:
            yield from _FINDERS[form](source, self._limits.max_line_bytes)

    def _entry(self, number: int, found: _Found, where: str, label: str | None = None) -> Entry:
        if found.raw is not None:
            return self._target.add(number, found.raw, where, label)
        reason = f"the request has {found.length} bytes, more than max_line_bytes ({self._limits.max_line_bytes})"
        return self._refused(number, "line_too_long", reason, where)

    def _rest(self, number: int, where: str, error: Exception) -> Entry:
        """One failed request that stands for everything after it."""
        if isinstance(error, TooMuch):
            reason = f"it unpacks to more than max_unpacked_bytes ({self._limits.max_unpacked_bytes})"
            return self._refused(number, "unpacked_too_large", reason + "; the rest is not run", where)
        return self._refused(number, "unreadable", f"the rest cannot be read: {error}", where)

    def _refused(self, number: int, code: str, reason: str, where: str) -> Entry:
        return refused(number, self._target.offset, 0, code, reason, where)
