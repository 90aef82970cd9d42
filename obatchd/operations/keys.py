"""Keys of programs: made for a user over ``control.sock``, and looked up for each call over HTTP."""

from __future__ import annotations

import asyncio
import hashlib
import secrets
import time

from attrs import define, field

from obatchd import log
from obatchd.control.auth import Caller
from obatchd.control.operations import NewKeyAsked
from obatchd.control.programs import KEY_PREFIX, METRICS, SCOPES, SCOPES_OF_PROGRAMS, KeyHolder, KeyListener
from obatchd.documents.answers import Removed
from obatchd.documents.audit import KEY_ADDED, KEY_REMOVED
from obatchd.documents.programs import KeyEntry, NewKey
from obatchd.errors import ConfigError, ControlError, ForbiddenError, NotFoundError
from obatchd.jobs.store import DISK_ERRORS, KeyRow
from obatchd.live.work import Part
from obatchd.operations.audit import entry_of, recorded
from obatchd.operations.jobs import disk_faults_told
from obatchd.times import instant

_log = log.get(__name__)
_SECRET_BYTES = 32
_ID_BYTES = 4
_LABEL_CHARACTERS = 100
_KEYS_OF_ONE_OWNER = 1000
_WRITE_USE_S = 60.0  # how often it is written down when keys were used
_DAY_S = 86400.0


@define(eq=False)
class Keys(Part):
    """Implements :class:`obatchd.control.operations.KeyOperations`, whose words say what each method does, and
    ``KeyHolders``.

    All are in memory, by their SHA-256: a wrong one costs a hash and a look.
    """

    _known: dict[bytes, KeyRow] = field(factory=dict, init=False)
    _used: dict[str, float] = field(factory=dict, init=False)  # by id, not written down yet
    _listeners: list[KeyListener] = field(factory=list, init=False)

    def __attrs_post_init__(self) -> None:
        self._known.update({row.sha256: row for row in self._work.store.state.programs.all_keys()})

    def start(self) -> None:
        self._tasks.start(self._write_use(), "keys")

    def listen(self, listener: KeyListener) -> None:
        self._listeners.append(listener)

    @disk_faults_told()
    async def add(self, caller: Caller, asked: NewKeyAsked) -> NewKey:
        _check(caller, asked)
        if sum(row.owner == caller.uid for row in self._known.values()) >= _KEYS_OF_ONE_OWNER:
            raise ControlError(f"you have {_KEYS_OF_ONE_OWNER:,} keys; remove some: obatchctl key rm ID", code="limit")
        key, now_s = KEY_PREFIX + secrets.token_urlsafe(_SECRET_BYTES), time.time()
        row = KeyRow(
            id=f"key-{secrets.token_hex(_ID_BYTES)}",
            owner=caller.uid,
            sha256=hashlib.sha256(key.encode()).digest(),
            label=asked.label,
            scopes=list(dict.fromkeys(asked.scopes or SCOPES_OF_PROGRAMS)),
            administrator=asked.administrator,
            created_s=now_s,
            expires_s=None if asked.days is None else now_s + asked.days * _DAY_S,
        )
        detail = f"{', '.join(row.scopes)}{', administrator' if row.administrator else ''}"
        entry = entry_of(caller, KEY_ADDED, row.id, owner=row.owner, detail=detail)
        async with recorded(self._work.audit, entry):
            await asyncio.to_thread(self._work.store.state.programs.add_key, row)
        self._known[row.sha256] = row
        _log.info("key_added", key=row.id, owner=row.owner, administrator=row.administrator)
        return NewKey(key=key, about=self._entry(row))

    def all(self, caller: Caller) -> list[KeyEntry]:
        rows = sorted(self._known.values(), key=lambda row: row.created_s)
        return [self._entry(row) for row in rows if caller.may_see(row.owner)]

    @disk_faults_told()
    async def remove(self, caller: Caller, key: str) -> Removed:
        found = [row for row in self._known.values() if caller.may_see(row.owner) and key and row.id.startswith(key)]
        if not found:
            raise NotFoundError(f"no key {key}; obatchctl key list shows them")
        if len(found) > 1:
            raise ControlError(f"several keys begin with {key}; give the whole id", code="ambiguous")
        [row] = found
        # At once, and durably before anybody is told; where the disk refuses, it is good again and its owner knows.
        del self._known[row.sha256]
        try:
            async with recorded(self._work.audit, entry_of(caller, KEY_REMOVED, row.id, owner=row.owner)):
                await asyncio.to_thread(self._work.store.state.programs.remove_key, row.id)
        except BaseException:
            self._known[row.sha256] = row
            raise
        for listener in self._listeners:
            listener.revoked(row.id)
        _log.info("key_removed", key=row.id, owner=row.owner, by=caller.uid)
        return Removed(row.id)

    def holder(self, key: str) -> KeyHolder | None:
        # The time of the look tells of the hash alone, which nobody can choose.
        row = self._known.get(hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest())
        now_s = time.time()
        if row is None or (row.expires_s is not None and row.expires_s <= now_s):
            return None
        self._used[row.id] = row.last_used_s = now_s
        return KeyHolder(row.id, row.owner, row.administrator, frozenset(row.scopes), row.label)

    async def stop(self) -> None:
        await super().stop()
        await self._write()

    async def _write_use(self) -> None:
        while True:
            await asyncio.sleep(_WRITE_USE_S)
            await self._write()

    async def _write(self) -> None:
        used, self._used = self._used, {}
        if used:
            try:
                await asyncio.to_thread(self._work.store.state.programs.used, used.items())
            except DISK_ERRORS as error:  # it is only for people
                _log.warning("key_use_not_written", reason=log.reason(error))

    @staticmethod
    def _entry(row: KeyRow) -> KeyEntry:
        return KeyEntry(
            id=row.id,
            owner=row.owner,
            label=row.label,
            scopes=row.scopes,
            administrator=row.administrator,
            created_at=instant(row.created_s),
            expires_at=instant(row.expires_s),
            last_used_at=instant(row.last_used_s),
        )


def _check(caller: Caller, asked: NewKeyAsked) -> None:
    if len(asked.label) > _LABEL_CHARACTERS or not asked.label.isprintable():
        raise ConfigError(f"label must be one line of at most {_LABEL_CHARACTERS} characters", code="bad_request")
    if asked.days is not None and not 0 < asked.days <= 36500:
        raise ConfigError("days must be more than 0, and 36500 at most", code="bad_request")
    if asked.scopes is not None and (not asked.scopes or set(asked.scopes) - set(SCOPES)):
        raise ConfigError(f"scopes must be some of {', '.join(SCOPES)}", code="bad_request")
    if asked.administrator and not caller.is_administrator:
        raise ForbiddenError("only an administrator of obatchd can make a key that is an administrator's")
    if METRICS in (asked.scopes or ()) and not caller.is_administrator:
        raise ForbiddenError("only an administrator of obatchd can make a key that reads metrics")
