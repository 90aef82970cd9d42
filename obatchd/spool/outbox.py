"""A job's directory in the outbox. Every file is written under a temporary name, then renamed: nobody reads a half."""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import msgspec

from obatchd.documents.jobs import EarlierStatus, EarlierSummary, JobDocument, ServerWork, Summary
from obatchd.jobs.model import Outcome
from obatchd.spool.flush import sync_filesystem, sync_paths
from obatchd.spool.layout import file_stem
from obatchd.spool.text import clean_text, one_line

_T = TypeVar("_T")
_WRITE_BYTES = 1024**2


class _Record(msgspec.Struct):
    """The parts of a result that totals need."""

    code: str = ""
    message: str = ""
    model: str = ""
    server: str = ""
    started_at: str = ""  # ISO 8601 in UTC, of one width: the text sorts by time
    finished_at: str = ""
    duration_s: float = 0.0
    beside_s: float = 0.0  # of several answers of one request: the time in other slots than its own
    prompt_tokens: int = 0
    prompt_tokens_reused_estimate: int = 0
    response_tokens: int = 0
    truncated: bool = False
    copied_from: str = ""
    ungrounded: list[msgspec.Raw] = []

    @property
    def slot_s(self) -> float:
        return self.duration_s + self.beside_s


class _Response(msgspec.Struct):
    id: str
    response: str | None = None


_record = msgspec.json.Decoder(_Record)
_response = msgspec.json.Decoder(_Response)


class ServerUse(msgspec.Struct):
    """The work of one server for a job."""

    first: str  # when it began, as in records
    last: str
    requests: int = 0
    response_tokens: int = 0
    busy_s: float = 0.0  # slot time
    models: set[str] = set()  # that it answered with

    def add(self, record: _Record) -> None:
        self.requests += 1
        self.models.add(record.model)
        self.response_tokens += record.response_tokens
        self.busy_s += record.slot_s
        self.first, self.last = min(self.first, record.started_at), max(self.last, record.finished_at)

    def document(self, ollama_version: str | None, wall_s: float) -> ServerWork:
        """``wall_s`` is the time of the whole job: a clock that was set meanwhile makes no server's time longer."""
        span_s = 0.0
        if self.first and self.last:
            span_s = (datetime.fromisoformat(self.last) - datetime.fromisoformat(self.first)).total_seconds()
            span_s = min(span_s, wall_s)
        tokens_per_s = round(self.response_tokens / span_s, 2) if span_s > 0 else None
        return ServerWork(self.requests, self.response_tokens, round(self.busy_s, 6), tokens_per_s, ollama_version)


class FailureCount(msgspec.Struct):
    example: str  # the message of the first
    requests: int = 0


class Totals(msgspec.Struct):
    """The sums of a job's results."""

    outcomes: Counter[str] = msgspec.field(default_factory=Counter)
    failures: dict[str, FailureCount] = {}  # by code
    servers: dict[str, ServerUse] = {}  # by id
    models: set[str] = set()
    serial_s: float = 0.0  # the sum of all durations
    prompt_tokens: int = 0
    prompt_tokens_reused_estimate: int = 0
    response_tokens: int = 0
    truncated: int = 0
    copied: int = 0  # answers of earlier jobs; they count for no server, time or token
    ungrounded: int = 0  # answers with a value that does not occur in their prompt
    busy_s: dict[str, float] = {}  # slot time of all results by server, failures as well

    def servers_of(self, model: str) -> list[str]:
        """The servers that answered with a model."""
        return [server for server, use in self.servers.items() if model in use.models]

    def add(self, outcome: Outcome, raw: bytes) -> None:
        record = _record.decode(raw)
        self.outcomes[outcome.value] += 1
        if record.model:
            self.models.add(record.model)
        self.truncated += record.truncated
        self.ungrounded += bool(record.ungrounded)
        if record.copied_from:
            self.copied += 1
            return
        self.serial_s += record.slot_s
        self.prompt_tokens += record.prompt_tokens
        self.prompt_tokens_reused_estimate += record.prompt_tokens_reused_estimate
        self.response_tokens += record.response_tokens
        if record.server:
            self.busy_s[record.server] = self.busy_s.get(record.server, 0.0) + record.slot_s
        if outcome is not Outcome.SUCCEEDED:
            self.failures.setdefault(record.code, FailureCount(record.message)).requests += 1
        elif record.server:
            use = self.servers.get(record.server)
            if use is None:
                use = self.servers[record.server] = ServerUse(record.started_at, record.finished_at)
            use.add(record)


class JobOutbox:
    """The results of one job; ``text_suffix`` is the ending of its responses' text files."""

    def __init__(self, directory: Path, text_suffix: str = ".txt") -> None:
        self.directory = directory
        self._text_suffix = text_suffix
        self.responses = directory / "responses"

    def create(self) -> None:
        """Make the directory; an earlier, unfinished one is used again."""
        self.directory.mkdir(mode=0o755, parents=True, exist_ok=True)

    def write_status(self, document: JobDocument) -> None:
        self.create()
        self._write("status.json", document)

    @contextlib.contextmanager
    def response_files(self) -> Iterator[Callable[[int, bytes], None]]:
        """A function that writes one success, given as (line, record): ``responses/<stem>.json``, its text beside it.

        Names are relative to one open directory: that and plain system calls make it nine times faster than paths.
        """
        self.responses.mkdir(mode=0o755, parents=True, exist_ok=True)
        directory = os.open(self.responses, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

        def write(line: int, record: bytes) -> None:
            response = _response.decode(record)
            stem = file_stem(response.id, line)
            _replace_in(directory, f"{stem}.json", one_line(record) + b"\n")
            if response.response is not None:  # a vector has no text
                _replace_in(directory, stem + self._text_suffix, clean_text(response.response).encode() + b"\n")

        try:
            yield write
        finally:
            os.close(directory)

    def write_whole(
        self,
        rows: Iterable[tuple[int, Outcome, bytes]],
        *,
        responses: bool,
        line_of: Callable[[Outcome, bytes], bytes] | None = None,
    ) -> Totals:
        """Write ``results.jsonl`` and ``errors.jsonl`` from rows in input order; with ``responses`` those files too.

        ``line_of`` makes the line of a record, where that is not the record itself.
        """
        totals = Totals()
        with contextlib.ExitStack() as stack:
            good = stack.enter_context(_replacing(self.directory / "results.jsonl"))
            bad = stack.enter_context(_replacing(self.directory / "errors.jsonl"))
            write_response = stack.enter_context(self.response_files()) if responses else None
            for line, outcome, record in rows:
                totals.add(outcome, record)
                text = record if line_of is None else line_of(outcome, record)
                (good if outcome is Outcome.SUCCEEDED else bad).write(one_line(text) + b"\n")
                if write_response is not None and outcome is Outcome.SUCCEEDED:
                    write_response(line, record)
        return totals

    def write_summary(self, document: Summary) -> None:
        """Write ``summary.json``, whose presence means that the job is complete."""
        self._write("summary.json", document)

    def write_notes(self, notes: list[str]) -> None:
        """Replace the notes in the summary of a job that is over; nothing where that was taken away."""
        with contextlib.suppress(FileNotFoundError, msgspec.DecodeError):
            summary = msgspec.json.decode((self.directory / "summary.json").read_bytes(), type=dict[str, Any])
            self._write("summary.json", {**summary, "notes": notes})
            flush_outboxes([self])

    def _write(self, name: str, document: msgspec.Struct | dict[str, Any]) -> None:
        directory = os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            _replace_in(directory, name, msgspec.json.format(msgspec.json.encode(document), indent=2) + b"\n")
        finally:
            os.close(directory)

    def valid_summary(self) -> EarlierSummary | None:
        """The summary, or None where there is none or a crash left it torn."""
        return _document(self.directory / "summary.json", EarlierSummary)

    def last_status(self) -> EarlierStatus | None:
        """The content of ``status.json``; None where it is missing or torn."""
        return _document(self.directory / "status.json", EarlierStatus)

    def whole_bytes(self) -> int:
        names = ("results.jsonl", "errors.jsonl")
        return sum(path.stat().st_size for name in names if (path := self.directory / name).exists())

    def files(self) -> list[Path]:
        """Everything in it, the directories after their content."""
        found = [path for path in self.directory.iterdir() if path.is_file()]
        if self.responses.is_dir():
            found += [*self.responses.iterdir(), self.responses]
        return [*found, self.directory]


# Up to this many files their own flushes are cheaper than one of the whole file system.
_FEW_FILES = 16


def flush_outboxes(boxes: Sequence[JobOutbox]) -> None:
    """Make everything in these directories durable: one job's by fsync, many together by one syncfs.

    Raises OSError where the disk refused.
    """
    if not boxes:
        return
    if len(boxes) == 1 and len(files := boxes[0].files()) <= _FEW_FILES:
        sync_paths([*files, boxes[0].directory.parent])
    else:
        sync_filesystem(boxes[0].directory.parent)


def _document(path: Path, kind: type[_T]) -> _T | None:
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except (OSError, msgspec.DecodeError):
        return None


def _replace_in(directory: int, name: str, content: bytes) -> None:
    temporary = f".{name}.tmp"
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
    descriptor = os.open(temporary, flags, 0o644, dir_fd=directory)
    try:
        left = memoryview(content)
        while left:  # a disk that is all but full takes a part first
            left = left[os.write(descriptor, left) :]
    finally:
        os.close(descriptor)
    os.rename(temporary, name, src_dir_fd=directory, dst_dir_fd=directory)


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[BinaryIO]:
    temporary = path.with_name(f".{path.name}.tmp")
    with open(temporary, "wb", buffering=_WRITE_BYTES) as file:
        yield file
    os.replace(temporary, path)
