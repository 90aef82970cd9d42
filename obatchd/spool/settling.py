"""When a drop is complete: what is known of its writer, and how long it must stay as it is.

The writer of a name is *done* (it was renamed into the inbox), *open* (its creation was seen, and not its end),
*closed* (its end was seen, and may not be the last), or *unknown*: the name was there before the daemon, events were
lost, or the file system has none. An upload may stall for long at any byte. So an open file waits for its end, and what
nobody saw the beginning of must stay as it is for ten times as long.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shlex
import signal
import stat
from enum import Enum, auto
from pathlib import Path

import msgspec

from obatchd.errors import DropRefused
from obatchd.jobs.model import FILE_ENDINGS, FORMATS_IN_WORDS, TRANSFER_ENDINGS
from obatchd.settings.tables.spool import InboxSettings
from obatchd.spool.drop import Drop
from obatchd.spool.watching import Sign

NO_FORMAT = f"{{}} is none of our formats: drop {FORMATS_IN_WORDS}"
PATIENCE_S = 600.0  # for what may yet get its name, or its end; afterwards it is refused or shown
_SHOWN_S = 2.0  # after which a name that is none of a format is shown
_TAIL_BYTES = 64  # as many zeros at its end: space that was reserved, and not written yet
_LOOK = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC  # a pipe that took its place holds nobody up
_DEPTH = 200  # of folders in one another; os.walk(), and what deletes them, can take some 900
_ZERO_ENDED = (".tar",)  # they do end with zeros


class Writer(Enum):
    """What is known of a drop's writer."""

    UNKNOWN = auto()
    OPEN = auto()
    CLOSED = auto()
    DONE = auto()  # it was renamed into the inbox


_TIMES = {Writer.UNKNOWN: 10.0, Writer.OPEN: float("inf"), Writer.CLOSED: 1.0}  # the settling times of the settings
_TOLD = {Sign.CREATED: Writer.OPEN, Sign.CLOSED: Writer.CLOSED, Sign.RENAMED: Writer.DONE}


class Waiting(msgspec.Struct):
    """A name that has not been taken yet. Times are monotonic."""

    signature: tuple[object, ...]  # its inode comes first
    since_s: float  # it is unchanged; infinite while it may not be read
    first_s: float
    writer: Writer = Writer.UNKNOWN
    settle_s: float = 0.0  # how long it must stay as it is
    whole: bool = False  # no sign was found that it is not complete
    hindrance: str = ""  # the sign that was found
    told: str = ""  # the latest event that was logged of it

    def left_s(self, now_s: float) -> float:
        return self.since_s + self.settle_s - now_s

    def look(self, drop: Drop, signature: tuple[object, ...], sign: Sign | None, now_s: float) -> None:
        """Take note of how the drop looks now, and of what events told of it since the last look."""
        changed, writer = signature != self.signature or sign is Sign.CLOSED, self.writer
        if sign in _TOLD:
            writer = _TOLD[sign]
        elif changed and writer in (Writer.DONE, Writer.CLOSED):
            # Somebody writes to it again, or has only set its time, as scp does.
            closed = drop.kind == "folder" or is_written(drop.path) is False
            writer = Writer.CLOSED if closed else Writer.UNKNOWN
        elif writer is Writer.OPEN and sign is None and is_written(drop.path) is False:
            writer = Writer.UNKNOWN  # no event told of its end, nor will
        if drop.kind == "folder" and writer is Writer.OPEN:
            writer = Writer.CLOSED  # of a folder nobody sees the end
        if sign in (Sign.CREATED, Sign.RENAMED):
            self.first_s, self.told = now_s, ""  # another one of that name
        if changed or writer is not self.writer:
            self.since_s, self.whole, self.hindrance = now_s, False, ""
        self.signature, self.writer = signature, writer

    def lost(self, now_s: float) -> None:
        """Events were lost, the end of its writing perhaps among them."""
        if self.writer is Writer.OPEN:
            self.writer, self.since_s = Writer.UNKNOWN, now_s

    def is_whole(self, drop: Drop, leases: bool, now_s: float) -> bool:
        """Whether a drop that has been still for long enough is complete; what is not is looked at again later."""
        if self.writer is Writer.DONE or self.whole:
            return True
        self.hindrance = hindrance(drop, leases)
        self.whole = not self.hindrance
        if self.hindrance == STILL_OPEN:
            self.writer, self.settle_s = Writer.OPEN, _TIMES[Writer.OPEN]
        elif self.hindrance:
            self.since_s = now_s
        return self.whole

    def let_settle(self, drop: Drop, empty: bool, settings: InboxSettings) -> None:
        """Set for how many seconds the drop must stay as it is."""
        usual_s = settings.settle_s if drop.kind == "file" else settings.folder_settle_s
        self.settle_s = _TIMES[self.writer] * usual_s if self.writer is not Writer.DONE else 0.0
        if empty and not (self.writer is Writer.DONE and drop.kind == "folder"):
            self.settle_s = max(self.settle_s, settings.empty_s)
        if self.writer is not Writer.DONE and not has_known_ending(drop):
            self.settle_s = max(self.settle_s, PATIENCE_S)

    def reason(self, drop: Drop, now_s: float) -> str:
        """Why it waits, once that takes longer than its owner would expect; empty: not yet."""
        why = STILL_OPEN if self.writer is Writer.OPEN else self.hindrance
        if why:
            return in_full(drop, why) if now_s - self.first_s >= PATIENCE_S else ""
        if has_known_ending(drop) or now_s - self.since_s < _SHOWN_S:
            return ""
        return f"{NO_FORMAT.format('it')}. It goes to failed/ when it has been so for {PATIENCE_S / 60:g} minutes"


def has_known_ending(drop: Drop) -> bool:
    """Whether it is a folder, or a file of a format that its name tells."""
    return drop.kind == "folder" or drop.label.lower().endswith(FILE_ENDINGS)


def signature_of(drop: Drop, status: os.stat_result, *, inside: bool) -> tuple[bool, tuple[object, ...]]:
    """Whether there is nothing in a drop, and the signature that must stay; ``inside``: a folder is looked into.

    Raises DropRefused where it has folders in one another without end.
    """
    if drop.kind == "folder":
        count, found = _folder_signature(drop.path) if inside else (0, 0)
        return not count, (status.st_ino, status.st_mtime_ns, count, found)
    return not drop.size, (status.st_ino, status.st_mtime_ns, status.st_size)


def _folder_signature(folder: Path) -> tuple[int, int]:
    """How many things are inside, and a hash of their paths, inodes, sizes and mtimes: a flat watch sees none of it."""
    found: list[tuple[str, int, int, int]] = []
    for directory, folders, files in os.walk(folder):
        if directory.count("/") - os.fspath(folder).count("/") > _DEPTH:
            raise DropRefused(f"it has more than {_DEPTH} folders in one another", code="too_deep")
        for name in (*folders, *files):
            with contextlib.suppress(OSError):
                path = os.path.join(directory, name)
                status = os.lstat(path)
                found.append((path, status.st_ino, status.st_size, status.st_mtime_ns))
    return len(found), hash(tuple(sorted(found)))


# Signs that a drop is not complete, however long it has been still.


STILL_OPEN = "still open: some program writes to it, or has not closed it"
FILE_OPEN = "still open: some program writes to a file in it, or has not closed it"


def hindrance(drop: Drop, leases: bool) -> str:
    """Why a drop that has been still for long enough is not complete yet, in words for its owner; empty: it is.

    ``leases``: whether the file system of the inbox can be asked for writers.
    """
    if drop.kind == "folder":
        inside = (os.path.join(folder, name) for folder, _, names in os.walk(drop.path) for name in names)
        return FILE_OPEN if leases and any(map(is_written, inside)) else ""
    if leases and is_written(drop.path):
        return STILL_OPEN
    beside = next((ending for ending in TRANSFER_ENDINGS if os.path.lexists(f"{drop.path}{ending}")), "")
    if beside:
        return f"its transfer is not over: a file of the same name with {beside} behind it lies beside it"
    if drop.size and not drop.label.lower().endswith(_ZERO_ENDED) and _ends_with_zeros(drop.path, drop.size):
        return "its end is nothing but zeros: space that some program reserved and has not written to yet"
    return ""


def is_written(path: Path | str) -> bool | None:
    """Whether some process has a file open for writing; None where that cannot be told.

    The kernel grants a read lease on no such file (fcntl(2), F_SETLEASE), and only to the file's owner, or with
    CAP_LEASE. It is given back at once.
    """
    try:
        if not stat.S_ISREG(os.lstat(path).st_mode):
            return None
        descriptor = os.open(path, _LOOK)
    except BlockingIOError:
        return True  # another process has a lease on it, as Samba has on its clients' files
    except OSError:
        return None
    try:
        # Who opens it for writing in this instant lets the kernel send a signal: not SIGIO, which would end the daemon.
        fcntl.fcntl(descriptor, fcntl.F_SETSIG, signal.SIGURG)
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    except BlockingIOError:
        return True
    except OSError:
        return None
    finally:
        os.close(descriptor)
    return False


def _ends_with_zeros(path: Path, size: int) -> bool:
    with contextlib.suppress(OSError), open(os.open(path, _LOOK), "rb") as file:
        file.seek(max(0, size - _TAIL_BYTES))
        tail = file.read(_TAIL_BYTES)
        return bool(tail) and not tail.strip(b"\0")
    return False


def in_full(drop: Drop, reason: str) -> str:
    """The reason why a drop waits for so long, with the command that takes it as it is."""
    taken = f"now-{drop.label}" if has_known_ending(drop) else f"{drop.label}.jsonl"
    old, new = (shlex.quote(f"{drop.path.parent}/{name}") for name in (drop.label, taken))
    return f"{reason}. To have it taken as it is: mv {old} {new}"
