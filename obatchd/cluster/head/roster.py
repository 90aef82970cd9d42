"""Who may come: codes and enrolments by which hosts join, and the hosts that did, each with a credential of its own.

All is in one file, of mode 0600, that is replaced whole. No secret is in it: of each only its SHA-256 is kept.
"""

from __future__ import annotations

import copy
import hashlib
import hmac
import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, Protocol

import msgspec

from obatchd import log
from obatchd.cluster.host.files import read_file, write_file
from obatchd.errors import ClusterError, NotFoundError
from obatchd.times import instant

CODE_S = 600.0  # how long a code is good
_SECRET_BYTES = 32
_ID_BYTES = 4
_MOST_CODES = 1000  # and enrolments: a script that makes them in a loop fills no disk
_MOST_HOSTS = 4096
_REMEMBERED_S = 86400.0  # what is used, over or revoked, so that whoever comes with it is told why it is no good
_NEW_ONE = "make another one on the head:  obatchctl hosts code"
_log = log.get(__name__)


class Code(msgspec.Struct):
    """Lets one host join, once."""

    sha256: str
    until_s: float  # wall clock, as everything here
    used_by: str = ""  # name of the host


class Enrolment(msgspec.Struct):
    """Lets many hosts join, until it is over or revoked."""

    id: str
    sha256: str
    made_s: float
    until_s: float
    revoked_s: float | None = None


class Member(msgspec.Struct):
    """A host that joined."""

    sha256: str  # of its credential
    joined_s: float
    machine: str  # as it was when it joined
    enrolment: str = ""  # its id; empty: it joined by a code
    until_s: float | None = None  # the end of its credential, with that of its allocation
    drained: str = ""  # why an administrator gives it no work; empty: it gets some


class _Kept(msgspec.Struct):
    """The file."""

    schema: int = 1
    hosts: dict[str, Member] = {}
    codes: list[Code] = []
    enrolments: list[Enrolment] = []


class Made(NamedTuple):
    """A new secret, which is shown once."""

    secret: str
    until_s: float
    id: str = ""  # of an enrolment


class Asked(NamedTuple):
    """A host that wants to join."""

    name: str
    machine: str
    lasts_s: float | None = None  # how long its allocation still does


class Holder(NamedTuple):
    """Whose a credential is."""

    name: str
    until_s: float | None


class Connected(Protocol):
    """Knows which hosts are here; :class:`obatchd.cluster.head.hosts.Hosts`."""

    def machine_of(self, name: str) -> str | None:
        """The machine of a host that is connected now; None: none of that name is."""
        ...


class Roster:
    """Implements :class:`obatchd.cluster.head.hosts.KnownHosts`. Changes block, and are durable when they return.

    A change raises ClusterError where the file cannot be written, or could not be read at the start: it is never begun
    anew over one that was there.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._kept = _Kept()
        self.problem = ""  # why nobody can join; empty: nothing
        try:
            self._kept = msgspec.json.decode(read_file(path), type=_Kept)
        except FileNotFoundError:
            pass
        except (OSError, msgspec.MsgspecError) as error:
            self.problem = (
                f"{path} cannot be read ({log.reason(error)}), so that no host is known: bring it back from a backup "
                "and restart obatchd. Without one, remove the file: every host then has to join again"
            )
            _log.error("roster_not_read", path=path, reason=log.reason(error))

    # Questions.

    def names(self) -> list[str]:
        return sorted(self._kept.hosts)

    def member(self, name: str) -> Member | None:
        return self._kept.hosts.get(name)

    def enrolments(self) -> list[Enrolment]:
        """Those that are still good, the oldest first."""
        now_s = time.time()
        return [one for one in self._kept.enrolments if one.revoked_s is None and one.until_s > now_s]

    def drained(self, name: str) -> str:
        member = self._kept.hosts.get(name)
        return member.drained if member else ""

    def until_s(self, name: str) -> float | None:
        member = self.member(name)
        return member.until_s if member is not None else None

    def holder(self, credential: str) -> Holder | None:
        """Whose a credential is; None: nobody's, or nobody's any more."""
        sha256, found = _sha256(credential), None
        for name, member in self._kept.hosts.items():  # all of them, so that the time tells nothing
            if hmac.compare_digest(member.sha256, sha256):
                found = Holder(name, member.until_s)
        return found if found is None or found.until_s is None or found.until_s > time.time() else None

    # Changes.

    def make_code(self) -> Made:
        """A code for one host, good for :data:`CODE_S`."""
        made = Made(_secret(), time.time() + CODE_S)
        with self._changing() as kept:
            if len(kept.codes) >= _MOST_CODES:
                raise ClusterError(f"{_MOST_CODES} codes are open; wait until they are over", code="limit")
            kept.codes.append(Code(_sha256(made.secret), made.until_s))
        return made

    def make_enrolment(self, valid_s: float) -> Made:
        """An enrolment for many hosts, good for ``valid_s``."""
        now_s = time.time()
        made = Made(_secret(), now_s + valid_s, f"enrol-{secrets.token_hex(_ID_BYTES)}")
        with self._changing() as kept:
            if len(kept.enrolments) >= _MOST_CODES:
                raise ClusterError(
                    f"there are {_MOST_CODES} enrolments; revoke some: obatchctl hosts forget --enrolment ID",
                    code="limit",
                )
            kept.enrolments.append(Enrolment(made.id, _sha256(made.secret), now_s, made.until_s))
        return made

    def admit(self, secret: str, asked: Asked, connected: Connected) -> str:
        """Take a host in by a code or an enrolment; its credential.

        One that joins again is the same host, and its old credential is none any more. Raises ClusterError:
        ``wrong_secret``, ``code_used``, ``code_expired``, ``enrolment_expired``, ``enrolment_revoked``, ``name_taken``.
        """
        credential, now_s = _secret(), time.time()
        with self._changing() as kept:
            code, enrolment = _good(kept, _sha256(secret), now_s)
            _check_name(kept, asked, enrolment, connected)
            known = kept.hosts.get(asked.name)
            kept.hosts[asked.name] = Member(
                _sha256(credential),
                now_s,
                asked.machine,
                enrolment.id if enrolment is not None else "",
                None if asked.lasts_s is None else now_s + asked.lasts_s,
                known.drained if known is not None else "",
            )
            if code is not None:
                code.used_by = asked.name
        return credential

    def set_drained(self, name: str, reason: str) -> None:
        """Keep that a host gets no work; empty: it gets some. One that has not joined is left alone."""
        with self._changing() as kept:
            if (member := kept.hosts.get(name)) is not None:
                member.drained = reason

    def forget(self, name: str) -> None:
        """Revoke the credential of a host; raises NotFoundError where there is none."""
        with self._changing() as kept:
            if kept.hosts.pop(name, None) is None:
                known = ", ".join(sorted(kept.hosts)) or "none"
                raise NotFoundError(f"no host {name} has joined; there are: {known} (obatchctl hosts)")

    def revoke(self, enrolment: str) -> list[str]:
        """Revoke an enrolment and the credentials of its hosts; their names. Raises NotFoundError."""
        with self._changing() as kept:
            found = next((one for one in kept.enrolments if one.id == enrolment), None)
            if found is None:
                words = f"there is no enrolment {enrolment}; obatchctl hosts shows those that are good"
                raise NotFoundError(words)
            found.revoked_s = found.revoked_s or time.time()
            gone = sorted(name for name, member in kept.hosts.items() if member.enrolment == enrolment)
            for name in gone:
                del kept.hosts[name]
        return gone

    @contextmanager
    def _changing(self) -> Iterator[_Kept]:
        """A copy to change, which counts as soon as it is on disk."""
        with self._lock:
            if self.problem:
                raise ClusterError(self.problem, code="roster_unreadable")
            changed = copy.deepcopy(self._kept)
            _tidy(changed, time.time())
            yield changed
            try:
                self._path.parent.mkdir(mode=0o700, exist_ok=True)
                write_file(self._path, msgspec.json.format(msgspec.json.encode(changed), indent=1))
            except OSError as error:
                words = f"{self._path} cannot be written: {log.reason(error)}. Nothing was changed; make room there"
                raise ClusterError(words, code="roster_not_written") from None
            self._kept = changed


def _secret() -> str:
    return secrets.token_urlsafe(_SECRET_BYTES)


def _sha256(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()


def _tidy(kept: _Kept, now_s: float) -> None:
    """Leave out what nobody comes with any more, and hosts whose allocation is long over."""
    oldest_s = now_s - _REMEMBERED_S
    kept.codes = [code for code in kept.codes if code.until_s > oldest_s]
    kept.enrolments = [one for one in kept.enrolments if (one.revoked_s or one.until_s) > oldest_s]
    kept.hosts = {name: one for name, one in kept.hosts.items() if one.until_s is None or one.until_s > oldest_s}


def _good(kept: _Kept, sha256: str, now_s: float) -> tuple[Code | None, Enrolment | None]:
    """The code or the enrolment with that hash; raises ClusterError where there is none that is good."""
    code = next((one for one in kept.codes if hmac.compare_digest(one.sha256, sha256)), None)
    enrolment = next((one for one in kept.enrolments if hmac.compare_digest(one.sha256, sha256)), None)
    if code is not None and code.used_by:
        words = f"this code has let {code.used_by} join already, and a code is good once; {_NEW_ONE}"
        raise ClusterError(words, code="code_used")
    if code is not None and code.until_s <= now_s:
        words = f"this code was good until {instant(code.until_s)}, ten minutes long; {_NEW_ONE}"
        raise ClusterError(words, code="code_expired")
    if enrolment is not None and enrolment.revoked_s is not None:
        words = f"this enrolment ({enrolment.id}) was revoked at {instant(enrolment.revoked_s)}"
        raise ClusterError(f"{words}; obatchctl hosts enrol makes another one", code="enrolment_revoked")
    if enrolment is not None and enrolment.until_s <= now_s:
        words = f"this enrolment ({enrolment.id}) was good until {instant(enrolment.until_s)}"
        raise ClusterError(f"{words}; obatchctl hosts enrol makes another one", code="enrolment_expired")
    if code is None and enrolment is None:
        raise ClusterError(f"the head knows no such code, or not any more; {_NEW_ONE}", code="wrong_secret")
    return code, enrolment


def _check_name(kept: _Kept, asked: Asked, enrolment: Enrolment | None, connected: Connected) -> None:
    """Raises ClusterError (``name_taken``) where another host has the name, or the roster is full (``limit``)."""
    known, here = kept.hosts.get(asked.name), connected.machine_of(asked.name)
    other = "another host is called {}; join under another name:  --name NAME"
    if here is not None and here != asked.machine:
        raise ClusterError(f"{other.format(asked.name)}. It is connected now", code="name_taken")
    if known is not None and enrolment is not None and known.enrolment != enrolment.id:
        gone = known.until_s is not None and known.until_s <= time.time()
        # The next job on a node: the last one was ended before its limit, and had an enrolment of its own.
        follows = known.enrolment and here is None and known.machine == asked.machine
        if not gone and not follows:
            words = f"{other.format(asked.name)}, or forget that one:  obatchctl hosts forget {asked.name}"
            raise ClusterError(words, code="name_taken")
    if known is None and len(kept.hosts) >= _MOST_HOSTS:
        words = f"{_MOST_HOSTS} hosts have joined; forget some:  obatchctl hosts forget NAME"
        raise ClusterError(words, code="limit")
