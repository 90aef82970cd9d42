"""What operators do to keys, GPUs, servers, models and others' work, written down before it is done; read again."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import msgspec
from attrs import define
from msgspec import UNSET

from obatchd import log
from obatchd.control.auth import Caller
from obatchd.documents.audit import (
    GPU_QUARANTINED,
    HOST_JOINED,
    KINDS,
    SESSION_OPENED,
    AuditAsked,
    AuditDocument,
    AuditEntry,
)
from obatchd.errors import ConfigError, ObatchError, SpoolError
from obatchd.gpus.monitor import MonitorListener, Quarantine
from obatchd.live.audit import AuditLog, entry_of_itself
from obatchd.times import instant

_ADMINISTRATOR = "administrator"  # by whom a quarantine is that somebody asked for


def entry_of(caller: Caller, kind: str, target: str = "", *, owner: int | None = None, detail: str = "") -> AuditEntry:
    """What a caller is about to do."""
    came = caller.origin
    return AuditEntry(
        at=instant(time.time()) or "",
        kind=kind,
        uid=caller.uid,
        door=came.door,
        address=came.address or UNSET,
        pid=came.pid or UNSET,
        key=came.key or UNSET,
        key_label=came.key_label or UNSET,
        target=target,
        owner=UNSET if owner is None else owner,
        detail=detail or UNSET,
    )


@asynccontextmanager
async def recorded(audit: AuditLog, *entries: AuditEntry) -> AsyncIterator[None]:
    """Write down what is about to be done, and, where it fails, that it did."""
    if entries:
        await audit.record(*entries)
    try:
        yield
    except BaseException as error:
        at, code = instant(time.time()) or "", _code(error)
        if entries:
            audit.note(*(msgspec.structs.replace(entry, at=at, failed=code) for entry in entries))
        raise


def of_another(caller: Caller, kind: str, target: str, owner: int) -> list[AuditEntry]:
    """The entry of what is done to somebody else's; what people do to their own is nobody's business."""
    return [] if caller.uid == owner else [entry_of(caller, kind, target, owner=owner)]


def _code(error: BaseException) -> str:
    if isinstance(error, ObatchError):
        return error.code
    return "cut_off" if isinstance(error, asyncio.CancelledError) else "internal"


@define(eq=False)
class AuditQuestions:
    """Implements :class:`obatchd.control.operations.AuditOperations`, whose words say what each method does."""

    _audit: AuditLog

    async def entries(self, asked: AuditAsked) -> AuditDocument:
        first_words = {kind.partition("_")[0] for kind in KINDS}
        if unknown := set(asked.kinds) - first_words - set(KINDS):
            known = ", ".join((*sorted(first_words), *KINDS))
            raise ConfigError(f"{sorted(unknown)[0]} is no kind of entry; there are: {known}", code="bad_request")
        try:
            return await self._audit.read(asked)
        except OSError as error:
            raise SpoolError(f"the audit log cannot be read: {log.reason(error)}") from error

    def recorded(
        self, caller: Caller, kind: str, target: str = "", detail: str = ""
    ) -> AbstractAsyncContextManager[None]:
        return recorded(self._audit, entry_of(caller, kind, target, detail=detail))


@define(eq=False)
class PagesOpened:
    """Implements :class:`obatchd.control.programs.SessionRecords`."""

    _audit: AuditLog

    async def opened(self, caller: Caller, session: str) -> None:
        rights = "administrator" if caller.is_administrator else ""
        await self._audit.record(entry_of(caller, SESSION_OPENED, session, owner=caller.uid, detail=rights))


@define(eq=False)
class HostsJoined:
    """Implements :class:`obatchd.cluster.head.door.JoinListener`."""

    _audit: AuditLog

    async def host_joins(self, name: str, address: str, enrolment: str) -> None:
        by = f"by enrolment {enrolment}" if enrolment else "by a code"
        await self._audit.record(entry_of_itself(HOST_JOINED, name, f"from {address} {by}"))


@define(eq=False)
class QuarantinesByRules(MonitorListener):
    """Writes down which GPUs obatchd takes out of use by itself."""

    _audit: AuditLog

    def quarantined(self, card: str, quarantine: Quarantine, urgent: bool) -> None:
        if quarantine.by != _ADMINISTRATOR:
            self._audit.note(entry_of_itself(GPU_QUARANTINED, card, f"{quarantine.by}: {quarantine.reason}"))
