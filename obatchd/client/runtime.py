"""The runtime directory: where the daemon of one spool has its sockets.

A Unix socket path has at most 107 bytes, so sockets cannot lie in a spool with a long path. They lie in a short
directory keyed by the spool's uuid, and ``<spool>/obatchd.json`` says which. This module is imported by
``obatchctl`` and stays light.
"""

from __future__ import annotations

import contextlib
import errno
import grp
import json
import os
import shlex
import socket
import stat
import time
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from obatchd import __version__
from obatchd.client import unit
from obatchd.errors import DaemonDownError, SpoolError

CONTROL_SOCKET = "control.sock"
SUBMIT_SOCKET = "submit.sock"
HTTP_SOCKET = "http.sock"
_SOCKETS = (CONTROL_SOCKET, SUBMIT_SOCKET, HTTP_SOCKET)
RECORD = "obatchd.json"
_LAST = ".obatchd.last.json"  # what becomes of the record on a clean stop
SYSTEM_SPOOL = Path("/var/spool/obatch")
_UNITS = Path("/usr/lib/systemd")
# Groups whose members may use sudo on most systems, and ours.
_ADMIN_GROUPS = frozenset(("sudo", "wheel", "admin", "obatch-admin"))
# Written as root by the system service's unit when the servers' ports are shut to other users of the host.
PORT_GUARD = Path("/run/obatchd.ports")
_LEFT_S = 3600.0  # a runtime directory where nobody listens is left over after that
_SOCKET_PATH_BYTES = 107  # sizeof(sun_path) - 1, unix(7)


class Record(NamedTuple):
    """The content of ``<spool>/obatchd.json``, about the running daemon."""

    runtime_dir: Path
    pid: int
    version: str
    uuid: str
    config: str | None  # path of its configuration file; "" where it has none, None where an older daemon says nothing


def guarded_ports(record: Path = PORT_GUARD) -> range:
    """The ports of this host that other users cannot reach; empty where nobody shut any."""
    try:
        document = json.loads(record.read_bytes())
        return range(document["first"], document["last"] + 1)
    except (OSError, ValueError, KeyError, TypeError):
        return range(0)


def default_spool() -> Path:
    """The spool of the user's own daemon (``systemd/user``) where it is in use or the only one, else the system's."""
    own = _own_spool()
    return own if (own / RECORD).exists() or (own.is_dir() and not SYSTEM_SPOOL.is_dir()) else SYSTEM_SPOOL


def spool_of_variables() -> Path | None:
    """The spool that obatchctl talks to because a variable of this environment names it."""
    named = os.environ.get("OBATCH_SPOOL") or os.environ.get("OBATCHD_SPOOL")
    return Path(os.path.expanduser(named)).absolute() if named else None


def _own_spool() -> Path:
    return Path(os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")) / "obatch"


def is_service(spool: Path) -> bool:
    """Whether a spool is the one of a system service: its inbox hands its group on, or the unit works on it."""
    with contextlib.suppress(OSError):
        if (spool / "inbox").stat().st_mode & stat.S_ISGID:
            return True
    return spool == SYSTEM_SPOOL and (_UNITS / "system/obatchd.service").exists()


def start_command(spool: Path) -> str:
    """The command that starts a daemon on a spool."""
    if given_up(spool):
        return "sudo systemctl reset-failed obatchd && sudo systemctl start obatchd"
    return _service_command(spool, "start") or _by_hand(spool)


def given_up(spool: Path) -> str:
    """That systemd starts the service of a spool no more, with its last words; empty where that is not so."""
    if not is_service(spool) or not unit.has_failed(unit.properties()):
        return ""
    words = unit.last_words().removeprefix("obatchd: ")
    return "it failed, and systemd has given up on it" + (f"; its last words: {words}" if words else "")


def restart_command(spool: Path) -> str:
    """The command that starts the daemon of a spool anew."""
    return _service_command(spool, "restart") or f"stop it with Ctrl-C, then: {_by_hand(spool)}"


def repair_command(spool: Path) -> str:
    """The command that gives the spool of the package its owners and modes again; empty for any other spool."""
    return "sudo systemd-tmpfiles --create obatch.conf" if spool == SYSTEM_SPOOL and is_service(spool) else ""


def _service_command(spool: Path, verb: str) -> str | None:
    """What to type to systemd; None where the daemon of a spool is no service."""
    if is_service(spool):
        return f"sudo systemctl {verb} obatchd"
    if spool == _own_spool() and (_UNITS / "user/obatchd.service").exists():
        return f"systemctl --user {verb} obatchd"
    return None


def _by_hand(spool: Path) -> str:
    config = f"--config {shlex.quote(told)} " if (told := last_config(spool)) else ""
    return f"obatchd {config}--spool {shlex.quote(str(spool))}"


def last_config(spool: Path) -> str | None:
    """The configuration file of the spool's daemon or of its last one, "" for none; None where nobody knows."""
    for name in (RECORD, _LAST):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            config = json.loads((spool / name).read_bytes()).get("config")
            return config if isinstance(config, str) else None
    return None


def next_step(command: str, *admin_groups: str) -> str:
    """A command as advice to the caller, who may have to ask somebody else for it.

    Administrators are root and the members of the usual groups, and of ``admin_groups``.
    """
    if not command.startswith("sudo ") or os.geteuid() == 0:
        return command
    for group in _ADMIN_GROUPS.union(admin_groups):
        with contextlib.suppress(KeyError):
            if grp.getgrnam(group).gr_gid in os.getgroups():
                return command
    return f"ask your administrator: {command}"


def create(
    spool: Path,
    uuid: str,
    *,
    shared: bool = False,
    config: Path | None = None,
    environ: Mapping[str, str] = os.environ,
) -> Path:
    """Make the runtime directory of a spool and record it there. The caller holds the spool's lock.

    With ``shared`` every user can find the sockets and connect. ``config`` is the daemon's configuration file. Raises
    SpoolError where no candidate directory can be used, or the spool cannot be written.
    """
    problems = []
    for parent in _parents(environ):
        directory = parent / uuid
        if len(os.fsencode(directory / CONTROL_SOCKET)) > _SOCKET_PATH_BYTES:
            problems.append(f"{directory} is too long for a socket")
            continue
        try:
            for path in (parent, directory):
                _own_directory(path)
                if shared and path.stat().st_uid == os.geteuid():
                    path.chmod(0o711)
        except OSError as error:
            problems.append(f"{error.filename or directory}: {error.strerror or error}")
            continue
        _sweep(directory)
        said = str(config.absolute()) if config else ""
        _record(spool, Record(directory, os.getpid(), __version__, uuid, said), 0o644 if shared else 0o600)
        return directory
    raise SpoolError(
        "no directory for the control sockets can be used: " + "; ".join(problems) + ". Set XDG_RUNTIME_DIR to a "
        "short, private directory."
    )


def remove(spool: Path, runtime_dir: Path) -> None:
    """Take the record and the sockets away again, on a clean stop; the record is kept under another name."""
    with contextlib.suppress(OSError):
        (spool / RECORD).replace(spool / _LAST)
    for name in _SOCKETS:
        with contextlib.suppress(OSError):  # on a disk that refuses, they stay as after a kill
            (runtime_dir / name).unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # something else may lie in it
        runtime_dir.rmdir()


def read_record(spool: Path) -> Record:
    """The spool's record of its daemon.

    Raises DaemonDownError (``no_spool``, ``daemon_down`` or ``permission``).
    """
    try:
        document = json.loads((spool / RECORD).read_bytes())
        pid, version, uuid = (document[name] for name in ("pid", "version", "uuid"))
        return Record(Path(document["runtime_dir"]), pid, version, uuid, document.get("config"))
    except PermissionError:
        raise permission_denied(spool) from None
    except FileNotFoundError:
        if not spool.is_dir():
            raise DaemonDownError(f"There is no spool at {spool}{_elsewhere(spool)}", code="no_spool") from None
        raise daemon_down(spool) from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DaemonDownError(f"{spool / RECORD} cannot be read ({error}); restart obatchd on this spool.") from None


def _elsewhere(spool: Path) -> str:
    """What to do where there is no spool."""
    start = next_step(first_start(spool))
    if _of_no_service(spool):
        return (
            ", where a system service has its own, and no such service is installed. If you have started obatchd "
            f"yourself, name its spool once in this terminal: export OBATCH_SPOOL=~/batch. If not, start it: {start}"
        )
    return f". Name the right one with --spool DIR or OBATCH_SPOOL, or start a daemon there: {start}"


def first_start(spool: Path) -> str:
    """The command that starts a daemon where there is no spool; without a service that is one of the user's own."""
    return "obatchd --spool ~/batch" if _of_no_service(spool) else start_command(spool)


def _of_no_service(spool: Path) -> bool:
    return spool == SYSTEM_SPOOL and not is_service(spool)


def daemon_down(spool: Path) -> DaemonDownError:
    """The error that says: nobody works on this spool."""
    failed = given_up(spool)
    start = f"{failed.removesuffix('.')}. After the repair" if failed else "To start it"
    return DaemonDownError(
        f"obatchd is not running on {spool}. Drops in the inbox wait; nothing is lost. {start[0].upper()}{start[1:]}: "
        f"{next_step(start_command(spool))}"
    )


def permission_denied(spool: Path) -> DaemonDownError:
    """The error that says: the caller may not talk to this daemon."""
    return DaemonDownError(
        f"You may not talk to the daemon of {spool}: it answers only its own user and root. Run obatchctl as that "
        "user, or with sudo; on a host for several users it has to be the system service.",
        code="permission",
    )


def _parents(environ: Mapping[str, str]) -> list[Path]:
    user_runtime, run = environ.get("XDG_RUNTIME_DIR"), Path("/run/obatchd")
    candidates = [Path(user_runtime) / "obatchd"] if user_runtime else []
    if os.access(run if run.exists() else run.parent, os.W_OK | os.X_OK):
        candidates.append(run)
    name = f"obatchd-{os.geteuid()}"
    return [*candidates, *(Path(base) / name for base in (environ.get("TMPDIR"), "/tmp") if base)]


def _own_directory(path: Path) -> None:
    """Make ``path``, or make sure that nobody else could have put something there.

    Raises OSError where it cannot be made, is not a directory, belongs to somebody else or is writable for others.
    """
    with contextlib.suppress(FileExistsError):
        path.mkdir(mode=0o700)
    found = path.lstat()
    if not stat.S_ISDIR(found.st_mode):
        raise NotADirectoryError(20, "is not a directory", str(path))
    if found.st_uid not in (os.geteuid(), 0) or found.st_mode & 0o022:
        raise PermissionError(1, "belongs to somebody else or is writable for others", str(path))


def _sweep(own: Path) -> None:
    """Remove directories of killed daemons beside ``own`` whose spools no daemon works on any more."""
    for directory in own.parent.iterdir():
        with contextlib.suppress(OSError):  # not ours, or something else lies in it
            # A daemon that is starting has made its directory, and does not listen yet.
            fresh = time.time() - directory.lstat().st_mtime < _LEFT_S
            if directory != own and not fresh and not _listens(directory / CONTROL_SOCKET):
                for name in _SOCKETS:
                    (directory / name).unlink(missing_ok=True)
                directory.rmdir()


def _listens(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        probe.setblocking(False)
        # With another error its queue is full, or it is not ours.
        return probe.connect_ex(str(path)) not in (errno.ENOENT, errno.ECONNREFUSED)


def _record(spool: Path, record: Record, mode: int) -> None:
    temporary = spool / f".{RECORD}.{os.getpid()}"
    document = {**record._asdict(), "runtime_dir": str(record.runtime_dir)}
    try:
        temporary.write_text(json.dumps(document) + "\n", "utf-8")
        temporary.chmod(mode)
        temporary.replace(spool / RECORD)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise SpoolError(f"{spool / RECORD} cannot be written: {error.strerror}. Check the spool's owner.") from None
