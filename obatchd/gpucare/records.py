"""The records of each card, kept twice: among the facts of ``state.db``, and in ``work/gpus.json``.

An index that is lost or damaged is begun anew. Without the second place a GPU in quarantine would carry work again.
"""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from obatchd import log
from obatchd.gpus.monitor import RecordStore
from obatchd.spool.flush import sync_paths

_log = log.get(__name__)


class GpuRecords(RecordStore):
    """The facts of ``state.db`` where it has them, else those of the file."""

    def __init__(self, path: Path, facts: RecordStore) -> None:
        self._path = path
        self._facts = facts
        self._kept: dict[str, str] = {}
        try:
            self._kept = msgspec.json.decode(path.read_bytes(), type=dict[str, str])
        except FileNotFoundError:
            pass
        except (OSError, msgspec.DecodeError) as error:
            _log.warning("gpu_records_unreadable", path=path, reason=str(error))

    def starting_with(self, prefix: str) -> dict[str, str]:
        kept = {key: text for key, text in self._kept.items() if key.startswith(prefix)}
        return kept | self._facts.starting_with(prefix)

    def set(self, key: str, value: str) -> None:
        """Write in both places; a disk that refuses is told in the log."""
        self._facts.set(key, value)
        self._kept[key] = value
        temporary = self._path.with_suffix(".tmp")
        try:
            temporary.write_bytes(msgspec.json.encode(self._kept))
            sync_paths([temporary])
            os.replace(temporary, self._path)
            sync_paths([self._path.parent])
        except OSError as error:
            _log.warning("gpu_records_not_kept", path=self._path, reason=str(error))
