"""What lies in the inbox, and which of it is ready to be taken.

Events only wake the scan up; what the scan finds is the truth. Facts of the kernel and of watchdog 7.1 that shape
this module (inotify(7); measured):

* A rename into the inbox gives IN_MOVED_TO alone, so a moved event without a source is a complete file. A ``cp``
  gives IN_CREATE and IN_CLOSE_WRITE, and IN_CLOSE_WRITE does not mean "finished": ``>`` then ``>>`` gives two.
* Our own claims rename files away. With IN_MOVED_FROM in the mask, watchdog would hold back every later event for
  half a second to find its other half; so it is not in our mask.
* Events overflow (16,384 by default), watches die with their directory, and network file systems give none.
"""

from __future__ import annotations

import contextlib
import os
import stat
import threading
import time
from collections.abc import Callable, Collection
from pathlib import Path

import msgspec
from watchdog.events import (
    EVENT_TYPE_DELETED,
    EVENT_TYPE_MODIFIED,
    EVENT_TYPE_MOVED,
    FileSystemEvent,
    FileSystemEventHandler,
)
from watchdog.observers.api import BaseObserver
from watchdog.observers.inotify import InotifyFullEmitter
from watchdog.observers.inotify_c import InotifyConstants, Mask

from obatchd import log
from obatchd.errors import DropRefused
from obatchd.jobs.model import FILE_ENDINGS
from obatchd.settings import InboxSettings
from obatchd.spool.layout import Layout

_log = log.get(__name__)
_MASK = (
    InotifyConstants.IN_MOVED_TO
    | InotifyConstants.IN_CREATE
    | InotifyConstants.IN_CLOSE_WRITE
    | InotifyConstants.IN_ATTRIB
    | InotifyConstants.IN_DELETE_SELF
)
_TEMPORARY = ("~", ".tmp", ".part", ".partial", ".crdownload", ".swp", ".swx")
_NO_FORMAT = (
    "{} is none of our formats: drop JSON (.jsonl, .ndjson, .json), a table (.csv, .tsv) or text (.txt, .md), each "
    "also .gz, or a folder of them"
)
_SLOW_S = 60.0
_WATCH_AGAIN_S = 5.0
# Looking at everything takes at most a tenth of the time, where events tell of what is new.
_WHOLE_SHARE = 10


class Drop(msgspec.Struct, frozen=True):
    """Something in the inbox."""

    name: bytes
    path: Path
    owner: int  # uid
    device: int
    inode: int
    size: int  # bytes
    kind: str  # file or folder
    mtime_ns: int

    @property
    def label(self) -> str:
        return self.name.decode("utf-8", "backslashreplace")


class Blocked(msgspec.Struct, frozen=True):
    """A drop that cannot be taken as things stand."""

    name: str
    reason: str
    owner: int  # uid
    tried: bool = False  # all looked well, but it could not be renamed away


class ScanReport(msgspec.Struct):
    """What one scan found. ``next_s``: seconds until something may have settled; None when nothing waits."""

    ready: list[Drop] = []
    refused: list[tuple[Drop, DropRefused]] = []
    blocked: list[Blocked] = []
    settling: int = 0
    next_s: float | None = None
    problem: str = ""


class _Emitter(InotifyFullEmitter):
    """watchdog's emitter with the mask of this module."""

    def get_event_mask_from_filter(self) -> Mask:
        return Mask(_MASK)


class _Handler(FileSystemEventHandler):
    def __init__(self, on_event: Callable[[FileSystemEvent], None]) -> None:
        self._on_event = on_event

    def on_any_event(self, event: FileSystemEvent) -> None:
        self._on_event(event)


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
    up, so that one more drop costs little however many lie there.

    Args:
        clock: monotonic seconds. Settling never looks at the wall clock or compares it with mtimes.
    """

    def __init__(self, layout: Layout, settings: InboxSettings, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.settings = settings
        self._layout = layout
        self._clock = clock
        self._waiting: dict[bytes, _Waiting] = {}
        self._ready: dict[bytes, Drop] = {}  # settled, and more than one batch
        self._blocked: dict[bytes, Blocked] = {}
        self._named: set[bytes] = set()  # by events since the last scan
        self._renamed: set[bytes] = set()  # those of them that were renamed in
        self._lock = threading.Lock()
        self._observer: BaseObserver | None = None
        self._watched_inode: int | None = None
        self._watch_tried_s = float("-inf")
        self._whole_s = float("-inf")
        self._whole_took_s = 0.0
        self._problem = ""
        self._remote = False
        self._wake: Callable[[], None] | None = None  # None: not started, or stopped

    def start(self, wake: Callable[[], None]) -> None:
        """Begin to watch; ``wake`` is called, from another thread, when a scan would find something new."""
        self._wake = wake
        self._remote = self._layout.is_remote()
        if self._remote:
            _log.warning(
                "inbox_polled", path=self._layout.inbox, filesystem=self._layout.filesystem_kind(),
                reason="changes made by other hosts give no events; the inbox is looked at every rescan_s",
            )  # fmt: skip
        self._watch()

    def stop(self) -> None:
        """End watching; scans go on finding everything."""
        self._wake = None
        self._unwatch()

    def _unwatch(self) -> None:
        observer, self._observer = self._observer, None
        if observer is not None:
            observer.stop()
            observer.join(2.0)

    def _watch(self) -> None:
        self._watch_tried_s = self._clock()
        try:
            inode = self._layout.inbox.stat().st_ino
            observer = BaseObserver(_Emitter, timeout=1.0)
            observer.schedule(_Handler(self._on_event), os.fspath(self._layout.inbox), recursive=False)
            observer.start()
        except OSError as error:
            # ENOSPC: fs.inotify.max_user_watches; EMFILE: max_user_instances. Rescans go on without events.
            _log.warning("inbox_not_watched", path=self._layout.inbox, reason=str(error))
            return
        self._observer, self._watched_inode = observer, inode
        self._whole_s = float("-inf")  # what came before the watch gave no event

    def _on_event(self, event: FileSystemEvent) -> None:
        path = os.fsencode(event.dest_path or event.src_path)
        if path == os.fsencode(self._layout.inbox):
            if event.event_type == EVENT_TYPE_DELETED:
                self._watched_inode = None  # a new inbox may well get the inode of the old one
            elif event.event_type == EVENT_TYPE_MODIFIED:
                return  # comes with every event of a name
        elif not is_temporary(name := os.path.basename(path)):
            with self._lock:
                self._named.add(name)
                if event.event_type == EVENT_TYPE_MOVED and not event.src_path:
                    self._renamed.add(name)
        if (wake := self._wake) is not None:
            wake()

    def _keep_watching(self, inode: int) -> None:
        """Watch again when the inbox was replaced or the watch was lost."""
        wanted = self._wake is not None and not self._is_watching(inode)
        if wanted and self._clock() - self._watch_tried_s >= _WATCH_AGAIN_S:
            self._unwatch()
            self._watch()

    def _is_watching(self, inode: int) -> bool:
        observer = self._observer
        return (
            observer is not None
            and inode == self._watched_inode
            and all(thread.is_alive() for thread in (observer, *observer.emitters))
        )

    # Scanning.

    def scan(self, hindrance: Callable[[Drop], str] = lambda drop: "") -> ScanReport:
        """Find what is ready, at most ``claim_batch`` drops, first come first served; what is more comes next time.

        ``hindrance`` says of each why it has to wait, though it is ready; empty: it is taken.
        """
        with self._lock:
            named, self._named = self._named, set()
            renamed, self._renamed = self._renamed, set()
        report = ScanReport()
        now_s = self._clock()
        try:
            names = self._names(named, now_s)
        except OSError as error:
            with self._lock:
                self._named |= named
                self._renamed |= renamed
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
        """What is taken now, and what is ready and has to wait: that keeps nobody else's drop back."""
        chosen: list[Drop] = []
        held: list[Blocked] = []
        for drop in self._ready.values():
            if len(chosen) == self.settings.claim_batch:
                break
            if reason := hindrance(drop):
                held.append(Blocked(drop.label, reason, drop.owner))
            else:
                chosen.append(drop)
        return chosen, held

    def _names(self, named: set[bytes], now_s: float) -> Collection[bytes]:
        """What to look at: everything when that is due or nobody tells us of events, else what may have changed."""
        inode = self._layout.inbox.stat().st_ino
        self._keep_watching(inode)
        told = self._is_watching(inode) and not self._remote
        if told and now_s - self._whole_s < max(self.settings.rescan_s, _WHOLE_SHARE * self._whole_took_s):
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
            drop = _drop(name, path, status)
            if not stat.S_ISREG(status.st_mode) and not stat.S_ISDIR(status.st_mode):
                self._forget(name)
                report.refused.append((drop, _not_a_file(status)))
                return
            if (reason := _blocked(drop)) is not None:
                self._block(drop, reason)
                return
            if (blocked := self._blocked.get(name)) is not None and not blocked.tried:
                del self._blocked[name]
            settle_s, signature = self._signature(drop, status)
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

    def _signature(self, drop: Drop, status: os.stat_result) -> tuple[float, tuple[object, ...]]:
        """How long a drop must stay as it is, and what must stay."""
        settings = self.settings
        if drop.kind == "folder":
            count, signature = _folder_signature(drop.path)
            settle_s = settings.folder_settle_s if count else max(settings.folder_settle_s, settings.empty_s)
            return settle_s, (status.st_ino, status.st_mtime_ns, count, signature)
        return (
            settings.settle_s if drop.size else settings.empty_s,
            (status.st_ino, status.st_mtime_ns, status.st_size),
        )

    def taken(self, drop: Drop) -> None:
        """A drop of the latest scan is not in the inbox any more."""
        self._blocked.pop(drop.name, None)

    def not_taken(self, drop: Drop, error: OSError) -> None:
        """A drop of the latest scan could not be renamed away: it is shown as blocked, and offered again."""
        reason = f"it cannot be renamed out of the inbox: {error.strerror}"
        if isinstance(error, PermissionError):
            reason += "; mind the sticky bit and the owner of the inbox, or use obatchctl submit"
        self._set_blocked(drop, Blocked(drop.label, reason, drop.owner, tried=True))

    def _block(self, drop: Drop, reason: str) -> None:
        self._waiting.pop(drop.name, None)
        self._ready.pop(drop.name, None)
        self._set_blocked(drop, Blocked(drop.label, reason, drop.owner))

    def _set_blocked(self, drop: Drop, blocked: Blocked) -> None:
        told = self._blocked.get(drop.name)
        self._blocked[drop.name] = blocked
        if told is None or told.reason != blocked.reason:
            _log.warning("drop_blocked", owner=drop.owner, inode=drop.inode, reason=blocked.reason)


def is_temporary(name: bytes) -> bool:
    """Whether a name is one that copying programs and editors use until they are done."""
    text = os.fsdecode(name)
    return (
        text.startswith(".") or text.endswith(_TEMPORARY) or (text.startswith("#") and text.endswith("#"))
        or text == "4913"
    )  # fmt: skip


def _drop(name: bytes, path: Path, status: os.stat_result) -> Drop:
    kind = "folder" if stat.S_ISDIR(status.st_mode) else "file"
    size = status.st_size if kind == "file" else 0
    return Drop(name, path, status.st_uid, status.st_dev, status.st_ino, size, kind, status.st_mtime_ns)


def _not_a_file(status: os.stat_result) -> DropRefused:
    if stat.S_ISLNK(status.st_mode):
        return DropRefused("it is a symbolic link; links are not followed: drop the file itself", code="link")
    return DropRefused("it is neither a file nor a folder", code="not_a_file")


def _blocked(drop: Drop) -> str | None:
    if drop.kind == "folder" and os.geteuid() not in (0, drop.owner):
        # rename(2) of a directory rewrites its "..", so it needs write permission in the directory itself.
        return "a folder of another user cannot be taken from the inbox: use obatchctl submit"
    needed = os.R_OK | (os.W_OK | os.X_OK if drop.kind == "folder" else 0)
    if not os.access(drop.path, needed, effective_ids=True) and os.path.lexists(drop.path):
        return "EACCES: the daemon's user may not read it; chmod it, or use obatchctl submit"
    return None


def _folder_signature(folder: Path) -> tuple[int, int]:
    """How many things are inside, and a hash of their paths, inodes, sizes and mtimes: a flat watch sees none of it."""
    found: list[tuple[str, int, int, int]] = []
    for directory, folders, files in os.walk(folder):
        for name in (*folders, *files):
            with contextlib.suppress(OSError):
                path = os.path.join(directory, name)
                status = os.lstat(path)
                found.append((path, status.st_ino, status.st_size, status.st_mtime_ns))
    return len(found), hash(tuple(sorted(found)))
