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
from obatchd.jobs.model import FILE_ENDINGS, FORMATS_IN_WORDS
from obatchd.settings.current import Current
from obatchd.settings.settings import Settings
from obatchd.settings.tables.spool import InboxSettings
from obatchd.spool.drop import Blocked, Drop, describe, is_temporary, not_a_file, permission_trouble, stillness
from obatchd.spool.layout import Layout
from obatchd.spool.watching import Watch

_log = log.get(__name__)
_NO_FORMAT = f"{{}} is none of our formats: drop {FORMATS_IN_WORDS}"
_SLOW_S = 60.0
# Looking at everything takes at most a tenth of the time, where events tell of new drops.
_WHOLE_SHARE = 10


class ScanReport(msgspec.Struct):
    """The result of one scan. ``next_s``: seconds until something may have settled; None when nothing waits."""

    ready: list[Drop] = []
    refused: list[tuple[Drop, DropRefused]] = []
    blocked: list[Blocked] = []
    settling: int = 0
    next_s: float | None = None
    problem: str = ""


class _Waiting(msgspec.Struct):
    """A name that has not been taken yet: its signature and since when it is unchanged (monotonic)."""

    signature: tuple[object, ...]
    since_s: float
    first_s: float
    settle_s: float
    told: bool = False

    def left_s(self, now_s: float) -> float:
        return self.since_s + self.settle_s - now_s


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
        self._waiting: dict[bytes, _Waiting] = {}
        self._ready: dict[bytes, Drop] = {}  # settled, and more than one batch
        self._blocked: dict[bytes, Blocked] = {}
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
        named, renamed = self._watch.take_names()
        report = ScanReport()
        now_s = self._clock()
        try:
            names = self._names(named, now_s)
        except OSError as error:
            self._watch.add_names(named, renamed)
            self._whole_s = float("-inf")
            report.problem = f"the inbox {self._layout.inbox} cannot be read: {error.strerror}; put it back"
            return report
        known = len(self._ready)
        for name in names:
            self._look(name, name in renamed, now_s, report)
        if self._problem:  # everything waits where it is
            report.problem, report.refused = self._problem, []
        if self._whole_s == now_s:
            self._whole_took_s = self._clock() - now_s
        if len(self._ready) > known:
            self._ready = dict(sorted(self._ready.items(), key=lambda item: (item[1].mtime_ns, item[0])))
        report.ready, held = ([], []) if self._problem else self._choose(hindrance)
        for drop in report.ready:
            del self._ready[drop.name]
        left_s = [left for waiting in self._waiting.values() if (left := waiting.left_s(now_s)) > 0]
        report.settling, report.next_s = len(left_s), min(left_s, default=None)
        report.blocked = [*self._blocked.values(), *held]
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

    def _names(self, named: set[bytes], now_s: float) -> Collection[bytes]:
        """Names to look at: all when that is due or there are no events, else those that may have changed."""
        inode = self._layout.inbox.stat().st_ino
        if self._watch.tells_all(inode) and now_s - self._whole_s < max(
            self._settings.rescan_s, _WHOLE_SHARE * self._whole_took_s
        ):
            due = {name for name, waiting in self._waiting.items() if waiting.left_s(now_s) <= 0}
            return named | (due - self._ready.keys())
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

    def _look(self, name: bytes, renamed: bool, now_s: float, report: ScanReport) -> None:
        path = self._layout.inbox / os.fsdecode(name)
        try:
            status = path.lstat()
            drop = describe(name, path, status)
            if (refusal := not_a_file(status)) is not None:
                self._forget(name)
                report.refused.append((drop, refusal))
                return
            if (reason := permission_trouble(drop)) is not None:
                self._waiting.pop(name, None)
                self._ready.pop(name, None)
                self._block(drop, reason)
                return
            if (blocked := self._blocked.get(name)) is not None and not blocked.tried:
                del self._blocked[name]
            settle_s, signature = stillness(drop, status, self._settings)
        except FileNotFoundError:
            self._forget(name)  # taken away again
            return
        waiting = self._waiting.get(name)
        if waiting is None or waiting.signature != signature:
            first_s, told = (now_s, False) if waiting is None else (waiting.first_s, waiting.told)
            waiting = self._waiting[name] = _Waiting(signature, now_s, first_s, settle_s, told)
        if renamed and (drop.size or drop.kind == "folder"):
            waiting.since_s = float("-inf")
        if waiting.left_s(now_s) <= 0:
            self._settled(drop, report)
            return
        self._ready.pop(name, None)
        if now_s - waiting.first_s > _SLOW_S and not waiting.told and drop.size:
            waiting.told = True
            _log.info("drop_still_growing", owner=drop.owner, inode=drop.inode, size=drop.size)

    def _settled(self, drop: Drop, report: ScanReport) -> None:
        """Refused or ready. It stays known until it is gone, so that nothing settles twice when it is not taken yet."""
        if drop.kind == "file" and not drop.label.lower().endswith(FILE_ENDINGS):
            report.refused.append((drop, DropRefused(_NO_FORMAT.format(drop.label), code="format")))
        elif drop.kind == "file" and not drop.size:
            report.refused.append((drop, DropRefused("the file is empty: there is no request in it", code="empty")))
        else:
            self._ready[drop.name] = drop

    def taken(self, drop: Drop) -> None:
        """A drop of the latest scan is not in the inbox any more."""
        self._blocked.pop(drop.name, None)

    def not_taken(self, drop: Drop, error: OSError) -> None:
        """A drop of the latest scan could not be renamed away: it is shown as blocked, and offered again."""
        reason = f"it cannot be renamed out of the inbox: {error.strerror}"
        if isinstance(error, PermissionError):
            reason += "; mind the sticky bit and the owner of the inbox, or use obatchctl submit"
        self._block(drop, reason, tried=True)

    def _block(self, drop: Drop, reason: str, *, tried: bool = False) -> None:
        told = self._blocked.get(drop.name)
        self._blocked[drop.name] = Blocked(drop.label, reason, drop.owner, tried)
        if told is None or told.reason != reason:
            _log.warning("drop_blocked", owner=drop.owner, inode=drop.inode, reason=reason)
