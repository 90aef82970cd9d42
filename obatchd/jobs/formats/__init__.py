"""The formats a drop may have, and the stream of entries in each, in constant memory.

Archives, packed files but gzip, workbooks and Parquet are unpacked before (:mod:`obatchd.jobs.containers`).

Plain JSONL of requests is indexed where it lies. Everything else — gzip, one JSON object, an array, a table, text, a
folder, records to be made into requests — is unpacked beside the input into ``requests.jsonl`` while it is read, and
entries refer to that. Unpacking is deterministic, so a reading that a crash interrupted starts over and writes the same
bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from obatchd.errors import DropRefused
from obatchd.jobs.containers.kinds import HEAD_BYTES, drop_container, is_to_convert
from obatchd.jobs.containers.unpacked import Contents, contents
from obatchd.jobs.formats.changed import with_changes
from obatchd.jobs.formats.field_notes import FieldNotes
from obatchd.jobs.formats.folder import folder_files, folder_settings, read_me_files
from obatchd.jobs.formats.lines import BatchIndexer, line_indexer, once_each, refused, repeated
from obatchd.jobs.formats.recognise import Format, recognise
from obatchd.jobs.formats.records import RecordRules
from obatchd.jobs.formats.request import Request, parse_request, request_id, with_repeats
from obatchd.jobs.formats.source import Unreadable, is_packed, is_utf8, open_source
from obatchd.jobs.formats.split import split_lines
from obatchd.jobs.formats.unpack import Unpacking
from obatchd.jobs.model import FORMATS_IN_WORDS, Entry
from obatchd.words import counted

if TYPE_CHECKING:  # pydantic takes longer to import than all the rest that workers need
    from obatchd.settings.tables.spool import InboxSettings

__all__ = [
    "Contents",
    "FieldNotes",
    "Format",
    "RecordRules",
    "Request",
    "contents",
    "folder_settings",
    "needs_unpacking",
    "once_each",
    "parse_request",
    "read_entries",
    "read_me_files",
    "recognise",
    "refused",
    "remove_request_file",
    "repeated",
    "request_file",
    "with_changes",
    "with_repeats",
]

_REQUESTS = "requests.jsonl"
_NO_RULES = RecordRules()


def request_file(input_path: Path) -> Path:
    """The file that the entries of a drop refer to. Settled once for each drop, when the reading begins."""
    unpacked = input_path.with_name(_REQUESTS)
    return unpacked if unpacked.exists() else contents(input_path, "").path


def remove_request_file(input_path: Path) -> None:
    """Remove what a reading has unpacked beside the input, where it has; the next reading begins anew."""
    input_path.with_name(_REQUESTS).unlink(missing_ok=True)


def needs_unpacking(drop: Contents) -> bool:
    """Whether a drop has to be unpacked by a process of its own before it can be read, and was not yet.

    Raises OSError where the system does not say.
    """
    if drop.is_unpacked or drop.overlay is not None:
        return False
    if drop.path.is_dir():
        return any(problem is None and is_to_convert(path.name) for path, problem in folder_files(drop.path))
    try:
        with open_source(drop.path, packed=False) as source:
            return drop_container(source.read(HEAD_BYTES), drop.name) is not None
    except Unreadable:
        return False  # reading it says why


def read_entries(
    input_path: Path,
    name: str,
    limits: InboxSettings,
    *,
    form: Format | None = None,
    rules: RecordRules = _NO_RULES,
    check_space: Callable[[int], None] | None = None,
    size_bytes: int | None = None,
    times: int = 1,
    field_notes: FieldNotes | None = None,
    endpoint: str = "",
    families: bool = False,
) -> Iterator[Entry]:
    """Every request of a drop, and every line that cannot be one.

    ``form`` is what :func:`recognise` found, where that is known. ``rules`` say how records become requests.
    ``check_space`` is called with the number of bytes about to be unpacked, again and again, and raises to stop it.
    ``size_bytes`` is how much of a plain file counts: bytes that somebody appended since it was taken do not. Each
    entry counts ``times`` times towards ``max_requests``: it is to be answered as often.
    ``field_notes`` hear of fields that may be meant otherwise; with ``families`` entries have beginnings, to find
    those by. ``endpoint`` is the one that every line of a batch file must be for, where that was said. Raises
    DropRefused where the drop is none of our formats, or there is no request in it at all.
    """
    drop = contents(input_path, name)
    form = form or recognise(drop.path, drop.name, rules.encoding)
    unpacked = input_path.with_name(_REQUESTS)
    plain = form in (Format.LINES, Format.BATCH) and not is_packed(drop.name) and not rules.given
    if plain and not unpacked.exists() and is_utf8(drop.path, rules.encoding):
        index = (
            BatchIndexer(field_notes, endpoint, families=families)
            if form is Format.BATCH
            else line_indexer(field_notes, families=families)
        )
        entries = _in_place(drop.path, index, limits.max_line_bytes, None if drop.is_unpacked else size_bytes)
    else:
        entries = Unpacking(limits, rules, check_space, field_notes, families=families).entries(drop, form, unpacked)
    count = 0
    for count, entry in enumerate(entries, 1):
        if count * times > limits.max_requests:
            each = f", when each prompt is answered {counted(times, 'time')}" if times > 1 else ""
            more = f"the drop has more than max_requests ({limits.max_requests}) requests{each}"
            reason = f"{more}; this one and the rest are not run"
            yield refused(entry.line, entry.offset, entry.length, "too_many_requests", reason, label=entry.id)
            return
        yield entry
    if not count:
        remedy = f"; put files of prompts into it: {FORMATS_IN_WORDS}" if form is Format.FOLDER else ""
        raise DropRefused(f"{name} holds no request{remedy}", code="no_requests")


def _in_place(path: Path, index: Callable[..., Entry], max_line_bytes: int, size_bytes: int | None) -> Iterator[Entry]:
    with open_source(path, packed=False, size_bytes=size_bytes) as source:
        for number, offset, raw, length, ends in split_lines(source, max_line_bytes):
            if raw is not None:
                yield index(number, offset, raw.removesuffix(b","))
            else:
                reason = f"the line has {length} bytes, more than max_line_bytes ({max_line_bytes})"
                yield refused(number, offset, length, "line_too_long", reason, label=request_id(ends))
