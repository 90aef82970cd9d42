"""The words of the engine as types. See docs/tour.md for their meaning."""

from __future__ import annotations

import calendar
import os
import threading
import time
import zlib
from collections.abc import Mapping
from enum import StrEnum

import msgspec

from obatchd.model_names import plain

# Endings of the names of dropped files, in small letters.
TABLE_ENDINGS = (".csv", ".tsv")
TEXT_ENDINGS = (".txt", ".md")
SOURCE_ENDINGS = (".html", ".htm", ".pdf", ".source.txt", ".source.md")  # in a folder, for requests that name them
IMAGE_ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp")  # in a folder, for requests that name them
PACKED_ENDINGS = (".gz", ".zst", ".xz", ".bz2")
WORKBOOK_ENDINGS = (".xlsx", ".xlsm")
PARQUET_ENDINGS = (".parquet",)
ARCHIVE_ENDINGS = (".zip", ".tar", *(f".tar{packed}" for packed in PACKED_ENDINGS), ".tgz", ".tzst", ".txz", ".tbz2")
_PLAIN_ENDINGS = (".json", ".jsonl", ".ndjson", *TABLE_ENDINGS, *TEXT_ENDINGS)
FILE_ENDINGS = (
    *_PLAIN_ENDINGS,
    *(f"{ending}{packed}" for ending in _PLAIN_ENDINGS for packed in PACKED_ENDINGS),
    *WORKBOOK_ENDINGS,
    *PARQUET_ENDINGS,
    *ARCHIVE_ENDINGS,
)
FORMATS_IN_WORDS = (
    "JSON (.jsonl, .ndjson, .json), a table (.csv, .tsv, .xlsx, .parquet) or text (.txt, .md), each also packed (.gz, "
    ".zst, .xz, .bz2), an archive of such files (.zip, .tar, .tar.gz), or a folder of them"
)
# Endings that transfers use until they are done. Some lie beside the file itself, which then is not complete either.
TRANSFER_ENDINGS = (".part", ".partial", ".filepart", ".crdownload", ".download", ".opdownload", ".fdmdownload",
                    ".aria2", ".uploading", ".upload", ".!qb", ".!ut", ".lftp-pget-status", ".gstmp")  # fmt: skip
_TEMPORARY_ENDINGS = (*TRANSFER_ENDINGS, "~", ".tmp", ".temp", ".swp", ".swx")
# Left by file managers, file systems and storage boxes, in small letters.
_LITTER = frozenset(("4913", "thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r", "__macosx", "@eadir", "#recycle",
                     "$recycle.bin", "system volume information", "lost+found", "network trash folder",
                     "temporary items"))  # fmt: skip
_BASE32 = "0123456789abcdefghjkmnpqrstvwxyz"


def is_passed_over(name: str) -> bool:
    """Whether a file or folder of this name is no drop: hidden, half written by some program, or litter."""
    small = name.lower()
    return (
        small.startswith((".", "~$")) or small.endswith(_TEMPORARY_ENDINGS) or small in _LITTER
        or (small.startswith("#") and small.endswith("#"))
    )  # fmt: skip


def without_packing(name: str) -> str:
    """A file's name without the ending that says how it is packed."""
    ending = next((ending for ending in PACKED_ENDINGS if name.lower().endswith(ending)), "")
    return name[: -len(ending)] if ending else name


class Outcome(StrEnum):
    """The one recorded outcome of a request."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"


def by_outcome(counts: Mapping[str, int]) -> dict[str, int]:
    """``counts`` with every outcome named."""
    return {outcome.value: counts.get(outcome, 0) for outcome in Outcome}


class JobState(StrEnum):
    """Where an accepted drop stands. ``paused`` is a flag beside it, not a state."""

    RUNNING = "running"  # accepted; requests are indexed, dispatched and answered
    PUBLISHING = "publishing"  # every request has its result; the outbox is being completed
    DONE = "done"  # summary.json is in place
    REFUSED = "refused"  # could not become a job; it lies in failed/


PRIORITY_CLASS = {"low": 0, "normal": 1, "high": 2}


class Profile(msgspec.Struct, frozen=True, order=True):
    """Model and context that a request needs loaded. ``slots`` belong to the server."""

    model: str  # without what Ollama adds to names: a model has one profile for all of them
    context_length: int  # tokens, already rounded up by round_context

    def __str__(self) -> str:
        return f"{self.model} ({self.context_length})"

    @classmethod
    def of(cls, model: str, tokens: int) -> Profile:
        """Of a request that names a model so: ``llama3`` and ``llama3:latest`` are one."""
        return cls(plain(model), round_context(tokens))


class Refusal(msgspec.Struct, frozen=True):
    """Why one line of a drop cannot be run."""

    code: str  # bad_json, invalid_utf8, missing_prompt, duplicate_id, line_too_long, wrong_type, too_many_requests …
    message: str  # plain words with line number


class RequestRefused(ValueError):
    """One request cannot be run. ``code`` as in :class:`Refusal`; for lines of batch files as OpenAI's API has it."""

    def __init__(self, code: str, reason: str) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason


class Intent(msgspec.Struct, frozen=True):
    """One drop about to be claimed: enough to find it again wherever a crash left it."""

    job: str
    name: bytes  # in the inbox, as the file system has it
    owner: int  # uid
    device: int
    inode: int
    size: int  # bytes
    kind: str  # file or folder
    at_s: float  # wall clock


class Entry(msgspec.Struct, frozen=True):
    """One indexed line of a drop."""

    line: int  # from 1: the physical line of a JSONL file, the element of an array, the position by name in a folder
    offset: int  # bytes in the request file
    length: int  # bytes, surrounding white space left out
    checksum: int  # zlib.crc32 of exactly those bytes
    id: str | None = None
    model: str | None = None
    context_length: int | None = None  # tokens, as asked (options.num_ctx or context_length), not rounded
    priority: str | None = None
    refusal: Refusal | None = None
    again: tuple[int, ...] = ()  # of a retry: the numbers of its answers that are asked for, in order; else all
    beginning: bytes = b""  # of what is sent, until its family is known (jobs.families); empty where it is short
    family: int | None = None  # a number that the requests of the job with the same long beginning have in common

    def read(self, descriptor: int) -> bytes | None:
        """The bytes from the open request file; None where they are not those that were indexed."""
        raw = os.pread(descriptor, self.length, self.offset)
        return raw if zlib.crc32(raw) == self.checksum else None


def round_context(tokens: int) -> int:
    """``tokens`` rounded up to 4096, 8192, 16384 …, so that few profiles exist."""
    size = 4096
    while size < tokens:
        size *= 2
    return size


# A prompt that is answered more than once has a request for each of its answers. The line of such a request, the key of
# its attempts and results, says so itself: a mark, the line as its author counts, and the number of the answer.
MOST_REPEATS = 100
LAST_REPEATED_LINE = 2**24 - 2
_REPEATED = 1 << 31
_NUMBER_BITS = 7


def repeated_line(line: int, number: int) -> int:
    """The line of the request for answer ``number`` (from 1) to the prompt in ``line``; 0 where it has none."""
    return _REPEATED | line << _NUMBER_BITS | number


def written_line(line: int) -> tuple[int, int]:
    """The line of a request as its author counts, and the number of its answer: 0 of one that is not repeated."""
    if line & _REPEATED:
        return (line ^ _REPEATED) >> _NUMBER_BITS, line & (1 << _NUMBER_BITS) - 1
    return line, 0


def next_line(line: int) -> int:
    """The line behind that of a request, and behind the requests for the same prompt."""
    written, _ = written_line(line)
    return repeated_line(written + 1, 0) if written != line else line + 1


def repeated_id(label: str, number: int) -> str:
    """The id of answer ``number`` to the request ``label``; 0 of one that is not repeated."""
    return f"{label}#{number}" if number else label


def default_id(line: int) -> str:
    """The id of a request that names none: its zero-padded line number."""
    written, number = written_line(line)
    return repeated_id(f"{written:07d}", number)


def id_at(line: int, label: str | None) -> str:
    """The id of the request at ``line``, whose prompt is called ``label`` by its author."""
    return repeated_id(label, written_line(line)[1]) if label else default_id(line)


def place_of(line: int) -> dict[str, int]:
    """The line of a request as records have it: ``line``, and of a repeated one ``repeat``."""
    written, number = written_line(line)
    return {"line": written, "repeat": number} if number else {"line": written}


class JobIds:
    """Makes job ids: ``YYYYMMDD-HHMMSS-xxxx``, unique in one process, sortable by time even if the clock steps back."""

    def __init__(self, last: str = "") -> None:
        self._last = last
        self._lock = threading.Lock()

    def new(self) -> str:
        with self._lock:
            job = self._format(time.time_ns() // 1000)
            if job <= self._last:
                job = self._format(self._ticks_after(self._last))
            self._last = job
            return job

    @staticmethod
    def _format(ticks: int) -> str:
        seconds, micros = divmod(ticks, 1_000_000)
        digits = "".join(_BASE32[(micros >> shift) & 31] for shift in (15, 10, 5, 0))
        return time.strftime("%Y%m%d-%H%M%S-", time.gmtime(seconds)) + digits

    @staticmethod
    def _ticks_after(job: str) -> int:
        seconds = calendar.timegm(time.strptime(job[:15], "%Y%m%d-%H%M%S"))
        micros = 0
        for digit in job[16:20]:
            micros = micros * 32 + _BASE32.index(digit)
        return seconds * 1_000_000 + micros + 1
