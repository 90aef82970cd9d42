"""The files of runs over hosts at the head: the run itself, and a copy of what each host has recorded.

``work/burnin/<run>/run.json`` and ``<run>/<host>.jsonl``. The part of the head's own machine has its journal where runs
of one machine have theirs.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

import attrs
import msgspec

from obatchd.burnin.journal import journal
from obatchd.burnin.journal.records import Record, Unit
from obatchd.burnin.run.plan import Asked
from obatchd.documents.burnin.plan import Plan
from obatchd.errors import ClusterError, NotFoundError, StoreError

_RUN = "run.json"
_MOST_COPY_BYTES = 256 * 2**20  # of one host: a day of eight GPUs has ten million

PartState = Literal["waiting", "begun", "over", "not_begun", "lost"]


class Part(msgspec.Struct):
    """One host of a run, as the head keeps it."""

    host: str  # empty: the head's own machine
    units: list[Unit]  # that it had when the run began; servers by their ids there
    asked: Asked  # of it
    state: PartState = "waiting"
    reason: str = ""  # of not_begun and lost, or why a host that has begun tells nothing now
    action: str = ""  # what to do about it
    at_s: float = 0.0  # of the state, epoch seconds
    life: str = ""  # of the host's process that told the records
    ahead_s: float = 0.0  # by how much the host's clock is ahead of the head's
    loads: list[str] = []  # of the phase it was in last

    @property
    def is_final(self) -> bool:
        return self.state in ("over", "not_begun", "lost")


class HostsRun(msgspec.Struct):
    """A run over hosts. Times are epoch seconds by the head's clock."""

    plan: Plan
    began_s: float
    version: str  # of obatchd
    parts: list[Part]
    stopped: str = ""  # by whom; empty: it was not
    ended_s: float | None = None
    state: str = ""  # completed, stopped, failed; empty until the end
    verdict: str = ""  # as the next
    verdicts: dict[str, str] = {}  # by UUID

    @property
    def run(self) -> str:
        return self.plan.run


@attrs.define(eq=False)
class RunFiles:
    """Reads and writes them. Every method blocks, and raises OSError where the disk refuses."""

    _directory: Path
    _saving: threading.Lock = attrs.field(factory=threading.Lock, init=False)  # a task given up leaves its thread

    def encoded(self, run: HostsRun) -> bytes:
        """A run as its file; does not block."""
        return msgspec.json.encode(run)

    def save(self, run: str, data: bytes) -> None:
        """Write the file of a run, so that it survives a power cut."""
        folder = self._directory / run
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        temporary = folder / f".{_RUN}.tmp"
        with self._saving:
            with open(temporary, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(folder / _RUN)

    def delete(self, run: str) -> None:
        """Delete a run, with all that hosts told."""
        shutil.rmtree(self._directory / run)

    def runs(self) -> list[str]:
        """Ids, oldest first."""
        return sorted(path.parent.name for path in self._directory.glob(f"*/{_RUN}"))

    def load(self, run: str) -> HostsRun:
        """A run by its id. Raises NotFoundError where there is none, StoreError where its file is damaged."""
        path = self._directory / run / _RUN
        try:
            return msgspec.json.decode(path.read_bytes(), type=HostsRun)
        except FileNotFoundError:
            raise NotFoundError(f"no burn-in {run}; obatchctl burnin list shows them") from None
        except msgspec.DecodeError as error:
            raise StoreError(f"{path} is not the file of a burn-in over hosts: {error}") from None

    def _copy(self, run: str, host: str) -> Path:
        return self._directory / run / f"{host}.jsonl"

    def append(self, run: str, host: str, lines: Sequence[bytes]) -> None:
        """Add to the copy of a host's records. Raises ClusterError (``untrue``) where there is no end of them."""
        with open(self._copy(run, host), "ab") as file:
            if file.tell() > _MOST_COPY_BYTES:
                raise ClusterError(
                    f"it has told more than {_MOST_COPY_BYTES // 2**20} MiB of one burn-in", code="untrue"
                )
            file.write(b"".join(line + b"\n" for line in lines))

    def forget(self, run: str, host: str) -> None:
        """Delete the copy of a host's records: they are told anew."""
        self._copy(run, host).unlink(missing_ok=True)

    def count(self, run: str, host: str) -> int:
        """Whole lines of the copy; a torn one of a crash is cut off."""
        path = self._copy(run, host)
        with contextlib.suppress(FileNotFoundError), open(path, "r+b") as file:
            data = file.read()
            file.truncate(data.rfind(b"\n") + 1)
            return data.count(b"\n")
        return 0

    def records(self, run: str, host: str) -> list[Record]:
        """The records that a host has told; none where it has told nothing."""
        with contextlib.suppress(FileNotFoundError, StoreError):
            return journal.read(self._copy(run, host))
        return []

    def prune(self, keep_runs: int, before_s: float, spare: Iterable[str]) -> list[str]:
        """Delete all but the newest runs, and those last written before ``before_s``; never those in ``spare``.

        Returns the ids of those deleted.
        """
        runs, spared = self.runs(), set(spare)
        old = [run for run in runs if run in runs[:-keep_runs] or self._written_s(run) < before_s]
        deleted = [run for run in old if run not in spared]
        for run in deleted:
            self.delete(run)
        return deleted

    def _written_s(self, run: str) -> float:
        return (self._directory / run / _RUN).stat().st_mtime
