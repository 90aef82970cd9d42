"""The settings of a host: its own file, and in their places those that the head decides for all hosts.

The head's are kept in ``terms.json``, so that servers start as it wants them while it is away.
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

import msgspec

from obatchd import log
from obatchd.cluster import terms as of_head
from obatchd.cluster.host.files import read_file, set_aside, write_file
from obatchd.cluster.messages import Terms
from obatchd.errors import ConfigError
from obatchd.settings import reading
from obatchd.settings.base import Reload
from obatchd.settings.current import Current
from obatchd.settings.settings import Settings

_log = log.get(__name__)
_encode = msgspec.json.Encoder().encode
_LEASE_S = 3600.0  # before any head has said one


class HostSettings:
    """Reads the file and keeps the terms; live keys take effect at once, for the others there is a notice.

    ``flags`` are options of the command line by dotted key. Raises ConfigError where the file cannot be used.
    """

    def __init__(self, file: Path | None, flags: dict[str, Any], terms_file: Path) -> None:
        self._file, self._flags, self._terms_file = file, flags, terms_file
        self._own, self._ignored = self._read()
        self.terms: Terms | None = self._kept()
        self.told = asyncio.Event()  # set when the head has said its terms
        self.current = Current(self._wanted(self._own, self.terms))

    @property
    def value(self) -> Settings:
        return self.current.value

    @property
    def lease_s(self) -> float:
        return self.terms.lease_s if self.terms is not None else _LEASE_S

    @property
    def notices(self) -> list[str]:
        """What an operator has to do so that all settings count."""
        found = []
        if self.current.waiting:
            keys = ", ".join(self.current.waiting)
            found.append(f"{keys}: changed, and counts when obatchd host is started again")
        if self._ignored:
            keys = ", ".join(self._ignored)
            found.append(f"{keys} in {self._file or 'the environment'}: the head decides it for all hosts; remove it")
        return found

    def take_all(self) -> None:
        """The parts are made anew: also those settings count now that need a restart."""
        self.current.value = self._wanted(self._own, self.terms)
        self.current.waiting = []

    def reread(self) -> None:
        """Read the host's own file again. Raises ConfigError where it cannot be used; the old one stays."""
        self._own, self._ignored = self._read()
        self._apply()

    def obey(self, terms: Terms) -> None:
        """What the head has decided counts from now on; terms that cannot be used are told, and those before stay."""
        self.told.set()
        if terms == self.terms:
            return
        try:
            of_head.obeyed(self._own, terms)
        except ConfigError as error:
            _log.error("terms_refused", reason=error.message)
            return
        self.terms = terms
        try:
            write_file(self._terms_file, _encode(terms))
        except OSError as error:
            _log.warning("host_file_not_written", path=self._terms_file, reason=log.reason(error))
        self._apply()

    def _apply(self) -> None:
        old, new = self.current.value, self._wanted(self._own, self.terms)
        changes = reading.changes(old, new)
        self.current.value = reading.reloaded(old, new)
        self.current.waiting = [leaf.key for leaf in changes if leaf.reload is Reload.RESTART]
        if new.log_level != old.log_level:
            log.configure(new.log_level)
        applied = [leaf.key for leaf in changes if leaf.reload is not Reload.RESTART]
        waiting = ",".join(self.current.waiting) or "nothing"
        _log.info("host_settings_changed", changed=",".join(applied) or "nothing", needs_restart=waiting)

    def _read(self) -> tuple[Settings, list[str]]:
        own, origin = reading.load_with_origin(self._file, environ=os.environ, flags=self._flags)
        return own, [leaf.key for leaf in reading.leaves() if leaf.key in origin and of_head.is_of_head(leaf)]

    def _kept(self) -> Terms | None:
        try:
            return msgspec.json.decode(read_file(self._terms_file), type=Terms)
        except FileNotFoundError:
            return None
        except (OSError, msgspec.DecodeError) as error:
            kept_as = set_aside(self._terms_file)
            _log.warning("host_file_damaged", path=self._terms_file, reason=log.reason(error), kept_as=kept_as)
            return None

    def _wanted(self, own: Settings, terms: Terms | None) -> Settings:
        if terms is None:
            return own
        try:
            return of_head.obeyed(own, terms)
        except ConfigError as error:
            _log.error("terms_refused", reason=error.message)
            return own
