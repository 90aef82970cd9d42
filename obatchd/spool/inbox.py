"""The drops in the inbox, and those ready to be taken.

Events (:mod:`~obatchd.spool.watching`) only wake the scan up; the scan is the truth.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection

import msgspec

from obatchd import log
from obatchd.errors import DropRefused
from obatchd.settings.current import Current
from obatchd.settings.settings import Settings
from obatchd.settings.tables.spool import InboxSettings
from obatchd.spool.drop import Blocked, Drop, describe, is_temporary, not_a_file, permission_trouble
from obatchd.spool.layout import Layout
from obatchd.spool.settling import NO_FORMAT, Waiting, has_known_ending, signature_of
from obatchd.spool.watching import Sign, Watch

_log = log.get(__name__)
_SLOW_S = 60.0
# Looking at everything takes at most a tenth of the time, where events tell of new drops.
_WHOLE_SHARE = 10
_NEVER_S = float("inf")


class ScanReport(msgspec.Struct):
    """The result of one scan. ``next_s``: seconds until something may have settled; None when nothing waits."""

    ready: list[Drop] = []
    refused: list[tuple[Drop, DropRefused]] = []
    blocked: list[Blocked] = []
    limited: int = 0  # of those, the ones that are ready, and wait as ``hindrance`` says
    settling: int = 0
    next_s: float | None = None
    problem: str = ""


class Inbox:
    """The watched directory. ``scan`` is called from one thread at a time; events come from watchdog's own.

    A scan looks at the whole directory every ``rescan_s``, and in between only at names that events or the clock bring
    up, so that one more drop costs little however many lie there. Settling goes by ``clock``, in monotonic seconds; it
    never looks at the wall clock or compares it with mtimes.
    """

    def __init__(
        self, layout: Layout, settings: Current[Settings], *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._current = settings
        self._layout = layout
        self._clock = clock
        self._waiting: dict[bytes, Waiting] = {}
        self._ready: dict[bytes, Drop] = {}  # settled, and more than one batch
        self._blocked: dict[bytes, Blocked] = {}
        self._late: dict[bytes, Blocked] = {}  # waiting for so long that their owners should know why
        self._watch = Watch(layout, clock)
        self._whole_s = float("-inf")
        self._whole_took_s = 0.0
        self._problem = ""

    @property
    def _settings(self) -> InboxSettings:
        return self._current.value.inbox

    def start(self, wake: Callable[[], None]) -> None:
        self._watch.start(wake)

    def stop(self) -> None:
        self._watch.stop()

    # Scanning.

    def scan(self, hindrance: Callable[[Drop], str] = lambda drop: "") -> ScanReport:
        """Find ready drops, at most ``claim_batch``, first come first served; more of them come next time.

        ``hindrance`` says of each why it has to wait, though it is ready; empty: it is taken.
        """
        signs = self._watch.take_names()
        report = ScanReport()
        now_s = self._clock()
        try:
            names = self._names(signs, now_s)
        except OSError as error:
            self._watch.add_names(signs)
            self._whole_s = float("-inf")
            report.problem = f"the inbox {self._layout.inbox} cannot be read: {error.strerror}; put it back"
            return report
        known = len(self._ready)
        for name in names:
            self._look(name, signs.get(name), now_s, report)
        if self._problem:  # everything waits where it is
            report.problem, report.refused = self._problem, []
        if self._whole_s == now_s:
            self._whole_took_s = self._clock() - now_s
        if len(self._ready) > known:
            self._ready = dict(sorted(self._ready.items(), key=lambda item: (item[1].mtime_ns, item[0])))
        report.ready, held = ([], []) if self._problem else self._choose(hindrance)
        for drop in report.ready:
            del self._ready[drop.name]
        left_s = [
            left
            for name, waiting in self._waiting.items()
            if (left := waiting.left_s(now_s)) > 0 and name not in self._blocked
        ]
        next_s = min(left_s, default=_NEVER_S)
        report.settling, report.next_s = len(left_s), next_s if next_s < _NEVER_S else None
        report.blocked, report.limited = [*self._blocked.values(), *self._late.values(), *held], len(held)
        return report

    def _choose(self, hindrance: Callable[[Drop], str]) -> tuple[list[Drop], list[Blocked]]:
        """Drops that are taken now, and ready ones that have to wait: they keep nobody else's drop back."""
        chosen: list[Drop] = []
        held: list[Blocked] = []
        for drop in self._ready.values():
            if len(chosen) == self._settings.claim_batch:
                break
            if reason := hindrance(drop):
                held.append(Blocked(drop.label, reason, drop.owner))
            else:
                chosen.append(drop)
        return chosen, held

    def _names(self, signs: dict[bytes, Sign], now_s: float) -> Collection[bytes]:
        """Names to look at: all when that is due or there are no events, else those that may have changed.

        Where events were lost, ``signs`` and what earlier ones told of files being written are not relied on.
        """
        inode = self._layout.inbox.stat().st_ino
        told_all = self._watch.tells_all(inode)
        if told_all and now_s - self._whole_s < max(self._settings.rescan_s, _WHOLE_SHARE * self._whole_took_s):
            due = {name for name, waiting in self._waiting.items() if waiting.left_s(now_s) <= 0}
            return signs.keys() | (due - self._ready.keys())
        if not told_all:
            signs.update({name: Sign.CHANGED for name, sign in signs.items() if sign is Sign.CREATED})
            for waiting in self._waiting.values():
                waiting.lost(now_s)
        self._problem = self._layout.inbox_problem()
        with os.scandir(os.fsencode(self._layout.inbox)) as entries:
            names = {entry.name for entry in entries if not is_temporary(entry.name)}
        self._whole_s = now_s
        self._ready.clear()
        for gone in [name for name in (*self._waiting, *self._blocked) if name not in names]:
            self._forget(gone)
        return names

    def _forget(self, name: bytes) -> None:
        self._waiting.pop(name, None)
        self._blocked.pop(name, None)
        self._ready.pop(name, None)
        self._late.pop(name, None)

    def _look(self, name: bytes, sign: Sign | None, now_s: float, report: ScanReport) -> None:
        path = self._layout.inbox / os.fsdecode(name)
        blocked = self._blocked.get(name)
        try:
            status = path.lstat()
            drop = describe(name, path, status)
            if (problem := not_a_file(status)) is not None:
                raise problem
            trouble = permission_trouble(drop)
            empty, signature = signature_of(drop, status, inside=trouble is None)
        except FileNotFoundError:
            self._forget(name)  # taken away again
            return
        except DropRefused as refusal:
            self._forget(name)
            if blocked is not None and blocked.tried:
                self._blocked[name] = blocked  # refusing it was tried already
            report.refused.append((drop, refusal))
            return
        waiting = self._waiting.get(name)
        if waiting is None or waiting.signature[0] != signature[0]:
            waiting = self._waiting[name] = Waiting(signature, now_s, now_s)
        if sign is Sign.CREATED and drop.kind == "file" and status.st_nlink > 1:
            sign = Sign.CHANGED  # another name was given to a file: no event tells of the end of its writing
        waiting.look(drop, signature, sign, now_s)
        waiting.let_settle(drop, empty, self._settings)
        if trouble is not None:
            waiting.since_s = _NEVER_S
            self._ready.pop(name, None)
            self._late.pop(name, None)
            self._block(drop, trouble)
            return
        waiting.since_s = min(waiting.since_s, now_s)
        if blocked is not None and not blocked.tried:
            del self._blocked[name]
        if waiting.left_s(now_s) <= 0 and waiting.is_whole(drop, self._watch.sees_writers, now_s):
            self._late.pop(name, None)
            self._settled(drop, report)
        else:
            self._ready.pop(name, None)
            self._wait(drop, waiting, now_s)

    def _settled(self, drop: Drop, report: ScanReport) -> None:
        """Refused or ready. It stays known until it is gone, so that nothing settles twice when it is not taken yet."""
        if not has_known_ending(drop):
            report.refused.append((drop, DropRefused(NO_FORMAT.format(drop.label), code="format")))
        elif drop.kind == "file" and not drop.size:
            report.refused.append((drop, DropRefused("the file is empty: there is no request in it", code="empty")))
        else:
            self._ready[drop.name] = drop

    def _wait(self, drop: Drop, waiting: Waiting, now_s: float) -> None:
        """Show a drop that is not complete, once its owner may wonder."""
        reason, event = waiting.reason(drop, now_s), ""
        if reason:
            self._late[drop.name] = Blocked(drop.label, reason, drop.owner)
            event = "drop_not_complete"
        else:
            self._late.pop(drop.name, None)
            if now_s - waiting.first_s > _SLOW_S and drop.size and not waiting.told:
                event = "drop_still_growing"
        if event not in ("", waiting.told):
            waiting.told = event
            _log.info(event, owner=drop.owner, inode=drop.inode, size=drop.size)

    def taken(self, drop: Drop) -> None:
        """A drop of the latest scan is not in the inbox any more."""
        self._blocked.pop(drop.name, None)

    def not_taken(self, drop: Drop, error: OSError) -> None:
        """A drop of the latest scan could not be renamed away: it is shown as blocked, and offered again."""
        reason = f"it cannot be taken out of the inbox: {error.strerror}"
        if isinstance(error, PermissionError):
            reason += "; mind the sticky bit and the owner of the inbox, or use obatchctl submit"
        self._block(drop, reason, tried=True)

    def _block(self, drop: Drop, reason: str, *, tried: bool = False) -> None:
        told = self._blocked.get(drop.name)
        self._blocked[drop.name] = Blocked(drop.label, reason, drop.owner, tried)
        if told is None or told.reason != reason:
            _log.warning("drop_blocked", owner=drop.owner, inode=drop.inode, reason=reason)
