"""The facts of a host, which has no store: strings in one JSON file, such as ports and records of its GPUs."""

from __future__ import annotations

import threading
from pathlib import Path

import msgspec

from obatchd import log
from obatchd.cluster.host.files import read_file, set_aside, write_file

_log = log.get(__name__)


class FileFacts:
    """Implements :class:`obatchd.servers.managed.FactStore` and :class:`obatchd.gpus.monitor.RecordStore`.

    A file that is damaged is set aside, and told; facts are only what an earlier run found out.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._facts: dict[str, str] = {}
        self._writing = threading.Lock()  # records of GPUs are written by a thread of their own
        try:
            self._facts = msgspec.json.decode(read_file(path), type=dict[str, str])
        except FileNotFoundError:
            pass
        except (OSError, msgspec.DecodeError) as error:
            kept_as = set_aside(path)
            _log.warning("host_file_damaged", path=path, reason=log.reason(error), kept_as=kept_as)

    def get(self, key: str) -> str | None:
        return self._facts.get(key)

    def starting_with(self, prefix: str) -> dict[str, str]:
        return {key: value for key, value in self._facts.items() if key.startswith(prefix)}

    def set(self, key: str, value: str) -> None:
        """Keep a fact; where the disk refuses, in memory alone, which is told in the log."""
        with self._writing:
            if self._facts.get(key) == value:
                return
            self._facts[key] = value
            try:
                write_file(self._path, msgspec.json.format(msgspec.json.encode(self._facts), indent=1))
            except OSError as error:
                _log.warning("host_file_not_written", path=self._path, reason=log.reason(error))
