"""The kernel's events of the inbox: which names changed, and whether events can be relied on.

Facts of the kernel and of watchdog 7.1 that shape this module (inotify(7); measured):

* A rename into the inbox gives IN_MOVED_TO alone, so a moved event without a source is a complete file. A ``cp``
  gives IN_CREATE and IN_CLOSE_WRITE, and IN_CLOSE_WRITE does not mean "finished": ``>`` then ``>>`` gives two. ``ln``
  gives IN_CREATE alone.
* Our own claims rename files away. With IN_MOVED_FROM in the mask, watchdog would hold back every later event for
  half a second to find its other half; so it is not in our mask.
* Events overflow (16,384 by default), watches die with their directory, and network file systems give none. watchdog
  passes an overflow to its groups of watches and not to handlers.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from enum import Enum, auto

from watchdog.events import (
    EVENT_TYPE_CLOSED,
    EVENT_TYPE_CREATED,
    EVENT_TYPE_DELETED,
    EVENT_TYPE_MODIFIED,
    EVENT_TYPE_MOVED,
    FileSystemEvent,
    FileSystemEventHandler,
)
from watchdog.observers.api import BaseObserver
from watchdog.observers.inotify import InotifyFullEmitter, InotifyWatchGroup
from watchdog.observers.inotify_c import InotifyConstants, Mask

from obatchd import log
from obatchd.spool.drop import is_temporary
from obatchd.spool.layout import Layout

_log = log.get(__name__)
_MASK = (
    InotifyConstants.IN_MOVED_TO
    | InotifyConstants.IN_CREATE
    | InotifyConstants.IN_CLOSE_WRITE
    | InotifyConstants.IN_ATTRIB
    | InotifyConstants.IN_DELETE_SELF
)
_WATCH_AGAIN_S = 5.0


class Sign(Enum):
    """What the latest events of a name tell of it."""

    CHANGED = auto()  # nothing but that it should be looked at
    CREATED = auto()  # made here: a file is being written
    CLOSED = auto()  # written and closed, at least once
    RENAMED = auto()  # renamed into the inbox


class _Lost(FileSystemEvent):
    """The kernel dropped events."""

    event_type = "lost"


class _Group(InotifyWatchGroup):
    """watchdog's group of watches, which tells of an overflow like of any other event."""

    tell: Callable[[FileSystemEvent], None] | None = None

    def on_queue_overflow(self) -> None:
        super().on_queue_overflow()
        if self.tell is not None:  # else it has just begun, and the next scan looks at everything anyway
            self.tell(_Lost(self.path))


class _Emitter(InotifyFullEmitter):
    """watchdog's emitter with the mask and the group of this module."""

    def on_thread_start(self) -> None:
        group = _Group(self._inotify_fd, os.fsencode(self.watch.path), Mask(_MASK))
        group.tell = self.queue_event
        self._inotify = group


class Watch(FileSystemEventHandler):
    """Watches the inbox from ``start`` to ``stop``. Events come from watchdog's threads, calls from one at a time."""

    def __init__(self, layout: Layout, clock: Callable[[], float]) -> None:
        self._layout = layout
        self._clock = clock
        self._signs: dict[bytes, Sign] = {}
        self._lock = threading.Lock()
        self._observer: BaseObserver | None = None
        self._inode: int | None = None
        self._tried_s = float("-inf")
        self._new = False  # begun, or events were lost, since the last call of tells_all
        self._remote = False
        self._refusal = ""  # why it could not be watched, as it was logged
        self._wake: Callable[[], None] | None = None  # None: not started, or stopped

    def start(self, wake: Callable[[], None]) -> None:
        """Begin to watch; ``wake`` is called, from another thread, when a scan would find something new."""
        self._wake = wake
        self._remote = self._layout.is_remote()
        if self._remote:
            _log.warning(
                "inbox_polled", path=self._layout.inbox, filesystem=self._layout.filesystem_kind(),
                reason="changes by other hosts give no events; obatchd looks for them as often as inbox.rescan_s says",
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
        self._tried_s = self._clock()
        try:
            inode = self._layout.inbox.stat().st_ino
            observer = BaseObserver(_Emitter, timeout=1.0)
            observer.schedule(self, os.fspath(self._layout.inbox), recursive=False)
            observer.start()
        except OSError as error:
            # ENOSPC: fs.inotify.max_user_watches; EMFILE: max_user_instances. Rescans go on without events.
            if str(error) != self._refusal:  # it is tried again and again
                self._refusal = str(error)
                _log.warning("inbox_not_watched", path=self._layout.inbox, reason=self._refusal)
            return
        self._observer, self._inode, self._refusal = observer, inode, ""
        self._new = True

    def dispatch(self, event: FileSystemEvent) -> None:
        path = os.fsencode(event.dest_path or event.src_path)
        if isinstance(event, _Lost):
            _log.warning("inbox_events_lost", path=self._layout.inbox, reason="too many at once; it is looked at whole")
            with self._lock:
                self._new = True
        elif path == os.fsencode(self._layout.inbox):
            if event.event_type == EVENT_TYPE_DELETED:
                self._inode = None  # a new inbox may well get the inode of the old one
            elif event.event_type == EVENT_TYPE_MODIFIED:
                return  # comes with every event of a name
        elif not is_temporary(name := os.path.basename(path)):
            with self._lock:
                sign = _latest(self._signs.get(name, Sign.CHANGED), event)
                # Where other hosts write without events, one of our own says nothing of the others.
                self._signs[name] = Sign.CHANGED if self._remote and sign is not Sign.RENAMED else sign
        if (wake := self._wake) is not None:
            wake()

    def take_names(self) -> dict[bytes, Sign]:
        """The names that events told of since the last call, with what they tell of each."""
        with self._lock:
            signs, self._signs = self._signs, {}
        return signs

    def add_names(self, signs: dict[bytes, Sign]) -> None:
        """Give back names that could not be looked at."""
        with self._lock:
            self._signs = signs | self._signs

    @property
    def sees_writers(self) -> bool:
        """Whether the kernel can be asked if a file is open for writing: it knows of this host's programs only."""
        return not self._remote

    def tells_all(self, inode: int) -> bool:
        """Whether every change of the inbox since the last call gave an event; ``inode`` is the inbox's.

        Watches again when the inbox was replaced or the watch was lost: drops before that gave no event.
        """
        wanted = self._wake is not None and not self._is_watching(inode)
        if wanted and self._clock() - self._tried_s >= _WATCH_AGAIN_S:
            self._unwatch()
            self._watch()
        with self._lock:
            new, self._new = self._new, False
        return self._is_watching(inode) and not self._remote and not new

    def _is_watching(self, inode: int) -> bool:
        observer = self._observer
        return (
            observer is not None
            and inode == self._inode
            and all(thread.is_alive() for thread in (observer, *observer.emitters))
        )


def _latest(known: Sign, event: FileSystemEvent) -> Sign:
    """What is known of a name after one more event."""
    if event.event_type == EVENT_TYPE_MOVED and not event.src_path:
        return Sign.RENAMED
    if event.event_type == EVENT_TYPE_CREATED:
        return Sign.CREATED
    if event.event_type == EVENT_TYPE_CLOSED and known is not Sign.RENAMED:
        return Sign.CLOSED
    return known
