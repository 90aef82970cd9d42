"""Reading a claimed drop into the store, chunk by chunk. Synchronous: the intake calls it from its threads."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec

from obatchd import log
from obatchd.errors import ConfigError, DropRefused
from obatchd.intake.digest import content_digest
from obatchd.intake.feeder import read_requests
from obatchd.intake.sample import Reservoir
from obatchd.intake.submitted import SubmittedSettings
from obatchd.jobs.families import Families
from obatchd.jobs.formats import (
    Contents,
    FieldNotes,
    Format,
    RecordRules,
    contents,
    folder_settings,
    needs_unpacking,
    once_each,
    read_entries,
    read_me_files,
    recognise,
    refused,
    repeated,
    request_file,
)
from obatchd.jobs.lane import Pending
from obatchd.jobs.model import Entry, next_line
from obatchd.jobs.store import DISK_ERRORS, REFUSED_LANE, IndexBatch, IndexedChunk, JobRow, Store
from obatchd.settings.job import JobSettings, parse_job_settings
from obatchd.settings.settings import Settings
from obatchd.spool.layout import Layout
from obatchd.telling.allowed import require_allowed
from obatchd.words import counted

_log = log.get(__name__)
NEXT_CHUNK = 512  # requests
# The first chunk of a large drop is small, so that a server gets a request of it as soon as of a small one; a small
# drop is done with one commit.
_FIRST_OF_LARGE, _FIRST_OF_SMALL = 64, 256
_SMALL_BYTES = 128 * 1024
_AT_HAND_BYTES = 16 * 1024
_INLINE_DIGEST_BYTES = 1024**2


class Chunk(msgspec.Struct):
    """Additions of a reading: the store's account of them, and the requests at hand where they are few and small."""

    indexed: IndexedChunk
    pending: dict[int, list[Pending]]  # by lane; empty when the bytes are left in the input
    final: bool


class DropReader:
    """One drop being read. Start over after a crash: the store skips lines that it has."""

    def __init__(self, row: JobRow, layout: Layout, settings: Settings, check_space: Callable[[int], None]) -> None:
        self.row = row
        self.directory = layout.job_dir(row.job)
        self.input = self.directory / "input"
        self.notes = list(row.notes)
        self._settings = settings
        self._check_space = check_space
        self._entries: Iterator[Entry] | None = None
        self._form: Format | None = None
        self._hashed = False
        self._sampled: list[Entry] | None = None
        self._field_notes = FieldNotes()
        self._families = Families()

    @property
    def request_file(self) -> Path:
        """The file that entries refer to."""
        return request_file(self.input)

    @cached_property
    def _drop(self) -> Contents:
        return contents(self.input, self.row.label)

    @property
    def writes_requests(self) -> bool:
        """Whether entries refer to a file that is written while the drop is read."""
        return self.request_file.parent == self.directory and self.request_file != self.input

    @cached_property
    def _submitted(self) -> SubmittedSettings:
        return SubmittedSettings.read(self.directory)

    @property
    def is_packed(self) -> bool:
        """Whether the drop has to be unpacked first; raises OSError where the disk does not say."""
        with self._at_its_cost():
            return self._submitted.batch is None and needs_unpacking(self._drop)

    def prepare(self, store: Store) -> dict[str, Any]:
        """Settings, digest and refusals that need no full reading; returns the columns of the job's row to change.

        Raises DropRefused where the drop cannot become a job.
        """
        with self._at_its_cost():
            changes = self.own_columns()
            self.row.settings = changes["settings"]  # they say how the drop is read
            self.row.retry_of = changes["retry_of"]
            if self.row.settings.sample:
                self._sample()
                changes["settings"] = self.row.settings
            elif self._settings.inbox.dedupe == "reject" or self.row.size <= _INLINE_DIGEST_BYTES:
                changes["digest"] = self._digest(store)
            if self._settings.inbox.on_invalid == "fail_file" or self._submitted.all_lines:
                self._require_all_valid()
        changes["notes"] = self.notes
        for name, value in changes.items():
            setattr(self.row, name, value)
        return changes

    def own_columns(self) -> dict[str, Any]:
        """Settings and notes of the drop, as columns of the job's row.

        Raises DropRefused where its settings cannot be used.
        """
        submitted = self._submitted
        drop = self._drop
        self._note(*drop.notes)
        is_folder = drop.path.is_dir()
        own = self._folder_settings(drop.path) if is_folder else JobSettings()
        if is_folder and (about := ", ".join(path.name for path in read_me_files(drop.path)[:5])):
            self._note(
                f"{about} is taken for a description of the drop, not for a prompt; if it is one, give it another name"
            )
        given = msgspec.json.decode(msgspec.json.encode(submitted.settings), type=dict[str, Any])
        merged = msgspec.convert({**msgspec.to_builtins(own), **given}, JobSettings)
        if submitted.batch is not None:
            self._form = Format.BATCH
        elif submitted.retry_of is not None:  # so many blank lines may be before the first request that none is seen
            self._form = Format.BATCH if merged.openai_batch else Format.LINES
        else:
            with contextlib.suppress(DropRefused, OSError):  # where it cannot be told, reading it says why
                self._form = recognise(drop.path, drop.name, merged.encoding)
        if self._form is Format.BATCH and not _rules(merged).given:
            merged = msgspec.structs.replace(merged, openai_batch=True)
        self._note(*submitted.notes)
        frozen = {"defaults": submitted.defaults} if submitted.defaults is not None else {}
        own_label = {"job_label": merged.label}
        return {"settings": merged, "retry_of": submitted.retry_of, "notes": self.notes, **own_label, **frozen}

    def _note(self, *notes: str) -> None:
        """Tell the job's owner, once: a drop may be read more than once."""
        self.notes += [note for note in notes if note not in self.notes]

    @contextlib.contextmanager
    def _at_its_cost(self) -> Iterator[None]:
        """A defect met in reading a drop costs this drop, not the daemon at every start that reads it again."""
        try:
            yield
        except (DropRefused, *DISK_ERRORS):
            raise
        except Exception as error:
            _log.exception("drop_not_readable", job=self.row.job)
            raise DropRefused(
                f"obatchd itself failed in reading it ({type(error).__name__}); the daemon's log says where. Please"
                " report it; until it is mended, try the same prompts as JSONL, one object a line",
                code="reader_defect",
            ) from error

    def finish_digest(self, store: Store) -> dict[str, Any]:
        """The digest of a drop too large to be hashed before its first request runs, and notes on its fields."""
        if self._hashed or self.row.digest or self.row.settings.sample:
            # A sample is no earlier drop of the same content.
            return {"notes": self.notes} if self._field_notes.notes() else {}
        self.row.digest = self._digest(store)
        self.row.notes = self.notes
        return {"digest": self.row.digest, "notes": self.notes}

    def batch(self, size: int) -> IndexBatch:
        """The next ``size`` entries.

        Raises DropRefused where the drop is not one of our formats or holds no request.
        """
        with self._at_its_cost():
            if self._entries is None:
                entries: Iterable[Entry] = self._sample() if self.row.settings.sample else self._read()
                self._entries = repeated(entries, self._times) if self._times > 1 else iter(entries)
            found = list(islice(self._entries, size))
            found = self._families.assigned(found)
        final = len(found) < size
        if final:
            self._note(*self._field_notes.notes())
        # Those of a part are shown and not kept: the whole has other counts.
        self.row.notes = self.notes if final else [*self.notes, *self._field_notes.notes()]
        return IndexBatch(self.row, found, final)

    def first_batch(self) -> IndexBatch:
        """The first entries, which are dispatched before the others are read; raises as :meth:`batch`."""
        return self.batch(_FIRST_OF_SMALL if self.row.size <= _SMALL_BYTES else _FIRST_OF_LARGE)

    def broken_off(self, store: Store, reason: str) -> IndexBatch:
        """The end of a reading that cannot go on: one failed request that stands for the rest."""
        line = next_line(store.of(self.row).job_progress(self.row.key)[0])
        message = f"the drop was changed while it was read, and cannot be read on: {reason}"
        return IndexBatch(self.row, [refused(line, 0, 0, "input_changed", message, "the rest")], final=True)

    def chunk(self, batch: IndexBatch, indexed: IndexedChunk) -> Chunk:
        """``indexed`` with the requests' bytes where they are few and small."""
        pending: dict[int, list[Pending]] = {}
        if sum(entry.length for entry in batch.entries) <= _AT_HAND_BYTES:
            lanes = dict(zip((e.line for e in batch.entries), indexed.lane_of, strict=True))
            # Bytes that cannot be read now are read when their turn comes; the index has them already.
            with contextlib.suppress(OSError):
                for request in read_requests(self.request_file, batch.entries, {})[0]:
                    if (lane := lanes[request.line]) != REFUSED_LANE:
                        pending.setdefault(lane, []).append(request)
        return Chunk(indexed, pending, batch.final)

    def _read(self) -> Iterator[Entry]:
        self._field_notes = FieldNotes()
        return read_entries(
            self.input,
            self.row.label,
            self._settings.inbox,
            form=self._form,
            rules=_rules(self.row.settings),
            check_space=self._check_space,
            size_bytes=self.row.size,
            times=self._times,
            field_notes=self._field_notes,
            endpoint=self._submitted.batch.endpoint if self._submitted.batch is not None else "",
            families=self._settings.dispatch.families != "off",
        )

    def _sample(self) -> list[Entry]:
        """The chosen requests in their order, bad lines passed over; the same ones whenever the drop is read again."""
        if self._sampled is None:
            chosen = Reservoir(self.row.settings.sample or 0, self.row.job)
            bad = 0
            for entry in self._read():
                if entry.refusal is None:
                    chosen.offer(entry)
                else:
                    bad += 1
            self._sampled = chosen.entries()
            self.row.settings = msgspec.structs.replace(self.row.settings, sample_of=chosen.seen * self._times)
            each = f", each answered {counted(self._times, 'time')}" if self._times > 1 else ""
            note = f"sample: {len(self._sampled)} of {chosen.seen} requests, chosen at random{each}"
            self._note(note + (f"; {bad} more cannot be run" if bad else ""))
        return self._sampled

    @property
    def _times(self) -> int:
        """How often each prompt is answered."""
        return self.row.settings.repeat or 1

    def _folder_settings(self, folder: Path) -> JobSettings:
        found = folder_settings(folder)
        if found is None:
            return JobSettings()
        mapping, source = found
        try:
            settings, notes = parse_job_settings(mapping, source)
            require_allowed(settings.notify, self._settings.notifications, source)
        except ConfigError as error:
            raise DropRefused(error.message, code="job_settings") from error
        self._note(*notes)
        return settings

    def _digest(self, store: Store) -> str:
        self._hashed = True
        digest = content_digest(self.input)
        # A retry is no drop: where everything failed it has just the content of the first job.
        earlier = None if self.row.retry_of else store.state.duplicate_of(digest, self.row)
        if earlier is not None:
            if self._settings.inbox.dedupe == "reject":
                raise DropRefused(
                    f"your job {earlier} had exactly these prompts and settings; ask for its answers with obatchctl "
                    f'results {earlier}, or an administrator for dedupe = "allow" in [inbox]',
                    code="duplicate",
                )
            self._note(
                f"duplicate_of {earlier}: an earlier job of yours had exactly these prompts and settings; submit "
                "--skip-done copies the answers that there are"
            )
        return digest

    def _require_all_valid(self) -> None:
        entries = once_each(self._read()) if self._submitted.all_lines else self._read()
        refusals = [entry.refusal.message for entry in entries if entry.refusal is not None]
        if refusals:
            more = f" (and {len(refusals) - 5} more)" if len(refusals) > 5 else ""
            raise DropRefused("; ".join(refusals[:5]) + more, code="invalid_lines")


def _rules(settings: JobSettings) -> RecordRules:
    return RecordRules(settings.template, settings.text_column, settings.id_column, settings.encoding, settings.lines)
