"""Unpacking every other format into ``requests.jsonl``, one request per line, while it is read."""

from __future__ import annotations

import os
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from obatchd.errors import DropRefused
from obatchd.jobs.containers.kinds import is_to_convert
from obatchd.jobs.containers.unpacked import Contents
from obatchd.jobs.formats.field_notes import FieldNotes
from obatchd.jobs.formats.folder import folder_files, shown_name
from obatchd.jobs.formats.found import Found, find
from obatchd.jobs.formats.images import Pictures, with_images
from obatchd.jobs.formats.lines import BatchIndexer, index_line, line_indexer, refused, refused_request
from obatchd.jobs.formats.recognise import Format, recognise
from obatchd.jobs.formats.records import RecordRules
from obatchd.jobs.formats.request import request_id
from obatchd.jobs.formats.source import Budget, TooMuch, Unreadable, is_packed, open_source, raw_fields
from obatchd.jobs.model import PACKED_ENDINGS, TEXT_ENDINGS, Entry, RequestRefused

if TYPE_CHECKING:
    from obatchd.settings.tables.spool import InboxSettings

Index = Callable[[int, int, bytes, str], Entry]
_SPACE_CHECK_BYTES = 8 * 1024**2
_ALONE = frozenset({Format.OBJECT, Format.TEXT})
_BLANKS, _TABS = (bytes.maketrans(b"\r\n", blanks) for blanks in (b"  ", b"\t\t"))
_encode = msgspec.json.Encoder().encode


def _stem(name: str) -> str:
    for ending in (*PACKED_ENDINGS, ".json", *TEXT_ENDINGS):
        if name.lower().endswith(ending):
            name = name[: -len(ending)]
    return name


def _on_one_line(raw: bytes) -> bytes:
    """Outside of strings line breaks are white space. Inside they are not JSON, and stay so, as tabs."""
    if b"\n" not in raw and b"\r" not in raw:
        return raw
    try:
        raw_fields(raw)
    except (ValueError, RecursionError):
        return raw.translate(_TABS)
    return raw.translate(_BLANKS)


class Unpacking:
    """The requests of a drop, unpacked one after the other. The indexer flushes them to the disk.

    A reading that starts over writes the same bytes over those of the one before: what was indexed then is being
    dispatched meanwhile, so it must stay readable all the time.
    """

    def __init__(
        self,
        limits: InboxSettings,
        rules: RecordRules,
        check_space: Callable[[int], None] | None = None,
        field_notes: FieldNotes | None = None,
        *,
        families: bool = True,
    ) -> None:
        self._field_notes, self._families = field_notes, families
        self._limits = limits
        self._rules = rules
        self._budget = Budget(limits.max_unpacked_bytes)
        self._check_space = check_space
        self._checked = 0
        self._offset = 0

    def entries(self, drop: Contents, form: Format, target: Path) -> Iterator[Entry]:
        """The entries of a drop, each when it is written to ``target``."""
        descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as self._file:
            yield from self._of_folder(drop) if form is Format.FOLDER else self._of_file(drop.path, drop.name, form)
            self._file.truncate(self._offset)

    def _of_file(self, path: Path, name: str, form: Format) -> Iterator[Entry]:
        """Those of one file, numbered as they stand in it."""
        number, index = 0, self._index_of(form)
        try:
            for found in self._found(path, name, form):
                number = found.number
                yield self._entry(number, found, found.where, index=index)
        except TooMuch:
            yield self._too_much(number + 1, "the drop")
        except Unreadable as error:
            yield self._refused(number + 1, "unreadable", f"the rest cannot be read: {error}", "the drop")

    def _of_folder(self, drop: Contents) -> Iterator[Entry]:
        """Those of a folder's files, numbered in the order of :func:`folder_files`.

        One that is alone in its file and has no id is called by the file's stem, or by its whole path in the folder
        where files share a stem.
        """
        number = 0
        self._rules = msgspec.structs.replace(self._rules, lines=self._rules.lines or False)  # no text is suspect here
        files, pictures = list(folder_files(drop.path)), Pictures(drop.path)
        stems = Counter(_stem(Path(shown_name(path)).name) for path, _ in files)
        for path, problem in files:
            name = shown_name(path)
            stem = _stem(Path(name).name)
            problem = drop.problems.get(name, problem)
            folder = drop.overlay if drop.overlay and is_to_convert(path.name) else drop.path
            try:
                if problem is not None:
                    raise Unreadable(problem)
                form = recognise(path, name, self._rules.encoding, folder=folder)
                label = (stem if stems[stem] == 1 else name) if form in _ALONE else None
                index = self._index_of(form)
                for found in self._found(path, name, form, folder):
                    number += 1
                    found = self._with_images(found, pictures, path)
                    yield self._entry(number, found, f"{name}, {found.where}", label if found.alone else None, index)
            except (Unreadable, DropRefused) as error:
                number += 1
                reason = str(error).removeprefix(name).lstrip(": ")
                yield self._refused(number, "bad_file", reason, name)
            except TooMuch:
                yield self._too_much(number + 1, name)
                return

    def _found(self, path: Path, name: str, form: Format, folder: Path | None = None) -> Iterator[Found]:
        coding = self._rules.encoding
        with open_source(
            path, packed=is_packed(name), budget=self._budget, folder=folder, text=True, encoding=coding
        ) as source:
            yield from find(source, name, form, self._limits.max_line_bytes, self._rules)

    def _index_of(self, form: Format) -> Index:
        if form is Format.BATCH and not self._rules.given:
            return BatchIndexer(self._field_notes, families=self._families)
        return line_indexer(None if self._rules.given else self._field_notes, families=self._families)

    def _with_images(self, found: Found, pictures: Pictures, origin: Path) -> Found:
        if found.raw is None or found.refusal is not None:
            return found
        try:
            raw = with_images(found.raw, pictures, origin, self._budget, self._limits.max_line_bytes)
            return found._replace(raw=raw)
        except RequestRefused as refused:
            return found._replace(refusal=refused)

    def _entry(
        self, number: int, found: Found, where: str, label: str | None = None, index: Index = index_line
    ) -> Entry:
        """Write one piece and index it. ``label`` becomes its id where it has none."""
        if found.raw is None and found.refusal is None:
            reason = f"the request has {found.length} bytes, more than max_line_bytes ({self._limits.max_line_bytes})"
            return self._refused(number, "line_too_long", reason, where, request_id(found.ends) or label)
        raw = _on_one_line(found.raw or b"")
        if found.refusal is not None:
            entry = refused_request(number, self._offset, raw, request_id(raw) or label, where, found.refusal)
        else:
            entry = index(number, self._offset, raw, where)
            if label is not None and entry.id is None:
                if entry.refusal is None:
                    raw = raw[:-1] + b',"id":' + _encode(label) + b"}"  # of two values of a name the last one counts
                entry = msgspec.structs.replace(entry, length=len(raw), checksum=zlib.crc32(raw), id=label)
        self._write(raw)
        return entry

    def _write(self, raw: bytes) -> None:
        if self._check_space is not None and self._offset >= self._checked:
            self._check_space(_SPACE_CHECK_BYTES)
            self._checked = self._offset + _SPACE_CHECK_BYTES
        self._file.write(raw + b"\n")
        # Dispatch reads this file while it grows.
        self._file.flush()
        self._offset += len(raw) + 1

    def _too_much(self, number: int, where: str) -> Entry:
        """One failed request that stands for everything after it."""
        reason = f"it unpacks to more than max_unpacked_bytes ({self._limits.max_unpacked_bytes})"
        return self._refused(number, "unpacked_too_large", reason + "; the rest is not run", where)

    def _refused(self, number: int, code: str, reason: str, where: str, label: str | None = None) -> Entry:
        return refused(number, self._offset, 0, code, reason, where, label)
