"""The directory of a host: who it is, what it knows, logs and homes of its servers. One process works on it."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import socket
import stat
import uuid
from collections.abc import Iterator
from pathlib import Path

from obatchd.cluster.host.files import read_file, write_file
from obatchd.errors import HostError
from obatchd.holding import HeldError, hold
from obatchd.settings.base import expanded

SERVICE_DIRECTORY = Path("/var/lib/obatch-host")
SERVICE_FILE = Path("/etc/obatch/host.toml")
_MACHINE_IDS = (Path("/etc/machine-id"), Path("/var/lib/dbus/machine-id"))
_NO_NAME = re.compile(r"[^a-z0-9]+")
_NAME_CHARACTERS = 40


class HostDirectory:
    """Where a host keeps its files. Made by :meth:`open`.

    ``home`` and ``logs`` of servers, ``gpus.json`` and ``history.db`` lie in it, too.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.credential_file = root / "credential"
        self.membership_file = root / "head.json"  # of a host that joined by itself
        self.facts_file = root / "facts.json"
        self.terms_file = root / "terms.json"
        self.instance = ""  # uuid; marks every process that this host starts

    @property
    def config_file(self) -> Path | None:
        """The host's file where none is named: that of the service, else ``host.toml`` in here; None: there is none."""
        places = (SERVICE_FILE,) if self.root == SERVICE_DIRECTORY else (self.root / "host.toml",)
        return next((place for place in places if place.exists()), None)

    @classmethod
    def open(cls, root: Path) -> HostDirectory:
        """The directory at ``root``, made where it is missing. Raises HostError with what to do."""
        directory = cls(root)
        try:
            root.mkdir(mode=0o700, parents=True, exist_ok=True)
            status = root.lstat()
            if not stat.S_ISDIR(status.st_mode):
                raise HostError(f"{root} is no directory of its own (a link?); name another one with --dir.")
            if status.st_uid != os.geteuid():
                raise HostError(
                    f"{root} belongs to uid {status.st_uid}, and obatchd host runs as uid {os.geteuid()}: give it the "
                    "directory (chown), or name another one with --dir."
                )
            if status.st_mode & 0o077:
                root.chmod(0o700)
            directory.instance = directory._identity()
        except OSError as error:
            raise HostError(
                f"{error.filename or root} cannot be used: {error.strerror}. Name another directory with --dir."
            ) from None
        return directory

    def _identity(self) -> str:
        file = self.root / "instance"
        with contextlib.suppress(FileNotFoundError, ValueError):
            return str(uuid.UUID(read_file(file).decode().strip()))
        made = str(uuid.uuid4())
        write_file(file, f"{made}\n".encode())
        return made

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the directory for one process. Raises HostError where another one has it (``locked``)."""
        try:
            descriptor = hold(self.root / ".lock")
        except HeldError as held:
            raise HostError(
                f"another obatchd host (pid {held.pid}) works on {self.root}: stop it first, or name another "
                "directory with --dir.",
                code="locked",
            ) from None
        except OSError as error:
            raise HostError(
                f"{self.root} cannot be locked ({error.strerror}): it must be writable, on a local disk with room. "
                "Mend that, or name another one with --dir."
            ) from None
        try:
            yield
        finally:
            os.close(descriptor)


def default_directory() -> Path:
    """``OBATCH_HOST_DIR``, else that of the service where it runs as one, else one in the user's home."""
    if named := os.environ.get("OBATCH_HOST_DIR"):
        return expanded(named)
    if os.geteuid() == 0 or os.access(SERVICE_DIRECTORY, os.W_OK):
        return SERVICE_DIRECTORY
    state = os.environ.get("XDG_STATE_HOME") or "~/.local/state"
    return expanded(state) / "obatch-host"


def default_name() -> str:
    """The short name of this machine, as the name of a host may be."""
    short = socket.gethostname().partition(".")[0].lower()
    return _NO_NAME.sub("-", short).strip("-")[:_NAME_CHARACTERS].strip("-") or "host"


def machine() -> str:
    """What tells this machine from others: its id, hashed, because that is nobody else's business (machine-id(5))."""
    for path in _MACHINE_IDS:
        with contextlib.suppress(OSError):
            if found := path.read_text("ascii", "replace").strip():
                return hashlib.sha256(f"obatchd {found}".encode()).hexdigest()
    return hashlib.sha256(f"obatchd {socket.gethostname()}".encode()).hexdigest()


def allocation() -> str:
    """What gave this machine to us for a while, in words; empty: nobody did."""
    if named := os.environ.get("OBATCH_HOST_ALLOCATION"):
        return named
    job = os.environ.get("SLURM_JOB_ID")
    return f"Slurm job {job}" if job else ""
